"""Where a direction lies in the parameters: some leaves of a pytree, joined to one vector."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.core.checks import check_same_structure
from poster_jax.core.paths import get_path
from poster_jax.core.typing import Array, Float, Params


@dataclasses.dataclass(frozen=True)
class Layout:
    """The shapes of a pytree of parameters, and which of its leaves are free; hashable.

    Attributes:
      treedef: structure of the whole pytree.
      shapes: of all its leaves.
      dtypes: of all its leaves.
      free: indices of the leaves on which a direction is supported.
    """

    treedef: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]
    free: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many numbers the free leaves hold."""
        return sum(int(np.prod(self.shapes[i])) for i in self.free)

    @property
    def dtype(self) -> Any:
        """In which vectors are joined: half precision is widened, sums over all leaves need it."""
        return jnp.result_type(jnp.float32, *(self.dtypes[i] for i in self.free))

    def check(self, name: str, tree: Any) -> None:
        """ValueError unless `tree` looks like the parameters."""
        like = [jax.ShapeDtypeStruct(s, d) for s, d in zip(self.shapes, self.dtypes, strict=True)]
        check_same_structure(
            name, tree, "the directions' params", jax.tree.unflatten(self.treedef, like)
        )

    def select(self, tree: Params) -> list[Any]:
        """The free leaves."""
        leaves = jax.tree.leaves(tree)
        return [leaves[i] for i in self.free]

    def merge(self, tree: Params, free: list[Any]) -> Params:
        """`tree` with its free leaves replaced."""
        leaves = jax.tree.leaves(tree)
        for i, leaf in zip(self.free, free, strict=True):
            leaves[i] = leaf
        return jax.tree.unflatten(self.treedef, leaves)

    def join(self, free: list[Any]) -> Float[Array, "P"]:
        """The free leaves as one vector."""
        return jnp.concatenate([jnp.ravel(leaf).astype(self.dtype) for leaf in free])

    def cut(self, vector: Float[Array, "P"]) -> list[Any]:
        """The inverse of `join`, each leaf in its own dtype."""
        shapes = [self.shapes[i] for i in self.free]
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
        parts = jnp.split(vector, ends)
        return [
            part.reshape(shape).astype(self.dtypes[i])
            for part, shape, i in zip(parts, shapes, self.free, strict=True)
        ]

    def zeros(self) -> Params:
        """A pytree of zeros like the parameters."""
        leaves = [jnp.zeros(s, d) for s, d in zip(self.shapes, self.dtypes, strict=True)]
        return jax.tree.unflatten(self.treedef, leaves)


def layout_of(params: Params, layer: str | None) -> Layout:
    """The layout of `params` whose free leaves are those at `layer`; all of them for None."""
    leaves, treedef = jax.tree.flatten(params)
    free = range(len(leaves)) if layer is None else _inside(params, layer)
    return Layout(
        treedef,
        tuple(jnp.shape(leaf) for leaf in leaves),
        tuple(jnp.dtype(jnp.result_type(leaf)) for leaf in leaves),
        tuple(free),
    )


def _inside(params: Params, layer: str) -> list[int]:
    numbers = jax.tree.unflatten(jax.tree.structure(params), range(len(jax.tree.leaves(params))))
    return sorted(jax.tree.leaves(get_path(numbers, layer)))
