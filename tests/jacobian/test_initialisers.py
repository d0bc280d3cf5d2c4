"""Kernels have the singular values and variances that their names promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from poster_jax.core.models import MLP, from_linen
from poster_jax.jacobian.initialisers import delta_orthogonal, gaussian, orthogonal


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (3, 2, 5)], ids=str)
def test_all_singular_values_of_an_orthogonal_kernel_are_sigma(shape, key, x64):
    kernel = np.asarray(orthogonal(1.5)(key, shape, jnp.float64))
    values = np.linalg.svd(kernel.reshape(-1, shape[-1]), compute_uv=False)
    np.testing.assert_allclose(values, 1.5, rtol=1e-13)


def test_orthogonal_matrices_are_uniform(key):
    """Of the Haar measure E Q_ij = 0 and E Q_ij^2 = 1 / n, as QR alone does not give it."""
    draws = np.asarray(jax.vmap(lambda k: orthogonal()(k, (3, 3)))(jax.random.split(key, 4000)))
    assert np.abs(draws.mean(axis=0)).max() < 4 * np.sqrt(1 / 3 / 4000)
    # E Q^4 = 3 / (n (n + 2)) = 1/5: the variance of Q^2 is 1/5 - 1/9
    error = np.sqrt((1 / 5 - 1 / 9) / 4000)
    assert np.abs((draws**2).mean(axis=0) - 1 / 3).max() < 4 * error


def test_a_population_factorises_one_matrix_at_a_time(key):
    """See `core.linalg`; and it has the kernels that each key gives alone."""
    keys = jax.random.split(key, 3)
    make = jax.jit(jax.vmap(lambda k: orthogonal()(k, (5, 4))))
    calls = [line for line in make.lower(keys).as_text().splitlines() if "lapack_" in line]
    assert calls
    assert not any("tensor<3x" in line for line in calls)
    alone = jnp.stack([orthogonal()(k, (5, 4)) for k in keys])
    np.testing.assert_allclose(make(keys), alone, atol=1e-6)
    assert alone.dtype == jnp.float32


@pytest.mark.parametrize("channels", [(2, 5), (4, 4), (5, 2)], ids=str)
def test_a_delta_orthogonal_convolution_is_an_isometry_of_its_smaller_side(channels, key, x64):
    kernel = delta_orthogonal(2.0)(key, (3, 3, *channels), jnp.float64)

    def convolve(x):
        x = x.reshape(1, 4, 4, channels[0])
        names = ("NHWC", "HWIO", "NHWC")
        out = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=names)
        return out.reshape(-1)

    explicit = np.asarray(jax.jacobian(convolve)(jnp.zeros(16 * channels[0])))
    values = np.linalg.svd(explicit, compute_uv=False)
    np.testing.assert_allclose(values, 2, rtol=1e-13)


@pytest.mark.parametrize("window", [(3,), (2, 4), (1, 3, 5)], ids=str)
def test_delta_orthogonal_is_that_of_jax_where_jax_has_one(window, key):
    """The same matrix at the same place, of windows of one, two and three axes, even ones too."""
    shape = (*window, 3, 4)
    expected = jax.nn.initializers.delta_orthogonal(1.5)(key, shape, jnp.float32)
    np.testing.assert_allclose(delta_orthogonal(1.5)(key, shape, jnp.float32), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(400, 300), (5, 5, 20, 200)], ids=str)
def test_gaussian_weights_have_the_variance_over_their_inputs(shape, key):
    kernel = np.asarray(gaussian(1.5)(key, shape, jnp.float32), np.float64)
    inputs = kernel.size // shape[-1]
    error = np.sqrt(2 / kernel.size)  # relative, of a sample variance
    assert abs(kernel.var() * inputs / 1.5**2 - 1) < 4 * error
    assert abs((kernel**4).mean() / kernel.var() ** 2 - 3) < 4 * np.sqrt(96 / kernel.size)


def test_flax_takes_them(key):
    model = from_linen(MLP((6, 6), kernel_init=orthogonal(2.0)))
    params = model.init(key, jnp.ones((1, 6)))
    kernel = np.asarray(params["Dense_0"]["kernel"])
    np.testing.assert_allclose(kernel @ kernel.T, 4 * np.eye(6), atol=1e-5)
    conv = nn.Conv(4, (3, 3), kernel_init=delta_orthogonal())
    kernel = conv.init(key, jnp.ones((1, 5, 5, 2)))["params"]["kernel"]
    np.testing.assert_allclose(kernel[1, 1] @ kernel[1, 1].T, np.eye(2), atol=1e-6)


@pytest.mark.bad_input
@pytest.mark.parametrize("make", [gaussian, orthogonal, delta_orthogonal])
def test_bad_input_is_refused_in_one_sentence(make, key):
    with pytest.raises(ValueError, match="sigma_w must be finite and above 0, got 0"):
        make(0)
    with pytest.raises(TypeError, match="sigma_w must be a real number, got 'wide'"):
        make("wide")
    with pytest.raises(
        ValueError, match=r"shape must be \(window..., inputs, outputs\), got \(3, 3"
    ):
        delta_orthogonal()(key, (3, 3))
    with pytest.raises(ValueError, match=r"shape must be \(inputs..., outputs\), got \(3,\)"):
        orthogonal()(key, (3,))
