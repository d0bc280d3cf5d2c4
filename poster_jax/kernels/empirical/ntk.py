"""The empirical neural tangent kernel, by four ways that agree."""

import enum
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_callable
from poster_jax.core.cost import count_flops
from poster_jax.core.typing import Array, Params
from poster_jax.kernels.empirical.arguments import Side, sides
from poster_jax.kernels.empirical.contraction import contract
from poster_jax.kernels.empirical.factors import derivatives
from poster_jax.kernels.empirical.labels import Labels, labels_of
from poster_jax.kernels.empirical.products import ntk_by_products

__all__ = ["DEFAULT_NTK_IMPLEMENTATION", "NtkImplementation", "empirical_ntk_fn"]


class NtkImplementation(enum.IntEnum):
    """How an empirical NTK is computed; all ways agree to rounding.

    For n inputs on each side, o outputs, p parameters and a forward pass of cost f:

    Attributes:
      AUTO: the way of the least counted operations.
      JACOBIAN_CONTRACTION: one derivative by each parameter, and products: n o f + n^2 o^2 p.
      NTK_VECTOR_PRODUCTS: one forward and backward pass for each output on each pair: n^2 o f.
      STRUCTURED_DERIVATIVES: derivatives by weights stay the products of small factors that they
        are (inputs and output derivatives of a layer), and are contracted in the order of least
        work. Never more than JACOBIAN_CONTRACTION.
    """

    AUTO = 0
    JACOBIAN_CONTRACTION = 1
    NTK_VECTOR_PRODUCTS = 2
    STRUCTURED_DERIVATIVES = 3


DEFAULT_NTK_IMPLEMENTATION = NtkImplementation.JACOBIAN_CONTRACTION
"""What the original computes by default."""


def empirical_ntk_fn(
    f: Callable[..., Any],
    trace_axes: int | Sequence[int] = (-1,),
    diagonal_axes: int | Sequence[int] = (),
    vmap_axes: Any = None,
    implementation: NtkImplementation | int = DEFAULT_NTK_IMPLEMENTATION,
    _j_rules: bool = True,
    _s_rules: bool = True,
    _fwd: bool | None = None,
) -> Callable[..., Any]:
    """Products of the derivatives of a network's outputs by its parameters.

    Args:
      f: `f(params, x, **kwargs) -> pytree of outputs`; every output leaf has its own kernel.
      trace_axes: axes of the outputs over which the kernel is averaged.
      diagonal_axes: axes of the outputs of which only equal positions are kept.
      vmap_axes: along which axis examples lie, when outputs depend on inputs one by one: an integer
        or a tree of them for inputs and outputs alike, or the triple of inputs' axes, outputs' axes
        and a dict of keywords' axes. None makes no such promise, and costs by the size of the batch
        more. A model whose examples see each other (BatchNorm in training, dropout by one key) must
        say None.
      implementation: an `NtkImplementation` or its number.
      _j_rules: accepted for programs of the original, where it switches an internal; unused.
      _s_rules: the same.
      _fwd: the same.

    Returns:
      `ntk_fn(x1, x2, params, **kwargs)`, with arguments and answer as of `empirical_nngp_fn`.

    Raises:
      ValueError: an axis is not there, outputs of the two batches do not fit along it, or the
        implementation is not one of the four.

    Source: Jacot et al. 2018 (arXiv 1806.07572); Novak et al. 2022 (arXiv 2206.08720), section 3.

    Example:
      >>> f = lambda params, x: jnp.tanh(x @ params["w"]) @ params["v"]
      >>> params = {"w": jnp.ones((2, 5)), "v": jnp.ones((5, 3))}
      >>> ntk_fn = empirical_ntk_fn(f, trace_axes=(), vmap_axes=0, implementation=3)
      >>> ntk_fn(jnp.ones((4, 2)), None, params).shape
      (4, 4, 3, 3)
    """
    check_callable("f", f)
    if implementation not in list(NtkImplementation):
        raise ValueError(f"implementation must be 0, 1, 2 or 3, got {implementation!r}.")
    implementation = NtkImplementation(implementation)
    chosen: dict[Any, NtkImplementation] = {}

    def compute(first: Side, second: Side, params: Params, how: NtkImplementation) -> list[Array]:
        labels = [
            labels_of(a, b, trace_axes, diagonal_axes)
            for a, b in zip(first.outputs, second.outputs, strict=True)
        ]
        if not jax.tree.leaves(params):
            return [jnp.zeros(label.shape) for label in labels]
        if how == NtkImplementation.NTK_VECTOR_PRODUCTS:
            return ntk_by_products(first, second, params, labels)
        factorise = how == NtkImplementation.STRUCTURED_DERIVATIVES
        return _by_derivatives(first, second, params, labels, factorise)

    def choose(x1: Any, x2: Any, params: Params, kwargs: dict[str, Any]) -> NtkImplementation:
        arrays, structure = jax.tree.flatten((x1, x2, params))
        key = (structure, tuple((jnp.shape(a), str(jnp.result_type(a))) for a in arrays))
        if key not in chosen:
            costs = {}
            for how in list(NtkImplementation)[1:]:

                def run(x1: Any, x2: Any, params: Params) -> list[Array]:
                    both = sides(f, x1, x2, params, vmap_axes, kwargs)
                    return compute(*both, params, how)  # noqa: B023

                costs[how] = count_flops(run, x1, x2, params)
            chosen[key] = min(costs, key=costs.__getitem__)
        return chosen[key]

    def ntk_fn(x1: Any, x2: Any, params: Params, **apply_fn_kwargs: Any) -> Any:
        """The NTK of `x1` with `x2` at `params`."""
        first, second = sides(f, x1, x2, params, vmap_axes, apply_fn_kwargs)
        how = implementation
        if how == NtkImplementation.AUTO:
            how = choose(x1, x2, params, apply_fn_kwargs)
        kernels = compute(first, second, params, how)
        return jax.tree.unflatten(first.treedef, kernels)

    ntk_fn.symmetric = True  # for `batch`: tiles above the diagonal are enough
    return ntk_fn


def _by_derivatives(
    first: Side, second: Side, params: Params, labels: list[Labels], factorise: bool
) -> list[Array]:
    left = derivatives(first, params, factorise)
    right = left if second is first else derivatives(second, params, factorise)
    if any(a.inputs.keys() != b.inputs.keys() for a, b in zip(left, right, strict=True)):
        # A function whose course depends on the size of the batch: its factors do not line up.
        return _by_derivatives(first, second, params, labels, factorise=False)
    dtype = jnp.result_type(*jax.tree.leaves(params))
    return [
        contract(a, b, label, (first.out_axes[k], second.out_axes[k]), dtype)
        for k, (a, b, label) in enumerate(zip(left, right, labels, strict=True))
    ]
