"""The law of growth: closed form, Lanczos on the Hessian, and gradient descent itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax import curvature
from poster_jax import feature_diversity as fd
from poster_jax.core import losses, models

ENDS = {"inputs": "Dense_0", "outputs": "Dense_1"}
COPIES, RATE, DECAY = 4, 0.5, 0.01


@pytest.fixture(scope="module")
def saddle(two_layers, examples):
    """Two kinds of features trained until they are still, then copied four times (numpy)."""
    x, y = examples
    rng = np.random.default_rng(3)
    narrow = [rng.normal(size=(5, 2)), np.zeros(2), rng.normal(size=(2, 3)), np.zeros(3)]
    slow = [1 / COPIES, 1 / COPIES, COPIES, 1]
    narrow = two_layers.train(narrow, [(x, y)] * 4000, multipliers=slow, rate=RATE, decay=DECAY)
    kernel, bias, readout, shift = narrow
    return [np.tile(kernel, COPIES), np.tile(bias, COPIES), np.tile(readout / COPIES, (COPIES, 1)),
            shift]  # fmt: skip


def test_closed_form_lanczos_and_descent_agree(saddle, two_layers, examples, key, x64):
    """The largest singular value of M is minus Lanczos' smallest eigenvalue; the deviation of
    full-batch gradient descent grows by it.
    """
    x, y = map(jnp.asarray, examples)
    hidden, logits = two_layers.forward(saddle, examples[0])
    g = jax.nn.softmax(logits) - jax.nn.one_hot(y, 3)
    coupling = fd.copy_coupling(x, jnp.asarray(hidden), g)
    sigma = np.linalg.svd(coupling, compute_uv=False)[:, 0]
    np.testing.assert_allclose(sigma[:2], sigma[2:4], rtol=1e-12)

    model = models.from_linen(models.MLP((2 * COPIES, 3)))
    kernel, bias, readout, shift = map(jnp.asarray, saddle)
    params = {
        "Dense_0": {"kernel": kernel, "bias": bias},
        "Dense_1": {"kernel": readout, "bias": shift},
    }
    op = fd.antisymmetric_hessian(
        losses.cross_entropy(model.apply_fn), params, (x, y), **ENDS, num_unique=2
    )
    pairs = curvature.top_eigenpairs(op, key, k=1, which="smallest", tol=1e-8)
    assert float(pairs.values[0]) == pytest.approx(-sigma.max(), rel=1e-7)

    # Descent with weight decay, which adds to every eigenvalue, from a tiny deviation.
    rng = np.random.default_rng(4)
    moved = [p + 1e-12 * rng.normal(size=p.shape) * (i < 3) for i, p in enumerate(saddle)]
    sizes = []
    for _ in range(2):
        moved = two_layers.train(
            moved, [examples] * 200, multipliers=[1] * 4, rate=RATE, decay=DECAY
        )
        sizes.append(deviation(moved[0], examples[0]))
    slope = np.log(sizes[1] / sizes[0]) / 200
    law = 2 * float(fd.growth_rate(DECAY - sigma.max(), RATE))
    assert sizes[1] < 1e-6  # still linear
    assert slope == pytest.approx(law, rel=0.1)


def test_differences_follow_the_path_of_the_symmetric_network(two_layers, examples, x64):
    """Every entry of a tiny difference, over 60 steps that start far from a stationary point."""
    x, y = examples
    rng = np.random.default_rng(5)
    kernel, readout = rng.normal(size=(5, 2)), 0.3 * rng.normal(size=(2, 3))
    params = [np.tile(kernel, 3), np.zeros(6), np.tile(readout / 3, (3, 1)), np.zeros(3)]
    start = 1e-9 * rng.normal(size=(6, 2))  # of the two neurons' second copies, bias included
    moved = [p.copy() for p in params]
    moved[0][:, 2:4] += start[:5]
    moved[1][2:4] += start[5]
    couplings = []
    for _ in range(60):
        hidden, logits = two_layers.forward(params, x)
        g = jax.nn.softmax(logits) - jax.nn.one_hot(y, 3)
        couplings.append(np.asarray(fd.copy_coupling(jnp.asarray(x), jnp.asarray(hidden), g))[:2])
        params, moved = (
            two_layers.train(p, [examples], multipliers=[1] * 4, rate=RATE) for p in (params, moved)
        )
    for neuron in range(2):
        # Against the copies that were left alone, which move with the mean.
        found = np.append(
            moved[0][:, 2 + neuron] - moved[0][:, neuron], moved[1][2 + neuron] - moved[1][neuron]
        )
        of_neuron = [coupling[neuron] for coupling in couplings]
        expected = fd.deviation_path(of_neuron, RATE, start[:, [neuron]])[-1, :, 0]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
        assert np.linalg.norm(expected) > 3 * np.linalg.norm(start[:, neuron])


def deviation(kernel, x):
    """The part of the hidden layer's square that copies do not share."""
    h = (x @ kernel).reshape(len(x), COPIES, 2)
    return np.mean((h - h.mean(1, keepdims=True)) ** 2)


def test_symmetric_directions_are_in_the_null_space(saddle, examples, key, x64):
    x, y = map(jnp.asarray, examples)
    model = models.from_linen(models.MLP((2 * COPIES, 3)))
    kernel, bias, readout, shift = map(jnp.asarray, saddle)
    params = {
        "Dense_0": {"kernel": kernel, "bias": bias},
        "Dense_1": {"kernel": readout, "bias": shift},
    }
    loss_fn = losses.cross_entropy(model.apply_fn)
    op = fd.antisymmetric_hessian(loss_fn, params, (x, y), **ENDS, num_unique=2)
    whole = curvature.hessian_operator(loss_fn, params, (x, y))
    random = jax.tree.map(lambda a: jax.random.normal(key, a.shape, a.dtype), params)
    symmetric = fd.symmetrise(random, **ENDS, num_unique=2)
    rest = jax.tree.map(lambda a, b: a - b, random, symmetric)
    as_vector = lambda tree: dict(zip(op.like, jax.tree.leaves(tree), strict=True))  # noqa: E731
    for leaf in jax.tree.leaves(op(as_vector(symmetric))):
        np.testing.assert_allclose(leaf, 0, atol=1e-12)
    # On the rest it is the Hessian itself, which does not lead out of it.
    for ours, theirs in zip(
        jax.tree.leaves(op(as_vector(rest))), jax.tree.leaves(whole(rest)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_the_law_is_linear_in_the_logarithm_of_the_noise():
    rates = np.full(2000, 0.05)
    times = [fd.predicted_breaking_time(rates, noise=10.0**-d) for d in (4, 6, 8)]
    np.testing.assert_allclose(np.diff(times), np.log(10) / 0.05, rtol=1e-12)
    assert fd.predicted_breaking_time(rates, noise=0.01) == 0
    assert fd.predicted_breaking_time(rates[:10], noise=1e-8) == np.inf
    every_fifth = fd.predicted_breaking_time(rates[::5], noise=1e-6, step=5)
    assert every_fifth == pytest.approx(times[1], rel=1e-12)


@pytest.mark.bad_input
def test_bad_input_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="noise must be finite and above 0, got 0"):
        fd.predicted_breaking_time([0.1], noise=0)
    with pytest.raises(ValueError, match="start must have a row for each of 3 inputs and bias"):
        fd.deviation_path(np.ones((2, 3, 1)), 0.1, np.ones((2, 1)))
    with pytest.raises(TypeError, match="loss_fn must be a function, got 3"):
        fd.antisymmetric_hessian(3, {"a": jnp.ones(2)}, jnp.ones(1), inputs="a", outputs="a")
