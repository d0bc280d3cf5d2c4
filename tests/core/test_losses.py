"""Losses against scipy in float64, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from poster_jax.core import losses

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(7, 4)) * 3
LABELS = np.array([0, 1, 2, 3, 1, 1, 0])


def _f32(a):
    return jnp.asarray(a, jnp.float32)


def _by_hand(logits, labels, smoothing=0.0):
    targets = (1 - smoothing) * np.eye(4)[labels] + smoothing / 4
    return float(np.mean(-(targets * log_softmax(logits, -1)).sum(-1)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_is_scipys(smoothing):
    got = losses.softmax_cross_entropy(_f32(LOGITS), jnp.asarray(LABELS), label_smoothing=smoothing)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, _by_hand(LOGITS, LABELS, smoothing), rtol=1e-6)


def test_cross_entropy_in_float64(x64):
    got = losses.softmax_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS))
    np.testing.assert_allclose(got, _by_hand(LOGITS, LABELS), rtol=1e-14)


@pytest.mark.parametrize("kind", [int, np.int8, bool, np.float64, np.float32])
def test_one_hot_and_integer_labels_agree(kind):
    got = losses.softmax_cross_entropy(_f32(LOGITS), np.eye(4)[LABELS].astype(kind))
    want = losses.softmax_cross_entropy(_f32(LOGITS), LABELS)
    np.testing.assert_array_equal(got, want)


def test_soft_labels_are_weights():
    half = losses.softmax_cross_entropy(_f32(LOGITS[:1]), jnp.array([[0.5, 0.0, 0.5, 0.0]]))
    want = (_by_hand(LOGITS[:1], [0]) + _by_hand(LOGITS[:1], [2])) / 2
    np.testing.assert_allclose(half, want, rtol=1e-6)


def test_sequences_average_over_positions_too():
    logits = RNG.normal(size=(5, 3, 4))
    labels = RNG.integers(4, size=(5, 3))
    got = losses.softmax_cross_entropy(_f32(logits), jnp.asarray(labels))
    np.testing.assert_allclose(got, _by_hand(logits.reshape(15, 4), labels.ravel()), rtol=1e-6)


def test_large_logits_neither_overflow_nor_lose_the_difference():
    logits = jnp.array([[1e4, 1e4 - 1.0]])
    np.testing.assert_allclose(
        losses.softmax_cross_entropy(logits, jnp.array([1])), np.log1p(np.e), rtol=1e-6
    )


def test_gradient_is_softmax_minus_labels_over_examples():
    grad = jax.grad(losses.softmax_cross_entropy)(_f32(LOGITS), jnp.asarray(LABELS))
    want = (np.exp(log_softmax(LOGITS, -1)) - np.eye(4)[LABELS]) / 7
    np.testing.assert_allclose(grad, want, atol=1e-7)


def test_half_squared_error_sums_outputs_and_averages_examples():
    outputs, targets = RNG.normal(size=(2, 5, 3, 2))
    got = losses.half_squared_error(_f32(outputs), _f32(targets))
    np.testing.assert_allclose(got, ((outputs - targets) ** 2).sum() / 2 / 5, rtol=1e-6)
    got = losses.half_squared_error(_f32(outputs[:, 0, 0]), _f32(targets[:, 0, 0]))
    np.testing.assert_allclose(got, ((outputs - targets)[:, 0, 0] ** 2).mean() / 2, rtol=1e-6)


def test_hessian_of_half_squared_error_is_the_identity_over_examples():
    hessian = jax.hessian(losses.half_squared_error)(jnp.ones((3, 2)), jnp.zeros((3, 2)))
    np.testing.assert_allclose(hessian.reshape(6, 6), np.eye(6) / 3, rtol=1e-6)


def test_classes_as_targets_are_one_hot_vectors():
    got = losses.half_squared_error(_f32(LOGITS), jnp.asarray(LABELS))
    want = losses.half_squared_error(_f32(LOGITS), _f32(np.eye(4)[LABELS]))
    np.testing.assert_array_equal(got, want)


def test_accuracy_counts():
    assert float(losses.top_1(_f32(np.eye(4)), jnp.array([0, 1, 3, 3]))) == 0.75
    assert float(losses.top_1(_f32(np.eye(4)), jnp.eye(4)[jnp.array([0, 1, 3, 3])])) == 0.75


def _linear(params, x):
    return x @ params["w"] + params["b"]


PARAMS = {"w": _f32(RNG.normal(size=(3, 4))), "b": jnp.ones(4)}
X = _f32(RNG.normal(size=(7, 3)))
BATCH = (X, jnp.asarray(LABELS))
FORMS = {
    "cross_entropy": losses.cross_entropy(_linear, label_smoothing=0.1),
    "squared_error": losses.squared_error(_linear),
    "accuracy": losses.accuracy(_linear),
    "with_weight_decay": losses.with_weight_decay(losses.cross_entropy(_linear), 0.1),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_under_jit_and_vmap_is_the_eager_number(name):
    loss_fn = FORMS[name]
    want = [loss_fn(jax.tree.map(lambda a, s=s: a * s, PARAMS), BATCH) for s in (1.0, 0.5)]
    np.testing.assert_allclose(jax.jit(loss_fn)(PARAMS, BATCH), want[0], rtol=1e-6)
    stacked = jax.tree.map(lambda a: jnp.stack([a, a * 0.5]), PARAMS)
    got = jax.jit(jax.vmap(loss_fn, (0, None)))(stacked, BATCH)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    # Values that are known where the program is traced are looked at there as well.
    np.testing.assert_allclose(jax.jit(lambda p: loss_fn(p, BATCH))(PARAMS), want[0], rtol=1e-6)


@pytest.mark.parametrize("name", FORMS)
def test_the_mean_over_a_batch_is_the_mean_of_its_examples(name):
    singles = [
        FORMS[name](PARAMS, jax.tree.map(lambda a, i=i: a[i : i + 1], BATCH)) for i in range(7)
    ]
    np.testing.assert_allclose(FORMS[name](PARAMS, BATCH), np.mean(singles), rtol=1e-5)


def test_weight_decay_adds_strength_times_params_to_the_gradient():
    plain = losses.cross_entropy(_linear)
    grads = [jax.grad(f)(PARAMS, BATCH) for f in (plain, losses.with_weight_decay(plain, 0.3))]
    added = jax.tree.map(lambda a, b: b - a, *grads)
    jax.tree.map(lambda a, p: np.testing.assert_allclose(a, 0.3 * p, atol=1e-6), added, PARAMS)


def test_a_population_may_differ_in_smoothing_and_decay():
    def loss(value):
        fn = losses.cross_entropy(_linear, label_smoothing=value)
        return losses.with_weight_decay(fn, value)(PARAMS, BATCH)

    values = jnp.array([0.0, 0.1, 0.5])
    got = jax.jit(jax.vmap(loss))(values)
    np.testing.assert_allclose(got, [loss(float(v)) for v in values], rtol=1e-6)


def test_a_traced_label_that_is_no_class_is_never_averaged_away():
    """Under jit no label can be refused; a sum that ignored it would look like a good loss."""
    for label in (4, -1):
        batch = (X, jnp.asarray(LABELS).at[3].set(label))
        for name in ("cross_entropy", "squared_error", "accuracy"):
            assert np.isnan(jax.jit(FORMS[name])(PARAMS, batch)), (name, label)


def test_a_network_that_diverged_has_no_accuracy():
    params = {**PARAMS, "b": jnp.array([0.0, jnp.nan, 0.0, 0.0])}
    assert np.isnan(jax.jit(FORMS["accuracy"])(params, BATCH))


@pytest.mark.bad_input
@pytest.mark.parametrize("fn", [losses.softmax_cross_entropy, losses.top_1])
@pytest.mark.parametrize(
    ("logits", "labels", "error", "message"),
    [
        (LOGITS, LABELS + 1, ValueError, "labels must be classes from 0 to 3, got .* from 1 to 4"),
        (LOGITS, LABELS - 1, ValueError, "labels must be classes from 0 to 3"),
        (LOGITS, LABELS[:3], ValueError, r"labels must be integers of shape \(7,\)"),
        (LOGITS, LABELS.astype(float), ValueError, r"labels must be integers of shape \(7,\)"),
        (LOGITS, np.eye(4)[LABELS] * 2, ValueError, "labels shaped like the outputs must be prob"),
        (LOGITS, np.eye(4)[LABELS] * np.nan, ValueError, "labels must be finite"),
        (LOGITS * np.inf, LABELS, ValueError, "logits must be finite, got 28"),
        (LOGITS[:, :1], LABELS * 0, ValueError, "logits must have at least 2 classes"),
        (LOGITS[:0], LABELS[:0], ValueError, "logits must hold at least 1 example"),
        (LOGITS.astype(int), LABELS, TypeError, "logits must be a floating point array, got int"),
        (np.float32(1.0), LABELS, ValueError, "logits must have a leading example axis"),
    ],
)
def test_outputs_and_labels_that_do_not_fit(fn, logits, labels, error, message):
    with pytest.raises(error, match=message):
        fn(logits, labels)


@pytest.mark.bad_input
def test_targets_that_do_not_fit():
    with pytest.raises(ValueError, match="targets must be integers of shape"):
        losses.half_squared_error(jnp.ones((3, 2)), jnp.ones((3, 1)))
    with pytest.raises(ValueError, match="outputs must have at least 2 classes"):
        losses.half_squared_error(jnp.ones((3, 1)), jnp.ones(3))
    with pytest.raises(ValueError, match="targets must be finite"):
        losses.half_squared_error(jnp.ones((3, 2)), jnp.full((3, 2), jnp.nan))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (X, "batch must be a pair"),
        ((X, LABELS, LABELS), "batch must be a pair"),
        ((X, LABELS[:3]), "share the leading example axis"),
        ((X[:0], LABELS[:0]), "at least 1 example"),
        ((X.at[0, 0].set(jnp.nan), LABELS), r"batch\[0\] must be finite"),
    ],
)
def test_batches_that_do_not_fit(batch, message):
    with pytest.raises(ValueError, match=message):
        FORMS["cross_entropy"](PARAMS, batch)


@pytest.mark.bad_input
def test_arguments_are_looked_at_when_the_loss_is_made():
    for make in (losses.cross_entropy, losses.squared_error, losses.accuracy):
        with pytest.raises(TypeError, match="apply_fn must be a function"):
            make(3)
    with pytest.raises(ValueError, match="label_smoothing must lie between 0 and 1"):
        losses.cross_entropy(_linear, label_smoothing=1.5)
    with pytest.raises(ValueError, match="strength must be finite and at least 0"):
        losses.with_weight_decay(FORMS["accuracy"], -0.1)
    with pytest.raises(TypeError, match="loss_fn must be a function"):
        losses.with_weight_decay(0.1, 0.1)
