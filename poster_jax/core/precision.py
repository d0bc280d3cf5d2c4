"""float32 that means float32 on every accelerator."""

import functools
from collections.abc import Callable
from typing import Any

import jax

__all__ = ["full_precision"]


def full_precision(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` with all its matrix products in full precision.

    GPUs and TPUs round the factors of float32 products to fewer bits unless told otherwise (TF32
    keeps 10 of 23, bfloat16 seven), which is noise of 1e-3 to 1e-4 in every entry. Networks bear it
    in training, and stay at the caller's `jax_default_matmul_precision`; kernels, their inverses
    and series of differences do not. CPUs, and float64 everywhere, are what they were.

    Args:
      fn: any function; inside a `jit`, too, and its gradient is as exact.

    Returns:
      A function of the same arguments.

    Source: `jax.default_matmul_precision`.

    Example:
      >>> import jax.numpy as jnp
      >>> product = full_precision(lambda a: a @ a)
      >>> "HIGHEST" in str(jax.make_jaxpr(product)(jnp.eye(2)))
      True
    """

    @functools.wraps(fn)
    def precise(*args: Any, **kwargs: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return fn(*args, **kwargs)

    return precise
