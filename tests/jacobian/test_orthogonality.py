"""R and N against explicit Jacobians, numpy's derivatives, and the variances of their probes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from poster_jax.core.devices import data_mesh, replicate, shard_batch
from poster_jax.jacobian import (
    dense_norm_preservation_penalty,
    dense_orthogonality_penalty,
    norm_preservation_penalty,
    orthogonality_penalty,
)
from poster_jax.jacobian._layer import linearise
from poster_jax.jacobian._penalty import draw_probes

GELU_SLOPE = lambda z: (  # noqa: E731
    0.5 * (1 + scipy.special.erf(z / 2**0.5)) + z * np.exp(-(z**2) / 2) / (2 * np.pi) ** 0.5
)
ACTIVATIONS = {
    "tanh": (jnp.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "relu": (jax.nn.relu, lambda z: (z > 0) * 1.0),
    "gelu": (partial(jax.nn.gelu, approximate=False), GELU_SLOPE),
}


def draw(m, n, examples=6, seed=0):
    """W (m, n), b, x, with pre-activations away from the kink of ReLU."""
    rng = np.random.default_rng(seed)
    W, b = rng.normal(size=(m, n)) / n**0.5, 0.3 * rng.normal(size=m)
    x = rng.normal(size=(200, n))
    x = x[np.abs(x @ W.T + b).min(axis=1) > 0.02][:examples]
    return W, b, x


def dense(phi):
    return lambda params, x: phi(x @ params[0].T + params[1])


def linear(W, x):
    return x @ W.T


def batch_norm(W, x):
    z = x @ W.T
    return jnp.tanh((z - z.mean(axis=0)) / jnp.sqrt(z.var(axis=0) + 1e-3))


def squares(J, dim):
    """||J J' - I||^2 for J (dim, n), and the trace of it."""
    M = J @ J.T - np.eye(dim)
    return (M**2).sum(), np.trace(M)


def norm_preservation(J, dim):
    squared, trace = squares(J, dim)
    return (trace**2 + 2 * squared) / (dim + 2)


def numpy_penalty(W, b, x, slope):
    """The mean of R over the batch, from W and phi' alone."""
    D = slope(x @ W.T + b)
    return np.mean([squares(d[:, None] * W, len(W))[0] for d in D])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_closed_form_is_that_of_the_explicit_jacobian(name, x64):
    phi, slope = ACTIVATIONS[name]
    W, b, x = draw(5, 7)

    @jax.jit
    def ask(W, b, x):
        derivative = jax.vmap(jax.vmap(jax.grad(phi)))(x @ W.T + b)
        found = [f(W, derivative, side=s) for f in dense_penalties for s in ("rows", "columns")]
        sampled = [
            f(dense(phi), (W, b), x, method="exact", side=s)
            for f in (orthogonality_penalty, norm_preservation_penalty)
            for s in ("rows", "columns")
        ]
        J = jax.vmap(jax.jacrev(lambda one: dense(phi)((W, b), one[None])[0]))(x)
        return found, sampled, J

    dense_penalties = (dense_orthogonality_penalty, dense_norm_preservation_penalty)
    closed, exact, J = ask(W, b, x)
    J = np.asarray(J)
    np.testing.assert_allclose(J, slope(x @ W.T + b)[:, :, None] * W, rtol=1e-10, atol=1e-14)
    oracles = [
        [squares(j, 5)[0] for j in J],
        [squares(j.T, 7)[0] for j in J],
        [norm_preservation(j, 5) for j in J],
        [norm_preservation(j.T, 7) for j in J],
    ]
    for found in (closed, exact):
        for penalty, expected in zip(found, oracles, strict=True):
            np.testing.assert_allclose(penalty.per_example, expected, rtol=1e-12)
            np.testing.assert_allclose(penalty.value, np.mean(expected), rtol=1e-12)
            assert float(penalty.standard_error) == 0


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradients_are_central_differences_of_the_explicit_value(name, x64):
    phi, slope = ACTIVATIONS[name]
    W, b, x = draw(4, 5, examples=3)

    def closed(W, b, x):
        derivative = jax.vmap(jax.vmap(jax.grad(phi)))(x @ W.T + b)
        return dense_orthogonality_penalty(W, derivative).value

    def exact(W, b, x):
        return orthogonality_penalty(dense(phi), (W, b), x, method="exact").value

    both = jax.jit(lambda *at: [jax.grad(f, argnums=(0, 1, 2))(*at) for f in (closed, exact)])
    rng = np.random.default_rng(1)
    directions = [rng.normal(size=a.shape) for a in (W, b, x)]
    step = 1e-5
    for gradients in both(W, b, x):
        for i, (gradient, direction) in enumerate(zip(gradients, directions, strict=True)):
            up, down = (
                numpy_penalty(
                    *(a + s * direction if i == j else a for j, a in enumerate((W, b, x))), slope
                )
                for s in (step, -step)
            )
            expected = (up - down) / (2 * step)
            found = float((gradient * direction).sum())
            assert abs(found - expected) < 1e-6 * max(1, abs(expected))


