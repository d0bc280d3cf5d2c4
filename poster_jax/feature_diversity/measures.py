"""How much do the features of a network differ, in its weights and in what they say?"""

from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_choice, check_count, check_key, check_positive
from poster_jax.core.typing import Array, Float, Int, PRNGKey

__all__ = ["breaking_time", "effective_width", "feature_diversity", "weight_correlation"]


def weight_correlation(
    kernel: Float[Array, "*window inputs outputs"],
    *,
    axis: str = "out",
    max_rows: int = 5000,
    key: PRNGKey | None = None,
) -> Float[Array, ""]:
    """The mean correlation of a layer's features with one another.

    Equation: with the rows of the weights standardised to z_i (mean 0, norm 1), the mean over i, j
    of all Pearson correlations off the diagonal is `(|sum_i z_i|^2 - n) / (n (n - 1))`: as many
    operations as there are weights, and no n x n matrix.

    Args:
      kernel: weights, Flax's layout.
      axis: what a row is. "out", all weights of an output channel (forward correlation); "in", all
        of an input channel (backward); "both", each window by itself.
      max_rows: of more rows so many are drawn.
      key: needed when rows are drawn.

    Returns:
      Scalar in [-1, 1]. A pair with a constant row has no correlation and counts as 1, as in the
      authors' code: ConstNet's convolutions, all zero at first, are identical features. So does a
      single row.

    Raises:
      ValueError: another axis, fewer than 2 axes (3 for "both"), max_rows below 2, rows to draw and
        no key.

    Source: Blumenfeld, Gilboa, Soudry 2020 (arXiv 2007.01038), which log -ln |c|; the closed form
    is derived here.

    Example:
      >>> kernel = jnp.array([[1.0, 2.0, -1.0], [2.0, 4.0, -2.0], [4.0, 8.0, -4.0]])
      >>> round(float(weight_correlation(kernel)), 4)  # 1, -1 and -1
      -0.3333
    """
    check_choice("axis", axis, ("out", "in", "both"))
    check_count("max_rows", max_rows, minimum=2)
    if kernel.ndim < 2 + (axis == "both"):
        raise ValueError(f"kernel must be (window..., inputs, outputs), got shape {kernel.shape}.")
    if axis == "both":
        rows = jnp.moveaxis(kernel, (-2, -1), (0, 1)).reshape(-1, kernel[..., 0, 0].size)
    else:
        which = -1 if axis == "out" else -2
        rows = jnp.moveaxis(kernel, which, 0).reshape(kernel.shape[which], -1)
    if len(rows) > max_rows:
        if key is None:
            raise ValueError(f"key must be given to draw {max_rows} of {len(rows)} rows, got None.")
        check_key("key", key)
        rows = rows[jax.random.permutation(key, len(rows))[:max_rows]]
    num = len(rows)
    if num == 1:
        return jnp.ones((), rows.dtype)
    varies = rows.max(1) > rows.min(1)
    centred = rows - rows.mean(1, keepdims=True)
    norms = jnp.sqrt(jnp.sum(centred**2, 1, keepdims=True))
    standard = jnp.where(varies[:, None], centred / jnp.where(norms > 0, norms, 1), 0)
    count = varies.sum().astype(rows.dtype)
    pairs = num * (num - 1.0)
    # Pairs with a constant row are as many as there are, less those of two rows that vary.
    total = jnp.sum(standard.sum(0) ** 2) - count + pairs - count * (count - 1)
    return total / pairs


def feature_diversity(
    activations: Float[Array, "..."], *, channel_axis: int = -1
) -> Float[Array, ""]:
    """Which share of the activations' square is not common to all channels.

    Equation: `q = mean (h_c - mean_c h)^2 / mean h_c^2`, means over channels, examples, positions.

    Args:
      activations: of a layer, or gradients with respect to it; any axes.
      channel_axis: which one counts the channels.

    Returns:
      Scalar in [0, 1]: 0 for identical features, also where all are zero; 1 where they cancel.

    Raises:
      ValueError: channel_axis is no axis of activations.

    Source: Blumenfeld, Gilboa, Soudry 2020, the quantity that their code calls Q.

    Example:
      >>> float(feature_diversity(jnp.array([[1.0, 3.0]])))  # 1 / 5
      0.2...
    """
    if not -activations.ndim <= channel_axis < activations.ndim:
        raise ValueError(
            f"channel_axis must be an axis of activations of shape {activations.shape}, got "
            f"{channel_axis}."
        )
    # Less the first channel: the mean of equal numbers need not be that number to the bit.
    first = jax.lax.slice_in_dim(jnp.moveaxis(activations, channel_axis, 0), 0, 1)
    rest = jnp.moveaxis(activations, channel_axis, 0) - first
    spread = jnp.mean((rest - rest.mean(0)) ** 2)
    size = jnp.mean(activations**2)
    return jnp.where(size > 0, spread / jnp.where(size > 0, size, 1), 0)


def effective_width(activations: Float[Array, "*examples features"]) -> Float[Array, ""]:
    """How many features a layer has in effect: the participation ratio of their covariance.

    Equation: `(tr C)^2 / tr C^2`.

    Args:
      activations: the last axis counts the features, all others examples and positions.

    Returns:
      Scalar from 1 (all features move together) to their number; 0 where nothing varies.

    Source: this library; Gao et al. 2017, "A theory of multineuronal dimensionality".

    Example:
      >>> float(effective_width(jnp.array([[1.0, 1.0], [-1.0, -1.0]])))
      1.0
    """
    rows = activations.reshape(-1, activations.shape[-1])
    rows = rows - rows.mean(0)
    gram = rows.T @ rows if rows.shape[0] >= rows.shape[1] else rows @ rows.T
    trace, square = jnp.trace(gram), jnp.sum(gram**2)
    return jnp.where(square > 0, trace**2 / jnp.where(square > 0, square, 1), 0)


def breaking_time(diversity: Float[Array, "steps"], *, threshold: Any = 0.01) -> Int[Array, ""]:
    """The first entry at which the diversity is above a threshold.

    Args:
      diversity: `feature_diversity` along a run.
      threshold: above 0; 0.01 is a relative deviation of 0.1.

    Returns:
      int32 index; -1 when there is none.

    Raises:
      ValueError: threshold not above 0.

    Source: this library.

    Example:
      >>> int(breaking_time(jnp.array([0.0, 0.001, 0.02, 0.3])))
      2
    """
    check_positive("threshold", threshold)
    above = diversity > threshold
    return jnp.where(above.any(), above.argmax(), -1).astype(jnp.int32)
