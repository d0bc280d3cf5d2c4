"""Which network: its activations, variances and widths, stated or read off layers of `stax`."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.core.checks import check_count, check_positive, is_traced
from poster_jax.finite_width.nongaussian.activation import (
    Activation,
    activation,
    activation_of_layer,
    kernel_between,
)

__all__ = ["Network", "check_widths", "depth_to_width", "from_stax", "network"]


class Network(NamedTuple):
    """A fully connected network as a prior over functions.

    Attributes:
      activations: one a hidden layer.
      C_W: (depth + 1,) variances of the weights times their number of inputs, from the first layer.
      C_b: (depth + 1,) variances of the biases.
      widths: of the hidden layers, or None where they are named later.
    """

    activations: tuple[Activation, ...]
    C_W: Any
    C_b: Any
    widths: tuple[int, ...] | None = None

    @property
    def depth(self) -> int:
        """Number of hidden layers."""
        return len(self.activations)


def network(
    phi: str | Callable[..., Any] | Activation,
    *,
    depth: int,
    C_W: Any = 1.0,
    C_b: Any = 0.0,
    widths: int | Sequence[int] | None = None,
) -> Network:
    """A network with one activation and the same variances in all layers.

    Args:
      phi: as in `activation`.
      depth: number of hidden layers.
      C_W: variance of the weights times their number of inputs; (depth + 1,) for one a layer.
      C_b: variance of the biases; likewise.
      widths: of the hidden layers; one number for all, or None.

    Returns:
      Network.

    Raises:
      ValueError: depth or a width below 1, variances out of range or of another number.
      TypeError: a depth that is no integer, an activation that cannot be called.

    Source: Yaida 2019 (arXiv 1910.00019).

    Example:
      >>> network("tanh", depth=2, C_W=1.5).C_W.tolist()
      [1.5, 1.5, 1.5]
    """
    depth = check_count("depth", depth)
    check_positive("C_W", C_W)
    check_positive("C_b", C_b, zero_allowed=True)
    variances = []
    for name, value in (("C_W", C_W), ("C_b", C_b)):
        value = value if is_traced(value) else np.asarray(value, float)
        if jnp.shape(value) not in ((), (depth + 1,)):
            raise ValueError(
                f"{name} must be one number or have shape (depth + 1,) = ({depth + 1},), got "
                f"{jnp.shape(value)}."
            )
        ones = np.ones(depth + 1)
        variances.append(ones * value)
    widths = None if widths is None else check_widths(widths, depth)
    return Network((activation(phi),) * depth, *variances, widths)


def from_stax(*layers: tuple[Any, Any, Any]) -> Network:
    """The network that `kernels.stax.serial(*layers)` is, from the same layers.

    Args:
      *layers: `Dense` and pointwise layers in turn, from `Dense` to `Dense`, such as
        `stax.Dense(64, 1.5, 0.1), stax.Erf(), stax.Dense(1)`. The widths of all but the last
        `Dense` become the network's.

    Returns:
      Network. Variances and activations are found by asking the layers: C_W and C_b by their
      action on a kernel, the width by their shapes, the activation by its values.

    Raises:
      ValueError: other layers, or in another order.

    Source: this library.

    Example:
      >>> from poster_jax.kernels import stax
      >>> found = from_stax(stax.Dense(64, 1.5), stax.Relu(), stax.Dense(1, 2.0))
      >>> found.widths, found.C_W.tolist(), found.activations[0].name
      ((64,), [2.25, 4.0], 'relu')
    """
    if len(layers) < 3 or len(layers) % 2 == 0:
        raise ValueError(
            "layers must be Dense and pointwise layers in turn, from Dense to Dense, got "
            f"{len(layers)} of them."
        )
    dense = [_dense(layer, 2 * place) for place, layer in enumerate(layers[::2])]
    slopes, offsets, widths = zip(*dense, strict=True)
    names = [getattr(layer[0], "__name__", "layer") for layer in layers[1::2]]
    found = map(activation_of_layer, layers[1::2], names)
    return Network(tuple(found), _stack(slopes), _stack(offsets), widths[:-1])


def _dense(layer: Any, place: int) -> tuple[Any, Any, int]:
    if not isinstance(layer, tuple | list) or len(layer) != 3:
        raise ValueError(f"layers[{place}] must be a triple of functions, such as stax.Dense(1).")
    init_fn, _, kernel_fn = layer
    shape, params = init_fn(jax.random.key(0), (1, 3))
    leaves = jax.tree.leaves(params)
    if len(shape) != 2 or not leaves or leaves[0].shape != (3, shape[-1]):
        raise ValueError(f"layers[{place}] must be Dense, got {init_fn.__name__}.")
    ones = jnp.ones(1)
    # A kernel of 0 and of 1 goes through C_b + C_W k.
    at = [kernel_fn(kernel_between(k * ones[:, None], ones, ones)).nngp[0, 0] for k in (0.0, 1.0)]
    return at[1] - at[0], at[0], int(shape[-1])


def _stack(values: Sequence[Any]) -> Any:
    return jnp.stack(values) if is_traced(values) else np.array(values, float)


def check_widths(widths: int | Sequence[int], depth: int) -> tuple[int, ...]:
    """The widths of `depth` hidden layers; ValueError where they are others or below 1."""
    if isinstance(widths, int | np.integer) and not isinstance(widths, bool):
        widths = (int(widths),) * depth
    if not isinstance(widths, Sequence | np.ndarray) or len(widths) != depth:
        raise ValueError(
            f"widths must be one number or one for each of the {depth} hidden layers, got "
            f"{widths!r}."
        )
    return tuple(check_count("widths", width) for width in widths)


def depth_to_width(widths: Sequence[int]) -> float:
    """The expansion's parameter: sum over hidden layers of 1 / width, depth / width where equal.

    Args:
      widths: of the hidden layers.

    Returns:
      A number; corrections at criticality are of its size, and the expansion says nothing above 1.

    Raises:
      ValueError: no widths, or one below 1.

    Source: Yaida 2019 (arXiv 1910.00019); Hanin & Nica 2019 (arXiv 1812.05994).

    Example:
      >>> depth_to_width((10, 20, 20))
      0.2
    """
    return sum(1 / w for w in check_widths(widths, len(widths)))
