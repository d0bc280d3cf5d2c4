"""A symmetric linear operator known only through its products with vectors.

Every question of this room is asked of a `LinearOperator`, and every curvature is one. It is a
pytree: parameters and data are its leaves, so it passes through `jit` as an argument (new weights
of the same shapes compile nothing), and `vmap` over it asks the question of a whole population.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from poster_jax.core.batching import mean_over_batch
from poster_jax.core.checks import check_count, check_finite, check_same_structure
from poster_jax.core.devices import on_mesh
from poster_jax.core.paths import get_path, restrict
from poster_jax.core.typing import Array, Batch, Float, Params

__all__ = ["LinearOperator", "matrix_operator"]


@runtime_checkable
class Linearizer(Protocol):
    """Turns a function of free parameters and a batch into the linear map v -> C v of a curvature.

    It must be hashable and equal to another of the same settings: it is part of what `jit` keys on.
    """

    def __call__(
        self, fn: Callable[..., Any], params: Params, batch: Batch
    ) -> Callable[[Params], Params]:
        """The map, a mean over the examples of `batch`; what does not depend on v is done here."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearOperator:
    """A symmetric operator on pytrees like the parameters; `op(v)` is its product with `v`.

    Made by `hessian_operator` and its siblings, not by hand.

    Attributes:
      params: the point at which the curvature is taken.
      batch: the examples over which it is a mean.
      fn: the function whose curvature it is, `fn(params, batch_or_x)`.
      linearizer: which curvature.
      path: the leaf or subtree of `params` on which it acts, the rest held fixed; None for all.
      microbatch: examples taken at once, see `core.batching.mean_over_batch`.
      mesh: devices over which the examples are spread.
    """

    params: Params
    batch: Batch
    fn: Callable[..., Any] = dataclasses.field(metadata={"static": True})
    linearizer: Linearizer = dataclasses.field(metadata={"static": True})
    path: str | None = dataclasses.field(default=None, metadata={"static": True})
    microbatch: int | None = dataclasses.field(default=None, metadata={"static": True})
    mesh: Mesh | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def like(self) -> Params:
        """A pytree like the vectors it takes: the free part of `params`."""
        return self.params if self.path is None else get_path(self.params, self.path)

    @property
    def dim(self) -> int:
        """How many numbers a vector has."""
        return sum(int(np.prod(jnp.shape(leaf))) for leaf in jax.tree.leaves(self.like))

    def __call__(self, vector: Params) -> Params:
        """The product with one vector, a pytree like `like`; compiled once for all weights."""
        check_same_structure("vector", vector, "op.like", self.like)
        return _product(self, vector)

    def block(self, vectors: Params) -> Params:
        """Products with vectors stacked along a leading axis, from one linearisation."""
        first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), vectors)
        check_same_structure("a vector of the block", first, "op.like", self.like)
        return _block(self, vectors)

    def linear_map(self) -> Callable[[Params], Params]:
        """The map v -> op(v), to be applied many times inside one program.

        With the whole batch at once it is linearised here, and a product then costs only what
        depends on v, about half; the price is the memory of the intermediate values. With
        microbatches nothing is kept, and each product linearises again.
        """
        if self.microbatch is None and self.mesh is None:
            return self._linearize(self.batch)
        return lambda vector: self._mean(lambda linear: linear(vector))

    def restrict(self, path: str) -> "LinearOperator":
        """The diagonal block of one leaf or subtree ("Dense_1/kernel"), all else held fixed."""
        whole = path if self.path is None else f"{self.path}/{path}"
        get_path(self.params, whole)
        return dataclasses.replace(self, path=whole)

    def _linearize(self, batch: Batch) -> Callable[[Params], Params]:
        if self.path is None:
            return self.linearizer(self.fn, self.params, batch)
        return self.linearizer(*restrict(self.fn, self.params, self.path), batch)

    def _mean(self, use: Callable[[Callable[[Params], Params]], Any]) -> Any:
        return mean_over_batch(
            lambda batch: use(self._linearize(batch)),
            self.batch,
            microbatch=self.microbatch,
            mesh=self.mesh,
        )


