"""`Dense` and `Identity`."""

from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_choice
from poster_jax.kernels.stax._carried import Carried, scales
from poster_jax.kernels.stax.layer import layer
from poster_jax.kernels.stax.masking import supports_masking
from poster_jax.kernels.stax.requirements import Diagonal, requires
from poster_jax.kernels.stax.windows import examples_innermost

__all__ = ["Dense", "Identity", "affine", "affine_gap"]


@layer
@supports_masking(remask_kernel=False)
def Identity() -> Any:  # noqa: N802
    """Nothing.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Example:
      >>> _, apply_fn, _ = Identity()
      >>> apply_fn((), jnp.array([3.0])).tolist()
      [3.0]
    """

    def init_fn(rng, input_shape):
        return input_shape, ()

    def apply_fn(params, inputs, **kwargs):
        return inputs

    def kernel_fn(k, **kwargs):
        return k

    return init_fn, apply_fn, kernel_fn


@layer
@supports_masking(remask_kernel=True)
def Dense(  # noqa: N802
    out_dim: int,
    W_std: Any = 1.0,
    b_std: Any = None,
    batch_axis: int = 0,
    channel_axis: int = -1,
    parameterization: str = "ntk",
    s: tuple[Any, Any] = (1, 1),
) -> Any:
    """A fully connected layer.

    NTK parameterisation: outputs `W_std / sqrt(n_in) W x + b_std b` with standard normal W and b,
    k becomes `W_std^2 k + b_std^2` and t becomes `W_std^2 t + k_new`. Standard parameterisation:
    outputs `W x / sqrt(s_in) + b` with W of deviation `W_std / sqrt(n_in / s_in)`, width
    `out_dim s_out`; t becomes `W_std^2 t + (n_in / s_in) k_old`, plus 1 with a bias.

    Args:
      out_dim: width of the finite layer; the kernel in NTK parameterisation ignores it.
      W_std: standard deviation of the weights; may be traced.
      b_std: of the biases; None: no bias.
      batch_axis: the examples' axis.
      channel_axis: the channels' axis.
      parameterization: "ntk" or "standard".
      s: width scaling of input and output, for "standard".

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Raises:
      ValueError: another parameterisation.

    Source: Jacot et al. 2018 (arXiv 1806.07572); Sohl-Dickstein et al. 2020 (arXiv 2001.07301).

    Example:
      >>> _, _, kernel_fn = Dense(1, W_std=2.0)
      >>> float(kernel_fn(jnp.ones((1, 3)), None, "ntk")[0, 0])
      4.0
    """
    parameterization = parameterization.lower()
    check_choice("parameterization", parameterization, ("ntk", "standard"))
    standard = parameterization == "standard"
    width = out_dim * s[1] if standard else out_dim

    def init_fn(rng, input_shape):
        ndim, num_in = len(input_shape), input_shape[channel_axis]
        axis = channel_axis % ndim
        rng_w, rng_b = jax.random.split(rng)
        W = jax.random.normal(rng_w, (num_in, width))
        b_shape = tuple(width if i == axis else 1 for i in range(ndim))
        b = None if b_std is None else jax.random.normal(rng_b, b_shape)
        if standard:
            W = W * (W_std / (num_in / s[0]) ** 0.5)
            b = None if b is None or b_std is None else b * b_std
        return (*input_shape[:axis], width, *input_shape[axis + 1 :]), (W, b)

    def apply_fn(params, inputs, **kwargs):
        W, b = params
        product = jnp.moveaxis(jnp.tensordot(W, inputs, (0, channel_axis)), 0, channel_axis)
        if standard:
            outputs = product / s[0] ** 0.5
            return outputs if b is None else outputs + b
        outputs = W_std / inputs.shape[channel_axis] ** 0.5 * product
        return outputs if b is None else outputs + b_std * b

    @requires(batch_axis=batch_axis, channel_axis=channel_axis, diagonal_spatial=Diagonal())
    def kernel_fn(k, **kwargs):
        nngp, cov1, cov2 = (affine(x, W_std, b_std) for x in (k.nngp, k.cov1, k.cov2))
        if k.ntk is None:
            ntk = None
        elif standard:
            ntk = k.shape1[channel_axis] / s[0] * k.nngp + W_std**2 * k.ntk
            ntk = ntk if b_std is None else ntk + 1.0
        else:
            ntk = nngp + W_std**2 * k.ntk
        gap = affine_gap(k, W_std, b_std)
        return k.replace(
            nngp=nngp,
            ntk=ntk,
            cov1=cov1,
            cov2=cov2,
            gap=gap,
            nonnegative=getattr(k, "nonnegative", False),
            is_gaussian=True,
            is_input=False,
            few_channels=False,
        )

    def mask_fn(mask, input_shape):
        return jnp.all(mask, axis=channel_axis, keepdims=True)

    return init_fn, apply_fn, kernel_fn, mask_fn


def affine(covariance: Any, W_std: Any, b_std: Any) -> Any:
    """W_std^2 k + b_std^2; None passes."""
    if covariance is None:
        return None
    out = W_std**2 * covariance
    return out if b_std is None else out + b_std**2


def affine_gap(k: Carried, W_std: Any, b_std: Any) -> Any:
    """The gap after `affine`, from the kernel before it, by sums of positive terms only.

    With a = W r, b the bias and r' = sqrt(a^2 + b^2), the vector (a, b) has the angle psi and the
    length r', and r1' r2' - a1 a2 - b^2 = 2 r1' r2' sin^2((psi1 - psi2) / 2). With the half angles
    in A = sqrt(r' + a), B = b / A that is (A1 B2 - B1 A2)^2 / 2: no subtraction of large numbers
    enters, and no pair needs a division.

    Source: this library.
    """
    if k.gap is None:
        return None
    gap = W_std**2 * k.gap
    if b_std is not None:
        a1, a2 = (jnp.abs(W_std) * r for r in scales(k))
        b2 = jnp.square(b_std)
        (A1, B1), (A2, B2) = (_half_angle(a, b2) for a in (a1, a2))
        if not k.nonnegative:
            positive = affine(k.nngp, W_std, b_std) >= 0
            opposite = jnp.where(positive, 2 * a1 * a2 - gap, 2 * b2 + gap)
            gap = jnp.where(k.nngp >= 0, gap, opposite)
        gap = gap + (A1 * B2 - B1 * A2) ** 2 / 2
    return jax.lax.stop_gradient(gap)


def _half_angle(a: Any, b2: Any) -> tuple[Any, Any]:
    A = jnp.sqrt(jnp.sqrt(a**2 + b2) + a)
    B = jnp.where(A > 0, jnp.sqrt(b2) / jnp.where(A > 0, A, 1), 0)
    return (A, examples_innermost(B, 2)) if a.ndim > 2 else (A, B)
