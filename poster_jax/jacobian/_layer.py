"""A layer at one batch: its outputs, and products with its Jacobian from one linearisation.

`layer_fn(params, x) -> h` maps a batch (B, ...) to (B, ...), and J is the derivative of h by x.
Where no output depends on another example's input (an uncoupled layer) the product of a batch is
the batch of products, (J' v)_b = J_b' v_b: no loop over examples, no Jacobian.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.core.checks import check_batch, check_callable, check_finite, is_traced
from poster_jax.core.typing import Array, Params

__all__ = [
    "LayerFn",
    "Linearised",
    "NamedLayer",
    "check_layer",
    "check_uncoupled",
    "linearise",
]

LayerFn = Callable[[Params, Any], Any]
"""`layer_fn(params, x) -> h`, floats (B, ...) to floats (B, ...): one layer or a whole network."""

# Enough that no batch of equal examples hides a coupling, few enough to cost nothing.
FEW = 4


@dataclass(frozen=True)
class NamedLayer:
    """A layer that `network_penalty` can select by name; called, it is its `layer_fn`.

    Attributes:
      layer_fn: `layer_fn(params_l, x) -> h`.
      name: where it stands in the network, such as "Dense_0" or "Block_1/Conv_0".

    Example:
      >>> NamedLayer(lambda w, x: w * x, "encoder/scale")(2.0, jnp.ones(1)).tolist()
      [2.0]
    """

    layer_fn: LayerFn
    name: str

    def __call__(self, params: Params, x: Any) -> Any:
        """The layer at params and x."""
        return self.layer_fn(params, x)


class Linearised:
    """`layer_fn` at (params, x): `h`, `jvp` and `vjp`; called, it is `layer_fn` itself.

    A penalty that is handed one in place of a layer_fn reuses its linearisation; any other function
    may call it. So a network passes its layers on, and the forward pass runs once.
    """

    def __init__(self, layer_fn: LayerFn, params: Params, x: Array) -> None:
        self.layer_fn, self.params, self.x = layer_fn, params, x
        self.h, self.jvp = jax.linearize(lambda y: layer_fn(params, y), x)

    def __call__(self, params: Params, x: Any) -> Any:
        """The layer at any params and x."""
        return self.layer_fn(params, x)

    def vjp(self, v: Array) -> Array:
        """J' v. The transposed linearisation: no second forward pass, as `jax.vjp` would add."""
        (product,) = jax.linear_transpose(self.jvp, self.x)(v)
        return product

    @property
    def num_outputs(self) -> int:
        """m, the outputs of one example."""
        return math.prod(self.h.shape[1:])

    @property
    def num_inputs(self) -> int:
        """n, the inputs of one example."""
        return math.prod(self.x.shape[1:])


def linearise(
    layer_fn: LayerFn | Linearised, params: Params, x: Any, *, stop_gradient_input: bool = False
) -> Linearised:
    """The layer at (params, x), checked. A layer linearised there already is taken as it is."""
    if isinstance(layer_fn, Linearised):
        if layer_fn.params is params and layer_fn.x is x and not stop_gradient_input:
            return layer_fn
        # What a detached x changes is the gradient alone; XLA merges the two equal forward passes.
        layer_fn = layer_fn.layer_fn
    check_layer(layer_fn, params, x)
    x = jnp.asarray(x)
    return Linearised(layer_fn, params, jax.lax.stop_gradient(x) if stop_gradient_input else x)


def check_layer(layer_fn: LayerFn, params: Params, x: Any, name: str = "layer_fn") -> Any:
    """The shape and dtype of `layer_fn(params, x)`; ValueError or TypeError for what does not fit.

    Unlike a model's, a layer's params may be empty: activations and pooling have none.
    """
    check_callable(name, layer_fn)
    check_finite("params", params)
    if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating):
        got = getattr(x, "dtype", type(x).__name__)
        raise TypeError(f"x must be a floating point array (B, ...), got {got}.")
    size = check_batch(x, "x")
    try:
        out = jax.eval_shape(layer_fn, params, x)
    except Exception as error:  # a layer may raise anything; the user wants one sentence
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{name}(params, x) could not be evaluated: params and data do not fit: {first}"
        ) from error
    shape = getattr(out, "shape", None)
    if not shape or shape[0] != size or not jnp.issubdtype(out.dtype, jnp.floating):
        got = f"{out.dtype} of shape {shape}" if shape is not None else type(out).__name__
        raise ValueError(
            f"{name}(params, x) must be one floating point array whose leading axis is that of x, "
            f"({size}, ...), got {got}."
        )
    return out


def check_uncoupled(layer: Linearised) -> None:
    """ValueError when an output depends on the other examples of the batch.

    It is tried on a few examples. Under `jit` and `vmap` there are no values to try it on.
    """
    if is_traced((layer.params, layer.x, layer.h)) or len(layer.x) == 1:
        return
    few = layer.x[np.linspace(0, len(layer.x) - 1, FEW).astype(int)]
    # On a GPU, products of one row and of several may differ by the coarse default precision.
    with jax.default_matmul_precision("highest"):
        together, alone = jax.jit(partial(_both_ways, layer))(layer.params, few)
    gap = float(jnp.abs(together - alone).max())
    size = float(jnp.abs(jnp.stack([together, alone])).max())
    # The two differ in rounding alone.
    if gap > math.sqrt(float(jnp.finfo(few.dtype).eps)) * size:
        raise ValueError(
            "layer_fn must treat every example alone, so that each has a Jacobian of its own: "
            f"outputs of size {size:.3g} change by {gap:.3g} when {FEW} examples are evaluated one "
            "by one. Batch norm in training mode couples them: take coupled=True, the Jacobian of "
            "the whole batch, or evaluation mode."
        )


def _both_ways(layer: Linearised, params: Params, few: Array) -> tuple[Array, Array]:
    alone = jax.vmap(lambda one: layer(params, one[None])[0])(few)
    return layer(params, few), alone
