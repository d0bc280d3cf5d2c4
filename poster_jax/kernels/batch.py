"""Kernels in tiles: within memory, over all devices, and half of them where that is enough."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from poster_jax.core.checks import check_callable, check_count, is_traced
from poster_jax.kernels._tiles import (
    Arguments,
    Inputs,
    Kernels,
    Program,
    Work,
    grid_of,
    is_kernel,
    is_symmetric,
)
from poster_jax.kernels._whole import gather_on_device, gather_on_host

__all__ = ["batch"]


def batch(
    kernel_fn: Callable[..., Any],
    batch_size: int = 0,
    device_count: int = -1,
    store_on_device: bool = True,
) -> Callable[..., Any]:
    """A function that computes the same kernel in tiles, spread over devices.

    Any sizes go with any `batch_size` and number of devices. With `x2=None` a closed form or an
    empirical kernel is computed on and above the diagonal only.

    Args:
      kernel_fn: `kernel_fn(x1, x2, *args, **kwargs)`, or of a `Kernel` in place of `x1`; it is
        compiled here.
      batch_size: examples of each side in one tile; 0 takes one tile for each device.
      device_count: how many devices work at once: -1 all of this process, 0 the default one.
      store_on_device: False keeps finished tiles in the memory of the host, so that the whole
        kernel needs to fit only there.

    Returns:
      A function of the arguments of `kernel_fn`. A keyword that is a pair of arrays, one led by the
      examples of each batch, is cut with them; a key `rng` is split; all else is handed on.

    Raises:
      ValueError: fewer devices than asked for; or the kernel does not lead with the examples of
        both batches.

    Source: Novak et al. 2020 (arXiv 1912.02803), section 3.2.

    Example:
      >>> import jax.numpy as jnp
      >>> from poster_jax.kernels import stax
      >>> _, _, kernel_fn = stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))
      >>> batch(kernel_fn, batch_size=2)(jnp.ones((7, 3)), None, "ntk").shape
      (7, 7)
    """
    check_callable("kernel_fn", kernel_fn)
    check_count("batch_size", batch_size, minimum=0)
    check_count("device_count", device_count, minimum=-1)
    program = Program(kernel_fn)

    @functools.wraps(kernel_fn)
    def batched(x1: Any, x2: Any = None, *args: Any, **kwargs: Any) -> Any:
        """The kernel, tile by tile."""
        traced = is_traced((x1, x2, args, kwargs))
        devices = None if traced else local_devices(device_count)
        if is_kernel(x1) and x2 is not None:
            raise ValueError("x2 must be None beside a Kernel, which is of both batches.")
        source = Kernels(x1) if is_kernel(x1) else Inputs(x1, x2, is_symmetric(kernel_fn))
        arguments = Arguments.split(args, kwargs, source.sizes)
        grid = grid_of(source, batch_size, 1 if devices is None else len(devices))
        work = Work(program, source, grid, arguments, devices)
        if is_symmetric(kernel_fn):
            work.leave_out_mirror_images()
        if devices is None or (store_on_device and devices[0].platform != "cpu"):
            return gather_on_device(work)
        # A CPU has one memory: tiles are written to their place at once.
        return gather_on_host(work, devices[0] if store_on_device else jax.devices("cpu")[0])

    return batched


def local_devices(count: int) -> list[Any]:
    """`count` devices of this process; all for -1, the first for 0."""
    check_count("device_count", count, minimum=-1)
    devices = jax.local_devices()
    if count > len(devices):
        raise ValueError(f"device_count must be at most {len(devices)}, got {count}.")
    return devices if count == -1 else devices[: max(count, 1)]
