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
from poster_jax.kernels.stax._carried import (
    Carried,
    diagonal_variances,
    safe_sqrt,
    scales,
    variances,
)
from poster_jax.kernels.stax._dependent_gap import zero_between_equal
from poster_jax.kernels.stax._gap import same_entry, same_position
from poster_jax.kernels.stax._smooth_gap import gap_of_smooth
from poster_jax.kernels.stax.requirements import Diagonal, requires
from poster_jax.kernels.stax.windows import examples_innermost

__all__ = ["Dual", "Image", "determinant", "elementwise", "smooth", "square_distance"]


class Image(NamedTuple):
    """What becomes of a covariance: its new value, the slope, the new gap (None: not known).

    `nonnegative` says (True or False, never traced) that no value can be negative.
    """

    value: Any
    slope: Any
    gap: Any = None
    nonnegative: Any = False


class Dual(NamedTuple):
    """The dual of a nonlinearity.

    Attributes:
      cross: `(k, v1, v2, gap or None) -> Image`, elementwise on arrays that broadcast; where
        `knows_sign`, with the keyword `nonnegative` (whether no k can be negative).
      variance: `v -> E[phi(u)^2]`.
    """

    cross: Callable[..., Image]
    variance: Callable[[Any], Any]
    knows_sign: bool = False


def smooth(
    cross: Callable[..., tuple[Any, Any]], variance: Any, *, symmetric: bool = False
) -> Dual:
    """The dual of a smooth nonlinearity.

    Args:
      cross: `(k, v1, v2, gap or None) -> (value, slope)`.
      variance: `v -> E[phi(u)^2]`.
      symmetric: whether the nonlinearity is odd or even.
    """

    def image(k, v1, v2, gap):
        value, slope = cross(k, v1, v2, gap)
        if gap is None:
            return Image(value, slope)
        new_gap = gap_of_smooth(cross, variance, k, v1, v2, gap, value, symmetric=symmetric)
        return Image(value, slope, new_gap)

    return Dual(image, variance)


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
    sign = {"nonnegative": getattr(k, "nonnegative", False)} if dual.knows_sign else {}
    image = dual.cross(k.nngp, *variances(k), _gap(k), **sign)
    ntk = None if k.ntk is None else k.ntk * image.slope
    witness = diagonal_variances(k)[0]
    nngp, ntk, gap = _materialized((image.value, ntk, image.gap), witness)
    if nngp.ndim > 2:
        nngp, ntk, gap = (
            x if x is None or x.shape != k.nngp.shape else examples_innermost(x, 2)
            for x in (nngp, ntk, gap)
        )
    carried = {} if gap is None else {"gap": jax.lax.stop_gradient(gap)}
    if isinstance(k, Carried):
        carried["nonnegative"] = image.nonnegative
    if isinstance(k, Carried) and not k.diagonal_spatial and k.cov1.ndim > k.cov_ndim:
        carried["own1"], own2 = map(dual.variance, diagonal_variances(k))
        carried["own2"] = None if k.cov2 is None else own2

    def own(name):
        cov = getattr(k, name)
        if cov is None or (k.diagonal_batch and k.diagonal_spatial) or cov.ndim == 1:
            return None if cov is None else dual.variance(cov)
        return dual.cross(cov, *variances(k, name), None).value

    return k.replace(
        nngp=nngp,
        ntk=ntk,
        cov1=own("cov1"),
        cov2=own("cov2"),
        is_gaussian=False,
        **carried,
    )


def _gap(k: Kernel) -> Any:
    """The gap; where no layer carried it, at least exactly 0 between equal outputs."""
    if k.ntk is None or getattr(k, "gap", None) is not None:
        return getattr(k, "gap", None)
    r1, r2 = scales(k)
    product = r1 * r2
    gap = jnp.maximum(product - jnp.abs(k.nngp), 0)
    known = False
    same = same_entry(k.nngp, 2, k.diagonal_spatial)
    if same is not None and k.x1_is_x2 is not False:
        gap, known = jnp.where(same & jnp.asarray(k.x1_is_x2), 0, gap), True
    equal = getattr(k, "equal", None)
    if equal is not None and equal.shape == k.nngp.shape[:2]:
        positions = same_position(gap, k.diagonal_spatial)
        gap, known = zero_between_equal(gap, product, equal, positions), True
    return jax.lax.stop_gradient(gap) if known else None


def _materialized(arrays: Any, witness: Any) -> Any:
    """`arrays`, written to memory, so that later layers read them.

    XLA fuses cheap operations into every one of their users; along a chain of layers each layer
    would compute all those before it again. A division it does not repeat: so divide by a 1 that it
    cannot see through. (`optimization_barrier` is gone on the CPU by the time that fusion starts.)
    """
    if jax.default_backend() != "cpu":
        return jax.lax.optimization_barrier(arrays)
    some = jax.lax.stop_gradient(witness.reshape(-1)[0])
    one = jnp.where(some == some, 1, 2).astype(witness.dtype)
    return jax.tree.map(lambda x: x / one, arrays)


@jax.custom_jvp
def determinant(k: Any, v1: Any, v2: Any, gap: Any = None) -> Any:
    """v1 v2 - k^2 >= 0, as a product of two numbers that do not cancel unless it is small.

    With the gap of `k` they never do.
    """
    product = safe_sqrt(v1) * safe_sqrt(v2)
    if gap is not None:
        return jnp.maximum(gap * (2 * product - gap), 0)
    return jnp.maximum((product - k) * (product + k), 0)


@determinant.defjvp
def _determinant_jvp(primals, tangents):
    k, v1, v2, gap = primals
    dk, dv1, dv2, _ = tangents
    out = determinant(k, v1, v2, gap)
    return out, jnp.broadcast_to(v2 * dv1 + v1 * dv2 - 2 * k * dk, out.shape)


@jax.custom_jvp
def square_distance(k: Any, v1: Any, v2: Any, gap: Any = None) -> Any:
    """E[(u - w)^2] = v1 + v2 - 2 k >= 0, without cancellation where the gap of `k` is known."""
    if gap is None:
        return v1 + v2 - 2 * k
    r1, r2 = safe_sqrt(v1), safe_sqrt(v2)
    product = r1 * r2
    return (r1 - r2) ** 2 + 2 * jnp.where(k >= 0, gap, 2 * product - gap)


@square_distance.defjvp
def _square_distance_jvp(primals, tangents):
    k, v1, v2, gap = primals
    dk, dv1, dv2, _ = tangents
    out = square_distance(k, v1, v2, gap)
    return out, jnp.broadcast_to(dv1 + dv2 - 2 * dk, out.shape)
