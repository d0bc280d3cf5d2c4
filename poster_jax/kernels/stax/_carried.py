"""A kernel on its way through the layers, with what float32 would lose.

The NTK of a rectifier reads the angle between two outputs. For nearby inputs `k` and
`r1 r2 = sqrt(v1 v2)` agree in almost all digits, and the angle of their difference is noise: 3e-4
in float32. So the difference travels beside `k` as a number of its own:

    gap = sqrt(v1 v2) - |k| >= 0,    exactly 0 for equal (or opposite) outputs.

Layers that know how it moves carry it on; any other layer, also one that a user wrote, drops it
unknowingly (`replace`), and the next one that needs it computes it from `k` again.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.kernels import _pairs
from poster_jax.kernels.kernel import Kernel

__all__ = [
    "Carried",
    "carry",
    "diagonal_variances",
    "equal_outputs",
    "map_kernels",
    "public",
    "relative_gap",
    "scales",
    "variances",
]


@dataclasses.dataclass(frozen=True, eq=False)
class Carried(Kernel):
    """A `Kernel` between two layers.

    Attributes:
      gap: `sqrt(v1 v2) - |nngp|`, shaped like `nngp`, or None when nobody knows it.
      own1: (n1, positions...), the variances in `cov1`, or None: where layers carry them apart, a
        `cov1` of all pairs of positions that nothing reads is not computed.
      own2: those in `cov2`.
      equal: (n1, n2), whether two inputs are the same, so that their outputs are; or None.
      few_channels: whether the channels are still those of the inputs, not infinitely many.
      nonnegative: whether no covariance in `nngp` can be negative, so that nobody has to look.
    """

    gap: Any = None
    own1: Any = None
    own2: Any = None
    equal: Any = None
    few_channels: Any = False
    nonnegative: Any = False

    def replace(self, **changes: Any) -> "Carried":
        """A copy with some fields changed; a new covariance outdates the gap and its sign."""
        if "gap" not in changes and {"nngp", "cov1", "cov2"} & set(changes):
            changes["gap"] = None
        if "nonnegative" not in changes and "nngp" in changes:
            changes["nonnegative"] = False
        if "own1" not in changes and {"cov1", "cov2"} & set(changes):
            changes |= {"own1": None, "own2": None}
        return dataclasses.replace(self, **changes)

    def slice(self, n1_slice: Any, n2_slice: Any) -> "Kernel":
        """As of a `Kernel`; which of the inputs left are equal is not followed."""
        return super().slice(n1_slice, n2_slice).replace(equal=None)


_ARRAYS = ("nngp", "ntk", "cov1", "cov2", "x1_is_x2", "mask1", "mask2", "gap", "own1", "own2",
           "equal")  # fmt: skip
jax.tree_util.register_dataclass(
    Carried,
    data_fields=_ARRAYS,
    meta_fields=[f.name for f in dataclasses.fields(Carried) if f.name not in _ARRAYS],
)


def map_kernels(fn: Any, *trees: Any) -> Any:
    """`jax.tree.map` with kernels as leaves."""
    return jax.tree.map(fn, *trees, is_leaf=lambda k: isinstance(k, Kernel))


def carry(kernel: Kernel) -> Carried:
    """A public kernel made ready for the layers: spatial axes in their order, gap unknown."""
    if isinstance(kernel, Carried):
        return kernel
    kernel = kernel.reverse() if kernel.is_reversed else kernel
    return Carried(**kernel.asdict())


def public(kernel: Kernel) -> Kernel:
    """What is handed out."""
    return Kernel(**kernel.asdict()) if isinstance(kernel, Carried) else kernel


def variances(kernel: Kernel, of: str = "nngp") -> tuple[Any, Any]:
    """The variances of both entries of every covariance in `of`, ready for broadcasting.

    Args:
      kernel: any.
      of: "nngp", "cov1" or "cov2".
    """
    v1, v2 = diagonal_variances(kernel)
    left, right = {"nngp": (v1, v2), "cov1": (v1, v1), "cov2": (v2, v2)}[of]
    start = 0 if of == "nngp" or not kernel.diagonal_batch else 1
    end = 1 if kernel.diagonal_spatial else left.ndim
    end = max(start, end)
    return _pairs.rows(left, start, end), _pairs.columns(right, start, end)


def diagonal_variances(kernel: Kernel) -> tuple[Any, Any]:
    """(n1, h, w, ...) and (n2, h, w, ...): each output with itself."""
    if getattr(kernel, "own1", None) is not None:
        return kernel.own1, kernel.own1 if kernel.own2 is None else kernel.own2
    v1 = _variance(kernel, kernel.cov1)
    return v1, v1 if kernel.cov2 is None else _variance(kernel, kernel.cov2)


def _variance(kernel: Kernel, cov: Any) -> Any:
    if not kernel.diagonal_spatial:
        cov = _pairs.diagonal(cov, kernel.cov_ndim)
    return cov if kernel.diagonal_batch else jnp.moveaxis(jnp.diagonal(cov), -1, 0)


def scales(kernel: Kernel, of: str = "nngp") -> tuple[Any, Any]:
    """Standard deviations instead of variances."""
    v1, v2 = variances(kernel, of)
    return safe_sqrt(v1), safe_sqrt(v2)


@jax.custom_jvp
def safe_sqrt(x: Any) -> Any:
    """sqrt of max(x, 0), with derivative 0 where x is 0."""
    return jnp.sqrt(jnp.maximum(x, 0))


@safe_sqrt.defjvp
def _safe_sqrt_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    root = safe_sqrt(x)
    positive = root > 0
    return root, jnp.where(positive, dx / (2 * jnp.where(positive, root, 1)), 0)


def equal_outputs(k: Any, v1: Any, v2: Any, gap: Any) -> Any:
    """Where outputs are as equal (or opposite) as rounding lets them be, so that the gap is 0."""
    eps = 4 * jnp.finfo(k.dtype).eps
    return (gap <= eps**2 * jnp.abs(k)) & (jnp.abs(v1 - v2) <= eps * v1)


def relative_gap(k: Any, r1: Any, r2: Any, gap: Any = None) -> Any:
    """1 - |cos| of the angle between two outputs, in [0, 1]; 1 where one of them is zero."""
    gap = r1 * r2 - jnp.abs(k) if gap is None else gap
    safe1, safe2 = (jnp.where(r > 0, r, 1) for r in (r1, r2))
    zero1, zero2 = (jnp.where(r > 0, 0.0, 1.0).astype(r.dtype) for r in (r1, r2))
    # Choices are made once an output. The division is one a pair: XLA does not repeat it in every
    # user of the result, as it would a product by inverses, with all that comes before.
    return jnp.clip(gap / (safe1 * safe2) + zero1 + zero2, 0, 1)
