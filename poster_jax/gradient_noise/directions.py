"""Unit vectors in the space of the parameters, known only through what is asked of them.

R directions of P numbers do not fit in memory (P = 1e7, R = 1000: 40 GB). They need not: direction
r is a function of a key and of r, drawn again whenever it is used, and the random directions of a
Hadamard matrix are never drawn at all.

| kind | direction r | all R projections of a vector |
| --- | --- | --- |
| "gaussian" | normal numbers, normalised: uniform on the sphere | 2 R P + drawing R P numbers |
| "rademacher" | random signs / sqrt(P) | 2 R P + drawing R P bits |
| "hadamard" | random signs times a row of H / sqrt(P) | P log2 P additions, whatever R |
| "coordinates" | one parameter | R |
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_choice, check_count, check_key, check_params, num_examples
from poster_jax.core.typing import Array, Float, Int, Params, PRNGKey
from poster_jax.gradient_noise._distinct import distinct_integers
from poster_jax.gradient_noise._hadamard import padded_size, random_signs, row_signs, transform
from poster_jax.gradient_noise._layout import Layout, layout_of

__all__ = ["Directions", "directions_along", "random_directions"]

KINDS = ("coordinates", "gaussian", "hadamard", "rademacher")
# Above as many numbers, drawing Gaussian directions takes longer than anything else.
MOST_GAUSSIAN = 2**28
# Numbers drawn at once (16 MB of float32).
BLOCK = 2**22
# Directions of together as many numbers are drawn once a program, not once a microbatch.
RESIDENT = 2**24


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Directions:
    """R unit vectors like the parameters; a pytree, made by `random_directions` and its siblings.

    Attributes:
      rows: int32 (R,); which vectors of the family these are: direction r is row `rows[r]`.
      source: what the family is made of: a PRNG key, or the (n, P) vectors themselves.
      kind: one of the kinds above, or "given".
      layout: the shapes of the parameters, and on which leaves the directions lie.
    """

    rows: Any
    source: Any
    kind: str = dataclasses.field(metadata={"static": True})
    layout: Layout = dataclasses.field(metadata={"static": True})

    @property
    def num(self) -> int:
        """R, how many there are."""
        return self.rows.shape[-1]

    @property
    def dim(self) -> int:
        """P, how many numbers of the parameters they see."""
        return self.layout.size

    def project(self, tree: Params) -> Float[Array, "R"]:
        """The R inner products with `tree`, a pytree like the parameters.

        Under `vmap` over many vectors the directions are drawn once for all of them.
        """
        self.layout.check("tree", tree)
        return self.project_vector(self.layout.join(self.layout.select(tree)))

    def tangent(self, r: Int[Array, ""] | int) -> Params:
        """Direction r as a pytree like the parameters, zero outside of its leaves."""
        return self.layout.merge(self.layout.zeros(), self.layout.cut(self.vector(r)))

    def vector(self, r: Int[Array, ""] | int) -> Float[Array, "P"]:
        """Direction r as one vector of the leaves on which it lies."""
        return self._row(self.rows[r])

    def project_vector(self, vector: Float[Array, "P"]) -> Float[Array, "R"]:
        """The R inner products with a vector of the leaves on which the directions lie."""
        return self._project(vector)

    @property
    def fits(self) -> bool:
        """Whether they are drawn once and kept for a program's time, not drawn at every use."""
        return self.num * self.dim <= RESIDENT

    @property
    def numbers_held(self) -> int:
        """How many numbers of the directions themselves a projection holds at once."""
        if self.kind == "coordinates":
            return 0
        if self.kind == "hadamard":
            return padded_size(self.dim)
        if self.kind == "given" or self.fits:
            return self.num * self.dim
        return max(1, BLOCK // self.dim) * self.dim

    def at_rows(self, rows: Int[Array, "some"]) -> "Directions":
        """Other rows of the same family."""
        return dataclasses.replace(self, rows=rows)

    def kept(self) -> "Directions":
        """The same directions, drawn now if they fit."""
        if self.kind not in ("gaussian", "rademacher") or not self.fits:
            return self
        vectors = self._drawn()
        return dataclasses.replace(
            self, rows=jnp.arange(self.num, dtype=jnp.int32), source=vectors, kind="given"
        )

    @jax.jit
    def _project(self, vector: Array) -> Array:
        rows = self.rows
        if self.kind == "coordinates":
            return vector[rows]
        if self.kind == "hadamard":
            padding = padded_size(self.dim) - self.dim
            mixed = transform(jnp.pad(vector * self._signs(), (0, padding)))
            return mixed[rows] / self.dim**0.5
        product = lambda row: jnp.matmul(self._row(row), vector, precision="highest")  # noqa: E731
        block = max(1, BLOCK // self.dim)
        if block >= self.num:
            return jax.vmap(product)(rows)
        return jax.lax.map(product, rows, batch_size=block if block > 1 else None)

    @jax.jit
    def _drawn(self) -> Array:
        return jax.vmap(self._row)(self.rows)

    def _row(self, row: Array) -> Array:
        size, dtype = self.dim, self.layout.dtype
        if self.kind == "given":
            return self.source[row]
        if self.kind == "coordinates":
            return jnp.zeros(size, dtype).at[row].set(1)
        if self.kind == "hadamard":
            return self._signs() * row_signs(row, size, dtype) / size**0.5
        key = jax.random.fold_in(self.source, row)
        if self.kind == "rademacher":
            return random_signs(key, size, dtype) / size**0.5
        normal = jax.random.normal(key, (size,), dtype)
        return normal / jnp.linalg.norm(normal)

    def _signs(self) -> Array:
        return random_signs(self.source, self.dim, self.layout.dtype)


def random_directions(
    params: Params, key: PRNGKey, *, num: int, kind: str | None = None, layer: str | None = None
) -> Directions:
    """R random unit vectors in the space of the parameters, or of one layer; nothing is stored.

    Args:
      params: pytree of floating point arrays; only its shapes are used.
      key: PRNG key of the directions.
      num: R. Rows of "hadamard" and "coordinates" are distinct, so that P is the most.
      kind: see the table above. "gaussian" is the definition: uniform on the sphere. "hadamard"
        directions are in each single one as good as "rademacher" and together cost P log P. They
        are orthogonal when P is a power of two; otherwise two of them have the inner product
        2^j / P at most with probability 2^-j. "coordinates" is a random subset of the parameters,
        on which a sum of many terms has not made everything Gaussian. None takes "gaussian" up to
        2^28 numbers in all, "hadamard" above.
      layer: path of a leaf or subtree ("Dense_0/kernel", see `core.paths.leaf_paths`) outside of
        which the directions are zero; None takes all parameters jointly. Directions that are
        normalised leaf by leaf would weigh every layer equally: another question.

    Returns:
      Directions.

    Raises:
      ValueError: num below 1, or above P where rows are distinct; an unknown kind; a path that
        names nothing; params without arrays or not finite.
      TypeError: key is no key, num no integer, params hold other than floats.

    Source: Panigrahi et al. 2019 (arXiv 1910.09626) for Gaussian directions; Ailon, Chazelle 2009,
      "The fast Johnson-Lindenstrauss transform", SIAM J. Comput. 39(1), for signs and H.

    Example:
      >>> params = {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}
      >>> directions = random_directions(params, jax.random.key(0), num=5, kind="hadamard")
      >>> w = directions.tangent(2)
      >>> round(float(directions.project(w)[2]), 5)
      1.0
    """
    check_params(params)
    check_key("key", key)
    check_count("num", num)
    layout = layout_of(params, layer)
    if kind is None:
        kind = "gaussian" if num * layout.size <= MOST_GAUSSIAN else "hadamard"
    check_choice("kind", kind, KINDS)
    rows = jnp.arange(num, dtype=jnp.int32)
    if kind in ("coordinates", "hadamard"):
        if num > layout.size:
            raise ValueError(
                f"num must be at most the number of parameters, {layout.size}, for distinct "
                f"directions of kind {kind!r}, got {num}."
            )
        below = layout.size if kind == "coordinates" else padded_size(layout.size)
        key, rows_key = jax.random.split(key)
        rows = distinct_integers(rows_key, num, below)
    return Directions(rows, key, kind, layout)


def directions_along(vectors: Params) -> Directions:
    """Unit vectors along given ones: eigenvectors, the mean gradient, a path between networks.

    Random projections of any high-dimensional noise look Gaussian (Diaconis, Freedman 1984); these
    need not. Along the noise's own eigenvectors:

        pairs = curvature.top_eigenpairs(noise_covariance_operator(...), key, k=10)
        directions_along(pairs.vectors)

    Args:
      vectors: pytree like the parameters, each leaf with a leading axis R; for the mean gradient
        `jax.tree.map(lambda g: g[None], gradient)`. A vector of zeros stays zero, and so do its
        projections.

    Returns:
      Directions. They are stored as they are: R P numbers.

    Raises:
      ValueError: leaves without a common leading axis, none at all, or not finite.
      TypeError: vectors hold other than floats.

    Source: Diaconis, Freedman 1984, "Asymptotics of graphical projection pursuit", Ann. Statist.
      12(3).

    Example:
      >>> directions = directions_along({"w": jnp.array([[3.0, 4.0]])})
      >>> [round(float(s), 5) for s in directions.project({"w": jnp.array([5.0, 0.0])})]
      [3.0]
    """
    check_params(vectors, "vectors")
    num = num_examples(vectors, "vectors")
    layout = layout_of(jax.tree.map(lambda leaf: leaf[0], vectors), None)
    rows = _unit_rows(jax.vmap(lambda tree: layout.join(jax.tree.leaves(tree)))(vectors))
    return Directions(jnp.arange(num, dtype=jnp.int32), rows, "given", layout)


@jax.jit
def _unit_rows(rows: Array) -> Array:
    largest = jnp.abs(rows).max(axis=1, keepdims=True)  # squares of tiny numbers vanish
    rows = rows / jnp.where(largest > 0, largest, 1)
    lengths = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows / jnp.where(lengths > 0, lengths, 1)
