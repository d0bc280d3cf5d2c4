"""The measures that relative flatness is compared with, each against a second source."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from poster_jax import curvature, flatness


def _float32(net):
    return jax.tree.map(
        jnp.asarray, (net.make_params(dtype=np.float32), net.make_batch(dtype=np.float32))
    )


def test_fisher_rao_norm_is_the_authors_formula(net):
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(40, 5)), rng.integers(0, 5, 40)
    p, total = net.softmax(z), 0.0
    for i in range(40):
        total += (p[i] @ z[i] - z[i, y[i]]) ** 2
    found = flatness.fisher_rao_norm(jnp.asarray(z, jnp.float32), jnp.asarray(y), num_layers=4)
    np.testing.assert_allclose(found, 4 * np.sqrt(total / 40), rtol=1e-5)


def test_fisher_rao_norm_counts_weight_layers_of_a_network_without_biases(net, x64):
    """Euler: <theta, d loss> = K <z, p - e_y> for K layers, so the factor is 3 here, not 4."""
    params, batch = jax.tree.map(jnp.asarray, (net.make_params(), net.make_batch()))
    params = {
        name: {"kernel": layer["kernel"], "bias": 0 * layer["bias"]}
        for name, layer in params.items()
    }
    closed = flatness.fisher_rao_norm(net.apply_fn(params, batch[0]), batch[1], num_layers=3)
    along = flatness.fisher_rao_norm_of_params(net.loss_fn, params, batch)
    np.testing.assert_allclose(along, closed, rtol=1e-10)


def test_fisher_rao_norm_with_biases_by_finite_differences(net, x64):
    params, (x, y) = net.make_params(), net.make_batch()
    squares, step = 0.0, 1e-6
    for i in range(len(x)):
        one = (x[i : i + 1], y[i : i + 1])
        up, down = (
            net.numpy_loss(jax.tree.map(lambda w, s=s: w * (1 + s), params), one)
            for s in (step, -step)
        )
        squares += ((up - down) / (2 * step)) ** 2 / len(x)
    found = flatness.fisher_rao_norm_of_params(
        net.loss_fn, params, (jnp.asarray(x), jnp.asarray(y))
    )
    np.testing.assert_allclose(found, np.sqrt(squares), rtol=1e-6)


def test_fisher_rao_norm_survives_rescaling_and_the_squared_norm_does_not(net, x64):
    params, batch = jax.tree.map(jnp.asarray, (net.make_params(), net.make_batch()))
    moved = flatness.rescale_layers(
        params,
        [0.1, 10.0],
        layers=["Dense_1/kernel", "Dense_2/kernel"],
        biases=["Dense_1/bias", "Dense_2/bias"],
    )
    logits = [net.apply_fn(p, batch[0]) for p in (params, moved)]
    before, after = (flatness.fisher_rao_norm(z, batch[1], num_layers=3) for z in logits)
    np.testing.assert_allclose(after, before, rtol=1e-10)
    assert float(flatness.squared_norm(moved)) > 10 * float(flatness.squared_norm(params))


def _separable(params, batch):
    """sum_i a_i w_i^2: everything about its sharpness is known."""
    return jnp.sum(jnp.mean(batch, axis=0) * params["w"] ** 2)


def test_keskar_sharpness_is_the_best_corner_of_the_box(key):
    """A convex loss has its maximum at a corner: all of them are tried."""
    rng = np.random.default_rng(0)
    A = rng.normal(size=(4, 4))
    A = (A @ A.T).astype(np.float32)
    w = np.array([0.5, -1.0, 0.1, 2.0], np.float32)
    box = 0.1 * (np.abs(w) + 1)
    values = [0.5 * (w + box * s) @ A @ (w + box * s) for s in product([-1, 1], repeat=4)]
    start = 0.5 * w @ A @ w
    found = flatness.keskar_sharpness(
        lambda p, b: 0.5 * p @ jnp.mean(b, axis=0) @ p,
        jnp.asarray(w),
        jnp.asarray(A)[None],
        key,
        radius=0.1,
        num_steps=30,
        num_starts=8,
    )
    np.testing.assert_allclose(found, 100 * (max(values) - start) / (1 + start), rtol=1e-3)


def test_keskar_sharpness_leaves_a_minimum(key):
    """The gradient is zero at the start; 100 * sum a_i (eps)^2 is the corner's value."""
    a, params = jnp.array([[1.0, 3.0]]), {"w": jnp.zeros(2)}
    found = flatness.keskar_sharpness(_separable, params, a, key, radius=0.01)
    np.testing.assert_allclose(found, 100 * 4 * 0.01**2, rtol=1e-3)


def test_keskar_sharpness_is_never_negative(net, key):
    params, batch = _float32(net)
    ours = flatness.keskar_sharpness(net.loss_fn, params, batch, key, radius=1e-3)
    rng = np.random.default_rng(0)
    loss = float(net.loss_fn(params, batch))
    tried = []
    for _ in range(200):
        moved = jax.tree.map(
            lambda w: w + 1e-3 * (np.abs(w) + 1) * rng.choice([-1.0, 1.0], w.shape),
            net.make_params(),
        )
        tried.append(100 * (net.numpy_loss(moved, net.make_batch()) - loss) / (1 + loss))
    assert float(ours) > max(tried) > 0


