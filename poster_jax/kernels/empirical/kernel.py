"""Both empirical kernels by one function that is told which."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from poster_jax.core.typing import Params
from poster_jax.kernels._get import answer, requested
from poster_jax.kernels.empirical.nngp import empirical_nngp_fn
from poster_jax.kernels.empirical.ntk import (
    DEFAULT_NTK_IMPLEMENTATION,
    NtkImplementation,
    empirical_ntk_fn,
)

__all__ = ["empirical_kernel_fn"]


def empirical_kernel_fn(
    f: Callable[..., Any],
    trace_axes: int | Sequence[int] = (-1,),
    diagonal_axes: int | Sequence[int] = (),
    vmap_axes: Any = None,
    implementation: NtkImplementation | int = DEFAULT_NTK_IMPLEMENTATION,
    _j_rules: bool = True,
    _s_rules: bool = True,
    _fwd: bool | None = None,
) -> Callable[..., Any]:
    """The NNGP kernel and the NTK of one network at one draw of its parameters.

    Args:
      f: as in `empirical_ntk_fn`.
      trace_axes: as there.
      diagonal_axes: as there.
      vmap_axes: as there; applies to the NTK.
      implementation: as there.
      _j_rules: as there.
      _s_rules: as there.
      _fwd: as there.

    Returns:
      `kernel_fn(x1, x2, get, params, **kwargs)`. `get` is "nngp", "ntk" or a tuple of them,
      answered by a namedtuple in that order; None is ("nngp", "ntk"). A network with several
      outputs answers a tree of these.

    Raises:
      ValueError: as the two functions, and for another name in `get`.

    Source: see `empirical_nngp_fn` and `empirical_ntk_fn`.

    Example:
      >>> import jax.numpy as jnp
      >>> kernel_fn = empirical_kernel_fn(lambda params, x: x @ params)
      >>> kernels = kernel_fn(jnp.ones((3, 2)), None, None, jnp.ones((2, 4)))
      >>> kernels.nngp.shape, kernels.ntk[0].tolist()
      ((3, 3), [2.0, 2.0, 2.0])
    """
    kernel_fns = {
        "nngp": empirical_nngp_fn(f, trace_axes, diagonal_axes),
        "ntk": empirical_ntk_fn(
            f, trace_axes, diagonal_axes, vmap_axes, implementation, _j_rules, _s_rules, _fwd
        ),
    }

    def kernel_fn(x1: Any, x2: Any, get: Any, params: Params, **apply_fn_kwargs: Any) -> Any:
        """The kernels named in `get`."""
        names = requested(get, ("nngp", "ntk"))
        for name in names:
            if name not in kernel_fns:
                raise ValueError(f"get must name 'nngp' or 'ntk', got {name!r}.")
        kernels = [kernel_fns[name](x1, x2, params, **apply_fn_kwargs) for name in names]

        def answer_leaf(*leaf: Any) -> Any:
            return answer("EmpiricalKernel", get, dict(zip(names, leaf, strict=True)))

        return jax.tree.map(answer_leaf, *kernels)

    kernel_fn.symmetric = True  # for `batch`: tiles above the diagonal are enough
    return kernel_fn
