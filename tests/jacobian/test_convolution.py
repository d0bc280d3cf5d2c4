"""Orthogonal convolutions against the explicit matrix of the convolution, built entry by entry."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.jacobian import convolution as conv
from poster_jax.jacobian.weights import soft_orthogonality


def draw(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape) / np.sqrt(np.prod(shape[:-1]))


def explicit(kernel, spatial, strides, padding):
    """J (out pixels x out, in pixels x in): an entry for each product of the convolution."""
    *window, num_in, num_out = kernel.shape
    if padding == "circular":
        counts = [n // s for n, s in zip(spatial, strides, strict=True)]
    else:
        counts = [
            (n + 2 * padding - k) // s + 1 for n, k, s in zip(spatial, window, strides, strict=True)
        ]
    J = np.zeros((*counts, num_out, *spatial, num_in))
    for pixel in np.ndindex(*counts):
        for tap in np.ndindex(*window):
            place = [p * s + a for p, s, a in zip(pixel, strides, tap, strict=True)]
            if padding == "circular":
                place = [i % n for i, n in zip(place, spatial, strict=True)]
            else:
                place = [i - padding for i in place]
                if any(not 0 <= i < n for i, n in zip(place, spatial, strict=True)):
                    continue
            J[(*pixel, slice(None), *place)] += kernel[tap].T
    return J.reshape(np.prod(counts) * num_out, -1)


def distance(J):
    return np.linalg.norm(J @ J.T - np.eye(len(J))) ** 2


@pytest.mark.parametrize(
    ("shape", "spatial", "strides"),
    [
        ((3, 3, 2, 4), (6, 6), (1, 1)),
        ((3, 3, 4, 2), (5, 5), (1, 1)),  # 2k - 1: the smallest that does not wrap
        ((3, 2, 2, 3), (6, 4), (1, 1)),
        ((3, 3, 2, 4), (6, 6), (2, 2)),
        ((5, 2, 2, 3), (12, 6), (3, 2)),
        ((3, 2, 3), (7,), (1,)),
        ((2, 2, 2, 1, 2), (3, 4, 4), (1, 1, 2)),
    ],
)
def test_circular_identity(x64, shape, spatial, strides):
    kernel = draw(shape)
    J = explicit(kernel, spatial, strides, "circular")
    pixels = np.prod(spatial) // np.prod(strides)
    one = conv.convolution_orthogonality(kernel, strides=strides)
    np.testing.assert_allclose(pixels * one, distance(J), rtol=1e-12)
    whole = conv.circular_convolution_penalty(kernel, spatial, strides=strides)
    np.testing.assert_allclose(whole, distance(J), rtol=1e-12)
    other = conv.circular_convolution_penalty(kernel, spatial, strides=strides, side="columns")
    np.testing.assert_allclose(other, distance(J.T), rtol=1e-12)


@pytest.mark.parametrize(
    ("spatial", "strides"), [((4, 4), (1, 1)), ((3, 6), (1, 1)), ((2, 1), (1, 1)), ((4, 2), (2, 1))]
)
def test_small_images_wrap_and_only_the_circular_penalty_knows(x64, spatial, strides):
    kernel = draw((3, 3, 2, 4))
    expected = distance(explicit(kernel, spatial, strides, "circular"))
    found = conv.circular_convolution_penalty(kernel, spatial, strides=strides)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    pixels = np.prod(spatial) // np.prod(strides)
    without = pixels * conv.convolution_orthogonality(kernel, strides=strides)
    assert abs(without / expected - 1) > 1e-2


def test_circular_identity_of_a_flax_layer(x64):
    layer = nn.Conv(3, (3, 3), padding="CIRCULAR", use_bias=False, param_dtype=float)
    kernel = draw((3, 3, 2, 3))
    apply = lambda x: layer.apply({"params": {"kernel": kernel}}, x[None])[0]  # noqa: E731
    J = jax.jacrev(apply)(jnp.zeros((6, 6, 2))).reshape(108, 72)
    found = conv.circular_convolution_penalty(kernel, (6, 6))
    np.testing.assert_allclose(found, distance(np.asarray(J)), rtol=1e-12)


def test_zero_padding_agrees_away_from_the_border(x64):
    kernel = draw((3, 3, 2, 3))
    one = float(conv.convolution_orthogonality(kernel))
    gaps = []
    for size in (6, 12, 18):
        J = explicit(kernel, (size, size), (1, 1), 1)
        gaps.append(abs(distance(J) / (size**2 * one) - 1))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[2] < 0.4 * gaps[0]  # the border's share falls as 1 / size


def test_padding_limits_the_offsets_compared(x64):
    kernel = draw((3, 3, 2, 4))
    expected = 0.0
    for a, b in np.ndindex(3, 3):  # offsets -1, 0, 1 of a possible -2 to 2
        y, x = a - 1, b - 1
        mine = kernel[max(y, 0) : 3 + min(y, 0), max(x, 0) : 3 + min(x, 0)]
        other = kernel[max(-y, 0) : 3 + min(-y, 0), max(-x, 0) : 3 + min(-x, 0)]
        found = np.einsum("abic,abid->cd", mine, other)
        expected += np.sum((found - (y == x == 0) * np.eye(4)) ** 2)
    found = conv.convolution_orthogonality(kernel, padding=1)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found < conv.convolution_orthogonality(kernel)


def test_a_stride_as_long_as_the_kernel_is_soft_orthogonality(x64):
    kernel = draw((2, 2, 3, 4))
    found = conv.convolution_orthogonality(kernel, strides=2)
    np.testing.assert_allclose(found, soft_orthogonality(kernel), rtol=1e-12)


def test_gradient_is_central_differences_of_the_explicit_matrix(x64):
    kernel, step = draw((3, 3, 2, 2)), 1e-6
    found = jax.grad(lambda k: conv.circular_convolution_penalty(k, (4, 6)))(jnp.asarray(kernel))
    one = jax.grad(conv.convolution_orthogonality)(jnp.asarray(kernel))
    for place in [(0, 0, 0, 0), (1, 1, 1, 0), (2, 0, 1, 1)]:
        change = np.zeros(kernel.shape)
        change[place] = step
        for spatial, gradient in (((4, 6), found), ((5, 5), 25 * one)):
            above, below = (
                distance(explicit(k, spatial, (1, 1), "circular"))
                for k in (kernel + change, kernel - change)
            )
            np.testing.assert_allclose(gradient[place], (above - below) / (2 * step), rtol=1e-7)


def test_float32_jit_and_vmap():
    kernels = np.stack([draw((3, 3, 2, 4), seed) for seed in range(3)]).astype(np.float32)
    expected = [distance(explicit(k.astype(float), (4, 6), (1, 1), "circular")) for k in kernels]
    found = jax.jit(jax.vmap(lambda k: conv.circular_convolution_penalty(k, (4, 6))))(kernels)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=3e-6)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda k: conv.convolution_orthogonality(k[0, 0]), ValueError, "at least one spatial axi"),
        (lambda k: conv.convolution_orthogonality(k * np.inf), ValueError, "kernel must be finite"),
        (lambda k: conv.convolution_orthogonality(k > 0), TypeError, "kernel must be a floating"),
        (lambda k: conv.convolution_orthogonality(k, strides=0), ValueError, "strides must be at"),
        (lambda k: conv.convolution_orthogonality(k, strides=1.0), TypeError, "strides must be an"),
        (
            lambda k: conv.convolution_orthogonality(k, strides=(1, 1, 1)),
            ValueError,
            "strides must be one number or 2",
        ),
        (
            lambda k: conv.convolution_orthogonality(k, strides=2, padding=1),
            ValueError,
            "padding must be a multiple of the stride",
        ),
        (
            lambda k: conv.circular_convolution_penalty(k, (4, 5), strides=2),
            ValueError,
            "spatial_shape must be a multiple of the strides",
        ),
        (
            lambda k: conv.circular_convolution_penalty(k, (4,)),
            ValueError,
            "spatial_shape must be one number or 2",
        ),
        (
            lambda k: conv.circular_convolution_penalty(k, (4, 4), side="row"),
            ValueError,
            "side must be one of .* Did you mean 'rows'",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(np.ones((3, 3, 2, 2)))
