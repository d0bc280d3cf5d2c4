"""Puts the fast convolution under a function that calls JAX's own, without changing its code."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
from jax.extend import core

from poster_jax.core.checks import check_callable
from poster_jax.core.convolution.drop_in import conv_general_dilated


def with_fast_convolutions(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` with `conv_general_dilated` of this library wherever it calls JAX's.

    For models that cannot be handed a convolution (Haiku, Equinox, code of your own): change
    `apply_fn` to `with_fast_convolutions(apply_fn)`, under `grad`, `vmap` and `scan`, not around
    them: a gradient that is already taken is built of convolutions that are already transposed.

    Convolutions inside `jit`, `scan`, `while_loop`, `cond` and `checkpoint` are found. Those inside
    a function with derivative rules of its own (`custom_jvp`, `custom_vjp`) stay JAX's.

    Args:
      fn: any function of pytrees of arrays that JAX can trace.

    Returns:
      A function of the same arguments and results. It is traced again at every call outside `jit`.

    Raises:
      TypeError: `fn` is not callable.

    Source: this library.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def apply_fn(kernel, x):
      ...     return jax.lax.conv(x, kernel, (1, 1), "SAME")
      >>> with_fast_convolutions(apply_fn)(jnp.ones((4, 1, 3, 3)), jnp.ones((2, 1, 8, 8))).shape
      (2, 4, 8, 8)
    """
    check_callable("fn", fn)

    @wraps(fn)
    def fast(*args: Any, **kwargs: Any) -> Any:
        jaxpr, shapes = jax.make_jaxpr(fn, return_shape=True)(*args, **kwargs)
        leaves = jax.tree.leaves((args, kwargs))
        results = _evaluate(jaxpr, *leaves)
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return fast


def _evaluate(closed: core.ClosedJaxpr, *args: Any) -> list[Any]:
    """Runs a program equation by equation, with the convolutions exchanged."""
    values = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    values |= dict(zip(closed.jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in closed.jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        if equation.primitive is jax.lax.conv_general_dilated_p:
            outputs = conv_general_dilated(*inputs, **equation.params)
        else:
            own_rules = equation.primitive.name.startswith("custom_")
            params = equation.params if own_rules else _exchanged(equation.params)
            outputs = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(params))
        if not equation.primitive.multiple_results:
            outputs = [outputs]
        values |= dict(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in closed.jaxpr.outvars]


def _exchanged(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters of an equation, with the programs among them rewritten."""
    return {name: _exchanged_value(value) for name, value in params.items()}


def _exchanged_value(value: Any) -> Any:
    if isinstance(value, core.ClosedJaxpr):
        return _rewrite(value) if _has_convolution(value.jaxpr) else value
    if isinstance(value, core.Jaxpr) and not value.constvars:
        closed = core.ClosedJaxpr(value, ())
        return _rewrite(closed).jaxpr if _has_convolution(value) else value
    if isinstance(value, tuple) and any(isinstance(v, core.ClosedJaxpr) for v in value):
        return tuple(map(_exchanged_value, value))
    return value


def _rewrite(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    return jax.make_jaxpr(lambda *args: _evaluate(closed, *args))(*closed.in_avals)


def _has_convolution(jaxpr: core.Jaxpr) -> bool:
    return any(
        equation.primitive is jax.lax.conv_general_dilated_p
        or any(_has_convolution(inner) for inner in core.jaxprs_in_params(equation.params))
        for equation in jaxpr.eqns
    )
