"""`with_fast_convolutions`: the same function, with none of JAX's convolutions left in it."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from poster_jax.core.convolution import with_fast_convolutions


def conv(x, kernel):
    return lax.conv(x, kernel, (1, 1), "SAME")


def in_scan(x, kernel):
    return lax.scan(lambda x, _: (jnp.tanh(conv(x, kernel)), x.sum()), x, None, length=3)


def in_while(x, kernel):
    return lax.while_loop(
        lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.tanh(conv(s[1], kernel))), (0, x)
    )


def in_cond(x, kernel):
    return lax.cond(x.sum() > 0, lambda x: conv(x, kernel), lambda x: conv(x, 2 * kernel), x)


def in_jit_and_checkpoint(x, kernel):
    return jax.checkpoint(jax.jit(lambda x: jax.nn.relu(conv(x, kernel))))(x)


def in_a_dictionary(x, kernel):
    return {"plain": x, "convolved": (conv(x, kernel), 3.0)}


FUNCTIONS = [conv, in_scan, in_while, in_cond, in_jit_and_checkpoint, in_a_dictionary]


def arguments():
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(s)) for s in ((2, 3, 5, 5), (3, 3, 3, 3))]


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from primitives(inner)


def assert_close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), got, want)


@pytest.mark.parametrize("fn", FUNCTIONS)
def test_values_are_the_same_and_no_convolution_of_jax_is_left(fn, x64):
    fast, args = with_fast_convolutions(fn), arguments()
    assert_close(fast(*args), fn(*args))
    assert_close(jax.jit(fast)(*args), fn(*args))
    found = set(primitives(jax.make_jaxpr(fast)(*args).jaxpr))
    assert "poster_convolution" in found
    assert "conv_general_dilated" not in found


@pytest.mark.parametrize("fn", [f for f in FUNCTIONS if f is not in_while])
def test_derivatives_and_vmap_are_the_same(fn, x64):
    x, kernel = arguments()

    def total(fn):
        return lambda kernel: sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(fn(x, kernel)))

    fast = with_fast_convolutions(fn)
    assert_close(jax.grad(total(fast))(kernel), jax.grad(total(fn))(kernel))
    products = [jax.jvp(jax.grad(total(f)), (kernel,), (kernel + 1,))[1] for f in (fast, fn)]
    assert_close(*products)
    kernels = jnp.stack([kernel, 2 * kernel])
    assert_close(jax.vmap(fast, (None, 0))(x, kernels), jax.vmap(fn, (None, 0))(x, kernels))


def test_a_function_with_a_derivative_rule_of_its_own_keeps_it(x64):
    @jax.custom_jvp
    def fn(x, kernel):
        return conv(x, kernel)

    fn.defjvp(lambda primals, tangents: (fn(*primals), 7 * conv(tangents[0], primals[1])))
    x, kernel = arguments()

    def total(f):
        return lambda x: f(x, kernel).sum()

    gradients = [jax.grad(total(f))(x) for f in (with_fast_convolutions(fn), fn)]
    assert_close(*gradients)


def test_keyword_arguments_and_keys_pass_through(key, x64):
    def noisy(x, *, kernel, key):
        return conv(x + jax.random.normal(key, x.shape), kernel)

    x, kernel = arguments()
    got = with_fast_convolutions(noisy)(x, kernel=kernel, key=key)
    assert_close(got, noisy(x, kernel=kernel, key=key))


def test_linen_equinox_and_haiku_models_gain(key):
    x = jax.random.normal(key, (2, 8, 8, 3))
    linen = nn.Sequential([nn.Conv(4, (3, 3)), nn.BatchNorm(use_running_average=True)])
    linen_params = linen.init(key, x)
    transformed = hk.without_apply_rng(hk.transform(lambda x: hk.Conv2D(4, 3)(x)))
    haiku_params = transformed.init(key, x)
    arrays, static = eqx.partition(eqx.nn.Conv2d(8, 4, 3, key=key), eqx.is_array)
    equinox_apply = lambda params, x: jax.vmap(eqx.combine(params, static))(x)  # noqa: E731
    for apply_fn, params in [
        (linen.apply, linen_params),
        (transformed.apply, haiku_params),
        (equinox_apply, arrays),
    ]:
        fast = with_fast_convolutions(apply_fn)
        np.testing.assert_allclose(fast(params, x), apply_fn(params, x), atol=1e-5)
        assert "poster_convolution" in set(primitives(jax.make_jaxpr(fast)(params, x).jaxpr))


@pytest.mark.bad_input
def test_something_that_is_no_function_is_refused():
    with pytest.raises(TypeError, match="fn must be a function"):
        with_fast_convolutions(3)
