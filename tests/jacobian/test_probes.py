"""Sampled penalties: unbiased, of the variance that the formulas say, one a seed and a device."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.core.devices import data_mesh, replicate, shard_batch
from poster_jax.jacobian import (
    dense_orthogonality_penalty,
    norm_preservation_penalty,
    orthogonality_penalty,
)
from poster_jax.jacobian._penalty import draw_probes
from tests.jacobian.brute_force import (
    ACTIVATIONS,
    batch_norm,
    dense,
    draw,
    linear,
    norm_preservation,
    numpy_penalty,
    squares,
)


def variances(M):
    """Of one probe, section by section of the method card: orthogonality's, bilinear's."""
    m = len(M)
    square, fourth = (M**2).sum(), np.trace(M @ M @ M @ M)
    M2 = M @ M
    return {
        ("hutchinson", "gaussian"): 2 * fourth,
        ("hutchinson", "rademacher"): 2 * ((M2**2).sum() - (np.diag(M2) ** 2).sum()),
        ("hutchinson", "sphere"): 2 * m / (m + 2) * (fourth - square**2 / m),
        ("bilinear", "gaussian"): 2 * square**2 + 6 * fourth,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "distribution"),
    [(m, d) for m in ("hutchinson", "bilinear") for d in ("gaussian", "rademacher", "sphere")],
)
def test_probes_are_unbiased_with_the_variance_of_the_formula(method, distribution, x64):
    W, _, x = draw(4, 6, examples=1, seed=3)
    # The square of a bilinear form has heavy tails: its sample variance needs more of them.
    num = 200_000 if method == "hutchinson" else 3_000_000
    ask = partial(orthogonality_penalty, linear, method=method, distribution=distribution)
    found = jax.jit(partial(ask, num_probes=num))(W, x, jax.random.key(1))
    M = W @ W.T - np.eye(4)
    assert abs(float(found.value) - (M**2).sum()) < 4 * float(found.standard_error)
    expected = variances(M).get((method, distribution))
    if expected is not None:
        np.testing.assert_allclose(num * float(found.standard_error) ** 2, expected, rtol=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ["gaussian", "sphere"])
@pytest.mark.parametrize("side", ["rows", "columns"])
def test_norm_preservation_probes_are_unbiased(distribution, side, x64):
    W, b, x = draw(4, 6, examples=2, seed=4)
    ask = partial(norm_preservation_penalty, dense(jnp.tanh), side=side, num_probes=200_000)
    found = jax.jit(partial(ask, distribution=distribution))((W, b), x, jax.random.key(2))
    J = (1 - np.tanh(x @ W.T + b) ** 2)[:, :, None] * W
    exact = [norm_preservation(j if side == "rows" else j.T, 4 if side == "rows" else 6) for j in J]
    assert abs(float(found.value) - np.mean(exact)) < 4 * float(found.standard_error)
    assert float(found.standard_error) < 0.02 * np.mean(exact)


def test_probes_have_identity_covariance_and_the_sphere_its_radius(key, x64):
    like = jnp.zeros((2, 3, 2))
    for distribution in ("gaussian", "rademacher", "sphere"):
        v = np.asarray(draw_probes(key, 10_000, like, distribution)).reshape(10_000, -1)
        # entries of v v' have variance at most 2
        np.testing.assert_allclose(v.T @ v / len(v), np.eye(12), atol=5 * (2 / len(v)) ** 0.5)
    v = np.asarray(draw_probes(key, 5, like, "sphere"))
    np.testing.assert_allclose((v**2).sum(axis=(2, 3)), 6, rtol=1e-14)
    v = np.asarray(draw_probes(key, 5, like, "sphere", coupled=True))
    np.testing.assert_allclose((v**2).sum(axis=(1, 2, 3)), 12, rtol=1e-14)
    assert (v**2).sum(axis=(2, 3)).std() > 0.1


@pytest.mark.slow
def test_the_standard_error_is_the_spread_over_keys_and_the_gradient_is_unbiased(x64):
    W, b, x = draw(4, 5, examples=5, seed=5)

    @jax.jit
    def repeat(keys):
        def ask(W, key):
            found = orthogonality_penalty(dense(jnp.tanh), (W, b), x, key, num_probes=4)
            return found.value, found.standard_error

        return jax.vmap(lambda k: jax.value_and_grad(ask, has_aux=True)(W, k))(keys)

    (values, errors), gradients = repeat(jax.random.split(jax.random.key(3), 4000))
    # 4,000 draws know a standard deviation to about 2 %
    np.testing.assert_allclose((np.asarray(errors) ** 2).mean(), np.var(values, ddof=1), rtol=0.12)

    def exact(W):
        return orthogonality_penalty(dense(jnp.tanh), (W, b), x, method="exact").value

    value, gradient = jax.jit(jax.value_and_grad(exact))(W)
    for draws, expected in ((values, value), (gradients, gradient)):
        z = (np.mean(draws, axis=0) - expected) / (np.std(draws, axis=0, ddof=1) / 4000**0.5)
        assert np.abs(z).max() < 4.5


def test_one_probe_has_no_known_error_and_no_nan_in_its_gradient(key, x64):
    W, _, x = draw(3, 3)
    Q, _ = np.linalg.qr(W)

    @jax.jit
    @jax.value_and_grad
    def everything(W):
        found = [orthogonality_penalty(linear, W, x, key, num_probes=num) for num in (1, 2)]
        return sum(jnp.where(jnp.isinf(a), 0, a).sum() for a in jax.tree.leaves(found))

    found, gradient = everything(jnp.asarray(Q))
    assert np.isfinite(found)
    assert np.isfinite(gradient).all()
    one = jax.jit(partial(orthogonality_penalty, linear))(W, x, key)
    assert np.isinf(one.standard_error)


def test_a_whole_batch_vector_is_the_sum_over_uncoupled_examples(key, x64):
    W, b, x = draw(3, 4, seed=10)
    several = ({}, {"distribution": "gaussian"}, {"side": "columns"}, {"method": "exact"})

    @jax.jit
    def ask(W):
        ask = partial(orthogonality_penalty, dense(jnp.tanh), (W, b), x, key, num_probes=3)
        return [
            [ask(coupled=c, **options).per_example for c in (False, True)] for options in several
        ]

    for alone, whole in ask(W):
        np.testing.assert_allclose(alone, whole, rtol=1e-12)


@pytest.mark.slow
def test_coupled_examples_have_the_jacobian_of_the_whole_batch(x64):
    W, _, x = draw(3, 4, examples=4, seed=11)
    J = np.asarray(jax.jacrev(partial(batch_norm, W))(x)).reshape(12, 16)
    assert np.abs(J.reshape(4, 3, 4, 4)[0, :, 1]).max() > 0.01  # examples do depend on each other
    M = J @ J.T - np.eye(12)
    shares = (M**2).sum(axis=1).reshape(4, 3).sum(axis=1)

    @jax.jit
    def ask(key):
        exact = partial(orthogonality_penalty, batch_norm, W, x, coupled=True, method="exact")
        norm = partial(norm_preservation_penalty, batch_norm, W, x, coupled=True)
        sampled = [
            orthogonality_penalty(batch_norm, W, x, key, coupled=True, method=m, num_probes=8_000)
            for m in ("hutchinson", "bilinear")
        ]
        probed = [norm(key, num_probes=8_000, distribution=d) for d in ("gaussian", "sphere")]
        return exact(), exact(side="columns"), norm(method="exact"), sampled, probed

    exact, columns, norm, sampled, probed = ask(jax.random.key(4))
    np.testing.assert_allclose(exact.per_example, shares, rtol=1e-12)
    np.testing.assert_allclose(columns.value, squares(J.T, 16)[0] / 4, rtol=1e-12)
    np.testing.assert_allclose(norm.value, norm_preservation(J, 12) / 4, rtol=1e-12)
    for found in sampled:
        assert abs(float(found.value) - (M**2).sum() / 4) < 4 * float(found.standard_error)
        assert float(found.standard_error) < 0.1 * float(found.value)
    for found in probed:
        assert abs(float(found.value) - float(norm.value)) < 4 * float(found.standard_error)
    np.testing.assert_allclose(sampled[0].per_example, shares, rtol=0.15)


def test_a_layer_with_a_vjp_alone_has_the_bilinear_estimator(key, x64):
    @jax.custom_vjp
    def layer(W, x):
        return jnp.tanh(x @ W.T)

    layer.defvjp(
        lambda W, x: (layer(W, x), (W, x)),
        lambda saved, g: (None, (g * (1 - jnp.tanh(saved[1] @ saved[0].T) ** 2)) @ saved[0]),
    )
    W, _, x = draw(3, 4, seed=13)
    plain = lambda W, x: jnp.tanh(x @ W.T)  # noqa: E731

    def ask(f, penalty, **options):
        jitted = jax.jit(partial(penalty, f, num_probes=5, **options))
        return jitted(W, x, key).per_example

    for penalty, options in (
        (orthogonality_penalty, {"method": "bilinear"}),
        (norm_preservation_penalty, {}),
    ):
        np.testing.assert_allclose(
            ask(layer, penalty, **options), ask(plain, penalty, **options), rtol=1e-12
        )


def test_vmap_over_seeds_is_the_loop_in_float32_too():
    W, b, x = (a.astype(np.float32) for a in draw(4, 5, seed=14))
    keys = jax.random.split(jax.random.key(5), 3)
    ws = jnp.stack([W, 1.5 * W, -W])

    def ask(W, key):
        R = orthogonality_penalty(dense(jax.nn.relu), (W, b), x, key, num_probes=3)
        N = norm_preservation_penalty(dense(jax.nn.relu), (W, b), x, key, num_probes=3)
        return R, N

    together = jax.jit(jax.vmap(ask))(ws, keys)
    one = jax.jit(ask)
    for i in range(3):
        for a, e in zip(
            jax.tree.leaves(together), jax.tree.leaves(one(ws[i], keys[i])), strict=True
        ):
            np.testing.assert_allclose(a[i], e, rtol=1e-6)
            assert a.dtype == jnp.float32
    exact = jax.jit(partial(orthogonality_penalty, dense(jax.nn.relu), method="exact"))((W, b), x)
    expected = numpy_penalty(*(a.astype(np.float64) for a in (W, b, x)), ACTIVATIONS["relu"][1])
    np.testing.assert_allclose(exact.value, expected, rtol=1e-5)


def test_eight_devices_equal_one(key, x64):
    W, b, x = draw(4, 5, examples=16, seed=15)
    mesh = data_mesh(8)

    @jax.jit
    def ask(W, b, x, key):
        derivative = 1 - jnp.tanh(x @ W.T + b) ** 2
        sampled = orthogonality_penalty(dense(jnp.tanh), (W, b), x, key, num_probes=2)
        return sampled, dense_orthogonality_penalty(W, derivative)

    one = ask(W, b, x, key)
    eight = ask(*replicate((W, b), mesh), shard_batch(x, mesh), replicate(key, mesh))
    assert len(eight[0].per_example.sharding.device_set) == 8
    for a, e in zip(jax.tree.leaves(eight), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-12)