def test_sam_sharpness_is_a_step_of_that_length_in_numpy(net, x64):
    params, batch = net.make_params(), net.make_batch()
    gradient = jax.grad(net.loss_fn)(*jax.tree.map(jnp.asarray, (params, batch)))
    length = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(gradient)))
    moved = jax.tree.map(lambda w, g: w + 0.05 * np.asarray(g) / length, params, gradient)
    wanted = net.numpy_loss(moved, batch) - net.numpy_loss(params, batch)
    found = flatness.sam_sharpness(
        net.loss_fn, *jax.tree.map(jnp.asarray, (params, batch)), radius=0.05
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    flat = flatness.sam_sharpness(_separable, {"w": jnp.zeros(2)}, jnp.ones((1, 2)))
    assert float(flat) == 0.0


def test_expected_sharpness_is_half_sigma_squared_times_the_trace(net, x64, key):
    """Exactly so for a quadratic; and the slope, large here, adds no noise."""
    params = {"w": jnp.array([5.0, -3.0, 1.0])}
    a = jnp.array([[1.0, 2.0, 3.0]])
    found = flatness.expected_sharpness(_separable, params, a, key, sigma=0.1, num_samples=4000)
    trace = curvature.trace(curvature.hessian_operator(_separable, params, a), key, num_probes=1)
    wanted = 0.5 * 0.1**2 * float(trace.mean)
    assert abs(float(found.mean) - wanted) < 4 * float(found.stderr)
    # sum_i a_i sigma^2 chi^2_i has the variance 2 sigma^4 sum a_i^2
    np.testing.assert_allclose(
        float(found.stderr), np.sqrt(2 * 14) * 0.1**2 / np.sqrt(4000), rtol=0.1
    )


def _wall(params, batch):
    """Accuracy of independent coordinates: the share of them that stay within the wall."""
    return jnp.mean(jnp.abs(params["w"]) < jnp.mean(batch))


def test_pac_bayes_sigma_is_where_the_accuracy_has_fallen_by_a_tenth(key):
    params, wall = {"w": jnp.zeros(20_000)}, jnp.ones(3)
    found = flatness.pac_bayes_sigma(
        _wall, params, wall, key, displacement=0.1, tolerance=1e-3, max_steps=20
    )
    # P(|N(0, sigma^2)| > 1) = 0.1 at sigma = 1 / 1.645
    np.testing.assert_allclose(found.sigma, 1 / norm.ppf(0.95), rtol=0.02)
    assert bool(found.converged)
    assert abs(float(found.displacement) - 0.1) < 1e-3
    assert int(found.num_steps) <= 20


def test_pac_bayes_sigma_says_when_it_found_none(key):
    params, wall = {"w": jnp.zeros(100)}, 1e6 * jnp.ones(3)
    found = flatness.pac_bayes_sigma(_wall, params, wall, key, max_sigma=2.0)
    assert not bool(found.converged)
    assert int(found.num_steps) == 15
    np.testing.assert_allclose(found.sigma, 2.0, rtol=1e-3)


def test_pac_bayes_sigma_of_a_population_in_one_program(key):
    walls = jnp.array([0.5, 1.0, 4.0])

    def sigma(wall):
        params = {"w": jnp.zeros(5000)}
        return flatness.pac_bayes_sigma(_wall, params, wall[None], key, tolerance=0.003)

    together = jax.jit(jax.vmap(sigma))(walls)
    alone = [float(sigma(wall).sigma) for wall in walls]
    np.testing.assert_allclose(together.sigma, alone, rtol=1e-5)
    # the same noise at every wall: sigma is proportional to it, to the tolerance of the search
    np.testing.assert_allclose(together.sigma[:2] / walls[:2], 1 / norm.ppf(0.95), rtol=0.05)
    assert not bool(together.converged[2])  # sigma = 2.4 lies beyond max_sigma


def test_pac_bayes_sigma_moves_with_a_rescaling(net, key):
    """A measure that is not invariant: a wide wall after a rescaling of one layer."""
    params, batch = _float32(net)
    labels = jnp.argmax(net.apply_fn(params, batch[0]), axis=1)

    def accuracy(params, batch):
        return jnp.mean(jnp.argmax(net.apply_fn(params, batch), axis=1) == labels)

    moved = flatness.rescale_layers(
        params,
        [0.02, 50.0],
        layers=["Dense_1/kernel", "Dense_2/kernel"],
        biases=["Dense_1/bias", "Dense_2/bias"],
    )
    before, after = (
        flatness.pac_bayes_sigma(accuracy, p, batch[0], key, num_draws=30) for p in (params, moved)
    )
    assert float(after.sigma) < float(before.sigma) / 3


def test_pac_bayes_bound_is_its_formula():
    w, sigma, n = np.array([10.0, 20.0]), np.array([0.5, 1.5]), 1000
    found = flatness.pac_bayes_bound(jnp.asarray(w), jnp.asarray(sigma), n)
    np.testing.assert_allclose(found, w / (4 * sigma**2) + np.log(n / sigma) + 10, rtol=1e-6)


@pytest.mark.parametrize("name", ["keskar", "sam", "expected", "fisher_rao", "squared_norm"])
def test_every_comparison_measure_under_jit_and_vmap(net, key, name):
    params, batch = _float32(net)
    population = jax.tree.map(lambda a: jnp.stack([a, 1.1 * a, 0.9 * a]), params)

    def measured(params):
        if name == "keskar":
            return flatness.keskar_sharpness(net.loss_fn, params, batch, key)
        if name == "sam":
            return flatness.sam_sharpness(net.loss_fn, params, batch)
        if name == "expected":
            return flatness.expected_sharpness(
                net.loss_fn, params, batch, key, sigma=0.05, num_samples=20
            ).mean
        if name == "fisher_rao":
            return flatness.fisher_rao_norm_of_params(net.loss_fn, params, batch)
        return flatness.squared_norm(params)

    together = jax.jit(jax.vmap(measured))(population)
    alone = [float(measured(jax.tree.map(lambda a, i=i: a[i], population))) for i in range(3)]
    # differences of losses of about 1: a few 1e-7 of them
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-6)
