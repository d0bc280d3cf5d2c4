"""RMSNorm, gated units and grouped convolution against finite networks and exact cases.

Monte Carlo: the mean over many wide networks, whose standard error is measured beside it, must lie
within 4.5 of it (one of some 50 entries would exceed that once in 3000 runs; the seed is fixed).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.kernels import Kernel, stax

pytestmark = pytest.mark.slow  # in favour of a quick `make test`

WIDTH, NETWORKS = 256, 256


def finite_kernels(net, x, key):
    """NNGP and NTK of `NETWORKS` finite networks with scalar outputs: (networks, n, n) each."""
    init_fn, apply_fn, _ = net

    def one(key):
        _, params = init_fn(key, x.shape)

        def output(params):
            return apply_fn(params, x)[:, 0]

        jacobian = jax.tree.leaves(jax.jacrev(output)(params))
        flat = jnp.concatenate([j.reshape(len(x), -1) for j in jacobian], 1)
        out = output(params)
        return jnp.outer(out, out), flat @ flat.T

    return jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=32))(
        jax.random.split(key, NETWORKS)
    )


def within_errors(samples, want, bias):
    mean, error = np.mean(samples, 0), np.std(samples, 0) / np.sqrt(len(samples))
    return np.all(np.abs(mean - want) <= 4.5 * error + bias * np.abs(want).max())


WIDE = stax.Dense(WIDTH, 1.3, 0.2)
BLOCKS = {
    "RMSNorm": (stax.Relu(), stax.RMSNorm(eps=0.01)),
    "SwiGLU": (stax.Erf(), stax.SwiGLU(WIDTH, 1.2, 0.1)),
    "GEGLU": (stax.Erf(), stax.GEGLU(WIDTH, 1.2, 0.1)),
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.slow
def test_finite_networks_have_the_kernel_in_the_mean(name, key):
    """Besides sampling, the means of finite networks are off by some 1/width, at most 3 %."""
    net = stax.serial(WIDE, *BLOCKS[name], stax.Dense(1, 1.1, 0.3))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)
    for samples, want in zip(
        finite_kernels(net, x, key), net[2](x, None, ("nngp", "ntk")), strict=True
    ):
        assert within_errors(samples, want, 0.03)
    assert not within_errors(samples, 1.1 * want, 0.03)  # the test can fail; ntk is the last


def compiled(*layers):
    return jax.jit(stax.serial(*layers)[2])


def test_rms_norm_equals_layer_norm_of_gaussians(x64):
    x = np.random.default_rng(0).normal(size=(3, 4, 2))
    for axis in (-1, (1, 2), (0, 1, 2)):
        rms, layer = (
            compiled(stax.Dense(1, 1.2, 0.1), norm(axis, 0.1), stax.Relu())(x)
            for norm in (stax.RMSNorm, stax.LayerNorm)
        )
        np.testing.assert_allclose(rms.ntk, layer.ntk, rtol=1e-14)
    after_relu = compiled(stax.Dense(1), stax.Relu(), stax.RMSNorm())(x)
    np.testing.assert_allclose(np.diagonal(after_relu.cov1, axis1=1, axis2=2), 1, rtol=1e-9)


def test_rms_norm_masks_like_the_shorter_input(x64):
    net = stax.serial(stax.Dense(1), stax.Relu(), stax.RMSNorm((1, 2)), stax.GlobalAvgPool())
    short = np.random.default_rng(0).normal(size=(2, 3, 2))
    padded = np.concatenate([short, np.full((2, 2, 2), 9.0)], 1)
    got = net[2](padded, None, ("nngp", "ntk"), mask_constant=9.0)
    for k, want in zip(got, net[2](short, None, ("nngp", "ntk")), strict=True):
        np.testing.assert_allclose(k, want, rtol=1e-12)


@pytest.mark.parametrize(("variance", "error"), [(1.0, 1e-8), (4.0, 1e-4)])
def test_silu_dual_has_the_stated_error(variance, error, x64):
    """Against a fine trapezoid sum, which converges exponentially for analytic functions."""
    cosines = np.array([[1.0, -1.0, 0.6, 0.0]])
    kernel = Kernel(
        nngp=variance * cosines, ntk=jnp.ones((1, 4)), cov1=variance * np.ones(1),
        cov2=variance * np.ones(4), x1_is_x2=False, is_gaussian=True, is_reversed=False,
        is_input=False, diagonal_batch=True, diagonal_spatial=False, shape1=(1, 1), shape2=(4, 1),
        batch_axis=0, channel_axis=1,
    )  # fmt: skip
    out = stax.Silu()[2](kernel)
    h = 0.02
    x = np.arange(-9, 9, h)
    weights = h * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)

    def silu(x):
        return x / (1 + np.exp(-x))

    def slope(x):
        return (1 + np.exp(-x) * (1 + x)) / (1 + np.exp(-x)) ** 2

    for f, got in ((silu, out.nngp), (slope, out.ntk)):
        for c, value in zip(cosines[0], np.asarray(got)[0], strict=True):
            r = np.sqrt(variance)
            w = f(r * (c * x[:, None] + np.sqrt(1 - c**2) * x))
            want = (weights * f(r * x)) @ w @ weights
            assert abs(value - want) < error


def test_gated_unit_is_the_product_of_its_branches(x64):
    x = np.random.default_rng(0).normal(size=(3, 4))
    dense = stax.Dense(1, 1.2, 0.3)
    k = compiled(stax.GEGLU(1, 1.2, 0.3))(x)
    gate, value = compiled(dense, stax.Gelu())(x), compiled(dense)(x)
    np.testing.assert_allclose(k.nngp, gate.nngp * value.nngp, rtol=1e-14)
    np.testing.assert_allclose(k.ntk, gate.ntk * value.nngp + gate.nngp * value.ntk, rtol=1e-14)
    assert not k.is_gaussian


def grouped(groups, out=4):
    return stax.GroupedConv(out, groups, (3,), (2,), "SAME", 1.3, 0.2)


def test_grouped_convolution_behind_a_wide_layer_is_a_convolution(x64):
    x = np.random.default_rng(0).normal(size=(2, 5, 4))
    first = stax.serial(stax.Conv(4, (3,), b_std=0.3), stax.Relu())
    k = compiled(first, grouped(2), stax.Relu())(x)
    want = compiled(first, stax.Conv(4, (3,), (2,), "SAME", 1.3, 0.2), stax.Relu())(x)
    np.testing.assert_allclose(k.ntk, want.ntk, rtol=1e-14)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_finite_grouped_convolution_sees_its_group_only(groups, key):
    x = jax.random.normal(key, (2, 5, 8))
    init_fn, apply_fn, _ = grouped(groups, 8)
    shape, params = init_fn(key, x.shape)
    assert shape == (2, 3, 8)
    W, b = params
    assert W.shape == (3, 8 // groups, 8)
    plain = stax.Conv(8 // groups, (3,), (2,), "SAME", 1.3, 0.2)[1]
    parts = [
        plain((w, bias), part)
        for w, bias, part in zip(*(jnp.split(a, groups, -1) for a in (W, b, x)), strict=True)
    ]
    want = jnp.concatenate(parts, -1)
    np.testing.assert_allclose(apply_fn(params, x), want, rtol=1e-5, atol=1e-6)


def test_grouped_convolution_of_inputs_has_the_mean_kernel_but_no_gaussian_outputs(key):
    """Each group has the kernel of its own channels; Dense mixes them to the mean of these."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4)), jnp.float32)
    net = stax.serial(
        stax.GroupedConv(WIDTH, 2, (3,), None, "SAME", 1.3, 0.2), stax.Flatten(), stax.Dense(1)
    )
    for samples, want in zip(
        finite_kernels(net, x, key), net[2](x, None, ("nngp", "ntk")), strict=True
    ):
        assert within_errors(samples, want, 1e-3)
    with pytest.raises(ValueError, match="must be Gaussian"):
        stax.serial(grouped(2), stax.Relu())[2](x, None)
    assert compiled(grouped(1), stax.Relu())(x).nngp is not None
