"""Closed forms against the truncated hierarchy integrated by scipy, and against true training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from poster_jax.finite_width import feynman
from poster_jax.finite_width.feynman import first_order_dynamics

M = 3
TIMES = np.array([0.0, 0.2, 1.0, 5.0])


def problem(kind):
    """Kernel, O_3, O_4 and residuals with the symmetries of the true ones."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(M, M))
    theta = {
        "generic": root @ root.T,
        "equal eigenvalues": 1.5 * np.eye(M),
        "a sum of eigenvalues is one": np.diag([1.0, 2.0, 3.0]),
        "singular": root[:, :1] @ root[:, :1].T,
    }[kind]
    o3, o4 = rng.normal(size=(M,) * 3), rng.normal(size=(M,) * 4)
    o3, o4 = o3 + o3.transpose(1, 0, 2), o4 + o4.transpose(1, 0, 2, 3)
    return theta, o3, o4, rng.normal(size=M)


KINDS = ["generic", "equal eigenvalues", "a sum of eigenvalues is one", "singular"]


def motion(theta, o3, o4, state):
    """Of (r0, r1, Theta1, O_3's first order), in this order of 1/n."""
    r0, r1, theta1, o31 = np.split(state, np.cumsum([M, M, M**2]))
    theta1, o31 = theta1.reshape(M, M), o31.reshape(M, M, M)
    return -np.concatenate(
        [theta @ r0, theta @ r1 + theta1 @ r0, ((o3 + o31) @ r0).ravel(), (o4 @ r0).ravel()]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_flow_is_the_truncated_hierarchy(kind, x64):
    theta, o3, o4, residual = problem(kind)
    start = np.concatenate([residual, np.zeros(M + M**2 + M**3)])
    path = solve_ivp(
        lambda _, state: motion(theta, o3, o4, state),
        (0, TIMES[-1]), start, method="DOP853", t_eval=TIMES, rtol=1e-12, atol=1e-12,
    ).y.T  # fmt: skip
    found = first_order_dynamics(*map(jnp.asarray, (theta, o3, o4, residual, TIMES)))
    # The integrator's tolerance, over values up to some 100.
    options = {"rtol": 1e-8, "atol": 1e-9}
    np.testing.assert_allclose(found.residual_order0, path[:, :M], **options)
    np.testing.assert_allclose(found.residual, path[:, :M] + path[:, M : 2 * M], **options)
    theta1 = path[:, 2 * M : 2 * M + M**2].reshape(-1, M, M)
    np.testing.assert_allclose(found.theta, theta + theta1, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_descent_is_the_truncated_recursion(kind, x64):
    theta, o3, o4, residual = problem(kind)
    rate, num_steps = 0.02, 150
    state = np.concatenate([residual, np.zeros(M + M**2 + M**3)])
    path = [state]
    for _ in range(num_steps):
        state = state + rate * motion(theta, o3, o4, state)
        path.append(state)
    steps = np.array([0, 1, 2, 40, num_steps])
    path = np.array(path)[steps]
    found = first_order_dynamics(
        *map(jnp.asarray, (theta, o3, o4, residual, steps * rate)), learning_rate=rate
    )
    np.testing.assert_allclose(found.residual, path[:, :M] + path[:, M : 2 * M], rtol=1e-9)
    theta1 = path[:, 2 * M : 2 * M + M**2].reshape(-1, M, M)
    np.testing.assert_allclose(found.theta, theta + theta1, rtol=1e-9)


def test_the_kernel_s_limit_in_closed_form(x64):
    theta, o3, o4, residual = problem("a sum of eigenvalues is one")
    lam = np.diag(theta)
    wanted = theta - o3 @ (residual / lam)
    wanted += np.einsum("abij,ij->ab", o4, np.outer(residual, residual) / np.add.outer(lam, lam)
                        / lam[:, None])  # fmt: skip
    found = first_order_dynamics(*map(jnp.asarray, (theta, o3, o4, residual)), jnp.array([60.0]))
    np.testing.assert_allclose(found.theta[0], wanted, rtol=1e-10)


def true_flow(width, keys, time, num_steps):
    """How far gradient flow, by Runge and Kutta, moves kernel and function, and from ours."""
    init_fn, apply_fn = feynman.deep_network(jnp.tanh, depth=2, input_dim=2)
    x = jnp.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])
    y = jnp.array([1.0, -1.0, 0.5, 0.0])
    slope = jax.grad(lambda p: -0.5 * jnp.sum((apply_fn(p, x) - y) ** 2))

    def step(params, _):
        h = time / num_steps

        def ahead(fraction, k):
            return jax.tree.map(lambda p, s: p + fraction * h * s, params, k)

        k1 = slope(params)
        k2 = slope(ahead(0.5, k1))
        k3 = slope(ahead(0.5, k2))
        k4 = slope(ahead(1.0, k3))
        new = jax.tree.map(
            lambda p, a, b, c, d: p + h / 6 * (a + 2 * b + 2 * c + d), params, k1, k2, k3, k4
        )
        return new, None

    @jax.jit
    def one(key):
        params = init_fn(key, width)
        start = feynman.hierarchy(apply_fn, params, x)
        end = jax.lax.scan(step, params, None, length=num_steps)[0]
        end = feynman.hierarchy(apply_fn, end, x, order=2)
        ours = first_order_dynamics(*start[1:], start.o1 - y, jnp.array([time]))
        norm = jnp.linalg.norm
        return jnp.array([
            norm(end.o2 - start.o2), norm(end.o2 - ours.theta[0]),
            norm(end.o1 - y - ours.residual_order0[0]), norm(end.o1 - y - ours.residual[0]),
        ])  # fmt: skip

    return np.median([np.asarray(one(key)) for key in keys], axis=0)


def test_order_one_is_closer_to_training_than_order_zero(x64, key):
    kernel_moved, kernel_error, order0, order1 = true_flow(64, jax.random.split(key, 4), 0.3, 20)
    assert kernel_error < kernel_moved / 10
    assert order1 < order0 / 10


@pytest.mark.slow
def test_what_is_left_falls_as_width_to_the_minus_two(x64, key):
    keys = jax.random.split(key, 40)
    widths = np.array([32, 64, 128, 256])
    rows = np.array([true_flow(int(w), keys, 0.3, 20) for w in widths])
    slopes = np.polyfit(np.log(widths), np.log(rows), 1)[0]
    # Medians over 40 networks: the slope of a median is known to some 0.15.
    assert abs(slopes[0] + 1) < 0.3
    assert abs(slopes[2] + 1) < 0.3
    assert slopes[1] < -1.5
    assert slopes[3] < -1.5


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"o3": np.zeros((2, 2, 2))}, "o3 must have shape (3, 3, 3) for 3 residuals"),
        ({"o4": np.full((3,) * 4, np.nan)}, "o4 must be finite"),
        ({"times": np.array([-1.0])}, "times must be finite and at least 0"),
        ({"learning_rate": 0.0}, "learning_rate must be finite and above 0"),
        ({"learning_rate": 0.3}, "times must be whole steps of learning_rate 0.3"),
    ],
)
def test_bad_input_is_refused(changes, words):
    theta, o3, o4, residual = problem("generic")
    given = {"theta0": theta, "o3": o3, "o4": o4, "residual0": residual, "times": TIMES, **changes}
    rate = given.pop("learning_rate", None)
    with pytest.raises(ValueError) as error:
        first_order_dynamics(*map(jnp.asarray, given.values()), learning_rate=rate)
    assert words in str(error.value)
