"""The empirical NNGP kernel: products of the outputs of one network."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_callable
from poster_jax.core.typing import Params
from poster_jax.kernels.empirical.arguments import is_none, split_kwargs
from poster_jax.kernels.empirical.labels import labels_of

__all__ = ["empirical_nngp_fn"]


def empirical_nngp_fn(
    f: Callable[..., Any],
    trace_axes: int | Sequence[int] = (-1,),
    diagonal_axes: int | Sequence[int] = (),
) -> Callable[..., Any]:
    """The covariance of a network's outputs with one another, at one draw of its parameters.

    Args:
      f: `f(params, x, **kwargs) -> pytree of outputs`; every output leaf has its own kernel.
      trace_axes: axes of the outputs over which the kernel is averaged.
      diagonal_axes: axes of the outputs of which only equal positions are kept.

    Returns:
      `nngp_fn(x1, x2, params, **kwargs)`. `x2=None` stands for `x1`. The answer has the axes of the
      outputs, each twice and side by side, but for the `diagonal_axes` (once) and the `trace_axes`
      (not at all). Of a keyword that is a pair each side gets one; a key `rng` is made different
      for different batches.

    Raises:
      ValueError: an axis is not there, or outputs of the two batches do not fit along it.

    Source: Lee et al. 2018 (arXiv 1711.00165); Novak et al. 2020 (arXiv 1912.02803), section 2.

    Example:
      >>> nngp_fn = empirical_nngp_fn(lambda params, x: x @ params)
      >>> nngp_fn(jnp.ones((3, 2)), None, jnp.ones((2, 4))).tolist()[0]
      [4.0, 4.0, 4.0]
    """
    check_callable("f", f)

    def nngp_fn(x1: Any, x2: Any, params: Params, **apply_fn_kwargs: Any) -> Any:
        """Products of the outputs on `x1` with those on `x2`."""
        kwargs1, kwargs2 = split_kwargs(apply_fn_kwargs, x1, x2)
        out1 = f(params, x1, **kwargs1)
        out2 = out1 if is_none(x2) else f(params, x2, **kwargs2)

        def contract(a: Any, b: Any) -> Any:
            labels = labels_of(a, b, trace_axes, diagonal_axes)
            return labels.contract(jnp.asarray(a), labels.left, jnp.asarray(b), labels.right)

        return jax.tree.map(contract, out1, out2)

    nngp_fn.symmetric = True  # for `batch`: tiles above the diagonal are enough
    return nngp_fn
