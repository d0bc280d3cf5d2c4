"""How wrong outputs are: a number for outputs and labels, and a function of `(params, batch)`.

The forms that end in plain words (`softmax_cross_entropy`, `half_squared_error`) take outputs; the
forms that take an `apply_fn` return `loss_fn(params, (x, y))`. All are means over the examples.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from poster_jax.core.checks import (
    check_batch,
    check_callable,
    check_finite,
    check_fraction,
    check_positive,
    is_traced,
)
from poster_jax.core.typing import ApplyFn, Array, Batch, Float, LossFn, Params, Scalar, Shaped

__all__ = [
    "accuracy",
    "cross_entropy",
    "half_squared_error",
    "softmax_cross_entropy",
    "squared_error",
    "top_1",
    "with_weight_decay",
]


def softmax_cross_entropy(
    logits: Float[Array, "*examples classes"],
    labels: Shaped[Array | np.ndarray, "..."],
    *,
    label_smoothing: Any = 0.0,
) -> Scalar:
    """How surprised the softmax of `logits` is by the labels, in nats, on average.

    Equation: `mean_i - sum_c t_ic log softmax(z_i)_c`, where t is one-hot, or
    `(1 - s) t + s / classes` with label smoothing s.

    Args:
      logits: finite floats; the last axis counts the classes.
      labels: integers shaped like `logits` without its last axis, or class probabilities (one-hot
        among them) shaped like `logits`.
      label_smoothing: s, in [0, 1]; may be traced.

    Returns:
      Scalar. A label outside the classes gives NaN where it is traced and cannot be refused.

    Raises:
      ValueError: shapes that do not fit, fewer than 2 classes, values that are not finite, labels
        outside the classes, probabilities that do not sum to 1, label_smoothing outside [0, 1].
      TypeError: logits are no floats.

    Source: `optax.losses.softmax_cross_entropy`; smoothing: Szegedy et al., arXiv 1512.00567,
    section 7.

    Example:
      >>> round(float(softmax_cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))), 4)  # log 4
      1.3863
    """
    check_fraction("label_smoothing", label_smoothing)
    logits = _check_outputs("logits", logits)
    targets = _class_targets("labels", labels, "logits", logits)
    if is_traced(label_smoothing) or label_smoothing:
        targets = optax.smooth_labels(targets, label_smoothing)
    return optax.softmax_cross_entropy(logits, targets).mean()


def half_squared_error(
    outputs: Float[Array, "examples *output"], targets: Shaped[Array | np.ndarray, "..."]
) -> Scalar:
    """Half the squared distance of outputs and targets, averaged over the examples.

    Equation: `mean_i (1/2) ||f_i - y_i||^2`: a sum, not a mean, over everything but the examples,
    so that its Hessian with respect to the outputs is the identity over the number of examples.

    Args:
      outputs: finite floats with a leading example axis.
      targets: shaped like `outputs`; or integer classes shaped like `outputs` without its last
        axis, read as one-hot vectors.

    Returns:
      Scalar.

    Raises:
      ValueError: shapes that do not fit, values that are not finite, classes outside the outputs.
      TypeError: outputs are no floats.

    Source: `optax.losses.l2_loss`.

    Example:
      >>> float(half_squared_error(jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.zeros((2, 2))))
      1.25
    """
    outputs = _check_outputs("outputs", outputs)
    if jnp.shape(targets) == outputs.shape:
        check_finite("targets", targets)
        targets = jnp.asarray(targets, outputs.dtype)
    else:
        targets = _class_targets("targets", targets, "outputs", outputs)
    return optax.l2_loss(outputs, targets).sum() / outputs.shape[0]


def top_1(
    logits: Float[Array, "*examples classes"], labels: Shaped[Array | np.ndarray, "..."]
) -> Scalar:
    """The fraction of examples whose largest output stands at the label.

    Args:
      logits: floats; the last axis counts the classes. The first of equal outputs is taken.
      labels: as in `softmax_cross_entropy`; of probabilities the largest counts.

    Returns:
      Scalar in [0, 1]; NaN where traced logits are not finite or traced labels are no class, since
      a network that diverged has no accuracy.

    Raises:
      ValueError, TypeError: as in `softmax_cross_entropy`.

    Source: this library.

    Example:
      >>> float(top_1(jnp.array([[1.0, 2.0], [3.0, 0.0]]), jnp.array([1, 1])))
      0.5
    """
    logits = _check_outputs("logits", logits)
    targets = _class_targets("labels", labels, "logits", logits)
    right = (logits.argmax(-1) == targets.argmax(-1)).astype(logits.dtype)
    sound = jnp.isfinite(logits).all(-1) & jnp.isfinite(targets).all(-1)
    return jnp.where(sound, right, jnp.nan).mean()


def cross_entropy(apply_fn: ApplyFn, *, label_smoothing: Any = 0.0) -> LossFn:
    """The loss of a classifier: `softmax_cross_entropy` of its outputs.

    Args:
      apply_fn: `apply_fn(params, x) -> logits`.
      label_smoothing: as in `softmax_cross_entropy`.

    Returns:
      `loss_fn(params, (x, y)) -> scalar`. It raises as `softmax_cross_entropy` does, and ValueError
      when the batch is no pair `(x, y)`, is empty or is not finite.

    Raises:
      TypeError: apply_fn is no function.
      ValueError: label_smoothing lies outside [0, 1].

    Source: as `softmax_cross_entropy`.

    Example:
      >>> loss_fn = cross_entropy(lambda w, x: x @ w)
      >>> round(float(loss_fn(jnp.zeros((3, 2)), (jnp.ones((5, 3)), jnp.zeros(5, int)))), 4)
      0.6931
    """
    check_fraction("label_smoothing", label_smoothing)
    return _of_outputs(
        apply_fn,
        lambda logits, y: softmax_cross_entropy(logits, y, label_smoothing=label_smoothing),
    )


def squared_error(apply_fn: ApplyFn) -> LossFn:
    """The loss of a regression: `half_squared_error` of its outputs.

    Args:
      apply_fn: `apply_fn(params, x) -> outputs`.

    Returns:
      `loss_fn(params, (x, y)) -> scalar`. It raises as `half_squared_error` does, and ValueError
      when the batch is no pair `(x, y)`, is empty or is not finite.

    Raises:
      TypeError: apply_fn is no function.

    Source: as `half_squared_error`.

    Example:
      >>> float(squared_error(lambda w, x: x * w)(jnp.array(3.0), (jnp.ones(4), jnp.ones(4))))
      2.0
    """
    return _of_outputs(apply_fn, half_squared_error)


def accuracy(apply_fn: ApplyFn) -> LossFn:
    """The metric of a classifier: the fraction of examples that it gets right.

    Args:
      apply_fn: `apply_fn(params, x) -> logits`.

    Returns:
      `metric_fn(params, (x, y)) -> scalar`; see `top_1`. It raises as the functions that
      `cross_entropy` returns.

    Raises:
      TypeError: apply_fn is no function.

    Source: this library.

    Example:
      >>> float(accuracy(lambda w, x: x @ w)(jnp.eye(2), (jnp.eye(2), jnp.array([0, 0]))))
      0.5
    """
    return _of_outputs(apply_fn, top_1)


def with_weight_decay(loss_fn: LossFn, strength: Any) -> LossFn:
    """A loss plus `strength / 2 * ||params||^2`, all leaves of params counted.

    Its gradient gains `strength * params`: for plain SGD this is the `weight_decay` of torch and of
    `optax.add_decayed_weights`, while adaptive optimisers differ from their decoupled forms. A
    penalty written `alpha ||params||^2` has strength `2 alpha`.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`.
      strength: at least 0; may be traced, so that a population can differ in it.

    Returns:
      `loss_fn(params, batch) -> scalar`.

    Raises:
      TypeError: loss_fn is no function, strength no real number.
      ValueError: strength is negative or not finite.

    Source: Krogh and Hertz 1991, equation 2.

    Example:
      >>> loss_fn = with_weight_decay(lambda w, batch: jnp.zeros(()), 0.5)
      >>> float(loss_fn(jnp.array([2.0, 0.0]), ()))
      1.0
    """
    check_callable("loss_fn", loss_fn)
    check_positive("strength", strength, zero_allowed=True)

    def decayed(params: Params, batch: Batch) -> Any:
        squares = sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(params))
        return loss_fn(params, batch) + strength / 2 * squares

    return decayed


def _of_outputs(apply_fn: ApplyFn, output_fn: Any) -> LossFn:
    check_callable("apply_fn", apply_fn)

    def fn(params: Params, batch: Batch) -> Any:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError(f"batch must be a pair (x, y), got {type(batch).__name__}.")
        check_batch(batch)
        x, y = batch
        return output_fn(apply_fn(params, x), y)

    return fn


def _check_outputs(name: str, outputs: Any) -> Any:
    outputs = jnp.asarray(outputs)
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise TypeError(f"{name} must be a floating point array, got {outputs.dtype}.")
    if not outputs.size:
        raise ValueError(f"{name} must hold at least 1 example, got shape {outputs.shape}.")
    if not outputs.shape:
        raise ValueError(f"{name} must have a leading example axis, got a scalar.")
    check_finite(name, outputs)
    return outputs


def _class_targets(name: str, labels: Any, like_name: str, like: Any) -> Any:
    """Integer classes or class probabilities as probabilities shaped like `like`."""
    num_classes = like.shape[-1] if like.ndim > 1 else 0
    if num_classes < 2:
        raise ValueError(f"{like_name} must have at least 2 classes, got shape {like.shape}.")
    if not isinstance(labels, jax.Array):
        labels = np.asarray(labels)
    integers = jnp.issubdtype(labels.dtype, jnp.integer)
    if integers and labels.shape == like.shape[:-1]:
        _check_classes(name, labels, num_classes)
        known = (labels >= 0) & (labels < num_classes)
        one_hot = jax.nn.one_hot(labels, num_classes, dtype=like.dtype)
        return jnp.where(jnp.asarray(known)[..., None], one_hot, jnp.nan)
    if labels.shape != like.shape:
        raise ValueError(
            f"{name} must be integers of shape {like.shape[:-1]} or probabilities of shape "
            f"{like.shape} for {like_name} of shape {like.shape}, got {labels.dtype} of shape "
            f"{labels.shape}."
        )
    _check_probabilities(name, labels)
    return jnp.asarray(labels, like.dtype)


def _check_classes(name: str, labels: Any, num_classes: int) -> None:
    if is_traced(labels):
        return
    values = np.asarray(labels)  # jnp would trace, even on an array whose values are there
    low, high = values.min(), values.max()
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{name} must be classes from 0 to {num_classes - 1}, got values from {low} to {high}."
        )


def _check_probabilities(name: str, labels: Any) -> None:
    if is_traced(labels):
        return
    labels = np.asarray(labels, dtype=float)
    check_finite(name, labels)
    # Rows of float32 softmaxes over a thousand classes sum to 1 within 1e-4.
    if (labels < 0).any() or np.abs(labels.sum(-1) - 1).max() > 1e-3:
        raise ValueError(
            f"{name} shaped like the outputs must be probabilities: rows of numbers of at least 0 "
            "that sum to 1."
        )
