"""`Conv`, `ConvTranspose` and `ConvLocal`.

k becomes W_std^2 A k + b_std^2 and t becomes W_std^2 A t + k_new, with A the mean over the filter's
taps of equal shifts of both positions (`windows`).

Source: Arora et al. 2019 (arXiv 1904.11955), Novak et al. 2019 (arXiv 1810.05148); ConvLocal:
weights at different positions are independent, so that covariances between them vanish.
"""

from collections.abc import Sequence
from typing import Any

from poster_jax.kernels.stax._convolution import Convolution
from poster_jax.kernels.stax.layer import layer
from poster_jax.kernels.stax.masking import supports_masking

__all__ = ["Conv", "ConvLocal", "ConvTranspose"]


@layer
@supports_masking(remask_kernel=True)
def Conv(  # noqa: N802
    out_chan: int,
    filter_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Any = "VALID",
    W_std: Any = 1.0,
    b_std: Any = None,
    dimension_numbers: tuple[str, str, str] | None = None,
    parameterization: str = "ntk",
    s: tuple[Any, Any] = (1, 1),
) -> Any:
    """A convolution.

    Args:
      out_chan: channels of the finite layer.
      filter_shape: one size a spatial axis, in the order of `dimension_numbers[1]`.
      strides: likewise; None: 1.
      padding: "VALID", "SAME" (zeros) or "CIRCULAR".
      W_std: standard deviation of the weights; may be traced.
      b_std: of the biases; None: no bias.
      dimension_numbers: as in `lax.conv_general_dilated`; None: channels last.
      parameterization: "ntk" or "standard", as in `Dense`.
      s: width scaling of input and output, for "standard".

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Raises:
      ValueError: another padding or parameterisation; a filter that does not fit.

    Example:
      >>> import jax
      >>> init_fn, _, _ = Conv(16, (3, 3), padding="SAME")
      >>> init_fn(jax.random.key(0), (-1, 8, 8, 3))[0]
      (-1, 8, 8, 16)
    """
    return Convolution(
        out_chan,
        filter_shape,
        strides,
        padding,
        W_std,
        b_std,
        dimension_numbers,
        parameterization,
        s,
    ).layer()


@layer
@supports_masking(remask_kernel=True)
def ConvTranspose(  # noqa: N802
    out_chan: int,
    filter_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Any = "VALID",
    W_std: Any = 1.0,
    b_std: Any = None,
    dimension_numbers: tuple[str, str, str] | None = None,
    parameterization: str = "ntk",
    s: tuple[Any, Any] = (1, 1),
) -> Any:
    """A transposed convolution (`lax.conv_transpose`).

    Args:
      out_chan: channels of the finite layer.
      filter_shape: one size a spatial axis, in the order of `dimension_numbers[1]`.
      strides: likewise; None: 1.
      padding: "VALID", "SAME" or "CIRCULAR" (the full output folded onto n * stride positions).
      W_std: standard deviation of the weights; may be traced.
      b_std: of the biases; None: no bias.
      dimension_numbers: as in `lax.conv_general_dilated`; None: channels last.
      parameterization: "ntk" or "standard", as in `Dense`.
      s: width scaling of input and output, for "standard".

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Raises:
      ValueError: another padding or parameterisation.

    Example:
      >>> import jax
      >>> init_fn, _, _ = ConvTranspose(16, (3, 3), (2, 2), "SAME")
      >>> init_fn(jax.random.key(0), (-1, 8, 8, 3))[0]
      (-1, 16, 16, 16)
    """
    return Convolution(
        out_chan, filter_shape, strides, padding, W_std, b_std, dimension_numbers, parameterization,
        s, transpose=True,
    ).layer()  # fmt: skip


@layer
@supports_masking(remask_kernel=True)
def ConvLocal(  # noqa: N802
    out_chan: int,
    filter_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Any = "VALID",
    W_std: Any = 1.0,
    b_std: Any = None,
    dimension_numbers: tuple[str, str, str] | None = None,
    parameterization: str = "ntk",
    s: tuple[Any, Any] = (1, 1),
) -> Any:
    """A locally connected layer: a convolution with weights of its own at every position.

    Args:
      out_chan: channels of the finite layer.
      filter_shape: one size a spatial axis, in the order of `dimension_numbers[1]`.
      strides: likewise; None: 1.
      padding: "VALID", "SAME" (zeros) or "CIRCULAR".
      W_std: standard deviation of the weights; may be traced.
      b_std: of the biases, one a position; None: no bias.
      dimension_numbers: as in `lax.conv_general_dilated`; None: channels last.
      parameterization: "ntk" or "standard", as in `Dense`.
      s: width scaling of input and output, for "standard".

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Raises:
      ValueError: another padding or parameterisation; a filter that does not fit.

    Example:
      >>> import jax
      >>> init_fn, _, _ = ConvLocal(16, (3,))
      >>> init_fn(jax.random.key(0), (-1, 8, 3))[1][0].shape
      (6, 9, 16)
    """
    return Convolution(
        out_chan, filter_shape, strides, padding, W_std, b_std, dimension_numbers, parameterization,
        s, shared=False,
    ).layer()  # fmt: skip