@jax.jit
def _product(op: LinearOperator, vector: Params) -> Params:
    return op._mean(lambda linear: linear(vector))


@jax.jit
def _block(op: LinearOperator, vectors: Params) -> Params:
    return op._mean(lambda linear: map_vectors(linear, vectors))


def default_block_size() -> int:
    """How many vectors to send through a linear map at once.

    On the CPU one: stacked vectors make XLA's matmuls up to three times slower than one after
    another (measured: MLPs of 11 k to 1 M parameters, jax 0.10). Eight fill an accelerator.
    """
    return 1 if jax.default_backend() == "cpu" else 8


def map_vectors(fn: Callable[[Any], Any], vectors: Any, block_size: int | None = None) -> Any:
    """`vmap(fn)(vectors)`, at most `block_size` of the leading axis at a time."""
    size = jax.tree.leaves(vectors)[0].shape[0]
    block_size = min(size, block_size or default_block_size())
    if size == 1:
        only = fn(jax.tree.map(lambda leaf: leaf[0], vectors))
        return jax.tree.map(lambda leaf: leaf[None], only)
    if block_size == size:
        return jax.vmap(fn)(vectors)
    return jax.lax.map(fn, vectors, batch_size=block_size if block_size > 1 else None)


def make_operator(
    fn: Callable[..., Any],
    linearizer: Linearizer,
    params: Params,
    batch: Batch,
    *,
    microbatch: int | None,
    mesh: Mesh | None,
) -> LinearOperator:
    """The operator, after the checks that all curvatures share."""
    for name, static in (("fn", fn), ("its options", linearizer)):
        try:
            hash(static)
        except TypeError:
            raise TypeError(
                f"{name} must be hashable, as plain functions are, got {type(static).__name__}; "
                "wrap it in a function."
            ) from None
    if microbatch is not None:
        check_count("microbatch", microbatch)
    params, batch = jax.tree.map(jnp.asarray, (params, batch))
    if mesh is not None:
        params, batch = on_mesh((params, batch), mesh)
    return LinearOperator(params, batch, fn, linearizer, None, microbatch, mesh)


def matrix_operator(matrix: Float[Array, "n n"]) -> LinearOperator:
    """The operator of an explicit symmetric matrix, acting on flat vectors (for tests and oracles).

    Args:
      matrix: float (n, n), symmetric; this is not checked under tracing.

    Returns:
      The operator v -> matrix @ v.

    Raises:
      ValueError: the matrix is not square, not finite or not symmetric.
      TypeError: it is no floating point array.

    Source: this library.

    Example:
      >>> matrix_operator(jnp.diag(jnp.arange(3.0)))(jnp.ones(3)).tolist()
      [0.0, 1.0, 2.0]
    """
    if not hasattr(matrix, "dtype") or not jnp.issubdtype(matrix.dtype, jnp.floating):
        raise TypeError(f"matrix must be a floating point array, got {type(matrix).__name__}.")
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] == 0:
        raise ValueError(f"matrix must be square and not empty, got the shape {matrix.shape}.")
    check_finite("matrix", matrix)
    if not isinstance(matrix, jax.core.Tracer):
        values = np.asarray(matrix, np.float64)
        gap = float(np.abs(values - values.T).max())
        if gap > 1e-3 * float(np.abs(values).max()):
            raise ValueError(f"matrix must be symmetric, got entries that differ by {gap:.2g}.")
    # One "example", the matrix itself: a mean over one.
    return LinearOperator(jnp.zeros_like(matrix[0]), matrix[None], _matvec, _apply_matrix)


def _matvec(params: Array, batch: Array) -> Array:
    return jnp.matmul(batch[0], params, precision="highest")


def _apply_matrix(fn: Callable[..., Any], params: Params, batch: Batch) -> Callable[..., Any]:
    del params
    return lambda vector: fn(vector, batch)
