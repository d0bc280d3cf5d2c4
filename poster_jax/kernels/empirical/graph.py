"""A network as a flat list of equations that can be evaluated with taps on some of them."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, DropVar, Literal, jaxpr_as_fun

__all__ = ["Graph", "Var", "is_literal", "trace"]

Var = Any  # a variable of a jaxpr; the same object wherever it stands

_CALLS = {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"}


class Graph(NamedTuple):
    """A function of the leaves of the parameters and of one example, without calls inside.

    Attributes:
      closed: its jaxpr.
      num_params: how many of its inputs are parameters; they come first.
    """

    closed: ClosedJaxpr
    num_params: int

    @property
    def equations(self) -> list[Any]:
        """The equations in the order of evaluation."""
        return self.closed.jaxpr.eqns

    @property
    def params(self) -> list[Var]:
        """The variables of the parameters."""
        return self.closed.jaxpr.invars[: self.num_params]

    @property
    def outputs(self) -> list[Any]:
        """The variables (or literals) of the outputs."""
        return self.closed.jaxpr.outvars

    def run(
        self, inputs: Iterable[Any], taps: dict[int, Any], wanted: Iterable[Var]
    ) -> tuple[list[Any], list[Any]]:
        """Outputs with `taps[i]` added to the result of equation i, and the `wanted` variables."""
        return _run(self.closed, inputs, taps, wanted, inline=False)


def trace(fn: Callable[..., list[Any]], params: list[Any], example: list[Any]) -> Graph:
    """The graph of `fn(params, example) -> list of outputs`, both lists of arrays or shapes."""
    closed = jax.make_jaxpr(fn)(params, example)
    while any(e.primitive.name in _CALLS for e in closed.jaxpr.eqns):
        inner = closed
        closed = jax.make_jaxpr(
            lambda p, x: _run(inner, [*p, *x], {}, (), inline=True)[0]  # noqa: B023
        )(params, example)
    return Graph(closed, len(params))


def is_literal(variable: Any) -> bool:
    """Whether a number stands where a variable could."""
    return isinstance(variable, Literal)


def _run(
    closed: ClosedJaxpr,
    inputs: Iterable[Any],
    taps: dict[int, Any],
    wanted: Iterable[Var],
    inline: bool,
) -> tuple[list[Any], list[Any]]:
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))

    def read(variable: Any) -> Any:
        return variable.val if is_literal(variable) else values[variable]

    for index, equation in enumerate(jaxpr.eqns):
        variables = list(dict.fromkeys(v for v in equation.invars if not is_literal(v)))
        results = [v for v in equation.outvars if not isinstance(v, DropVar)]
        if inline and equation.primitive.name in _CALLS:
            out, _ = _run(_callee(equation), map(read, equation.invars), {}, (), inline)
            values.update(zip(equation.outvars, out, strict=True))
            continue
        # One equation as a program of its own: evaluated with public functions only.
        alone = jaxpr.replace(constvars=[], invars=variables, outvars=results, eqns=[equation])
        out = jaxpr_as_fun(ClosedJaxpr(alone, ()))(*map(read, variables))
        if index in taps:
            out = [out[0] + taps[index]]
        values.update(zip(results, out, strict=True))
    return [read(v) for v in jaxpr.outvars], [read(v) for v in wanted]


def _callee(equation: Any) -> ClosedJaxpr:
    inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    return inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
