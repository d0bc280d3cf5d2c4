"""Gradients of kernels in inputs and hyper-parameters: finite everywhere, and right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.kernels import stax

PHIS = {
    "relu": stax.Relu(),
    "abs": stax.Abs(),
    "sign": stax.Sign(),
    "rectified2": stax.RectifiedMonomial(2),
    "erf": stax.Erf(),
    "gelu": stax.Gelu(),
    "gabor": stax.Gabor(),
    "gaussian": stax.Gaussian(),
    "rbf": stax.Rbf(),
    "exp_normalized": stax.ExpNormalized(),
    "polynomial": stax.Polynomial([0.2, 0.5, -0.3]),
    "numerical": stax.ElementwiseNumerical(jnp.tanh, 9),
    "layer norm": stax.serial(stax.LayerNorm(), stax.Relu()),
}
DEGENERATE = np.array([[1, 0, 2], [1, 0, 2], [-1, 0, -2], [2, 0, 4], [0, 0, 0], [0, 3, 0]], float)


def entries(phi, W_std, b_std, x1, x2):
    net = stax.serial(stax.Dense(1, W_std, b_std), phi, stax.Dense(1, W_std, b_std))
    k = net[2](x1, x2, ("nngp", "ntk"))
    return jnp.stack([jnp.sum(jnp.sin(k.nngp)), jnp.sum(jnp.sin(k.ntk))])


QUICK = ("relu", "abs", "rectified2", "erf", "gelu", "numerical", "layer norm")
NAMES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in PHIS]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("second", [False, True], ids=["one batch", "x1 = x2"])
def test_gradients_are_finite_at_equal_opposite_and_zero_inputs(name, second):
    def total(W_std, b_std, x):
        return entries(PHIS[name], W_std, b_std, x, x if second else None)

    x = jnp.asarray(DEGENERATE, jnp.float32)
    fn = jax.jit(jax.jacrev(total, argnums=(0, 1, 2)))
    for b_std in (0.3, 0.0):
        for gradient in fn(jnp.float32(1.3), jnp.float32(b_std), x):
            assert jnp.isfinite(gradient).all()


def slopes(fn):
    """The derivative of `fn` at 0 and its five-point difference, from one program for both."""
    h = 1e-3  # an error of h^4 and of 1e-16 / h
    program = jax.jit(lambda t: (fn(t), jax.jacfwd(fn)(t)))
    up, down, up2, down2 = (np.asarray(program(t)[0]) for t in (h, -h, 2 * h, -2 * h))
    return program(0.0)[1], (8 * (up - down) - (up2 - down2)) / (12 * h)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_finite_differences(name, x64):
    rng = np.random.default_rng(0)
    x1, x2 = rng.normal(size=(3, 4)), rng.normal(size=(2, 4))
    args = (1.3, 0.4, x1, x2)
    direction = jax.tree.map(lambda a: np.asarray(rng.normal(size=np.shape(a))), args)

    def along(h):
        moved = [a + h * d for a, d in zip(args, direction, strict=True)]
        return entries(PHIS[name], *moved)

    np.testing.assert_allclose(*slopes(along), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_are_those_of_the_gradient(name, x64):
    rng = np.random.default_rng(1)
    x1, x2, d1, d2 = rng.normal(size=(4, 3, 4))

    def slope(t):
        return jax.jacfwd(
            lambda t: entries(PHIS[name], 1.3 + t, 0.4 - t, x1 + t * d1, x2 + t * d2)
        )(t)

    np.testing.assert_allclose(*slopes(slope), rtol=1e-7, atol=1e-8)


def test_gradient_of_the_nngp_at_equal_inputs_is_the_limit(x64):
    """d/dx of k(x, y) at y = x, for ReLU: half the kernel's slope, without a 0/0 of angles."""
    net = stax.serial(stax.Dense(1), stax.Relu())
    x = jnp.array([[1.0, -2.0, 0.5]])
    fn = jax.jit(jax.grad(lambda x, y: net[2](x, y, "nngp")[0, 0]))
    near = fn(x, x + 1e-9 * jnp.array([[1.0, 1.0, -1.0]]))
    np.testing.assert_allclose(fn(x, x), near, rtol=1e-7)
    np.testing.assert_allclose(fn(x, x), x / 6, rtol=1e-14)


def test_gradients_through_convolutions_and_pooling_are_finite():
    """The user's issue 88, on images of which two are equal and one is zero."""
    conv = stax.Conv(1, (3,), padding="SAME", b_std=0.1)
    net = stax.serial(
        conv, stax.Relu(), stax.AvgPool((2,), (2,)), conv, stax.Relu(), stax.GlobalAvgPool()
    )
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 2)), jnp.float32)
    x = x.at[1].set(x[0]).at[2].set(0)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(net[2](x, None, "ntk"))))(x)
    assert jnp.isfinite(gradient).all()


def test_hyper_parameters_are_learned_by_marginal_likelihood(x64):
    """W_std and b_std are traced arrays: the likelihood's gradient leads uphill."""
    x = np.random.default_rng(0).normal(size=(8, 3))
    y = jnp.asarray(np.sin(x[:, 0]))

    @jax.jit
    def loss(log_stds):
        W_std, b_std = jnp.exp(log_stds)
        net = stax.serial(stax.Dense(1, W_std, b_std), stax.Erf(), stax.Dense(1, W_std, b_std))
        k = net[2](x, None, "nngp") + 1e-2 * jnp.eye(8)
        return y @ jnp.linalg.solve(k, y) / 2 + jnp.linalg.slogdet(k)[1] / 2

    start = jnp.zeros(2)
    gradient = jax.grad(loss)(start)
    assert loss(start - 1e-3 * gradient) < loss(start)