@pytest.mark.parametrize(("m", "n"), [(3, 6), (4, 4), (6, 3)])
def test_the_sides_differ_by_n_minus_m(m, n, x64):
    W, b, x = draw(m, n, seed=2)

    def ask(side, method, key):
        options = {"method": method, "side": side}
        return orthogonality_penalty(dense(jnp.tanh), (W, b), x, key, **options).value

    @jax.jit
    def differences(key):
        methods = ["exact", "bilinear"] + ["hutchinson"] * (m != n)  # m = n: other probes a side
        return jnp.stack([ask("columns", k, key) - ask("rows", k, key) for k in methods])

    np.testing.assert_allclose(differences(jax.random.key(0)), n - m, atol=1e-12)
    derivative = 1 - np.tanh(x @ W.T + b) ** 2
    closed = [dense_orthogonality_penalty(W, derivative, side=s).value for s in ("columns", "rows")]
    np.testing.assert_allclose(closed[0] - closed[1], n - m, atol=1e-12)


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
        v = np.asarray(draw_probes(key, 40_000, like, distribution)).reshape(40_000, -1)
        # entries of v v' have variance at most 2
        np.testing.assert_allclose(v.T @ v / len(v), np.eye(12), atol=5 * (2 / len(v)) ** 0.5)
    v = np.asarray(draw_probes(key, 5, like, "sphere"))
    np.testing.assert_allclose((v**2).sum(axis=(2, 3)), 6, rtol=1e-14)
    v = np.asarray(draw_probes(key, 5, like, "sphere", coupled=True))
    np.testing.assert_allclose((v**2).sum(axis=(1, 2, 3)), 12, rtol=1e-14)
    assert (v**2).sum(axis=(2, 3)).std() > 0.1


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


