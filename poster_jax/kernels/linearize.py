"""Networks as polynomials of their parameters: the Taylor series about given ones."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_callable, check_count, check_finite, check_same_structure
from poster_jax.core.typing import Params

__all__ = ["linearize", "taylor_expand"]


def linearize(f: Callable[..., Any], params: Params) -> Callable[..., Any]:
    """The network that is linear in its parameters and touches `f` at `params`.

    Args:
      f: `f(params, *args, **kwargs) -> pytree of outputs`.
      params: where the Taylor series is taken; any pytree.

    Returns:
      `f_lin(p, *args, **kwargs) = f(params, ...) + df(params, ...) (p - params)`.

    Raises:
      ValueError: `params` is not finite, or `p` has another structure.

    Source: Lee et al. 2019 (arXiv 1902.06720), equation 5.

    Example:
      >>> f_lin = linearize(lambda p, x: p**2 * x, jnp.array(3.0))
      >>> float(f_lin(jnp.array(4.0), 10.0))  # 90 + 60 (4 - 3)
      150.0
    """
    return taylor_expand(f, params, 1)


def taylor_expand(f: Callable[..., Any], params: Params, degree: int) -> Callable[..., Any]:
    """The Taylor series of a network in its parameters, up to the terms of the given degree.

    Args:
      f: `f(params, *args, **kwargs) -> pytree of outputs`.
      params: where the series is taken; any pytree.
      degree: of the polynomial; 0 is `f` at `params` whatever `p`. The cost grows with
        its power of 2.

    Returns:
      `f_tayl(p, *args, **kwargs)`.

    Raises:
      ValueError: `degree` is negative, `params` is not finite, or `p` has another structure.
        TypeError when `degree` is no integer.

    Source: Taylor's theorem; nested Jacobian-vector products.

    Example:
      >>> f_tayl = taylor_expand(lambda p, x: p**2 * x, jnp.array(3.0), 2)
      >>> float(f_tayl(jnp.array(4.0), 10.0))
      160.0
    """
    check_callable("f", f)
    check_finite("params", params)
    check_count("degree", degree, minimum=0)

    def expanded(p: Params, *args: Any, **kwargs: Any) -> Any:
        """The Taylor series at `p`."""
        check_same_structure("p", p, "params", params)
        direction = jax.tree.map(jnp.subtract, p, params)

        def term(at: Params) -> Any:
            return f(at, *args, **kwargs)

        if degree == 0:
            return term(params)
        derivative, total, factorial = term, None, 1
        for order in range(1, degree + 1):
            value, slope = jax.jvp(derivative, (params,), (direction,))
            total = value if total is None else total
            factorial = factorial * order
            total = jax.tree.map(lambda t, s: t + s / factorial, total, slope)  # noqa: B023
            derivative = _along(derivative, direction)
        return total

    return expanded


def _along(fn: Callable[[Params], Any], direction: Params) -> Callable[[Params], Any]:
    return lambda p: jax.jvp(fn, (p,), (direction,))[1]
