"""Products of the NTK with vectors: one vector-Jacobian and one Jacobian-vector product each."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_same_structure
from poster_jax.core.typing import Array, Params
from poster_jax.kernels.empirical.arguments import Side, sides
from poster_jax.kernels.empirical.labels import Labels

__all__ = ["empirical_ntk_vp_fn", "ntk_by_products"]


def empirical_ntk_vp_fn(
    f: Callable[..., Any], x1: Any, x2: Any, params: Params, **apply_fn_kwargs: Any
) -> Callable[[Any], Any]:
    """A function that multiplies the NTK of `x1` with `x2` by a vector, without forming it.

    Args:
      f: `f(params, x, **kwargs) -> pytree of outputs`.
      x1: first batch.
      x2: second batch; None stands for `x1`.
      params: the parameters at which the kernel is taken.
      **apply_fn_kwargs: as in `empirical_nngp_fn`.

    Returns:
      `vp_fn(cotangents)`: for cotangents like `f(params, x2)` the product, like `f(params, x1)`.
      It costs one backward pass on `x2` and one forward pass on `x1`.

    Raises:
      ValueError: the cotangents do not fit `f(params, x2)`.

    Source: Novak et al. 2022 (arXiv 2206.08720), section L.

    Example:
      >>> f = lambda params, x: x @ params
      >>> vp_fn = empirical_ntk_vp_fn(f, jnp.ones((3, 2)), None, jnp.ones((2, 1)))
      >>> vp_fn(jnp.ones((3, 1)))[:, 0].tolist()
      [6.0, 6.0, 6.0]
    """
    first, second = sides(f, x1, x2, params, None, apply_fn_kwargs)

    def ntk_vp_fn(cotangents: Any) -> Any:
        """The product of the NTK with `cotangents`."""
        like = jax.tree.unflatten(second.treedef, second.outputs)
        check_same_structure("cotangents", cotangents, "f(params, x2)", like)
        _, pull = jax.vjp(lambda p: second.fn(p, []), params)
        (tangents,) = pull(jax.tree.leaves(cotangents))
        _, product = jax.jvp(lambda p: first.fn(p, []), (params,), (tangents,))
        return jax.tree.unflatten(first.treedef, product)

    return ntk_vp_fn


def ntk_by_products(first: Side, second: Side, params: Params, labels: list[Labels]) -> list[Array]:
    """The NTK of every output leaf, one product for every output on the second side."""

    def of_second(example: list[Array]) -> list[Array]:
        out, pull = jax.vjp(lambda p: second.fn(p, example), params)
        return [_columns(first, params, pull, out, k) for k in range(len(out))]

    columns = second.over_examples(of_second)
    return [
        _arrange(column, label, first.out_axes[k], second.out_axes[k])
        for k, (column, label) in enumerate(zip(columns, labels, strict=True))
    ]


def _columns(first: Side, params: Params, pull: Any, out: list[Array], k: int) -> Array:
    """One column of the kernel for every entry of output leaf k: (o2..., n1, o1...)."""
    leaf = out[k]

    def column(cotangent: Array) -> Array:
        (tangents,) = pull([cotangent if i == k else jnp.zeros_like(y) for i, y in enumerate(out)])

        def push(example: list[Array]) -> Array:
            return jax.jvp(lambda p: first.fn(p, example), (params,), (tangents,))[1][k]

        return first.over_examples(push)

    basis = jnp.eye(leaf.size, dtype=leaf.dtype).reshape(leaf.size, *leaf.shape)
    columns = jax.vmap(column)(basis)
    return columns.reshape(leaf.shape + columns.shape[1:])


def _arrange(columns: Array, labels: Labels, axis1: int | None, axis2: int | None) -> Array:
    """(n2, o2..., n1, o1...) in the order of the kernel, summed and cut as the labels say."""
    order = labels.examples_first(labels.right, axis2) + labels.examples_first(labels.left, axis1)
    return labels.contract(columns, order)