def test_orthogonal_weights_have_no_penalty_and_twice_them_nine_m(key, x64):
    Q, _ = np.linalg.qr(np.random.default_rng(6).normal(size=(5, 5)))
    x, ones = np.ones((3, 5)), np.ones((3, 5))

    @jax.jit
    def ask(W):
        sampled = [
            f(linear, W, x, key, method=m)
            for f, m in (
                (orthogonality_penalty, "hutchinson"),
                (orthogonality_penalty, "bilinear"),
                (orthogonality_penalty, "exact"),
                (norm_preservation_penalty, "probes"),
                (norm_preservation_penalty, "exact"),
            )
        ]
        return [
            *sampled,
            dense_orthogonality_penalty(W, ones),
            dense_norm_preservation_penalty(W, ones),
        ]

    for found in ask(Q):
        assert abs(float(found.value)) < 1e-12
    hutchinson, _, exact, _, exact_norm, closed, closed_norm = ask(2 * Q)
    for found in (hutchinson, exact, closed):  # M = 3 I leaves Hutchinson no variance
        np.testing.assert_allclose(found.value, 9 * 5, rtol=1e-13)
    for found in (exact_norm, closed_norm):
        np.testing.assert_allclose(found.value, (15**2 + 2 * 45) / 7, rtol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_closed_form_does_not_cancel_near_orthogonality(dtype, x64):
    Q, _ = np.linalg.qr(np.random.default_rng(7).normal(size=(64, 64)))
    found = dense_orthogonality_penalty(Q.astype(dtype), np.ones((2, 64), dtype))
    assert found.value.dtype == dtype
    # entries of Q Q' - I are roundings: their squares, not the rounding of m
    assert 0 <= float(found.value) < 64**2 * (8 * np.finfo(dtype).eps) ** 2


def test_scales_that_minimise_for_half_active_relu(x64):
    m = 64
    Q, _ = np.linalg.qr(np.random.default_rng(8).normal(size=(m, m)))
    derivative = np.repeat([[1.0, 0.0]], m // 2, axis=0).T.reshape(1, m)
    grid = np.arange(0.8, 2.2, 1e-3)
    for penalty, expected in (
        (dense_orthogonality_penalty, 1.0),
        (dense_norm_preservation_penalty, (2 * m + 4) / (m + 4)),
    ):
        curve = jax.jit(
            lambda c: jax.lax.map(lambda c: penalty(jnp.sqrt(c) * Q, derivative).value, c)  # noqa: B023
        )(grid)
        assert abs(grid[np.argmin(curve)] - expected) <= 1e-3


def test_rotated_inputs_and_permuted_units_change_nothing(x64):
    W, b, x = draw(5, 7, seed=9)
    rng = np.random.default_rng(9)
    V, _ = np.linalg.qr(rng.normal(size=(7, 7)))
    order = rng.permutation(5)

    @jax.jit
    def ask(W, b, x):
        ask = partial(dense(jnp.tanh))
        return [
            f(ask, (W, b), x, method="exact").per_example
            for f in (orthogonality_penalty, norm_preservation_penalty)
        ]

    plain = ask(W, b, x)
    for moved in (ask(W @ V, b, x @ V), ask(W[order], b[order], x)):
        np.testing.assert_allclose(moved, plain, rtol=1e-12)


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
            orthogonality_penalty(batch_norm, W, x, key, coupled=True, method=m, num_probes=30_000)
            for m in ("hutchinson", "bilinear")
        ]
        probed = [norm(key, num_probes=30_000, distribution=d) for d in ("gaussian", "sphere")]
        return exact(), exact(side="columns"), norm(method="exact"), sampled, probed

    exact, columns, norm, sampled, probed = ask(jax.random.key(4))
    np.testing.assert_allclose(exact.per_example, shares, rtol=1e-12)
    np.testing.assert_allclose(columns.value, squares(J.T, 16)[0] / 4, rtol=1e-12)
    np.testing.assert_allclose(norm.value, norm_preservation(J, 12) / 4, rtol=1e-12)
    for found in sampled:
        assert abs(float(found.value) - (M**2).sum() / 4) < 4 * float(found.standard_error)
        assert float(found.standard_error) < 0.05 * float(found.value)
    for found in probed:
        assert abs(float(found.value) - float(norm.value)) < 4 * float(found.standard_error)
    np.testing.assert_allclose(sampled[0].per_example, shares, rtol=0.1)


def test_detached_inputs_keep_the_gradient_in_the_layer(key, x64):
    W, b, x = draw(3, 4, seed=12)

    def ask(stop):
        def value(x, W):
            layer = linearise(dense(jnp.tanh), (W, b), x)
            return orthogonality_penalty(
                layer, layer.params, layer.x, key, stop_gradient_input=stop
            ).value

        return jax.value_and_grad(value, argnums=(0, 1))(x, W)

    (value, (by_x, by_W)), (same, (none, part)) = jax.jit(lambda: (ask(False), ask(True)))()
    np.testing.assert_allclose(value, same, rtol=1e-13)
    assert np.abs(by_x).max() > 0.01
    assert np.abs(none).max() == 0
    np.testing.assert_allclose(by_W, part, rtol=1e-12)  # the layer's own gradient, phi'' included


def test_a_layer_with_a_vjp_alone_has_the_bilinear_estimator(key, x64):
    @jax.custom_vjp
    def layer(W, x):
        return jnp.tanh(x @ W.T)

    layer.defvjp(
        lambda W, x: (layer(W, x), (W, x)),
        lambda saved, g: (None, (g * (1 - jnp.tanh(saved[1] @ saved[0].T) ** 2)) @ saved[0]),
    )
    W, _, x = draw(3, 4, seed=13)
    ask = lambda f, penalty, **k: penalty(f, W, x, key, num_probes=5, **k).per_example  # noqa: E731
    plain = lambda W, x: jnp.tanh(x @ W.T)  # noqa: E731
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


@pytest.mark.bad_input
def test_bad_input(key):
    W, _, x = (a.astype(np.float32) for a in draw(3, 4))
    for penalty in (orthogonality_penalty, norm_preservation_penalty):
        with pytest.raises(ValueError, match="method must be one of"):
            penalty(linear, W, x, key, method="hutchinsen")
        with pytest.raises(ValueError, match="side must be one of"):
            penalty(linear, W, x, key, side="row")
        with pytest.raises(ValueError, match="distribution must be one of"):
            penalty(linear, W, x, key, distribution="normal")
        with pytest.raises(ValueError, match="num_probes must be at least 1, got 0"):
            penalty(linear, W, x, key, num_probes=0)
        with pytest.raises(TypeError, match="key must be a PRNG key"):
            penalty(linear, W, x)
        with pytest.raises(TypeError, match="layer_fn must be a function"):
            penalty(W, W, x, key)
        with pytest.raises(ValueError, match="could not be evaluated"):
            penalty(linear, W, x[:, :2], key)
        with pytest.raises(TypeError, match="x must be a floating point array"):
            penalty(linear, W, x.astype(int), key)
        with pytest.raises(ValueError, match=r"leading axis is that of x, \(6, \.\.\.\)"):
            penalty(lambda W, x: linear(W, x).sum(axis=0), W, x, key)
        with pytest.raises(ValueError, match="Batch norm in training mode couples them"):
            penalty(batch_norm, W, x, key)
        with pytest.raises(ValueError, match="params must be finite"):
            penalty(linear, np.nan * W, x, key)
    with pytest.raises(ValueError, match="Jacobian of the whole batch"):
        orthogonality_penalty(batch_norm, W, x, method="exact")
    with pytest.raises(ValueError, match="distribution must be 'gaussian' or 'sphere' here"):
        norm_preservation_penalty(linear, W, x, key, distribution="rademacher")
    for closed in (dense_orthogonality_penalty, dense_norm_preservation_penalty):
        with pytest.raises(ValueError, match=r"derivative must have shape \(B, 3\)"):
            closed(W, np.ones((2, 4), np.float32))
        with pytest.raises(ValueError, match="weight must have shape"):
            closed(W[0], np.ones((2, 3), np.float32))
        with pytest.raises(TypeError, match="weight must be a floating point array"):
            closed([[1.0]], np.ones((2, 3), np.float32))
        with pytest.raises(ValueError, match="derivative must be finite"):
            closed(W, np.full((2, 3), np.inf, np.float32))
        with pytest.raises(ValueError, match="side must be one of"):
            closed(W, np.ones((2, 3), np.float32), side="left")
