"""What a program costs, counted on its jaxpr before anything is compiled."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from poster_jax.core.convolution.primitive import OPERANDS, convolution_p

__all__ = ["count_flops"]

_FREE = {"broadcast_in_dim", "reshape", "squeeze", "transpose", "slice", "convert_element_type"}
# An entry written by anything but a product costs about as much as this many multiplications
# inside one: it is bound by memory.
_FLOPS_PER_ENTRY = 8
# A convolution in groups (so the derivatives of many examples by one filter) runs at a fraction of
# the rate of a product: measured 17 of 95 GFlop/s on two cores.
_GROUPED = 4


def count_flops(fn: Callable[..., Any], *args: Any) -> float:
    """Floating point operations of `fn(*args)`, entries that are merely written weighted in.

    Products and convolutions count twice their multiplications (convolutions in groups, which are
    slow, eight times), a loop its length, a conditional its dearest branch, a loop of unknown
    length one round.

    Args:
      fn: any function of JAX; it is traced, not run.
      *args: its arguments, or their shapes as `jax.ShapeDtypeStruct`.

    Returns:
      The count, a Python number.

    Source: this library.

    Example:
      >>> a = jax.ShapeDtypeStruct((3, 4), "float32")
      >>> count_flops(lambda a: a @ a.T, a)  # 3 * 3 entries of 4 multiplications
      72.0
    """
    return _count(jax.make_jaxpr(fn)(*args).jaxpr)


def _count(jaxpr: Any) -> float:
    return sum((_cost(equation) for equation in jaxpr.eqns), 0.0)


def _cost(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    entries = sum(v.aval.size for v in equation.outvars)
    if name == "dot_general":
        (contract, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * entries * math.prod(shape[d] for d in contract)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        grouped = params["feature_group_count"] * params["batch_group_count"] > 1
        return 2.0 * entries * kernel.size / features * (_GROUPED if grouped else 1)
    if equation.primitive is convolution_p:
        kinds = (*OPERANDS[params["kind"]], params["kind"])
        avals = [v.aval for v in (*equation.invars, *equation.outvars)]
        arrays = dict(zip(kinds, avals, strict=True))
        groups, *_, features = arrays["output"].shape
        return 2.0 * arrays["kernel"].size * arrays["output"].size / (groups * features)
    if name == "cond":
        return max(_count(branch.jaxpr) for branch in params["branches"])
    inner = [p for value in params.values() for p in _jaxprs(value)]
    if inner:
        return params.get("length", 1) * sum(map(_count, inner))
    return 0.0 if name in _FREE else float(_FLOPS_PER_ENTRY * entries)


def _jaxprs(value: Any) -> list[Any]:
    if isinstance(value, ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, Jaxpr):
        return [value]
    if isinstance(value, tuple | list):
        return [jaxpr for item in value for jaxpr in _jaxprs(item)]
    return []
