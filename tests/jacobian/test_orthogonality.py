"""R and N in closed form and exactly, against explicit Jacobians and their differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.jacobian import (
    dense_norm_preservation_penalty,
    dense_orthogonality_penalty,
    norm_preservation_penalty,
    orthogonality_penalty,
)
from poster_jax.jacobian._layer import linearise
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


def test_second_derivatives_of_the_closed_form_are_those_of_the_definition(x64):
    W, b, x = draw(3, 4, examples=2)

    def closed(at):
        z = jnp.tanh(x @ at[0].T + at[1])
        return dense_orthogonality_penalty(at[0], 1 - z**2).value

    def plain(at):
        z = jnp.tanh(x @ at[0].T + at[1])
        J = (1 - z**2)[:, :, None] * at[0]
        return ((J @ jnp.swapaxes(J, 1, 2) - jnp.eye(3)) ** 2).sum(axis=(1, 2)).mean()

    @jax.jit
    def product(at, along):
        forward_over_reverse = [jax.jvp(jax.grad(f), (at,), (along,))[1] for f in (closed, plain)]
        reverse_over_reverse = jax.grad(
            lambda at: sum(jax.tree.leaves(jax.tree.map(jnp.vdot, jax.grad(closed)(at), along)))
        )(at)
        return [*forward_over_reverse, reverse_over_reverse]

    rng = np.random.default_rng(3)
    found, expected, again = product((W, b), (rng.normal(size=(3, 4)), rng.normal(size=3)))
    for a, c, e in zip(found, again, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(c, e, rtol=1e-10, atol=1e-12)


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


@pytest.mark.parametrize(("phi", "products"), [(jnp.tanh, 4), (jax.nn.relu, 3)])
def test_a_piecewise_linear_layer_is_spared_the_product_for_its_inputs(phi, products):
    """G, S'S, and the gradient by W; the gradient by S, a fourth, is zero where phi'' is."""
    z = np.linspace(-1, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    W = np.ones_like(z)

    def value(W, z):
        derivative = jax.vmap(jax.vmap(jax.grad(phi)))(z)
        return dense_orthogonality_penalty(W, derivative).value

    compiled = jax.jit(jax.grad(value, argnums=(0, 1))).lower(W, z).compile()
    product = 2 * 64**3  # beside some tens of operations an entry
    assert products <= compiled.cost_analysis()["flops"] / product < products + 1


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
