"""Products of the library ask for full float32; those of the caller's network do not."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.core.precision import full_precision
from poster_jax.finite_width import nongaussian
from poster_jax.kernels import empirical_ntk_fn, predict, stax


def _precisions(fn, *args):
    """Whether products are full, of the program and its inner programs; a set of True and False."""
    trace = str(jax.make_jaxpr(fn)(*args))
    products = re.findall(r"(?:dot_general|conv_general_dilated)\[(.*?)\n *\] ", trace, re.S)
    return {"HIGHEST" in product for product in products}


def test_the_function_itself_its_gradient_and_what_stands_outside():
    a = jnp.ones((2, 2))
    inside = full_precision(lambda a: (a @ a).sum())
    assert _precisions(inside, a) == _precisions(jax.grad(inside), a) == {True}
    assert _precisions(lambda a: a @ a * inside(a), a) == {False, True}
    np.testing.assert_array_equal(jax.jit(inside)(a), 8)


@pytest.mark.slow
def test_kernels_and_predictions():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4, 4, 3)))
    y = jnp.ones((4, 2))
    _, _, kernel_fn = stax.serial(
        stax.Conv(5, (3, 3), padding="SAME"), stax.Erf(), stax.GlobalAvgPool(), stax.Dense(2)
    )
    assert _precisions(lambda x: kernel_fn(x, x + 1, ("nngp", "ntk")), x) == {True}
    K = kernel_fn(x, None, "ntk")
    mse = predict.gradient_descent_mse(K, y)
    assert _precisions(lambda y: mse(2.0, y, y, K), y) == {True}
    gp = predict.gp_inference(kernel_fn(x, None, ("nngp", "ntk")), y)
    assert _precisions(lambda K: gp("ntk", K, None), K) == {True}


@pytest.mark.slow
def test_finite_widths():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))
    kernel = nongaussian.finite_width_kernel("tanh", x, 16, depth=2, C_W=1.0)
    y = jnp.ones((3, 1))
    fn = lambda x: nongaussian.finite_width_kernel("tanh", x, 16, depth=2, C_W=1.0)  # noqa: E731
    assert _precisions(fn, x) == {True}
    assert _precisions(lambda k: nongaussian.posterior(k, y, noise=0.1), kernel) == {True}


def test_an_empirical_kernel_multiplies_in_full_and_leaves_the_network_alone():
    apply_fn = lambda params, x: jnp.tanh(x @ params)  # noqa: E731
    ntk = empirical_ntk_fn(apply_fn, trace_axes=(), implementation=1)
    assert _precisions(lambda x: ntk(x, None, jnp.ones((3, 2))), jnp.ones((4, 3))) == {False, True}
