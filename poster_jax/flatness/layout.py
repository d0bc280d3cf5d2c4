"""How a kernel is stored, and the matrix of neurons by inputs that the equations speak of.

The equations write a layer as W phi(x) with W (neurons, inputs). Flax and Haiku store (in, out)
and HWIO, Equinox and torch (out, in) and OIHW. Which one a kernel is cannot be seen from its shape,
so it is said: `neuron_axis=-1` for the former (the default), `neuron_axis=0` for the latter. The
inputs of a convolution's neuron are the entries of the patch it looks at: position and channel.
"""

import math
from typing import Any

import jax.numpy as jnp

from poster_jax.core.typing import Array, Float

__all__ = ["as_kernel", "as_matrix", "check_kernel", "input_axis_of", "matrix_shape"]


def check_kernel(name: str, kernel: Any, neuron_axis: int) -> None:
    """ValueError unless `kernel` is one array with an axis of neurons and one of inputs."""
    if not hasattr(kernel, "shape"):
        raise ValueError(
            f"{name} must be the path of a single kernel, got {type(kernel).__name__}."
        )
    if kernel.ndim < 2:
        raise ValueError(
            f"{name} must have at least 2 axes, inputs and neurons, got shape {kernel.shape}."
        )
    if isinstance(neuron_axis, bool) or not isinstance(neuron_axis, int):
        raise TypeError(f"neuron_axis must be an integer, got {neuron_axis!r}.")
    if not -kernel.ndim <= neuron_axis < kernel.ndim:
        raise ValueError(
            f"neuron_axis must be an axis of {name}, which has shape {kernel.shape}, got "
            f"{neuron_axis}."
        )


def input_axis_of(kernel: Any, neuron_axis: int, input_axis: int | None) -> int:
    """The axis over inputs (input channels), counted from the front.

    None means the axis beside the neurons: -2 in (in, out) and HWIO, 1 in (out, in) and OIHW.
    """
    ndim = kernel.ndim
    neurons = neuron_axis % ndim
    if input_axis is None:
        return neurons - 1 if neurons == ndim - 1 else neurons + 1
    if not -ndim <= input_axis < ndim or input_axis % ndim == neurons:
        raise ValueError(
            f"input_axis must be an axis of the kernel {kernel.shape} other than neuron_axis="
            f"{neuron_axis}, got {input_axis}."
        )
    return input_axis % ndim


def matrix_shape(shape: tuple[int, ...], neuron_axis: int) -> tuple[int, int]:
    """(neurons, inputs) of a kernel of this shape."""
    neurons = shape[neuron_axis]
    return neurons, math.prod(shape) // neurons if neurons else 0


def as_matrix(kernel: Float[Array, "..."], neuron_axis: int) -> Float[Array, "neurons inputs"]:
    """The kernel with its neurons as rows."""
    moved = jnp.moveaxis(kernel, neuron_axis, 0)
    return moved.reshape(moved.shape[0], -1)


def as_kernel(
    matrix: Float[Array, "neurons inputs"], shape: tuple[int, ...], neuron_axis: int
) -> Float[Array, "..."]:
    """The inverse of `as_matrix` for a kernel of this shape."""
    rest = list(shape)
    neurons = rest.pop(neuron_axis)
    return jnp.moveaxis(matrix.reshape(neurons, *rest), 0, neuron_axis)
