"""`LayerNorm` and `Dropout`."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_choice
from poster_jax.kernels import _pairs
from poster_jax.kernels.kernel import Kernel
from poster_jax.kernels.stax._carried import diagonal_variances, scales
from poster_jax.kernels.stax._gap import same_entry
from poster_jax.kernels.stax.layer import layer
from poster_jax.kernels.stax.masking import mean_and_variance, supports_masking
from poster_jax.kernels.stax.requirements import requires

__all__ = ["Dropout", "LayerNorm", "divided", "mean_deviation"]


@layer
@supports_masking(remask_kernel=False)
def LayerNorm(  # noqa: N802
    axis: int | Sequence[int] = -1,
    eps: Any = 1e-12,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Any:
    """Subtracts the mean over `axis` and divides by the standard deviation.

    At infinite width the mean of a Gaussian layer is 0, and the variance over channels is v: k and
    t are divided by sqrt((eps + m1)(eps + m2)), m the mean of v over the other axes in `axis`.

    Args:
      axis: axes to normalise over; the channel axis must be among them for a kernel.
      eps: added to variances.
      batch_axis: the examples' axis.
      channel_axis: the channels' axis.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Raises:
      NotImplementedError: (`kernel_fn`) an input that is not Gaussian.
      ValueError: (`kernel_fn`) the channel axis is not normalised over.

    Source: Ba et al. 2016 (arXiv 1607.06450); Novak et al. 2020, appendix.

    Example:
      >>> _, apply_fn, _ = LayerNorm()
      >>> apply_fn((), jnp.array([[1.0, 3.0]])).tolist()
      [[-1.0, 1.0]]
    """

    def axes_of(ndim):
        return tuple({i % ndim for i in ([axis] if isinstance(axis, int) else axis)})

    def init_fn(rng, input_shape):
        return input_shape, ()

    def apply_fn(params, inputs, mask=None, **kwargs):
        mean, variance = mean_and_variance(inputs, axes_of(inputs.ndim), mask)
        return (inputs - mean) / jnp.sqrt(eps + variance)

    @requires(batch_axis=batch_axis, channel_axis=channel_axis)
    def kernel_fn(k, **kwargs):
        if not k.is_gaussian:
            raise NotImplementedError(
                "LayerNorm needs a Gaussian input (is_gaussian=True), whose mean over channels is "
                "0: put it behind a Dense, Conv or other layer with random weights."
            )
        return divided(k, *mean_deviation(k, axes_of(len(k.shape1)), eps, "LayerNorm"))

    return init_fn, apply_fn, kernel_fn


def mean_deviation(k: Kernel, axes: tuple[int, ...], eps: Any, name: str) -> tuple[Any, Any]:
    """sqrt(eps + mean of the variances over `axes`) of both batches, (batch, positions...)."""
    if k.channel_axis not in axes:
        raise ValueError(
            f"axis of {name} must hold the channel axis {k.channel_axis} for the kernel to exist, "
            f"got {axes}."
        )
    others = [i for i in range(len(k.shape1)) if i not in (k.batch_axis, k.channel_axis)]
    places = tuple(p for p, i in enumerate((k.batch_axis, *others)) if i in axes)

    def one(v, mask):
        mask = mask if mask is None else k.position_mask(mask)
        return jnp.sqrt(eps + mean_and_variance(v, places, mask)[0])

    v1, v2 = diagonal_variances(k)
    return one(v1, k.mask1), one(v2, k.mask1 if k.cov2 is None else k.mask2)


def divided(k: Kernel, deviation1: Any, deviation2: Any) -> Kernel:
    """The kernel of the outputs divided by the deviations."""

    def by(x, left, right, start):
        end = max(start, 1 if k.diagonal_spatial else left.ndim)
        if x is None or x.ndim == 0:
            return x
        return x / (_pairs.rows(left, start, end) * _pairs.columns(right, start, end))

    start = 1 if k.diagonal_batch else 0
    gap = getattr(k, "gap", None)
    carried = {} if gap is None else {"gap": by(gap, deviation1, deviation2, 0)}
    return k.replace(
        nngp=by(k.nngp, deviation1, deviation2, 0),
        ntk=by(k.ntk, deviation1, deviation2, 0),
        cov1=by(k.cov1, deviation1, deviation1, start),
        cov2=by(k.cov2, deviation2, deviation2, start),
        **carried,
    )


@layer
@supports_masking(remask_kernel=False)
def Dropout(rate: Any, mode: str = "train") -> Any:  # noqa: N802
    """Keeps an entry with probability `rate` and divides it by it.

    Variances, and covariances of an entry with itself, are divided by `rate`; others stay.

    Args:
      rate: the probability to KEEP, above 0, at most 1.
      mode: "train", or "test": nothing.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`; in "train" mode `apply_fn(params, x, rng=key)`. A cross
      kernel is changed only where both batches are the same (`x1_is_x2`).

    Raises:
      ValueError: a rate outside (0, 1], another mode; (`apply_fn`) no `rng`.

    Source: Srivastava et al. 2014; Schoenholz et al. 2017 (arXiv 1611.01232).

    Example:
      >>> _, apply_fn, _ = Dropout(0.5)
      >>> apply_fn((), jnp.ones((2, 3)), rng=jax.random.key(0)).shape
      (2, 3)
    """
    check_choice("mode", mode, ("train", "test"))
    if not 0 < rate <= 1:
        raise ValueError(
            f"rate must lie above 0 and at most at 1 (it is the part kept), got {rate}."
        )

    def init_fn(rng, input_shape):
        return input_shape, ()

    def apply_fn(params, inputs, rng=None, **kwargs):
        if rng is None:
            raise ValueError("Dropout needs a key: call apply_fn(params, inputs, rng=key).")
        if mode == "test":
            return inputs
        keep = jax.random.bernoulli(rng, rate, inputs.shape)
        return jnp.where(keep, inputs / rate, 0)

    def kernel_fn(k, **kwargs):
        return k

    @requires(use_dropout=True)
    def dropping_kernel_fn(k, **kwargs):
        if k.is_input:
            raise ValueError(
                "Dropout must not be the first layer: its input has no random weights."
            )
        return _dropped(k, 1 / rate)

    return init_fn, apply_fn, kernel_fn if mode == "test" else dropping_kernel_fn


def _dropped(k: Kernel, factor: Any) -> Kernel:
    def on_self(x, batch_ndim, factor):
        same = same_entry(x, batch_ndim, k.diagonal_spatial)
        return x if same is None else jnp.where(same, x * factor, x)

    def maybe(x, batch_ndim, factor):
        return x if x is None or x.ndim == 0 else on_self(x, batch_ndim, factor)

    cross_factor = jnp.where(k.x1_is_x2, factor, 1.0)
    gap = None
    if getattr(k, "gap", None) is not None:  # sqrt(v1 v2) grows everywhere, k on equal entries only
        r1, r2 = scales(k)
        apart = k.gap + r1 * r2 * (factor - 1)
        same = same_entry(k.nngp, 2, k.diagonal_spatial)
        together = False if same is None else same & jnp.asarray(k.x1_is_x2)
        gap = jax.lax.stop_gradient(jnp.where(together, k.gap * factor, apart))
    out = k.replace(
        nngp=maybe(k.nngp, 2, cross_factor),
        ntk=maybe(k.ntk, 2, cross_factor),
        cov1=maybe(k.cov1, k.cov_ndim, factor),
        cov2=maybe(k.cov2, k.cov_ndim, factor),
        is_gaussian=False,
    )
    return out if gap is None else out.replace(gap=gap)
