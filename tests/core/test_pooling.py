"""`max_pool` equals Flax's, and so does its gradient where a window has no equal elements."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from poster_jax.core.pooling import max_pool

CASES = {
    "tiles": ((2, 6, 4, 3), (2, 2), (2, 2), "VALID"),
    "tiles, rest left out": ((2, 7, 5, 3), (2, 3), (2, 3), "VALID"),
    "tiles, 1-D": ((2, 7, 3), (3,), (3,), "VALID"),
    "tiles, 3-D": ((2, 4, 6, 5, 3), (2, 3, 2), (2, 3, 2), "VALID"),
    "tiles, no batch": ((6, 4, 3), (2, 2), (2, 2), "VALID"),
    "tiles, two batch axes": ((2, 3, 6, 4, 3), (2, 2), (2, 2), "VALID"),
    "overlapping": ((2, 7, 7, 3), (3, 3), (2, 2), "VALID"),
    "no strides": ((2, 5, 5, 3), (2, 2), None, "VALID"),
    "same": ((2, 5, 5, 3), (2, 2), (2, 2), "SAME"),
    "pairs": ((2, 5, 5, 3), (2, 2), (2, 2), ((1, 0), (0, 1))),
}


@pytest.mark.parametrize("name", CASES)
def test_value_gradient_and_second_derivative_equal_flaxs(name, key, x64):
    shape, *options = CASES[name]
    # A permutation: all elements differ, so that the gradient is defined.
    x = jax.random.permutation(key, jnp.arange(float(np.prod(shape)))).reshape(shape)

    def total(pool):
        return lambda x: jnp.sum(pool(x, *options) ** 3)

    def product(pool):
        return jax.jvp(jax.grad(total(pool)), (x,), (jnp.sin(x),))[1]

    np.testing.assert_array_equal(max_pool(x, *options), nn.max_pool(x, *options))
    gradients = [jax.grad(total(pool))(x) for pool in (max_pool, nn.max_pool)]
    np.testing.assert_array_equal(*gradients)
    np.testing.assert_allclose(product(max_pool), product(nn.max_pool), rtol=1e-14)


def test_equal_elements_share_the_gradient():
    gradient = jax.grad(lambda x: max_pool(x, (2, 2), (2, 2)).sum())(jnp.zeros((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient, np.full((1, 2, 2, 1), 0.25))


def test_jit_and_vmap(key):
    x = jax.random.normal(key, (5, 2, 4, 4, 3))
    pool = lambda x: max_pool(x, (2, 2), (2, 2))  # noqa: E731
    want = np.asarray(x).reshape(5, 2, 2, 2, 2, 2, 3).max((3, 5))
    np.testing.assert_array_equal(jax.jit(jax.vmap(pool))(x), want)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("shape", "window", "strides", "message"),
    [
        ((4, 3), (2, 2), (2, 2), r"inputs must have 2 spatial axes.*\(4, 3\)"),
        ((2, 4, 4, 3), (2, 2), (2,), r"strides must have 2 entries.*\(2,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(shape, window, strides, message):
    with pytest.raises(ValueError, match=message):
        max_pool(jnp.ones(shape), window, strides)
