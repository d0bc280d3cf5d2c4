"""Every transformation of the convolution, of any order, equals that of lax's own, in float64.

Sums of at most a few hundred products of order 1 are exact to 1e-13 in float64; the tolerances
leave two digits for derivatives of higher order.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from poster_jax.core.convolution import conv_general_dilated

OPTIONS = {
    "plain": {"window_strides": (1, 1), "padding": "SAME"},
    "strided and dilated": {
        "window_strides": (2, 1),
        "padding": [(1, 2), (-1, 1)],
        "lhs_dilation": (1, 2),
        "rhs_dilation": (2, 1),
    },
    "feature groups": {"window_strides": (1, 2), "padding": "SAME", "feature_group_count": 2},
    "batch groups": {"window_strides": (1, 1), "padding": "VALID", "batch_group_count": 2},
}


@pytest.fixture(params=OPTIONS, autouse=True)
def setting(request, x64):
    options = OPTIONS[request.param]
    rng = np.random.default_rng(1)
    channels = 4 // options.get("feature_group_count", 1)
    lhs = jnp.asarray(rng.standard_normal((2, 4, 6, 5)))
    rhs = jnp.asarray(rng.standard_normal((4, channels, 3, 2)))
    ours, theirs = (partial(f, **options) for f in (conv_general_dilated, lax.conv_general_dilated))
    return ours, theirs, lhs, rhs


def agree(transformed, setting, *arguments):
    """The transformation of ours against that of theirs, leaf by leaf."""
    ours, theirs, *_ = setting
    got, want = (jax.jit(transformed(f))(*arguments) for f in (ours, theirs))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-11), got, want)


def energy(conv):
    """A scalar that is not quadratic in either argument, so that no derivative vanishes."""
    return lambda lhs, rhs: jnp.sum(jnp.sin(conv(lhs, rhs)) + jnp.cos(conv(lhs**2, rhs)))


def stacked(x, size, axis=0):
    """`size` different arrays like `x`, along a new axis."""
    return jnp.stack([x * (1 - i / size) + i / size for i in range(size)], axis)


def test_forward_mode(setting):
    _, _, lhs, rhs = setting
    agree(lambda f: lambda *a: jax.jvp(f, a, (jnp.cos(lhs), jnp.sin(rhs))), setting, lhs, rhs)
    agree(lambda f: lambda x: jax.linearize(lambda k: f(lhs, k), rhs)[1](x), setting, rhs + 1)
    agree(lambda f: jax.jacfwd(f, argnums=(0, 1)), setting, lhs[:, :, :3, :3], rhs)


def test_reverse_mode_in_either_argument(setting):
    _, _, lhs, rhs = setting
    agree(lambda f: jax.value_and_grad(energy(f), argnums=(0, 1)), setting, lhs, rhs)
    agree(lambda f: jax.grad(lambda k: energy(f)(lhs, k)), setting, rhs)
    agree(lambda f: jax.grad(lambda x: energy(f)(x, rhs)), setting, lhs)


def test_second_derivatives_forward_over_reverse_and_reverse_over_reverse(setting):
    _, _, lhs, rhs = setting
    directions = (jnp.cos(lhs), jnp.sin(rhs))

    def gradient(f):
        return jax.grad(energy(f), argnums=(0, 1))

    def along(f):
        return lambda *a: sum(
            jnp.vdot(g, d) for g, d in zip(gradient(f)(*a), directions, strict=True)
        )

    agree(lambda f: lambda *a: jax.jvp(gradient(f), a, directions)[1], setting, lhs, rhs)
    agree(lambda f: jax.grad(along(f), argnums=(0, 1)), setting, lhs, rhs)


def test_third_derivatives(setting):
    _, _, lhs, rhs = setting
    agree(
        lambda f: jax.grad(lambda t: jax.grad(jax.grad(lambda s: energy(f)(lhs + s, rhs * s)))(t)),
        setting,
        0.3,
    )


def test_transposes_of_the_linear_maps(setting):
    _, theirs, lhs, rhs = setting
    ct = jnp.sin(theirs(lhs, rhs))
    agree(lambda f: jax.linear_transpose(lambda x: f(x, rhs), lhs), setting, ct)
    agree(lambda f: jax.linear_transpose(lambda k: f(lhs, k), rhs), setting, ct)


@pytest.mark.parametrize(
    "axes", [(0, None), (None, 0), (0, 0), (2, 1), (4, None), (None, 3), (-1, -2)]
)
def test_vmap_of_value_and_gradient_over_either_and_both(axes, setting):
    _, _, lhs, rhs = setting
    batched = [x if a is None else stacked(x, 3, a) for x, a in zip((lhs, rhs), axes, strict=True)]
    agree(lambda f: jax.vmap(f, axes), setting, *batched)
    agree(lambda f: jax.vmap(jax.grad(energy(f), argnums=(0, 1)), axes), setting, *batched)


def test_vmap_of_vmap_and_of_second_derivatives(setting):
    _, _, lhs, rhs = setting
    two, three = stacked(lhs, 2), stacked(rhs, 3)
    agree(lambda f: jax.vmap(jax.vmap(f, (None, 0)), (0, None)), setting, two, three)
    agree(lambda f: jax.vmap(jax.vmap(f, (0, 0)), (None, 0)), setting, two, stacked(three[:2], 2))

    def product(f):
        return lambda lhs, rhs, d: jax.jvp(
            lambda k: jax.grad(energy(f), argnums=1)(lhs, k), (rhs,), (d,)
        )[1]

    agree(lambda f: jax.vmap(product(f), (None, None, 0)), setting, lhs, rhs, three)
    agree(lambda f: jax.vmap(product(f), (None, 0, 0)), setting, lhs, three, three)


def test_a_larger_population(setting):
    _, _, lhs, rhs = setting
    agree(
        lambda f: jax.vmap(jax.grad(energy(f), argnums=(0, 1))),
        setting,
        stacked(lhs, 11),
        stacked(rhs, 11),
    )


def test_jit_scan_and_checkpoint(setting):
    _, _, lhs, rhs = setting

    def descent(f):
        def step(kernel, x):
            return kernel - 0.01 * jax.grad(lambda k: energy(jax.checkpoint(f))(x, k))(kernel), None

        return jax.jit(lambda k, xs: lax.scan(step, k, xs)[0])

    agree(descent, setting, rhs, stacked(lhs, 3))


def test_no_convolution_in_a_loop_is_left_to_the_naive_kernel(setting):
    """XLA's fast kernels take one layout; in a loop nothing brings a convolution into it."""
    ours, theirs, lhs, rhs = setting

    def left_to_the_naive_kernel(conv):
        def step(kernel, x):
            gradients = jax.grad(energy(conv), argnums=(0, 1))(x, kernel)
            return kernel - gradients[1] + gradients[0].mean(), None

        program = jax.jit(lambda k, xs: lax.scan(step, k, xs))
        text = program.lower(rhs, stacked(lhs, 3)).compile().as_text()
        return [
            line
            for line in text.splitlines()
            if " convolution(" in line
            and (
                "dim_labels=b01f_01io->b01f" not in line
                or re.search("rhs_reversal|group_count", line)
            )
        ]

    # Small groups are matmuls here: no convolution at all is right as well.
    assert left_to_the_naive_kernel(ours) == []
    assert left_to_the_naive_kernel(theirs)  # what is looked for is there to be found
