"""How a pointwise nonlinearity moves a kernel: by its dual.

For phi and (u, w) Gaussian with variances v1, v2 and covariance k, the layer maps
k to E[phi(u) phi(w)] and the NTK t to t E[phi'(u) phi'(w)]. Since d/dk E[phi(u) phi(w)] =
E[phi'(u) phi'(w)] (Price), the second is the slope of the first.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poster_jax.kernels.kernel import Kernel
from poster_jax.kernels.stax._carried import safe_sqrt, variances
from poster_jax.kernels.stax.requirements import Diagonal, requires

__all__ = ["Dual", "Image", "determinant", "elementwise", "smooth"]


class Image(NamedTuple):
    """What becomes of a covariance: its new value, the slope, the new gap (None: not known)."""

    value: Any
    slope: Any
    gap: Any = None


class Dual(NamedTuple):
    """The dual of a nonlinearity.

    Attributes:
      cross: `(k, v1, v2, gap or None) -> Image`, elementwise on arrays that broadcast.
      variance: `v -> E[phi(u)^2]`.
    """

    cross: Callable[..., Image]
    variance: Callable[[Any], Any]


def smooth(cross: Callable[[Any, Any, Any], tuple[Any, Any]], variance: Any) -> Dual:
    """The dual of a smooth nonlinearity: no slope is steep, so the gap is not needed."""
    return Dual(lambda k, v1, v2, gap: Image(*cross(k, v1, v2)), variance)


def elementwise(fn: Any, dual: Dual | None, name: str) -> tuple[Any, Any, Any]:
    """The three functions of a pointwise layer; `fn` or `dual` may be missing."""

    def init_fn(rng, input_shape):
        return input_shape, ()

    def apply_fn(params, inputs, **kwargs):
        if fn is None:
            raise NotImplementedError(f"{name} has no finite-width function to apply.")
        return fn(inputs)

    @requires(diagonal_spatial=Diagonal())
    def kernel_fn(k, **kwargs):
        if dual is None:
            raise NotImplementedError(
                f"{name} was given no nngp_fn, so that its kernel is not known."
            )
        if not k.is_gaussian:
            raise ValueError(
                f"the input of {name} must be Gaussian (is_gaussian=True): put a Dense, Conv or "
                "other layer with random weights before it."
            )
        return _through(dual, k)

    return init_fn, apply_fn, kernel_fn


def _through(dual: Dual, k: Kernel) -> Kernel:
    image = dual.cross(k.nngp, *variances(k), getattr(k, "gap", None))
    gap = {} if image.gap is None else {"gap": jax.lax.stop_gradient(image.gap)}

    def own(name):
        cov = getattr(k, name)
        if cov is None or (k.diagonal_batch and k.diagonal_spatial) or cov.ndim == 1:
            return None if cov is None else dual.variance(cov)
        return dual.cross(cov, *variances(k, name), None).value

    return k.replace(
        nngp=image.value,
        ntk=None if k.ntk is None else k.ntk * image.slope,
        cov1=own("cov1"),
        cov2=own("cov2"),
        is_gaussian=False,
        **gap,
    )


@jax.custom_jvp
def determinant(k: Any, v1: Any, v2: Any) -> Any:
    """v1 v2 - k^2 >= 0, as a product of two numbers that do not cancel unless it is small."""
    product = safe_sqrt(v1) * safe_sqrt(v2)
    return jnp.maximum((product - k) * (product + k), 0)


@determinant.defjvp
def _determinant_jvp(primals, tangents):
    k, v1, v2 = primals
    dk, dv1, dv2 = tangents
    out = determinant(k, v1, v2)
    return out, jnp.broadcast_to(v2 * dv1 + v1 * dv2 - 2 * k * dk, out.shape)
