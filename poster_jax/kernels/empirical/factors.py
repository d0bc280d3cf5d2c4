"""The derivative of a network by its parameters, as small factors where it has them."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poster_jax.core.typing import Array, Params
from poster_jax.kernels.empirical.arguments import Side
from poster_jax.kernels.empirical.graph import Graph, is_literal, trace
from poster_jax.kernels.empirical.patches import input_factor, output_factor
from poster_jax.kernels.empirical.uses import Use, find_uses

__all__ = ["Derivative", "derivatives"]


class Derivative(NamedTuple):
    """The derivative of one output leaf. Every array leads with examples where these are cut.

    Attributes:
      whole: by parameter index, arrays (o..., entries).
      inputs: by parameter index, arrays (b, s, i): what the weight multiplies.
      outputs: by parameter index, arrays (o..., b, s, j): what the output takes from the product.
        The derivative is the sum over s of one times the other.
    """

    whole: dict[int, Array]
    inputs: dict[int, Array]
    outputs: dict[int, Array]


def derivatives(side: Side, params: Params, factorise: bool) -> list[Derivative]:
    """The derivative of every output leaf; one array a parameter unless `factorise`."""
    leaves, treedef = jax.tree.flatten(params)
    shapes = [jax.ShapeDtypeStruct(jnp.shape(p), jnp.result_type(p)) for p in leaves]

    def fn(leaves: list[Any], example: list[Any]) -> list[Array]:
        return side.fn(jax.tree.unflatten(treedef, leaves), example)

    graph = trace(fn, shapes, side.example())
    uses = find_uses(graph) if factorise else {}
    return side.over_examples(lambda example: _derive(graph, uses, leaves, example))


def _derive(
    graph: Graph, uses: dict[int, list[Use]], params: list[Any], example: list[Array]
) -> list[Derivative]:
    every = [use for found in uses.values() for use in found]
    biases = {use.bias for use in every}
    whole = {
        i: p
        for i, p in enumerate(params)
        if i not in uses and i not in biases and jnp.issubdtype(jnp.result_type(p), jnp.floating)
    }
    taps = {}
    for use in every:
        aval = graph.equations[use.tap].outvars[0].aval
        taps[use.tap] = jnp.zeros(aval.shape, aval.dtype)
    wanted = list(dict.fromkeys(v for use in every for v in _needed(graph, use)))

    def outputs(whole: dict[int, Any], taps: dict[int, Array]) -> tuple[list[Array], Any]:
        inputs = [whole.get(i, p) for i, p in enumerate(params)]
        return graph.run([*inputs, *example], taps, wanted)

    out, pull, found = jax.vjp(outputs, whole, taps, has_aux=True)
    values = dict(zip(wanted, found, strict=True))

    def value(variable: Any) -> Any:
        if is_literal(variable):
            return variable.val
        return values.get(variable, variable)

    inputs = {i: _inputs(graph, found, value) for i, found in uses.items() if found}
    result = []
    for k, leaf in enumerate(out):
        by_whole, by_tap = _pull_basis(pull, out, k)
        result.append(
            Derivative(
                {i: j.reshape(*leaf.shape, -1) for i, j in by_whole.items()},
                inputs,
                {i: _outputs(graph, f, by_tap, leaf.ndim) for i, f in uses.items() if f},
            )
        )
    return result


def _pull_basis(pull: Any, out: list[Array], k: int) -> Any:
    """The derivatives of every entry of output leaf k, stacked like its entries."""
    leaf = out[k]
    basis = jnp.eye(leaf.size, dtype=leaf.dtype).reshape(leaf.size, *leaf.shape)

    def pull_one(cotangent: Array) -> Any:
        return pull([cotangent if i == k else jnp.zeros_like(y) for i, y in enumerate(out)])

    rows = jax.vmap(pull_one)(basis)
    return jax.tree.map(lambda row: row.reshape(leaf.shape + row.shape[1:]), rows)


def _needed(graph: Graph, use: Use) -> list[Any]:
    other = graph.equations[use.equation].invars[1 - use.operand]
    scales = [v for v, _ in use.scales + use.bias_scales if not isinstance(v, float)]
    return [v for v in [other, *scales] if not is_literal(v)]


def _inputs(graph: Graph, uses: list[Use], value: Any) -> Array:
    parts = []
    for use in uses:
        equation = graph.equations[use.equation]
        other = jnp.asarray(value(equation.invars[1 - use.operand]))  # numpy, if a constant of `f`
        factor = input_factor(equation, use.operand, other)
        factor = factor * _product(use.scales, value)
        if use.bias is not None:
            one = jnp.ones((*factor.shape[:-1], 1), factor.dtype)
            factor = jnp.concatenate([factor, one * _product(use.bias_scales, value)], axis=-1)
        parts.append(factor)
    return parts[0] if len(parts) == 1 else jnp.concatenate(_padded(parts), axis=-2)


def _outputs(graph: Graph, uses: list[Use], by_tap: dict[int, Array], num_axes: int) -> Array:
    parts = [
        output_factor(graph.equations[use.equation], use.operand, by_tap[use.tap], num_axes)
        for use in uses
    ]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-2)


def _padded(parts: list[Array]) -> list[Array]:
    """Inputs of several uses of a weight, of which only some have a bias."""
    width = max(part.shape[-1] for part in parts)
    return [jnp.pad(p, [(0, 0)] * (p.ndim - 1) + [(0, width - p.shape[-1])]) for p in parts]


def _product(scales: Any, value: Any) -> Any:
    return math.prod((jnp.reshape(value(v), ()) ** power for v, power in scales), start=1.0)
