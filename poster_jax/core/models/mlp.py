"""Fully connected networks."""

from typing import Any

from flax import linen as nn

from poster_jax.core.models.layers import (
    Activation,
    Initializer,
    check_floats,
    check_widths,
    flatten,
)

__all__ = ["MLP"]


class MLP(nn.Module):
    """Dense layers with an activation between them; images are flattened first.

    Parameters stand at `Dense_0/kernel`, `Dense_0/bias`, `Dense_1/kernel`, ...

    Attributes:
      features: width of each layer, the outputs last. The input is not named: 64-96-48-10 is
        `MLP((96, 48, 10))` on the digits.
      activation: after every layer but the last.
      use_bias: whether the layers have biases.
      kernel_init: how kernels are drawn.

    Raises (when called): ValueError when features are empty or below 1 or the input has no example
    axis, TypeError when the input is no float.

    Source: this library.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from poster_jax.core.models import from_linen
      >>> model = from_linen(MLP((96, 48, 10)))
      >>> params = model.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      11386
    """

    features: tuple[int, ...] = (96, 48, 10)
    activation: Activation = nn.relu
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits (examples, features[-1]) of `x` (examples, ...)."""
        check_widths("features", self.features)
        check_floats("MLP", x)
        x = flatten(x)
        for width in self.features[:-1]:
            x = self.activation(self._dense(width)(x))
        return self._dense(self.features[-1])(x)

    def _dense(self, width: int) -> nn.Dense:
        return nn.Dense(width, use_bias=self.use_bias, kernel_init=self.kernel_init)
