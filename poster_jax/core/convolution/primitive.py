"""Convolution as three maps of one trilinear form, closed under differentiation and `vmap`.

A convolution is linear in its input and in its kernel, so <output', conv(input, kernel)> is linear
in three arrays. Leave one out and solve for it: the output from input and kernel, the input's
cotangent from output and kernel, the kernel's cotangent from input and output. A transpose of any
of the three is again one of the three, and every derivative of any order is made of them. This is
why there is a primitive rather than a `custom_jvp`: the tangent rule of the latter has to be
written in operations whose built-in transposes happen to be fast, and `vmap` of it would again be
XLA's grouped convolution.

Arrays are in one layout, `g` independent convolutions at once:

    input (g, n, *spatial, c)    kernel (g, *taps, c, o)    output (g, n, *spatial, o)

Feature groups, batch groups and `vmap` over both operands are all the axis g. `vmap` over one
operand widens the axis that this operand shares with the result alone: a population of kernels on
one input is one convolution with more output channels.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from poster_jax.core.convolution.forms import evaluate
from poster_jax.core.convolution.varying import vary_alike
from poster_jax.core.convolution.window import Window
from poster_jax.core.typing import Array

Kind = Literal["input", "kernel", "output"]

OPERANDS: dict[str, tuple[Kind, Kind]] = {
    "output": ("input", "kernel"),
    "input": ("output", "kernel"),
    "kernel": ("input", "output"),
}
"""What each of the three maps is computed from."""

_AXES = {
    "input": {"n": 1, "c": -1},
    "kernel": {"c": -2, "o": -1},
    "output": {"n": 1, "o": -1},
}
"""Where each array keeps images n, input channels c and output channels o; g is always first."""


def solve(kind: Kind, window: Window, **operands: Array) -> Array:
    """The array `kind` from the other two, in the layout above."""
    first, second = OPERANDS[kind]
    a, b = vary_alike(operands[first], operands[second])
    return convolution_p.bind(a, b, kind=kind, window=window)


convolution_p = Primitive("poster_convolution")


@partial(jax.jit, static_argnames=("kind", "window"))
def _run(a: Array, b: Array, *, kind: Kind, window: Window) -> Array:
    return convolution_p.bind(a, b, kind=kind, window=window)


def _result_type(a: Any, b: Any, *, kind: Kind, window: Window) -> Any:
    groups = a.shape[0]
    if kind == "kernel":
        shape = (groups, *window.kernel, a.shape[-1], b.shape[-1])
    elif kind == "output":
        shape = (groups, a.shape[1], *window.output, b.shape[-1])
    else:
        shape = (groups, a.shape[1], *window.input, b.shape[-2])
    # All three arrays have the same rank, so that what `a` says of meshes holds for the result too.
    return a.update(shape=shape, weak_type=False)


def _transpose(position: int, ct: Array, a: Any, b: Any, *, kind: Kind, window: Window) -> Array:
    """The cotangent of operand `position`, from the result's and the other operand."""
    first, second = OPERANDS[kind]
    wanted, other, value = (first, second, b) if position == 0 else (second, first, a)
    return solve(wanted, window, **{kind: ct, other: value})


def _batch(args: Sequence[Array], dims: Sequence[Any], *, kind: Kind, window: Window) -> Any:
    a, b = args
    if dims[0] is not None and dims[1] is not None:
        a, b = jnp.moveaxis(a, dims[0], 0), jnp.moveaxis(b, dims[1], 0)
        size = a.shape[0]
        merged = [x.reshape(-1, *x.shape[2:]) for x in (a, b)]
        result = solve(kind, window, **dict(zip(OPERANDS[kind], merged, strict=True)))
        return result.reshape(size, -1, *result.shape[1:]), 0
    position = 0 if dims[0] is not None else 1
    batched = OPERANDS[kind][position]
    (shared,) = _AXES[batched].keys() & _AXES[kind].keys()
    wide, size = _merge(args[position], dims[position], _AXES[batched][shared])
    operands = dict(zip(OPERANDS[kind], (wide, b) if position == 0 else (a, wide), strict=True))
    return _split(solve(kind, window, **operands), size, _AXES[kind][shared])


def _merge(x: Array, dim: int, axis: int) -> tuple[Array, int]:
    """Folds the batch axis `dim` into `axis`, counted in the array without it."""
    size, axis = x.shape[dim], axis % (x.ndim - 1)
    x = jnp.moveaxis(x, dim, axis)
    return x.reshape(*x.shape[:axis], size * x.shape[axis + 1], *x.shape[axis + 2 :]), size


def _split(x: Array, size: int, axis: int) -> tuple[Array, int]:
    """Takes the batch axis out of `axis` again; it then stands where `axis` stood."""
    axis = axis % x.ndim
    return x.reshape(*x.shape[:axis], size, -1, *x.shape[axis + 1 :]), axis


convolution_p.def_impl(_run)
convolution_p.def_abstract_eval(_result_type)
ad.defbilinear(convolution_p, partial(_transpose, 0), partial(_transpose, 1))
batching.primitive_batchers[convolution_p] = _batch
mlir.register_lowering(convolution_p, mlir.lower_fun(evaluate, multiple_results=False))
