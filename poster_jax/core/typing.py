"""One set of names for the arrays, functions and results that every room passes on."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

__all__ = [
    "ApplyFn",
    "Array",
    "Batch",
    "Bool",
    "Eigenpairs",
    "Estimate",
    "Float",
    "Int",
    "LossFn",
    "PRNGKey",
    "Params",
    "PyTree",
    "Scalar",
    "Shaped",
]

Params: TypeAlias = Any
"""Any pytree whose leaves are floating point arrays."""

Batch: TypeAlias = Any
"""Any pytree whose leaves share a leading example axis; most often the pair `(x, y)`."""

PRNGKey: TypeAlias = Any
"""A typed key of `jax.random.key`, or the older raw `uint32[2]` of `jax.random.PRNGKey`."""

Scalar = Float[Array, ""]
ApplyFn: TypeAlias = Callable[[Params, Any], Any]
"""`apply_fn(params, x) -> outputs`, in evaluation mode."""

LossFn: TypeAlias = Callable[[Params, Batch], Any]
"""`loss_fn(params, batch) -> scalar`, the mean over the examples of the batch."""


class Estimate(NamedTuple):
    """A Monte-Carlo estimate, its standard error, and the number of samples behind both.

    Attributes:
      mean: the estimate; any shape (or a pytree of arrays for estimates of a whole pytree).
      stderr: the standard error of `mean`, shaped like it; NaN when a single sample was drawn, zero
        where the value is exact.
      num_samples: integer scalar; 0 when the value is exact and nothing was sampled.
    """

    mean: Any
    stderr: Any
    num_samples: Any


class Eigenpairs(NamedTuple):
    """Eigenvalues of a symmetric operator with what is needed to believe them.

    Attributes:
      values: float (k,); ordered as the solver that made them says.
      vectors: pytree like the operator's domain, every leaf with a leading axis k; orthonormal.
      residuals: float (k,); `||H v - value v||`, computed from one more product, not from the
        recurrence.
      converged: bool (k,); whether the residual met the tolerance.
      num_products: integer scalar; operator-vector products spent in all.
    """

    values: Any
    vectors: Any
    residuals: Any
    converged: Any
    num_products: Any
