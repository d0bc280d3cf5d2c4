"""Where the weights of a network enter, as far as their derivatives are products of small factors.

A weight `w` that enters by a product or a convolution `y = a w` has the derivative
`df/dw = sum_s a[s] (x) df/dy[s]`: two small factors instead of one large array. A bias added to
`y` is one more input that is always 1. All other parameters are differentiated as usual.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from poster_jax.kernels.empirical.graph import Graph, Var, is_literal

__all__ = ["Use", "find_uses"]

Scales = tuple[tuple[Any, int], ...]  # variables or literals of one entry, with the power 1 or -1

# What only moves the entries of a weight about leaves sums over all of them as they are.
_MOVES = {"transpose", "reshape", "squeeze", "expand_dims", "copy", "copy_p", "rev"}
_SUMS = ("add", "add_any")


class Use(NamedTuple):
    """One product or convolution with a weight.

    Attributes:
      equation: the product's index.
      operand: which of its two operands is the weight.
      tap: the index of the equation at whose result `df/dy` is taken: the product itself, or what
        scales it or adds a bias to it.
      scales: what multiplies the weight between the parameter and the tap.
      bias: the index of the parameter that is added at the tap, or None.
      bias_scales: what multiplies it.
    """

    equation: int
    operand: int
    tap: int
    scales: Scales
    bias: int | None = None
    bias_scales: Scales = ()


class _Origin(NamedTuple):
    """A variable that holds the entries of one parameter, each once, times `scales`."""

    param: int
    scales: Scales


def find_uses(graph: Graph) -> dict[int, list[Use]]:
    """For every parameter that enters only by alike products its uses, by the parameter's index.

    Parameters that the function does not depend on have none; those missing here are to be
    differentiated as usual, except biases that some use has taken over.
    """
    state = _State(graph)
    for index, equation in enumerate(graph.equations):
        state.visit(index, equation)
    for variable in graph.outputs:
        state.spoil(variable)
    uses = {
        param: found
        for param, found in state.uses.items()
        if param not in state.spoilt and _alike(graph, found)
    }
    return _with_biases(graph, state, uses)


class _State:
    """What is known of the variables up to some equation."""

    def __init__(self, graph: Graph):
        self.origins: dict[Var, _Origin] = {v: _Origin(i, ()) for i, v in enumerate(graph.params)}
        self.uniform: dict[Var, Var] = {}  # an array of equal entries -> the variable of the entry
        self.tainted: set[Var] = set(graph.params)  # depends on parameters
        self.spoilt: set[int] = set()
        self.uses: dict[int, list[Use]] = {i: [] for i in range(graph.num_params)}
        # What may be a bias: the summand -> the variable that it spreads, and along which axes.
        self.summands: dict[Var, tuple[Var, list[int]]] = {}
        self.consumers: dict[Var, list[int]] = {}
        for i, e in enumerate(graph.equations):
            for v in {v for v in e.invars if not is_literal(v)}:
                self.consumers.setdefault(v, []).append(i)

    def visit(self, index: int, equation: Any) -> None:
        operands = [v for v in equation.invars if not is_literal(v)]
        if any(v in self.tainted for v in operands):
            self.tainted.update(equation.outvars)
        self._note_uniform(equation)
        owners = [v for v in operands if v in self.origins]
        if not owners:
            return
        moved = self._moved(equation)
        if moved is not None:
            self.origins[equation.outvars[0]] = moved
        elif _is_product(equation) and len({self.origins[v].param for v in owners}) == len(owners):
            for operand, v in enumerate(equation.invars):
                if not is_literal(v) and v in self.origins:
                    self._use(index, equation, operand, self.origins[v])
        elif equation.primitive.name == "broadcast_in_dim":
            axes = list(equation.params["broadcast_dimensions"])
            self.summands[equation.outvars[0]] = (owners[0], axes)
        elif equation.primitive.name in _SUMS and len(owners) == 1:
            self.summands[owners[0]] = (owners[0], list(range(owners[0].aval.ndim)))
        else:
            for v in owners:
                self.spoil(v)

    def spoil(self, variable: Any) -> None:
        """Notes that the parameter in `variable` enters in a way that does not factorise."""
        if not is_literal(variable) and variable in self.origins:
            self.spoilt.add(self.origins[variable].param)

    def scale_of(self, variable: Any) -> Any:
        """The variable of the one entry of `variable`, if it has no other and no parameters."""
        if is_literal(variable):
            return variable if math.prod(variable.aval.shape) == 1 else None
        if variable in self.tainted:
            return None
        if math.prod(variable.aval.shape) == 1:
            return variable
        return self.uniform.get(variable)

    def scaled(self, equation: Any, variable: Var) -> Scales | None:
        """By what `equation` multiplies `variable`, if by one number."""
        name = equation.primitive.name
        if name == "neg":
            return ((-1.0, 1),)
        if name not in ("mul", "div") or equation.invars.count(variable) != 1:
            return None
        position = equation.invars.index(variable)
        scale = self.scale_of(equation.invars[1 - position])
        if scale is None or (name == "div" and position == 1):
            return None
        return ((scale, 1 if name == "mul" else -1),)

    def _note_uniform(self, equation: Any) -> None:
        if equation.primitive.name == "broadcast_in_dim" and not is_literal(equation.invars[0]):
            source = equation.invars[0]
            if source not in self.tainted and math.prod(source.aval.shape) == 1:
                self.uniform[equation.outvars[0]] = source

    def _moved(self, equation: Any) -> _Origin | None:
        name, variable = equation.primitive.name, equation.invars[0]
        out = equation.outvars[0]
        if name in _MOVES or (name == "broadcast_in_dim" and out.aval.size == variable.aval.size):
            return self.origins[variable]
        if name == "convert_element_type" and jnp.issubdtype(out.aval.dtype, jnp.floating):
            return self.origins[variable]
        for v in equation.invars:
            if not is_literal(v) and v in self.origins:
                scales = self.scaled(equation, v)
                if scales is not None and out.aval.size == v.aval.size:
                    return _Origin(self.origins[v].param, self.origins[v].scales + scales)
        return None

    def _use(self, index: int, equation: Any, operand: int, origin: _Origin) -> None:
        if equation.primitive.name == "conv_general_dilated" and (
            operand != 1 or equation.params["batch_group_count"] != 1
        ):
            self.spoilt.add(origin.param)
            return
        self.uses[origin.param].append(Use(index, operand, index, origin.scales))


def _is_product(equation: Any) -> bool:
    return equation.primitive.name in ("dot_general", "conv_general_dilated")


def _alike(graph: Graph, uses: list[Use]) -> bool:
    """Whether all uses take the same weight in the same layout, so that their factors line up."""
    layouts = set()
    for use in uses:
        e = graph.equations[use.equation]
        keys = ("dimension_numbers", "feature_group_count")
        shape = tuple(str(e.params.get(k)) for k in keys)
        layouts.add((e.primitive.name, use.operand, e.invars[use.operand], shape))
    return len(layouts) <= 1


def _with_biases(graph: Graph, state: _State, uses: dict[int, list[Use]]) -> dict[int, list[Use]]:
    """Moves taps behind scalings, and onto the additions of biases that nothing else uses."""
    summed = [state.origins[v].param for v, _ in state.summands.values()]
    lonely = {
        p for p in summed if summed.count(p) == 1 and p not in state.spoilt and not state.uses[p]
    }
    taken: set[int] = set()
    result = {}
    for param, found in uses.items():
        result[param] = [_follow(graph, state, use, lonely, taken) for use in found]
    # A bias enters by no product; if no use took it over, it is differentiated as usual.
    alone = set(summed) - taken
    return {param: found for param, found in result.items() if param not in alone}


def _follow(graph: Graph, state: _State, use: Use, lonely: set[int], taken: set[int]) -> Use:
    """`use` with its tap behind scalings by one number and an added bias, as far as these go."""
    outputs = [v for v in graph.outputs if not is_literal(v)]
    while True:
        result = graph.equations[use.tap].outvars[0]
        consumers = state.consumers.get(result, [])
        if len(consumers) != 1 or result in outputs:
            return use
        index = consumers[0]
        equation = graph.equations[index]
        scales = state.scaled(equation, result)
        if scales is not None and equation.outvars[0].aval.shape == result.aval.shape:
            use = use._replace(tap=index, scales=use.scales + scales)
            continue
        if equation.primitive.name not in _SUMS:
            return use
        other = equation.invars[1 - equation.invars.index(result)]
        if is_literal(other) or other not in state.summands:
            return use
        if state.consumers[other] != [index] or other in outputs:
            return use
        bias, axes = state.summands[other]
        origin = state.origins[bias]
        if origin.param not in lonely or not _fits(
            graph.equations[use.equation], use.operand, bias, axes
        ):
            return use
        taken.add(origin.param)
        return use._replace(tap=index, bias=origin.param, bias_scales=origin.scales)


def _fits(product: Any, operand: int, bias: Var, axes: list[int]) -> bool:
    """Whether a bias spread along `axes` has one entry for every output feature of the product."""
    if batch_axes(product):
        return False
    result = product.outvars[0].aval
    features = [d for d in feature_axes(product, operand) if result.shape[d] > 1]
    wide = [d for d, size in zip(axes, bias.aval.shape, strict=True) if size > 1]
    sizes = [size for size in bias.aval.shape if size > 1]
    return wide == features and sizes == [result.shape[d] for d in features]


def feature_axes(product: Any, operand: int) -> list[int]:
    """The axes of the result along which the weight's own entries lie."""
    result = product.outvars[0].aval
    if product.primitive.name == "conv_general_dilated":
        return [product.params["dimension_numbers"].out_spec[1]]
    (contract, batch) = product.params["dimension_numbers"]
    own = product.invars[operand].aval.ndim - len(contract[operand]) - len(batch[operand])
    first = len(batch[0])
    return (
        list(range(first, first + own))
        if operand == 0
        else list(range(result.ndim - own, result.ndim))
    )


def batch_axes(product: Any) -> list[int]:
    """The axes of the result along which there is one weight for each position."""
    if product.primitive.name == "conv_general_dilated":
        return []
    return list(range(len(product.params["dimension_numbers"][1][0])))
