"""LeNet-5, as it is trained today: ReLU and max-pooling."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn

from poster_jax.core.checks import check_choice
from poster_jax.core.models.layers import (
    Activation,
    Initializer,
    check_images,
    conv,
    flatten,
    halve,
)

__all__ = ["LeNet5"]


class LeNet5(nn.Module):
    """Conv 6@5x5, pool, conv 16@5x5, pool, dense 120, 84, classes.

    61,706 parameters on 32x32x1 images, 62,006 on 32x32x3. Parameters stand at `Conv_0`, `Conv_1`,
    `Dense_0` to `Dense_2`; `Dense_2/kernel` is the last layer (84, classes).

    Attributes:
      num_classes: outputs.
      activation: after every layer but the last.
      padding: of the convolutions. "VALID" is the published network (28x28 images are then padded
        to 32x32 beforehand for its parameter count); "SAME" takes images from 4x4, the digits
        among them.
      pool: `nn.max_pool`, or `nn.avg_pool` as in 1998.
      kernel_init: how kernels are drawn.

    Raises (when called): ValueError when the images are too small or no images, TypeError when they
    are no floats.

    Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition", section
    II.B; ReLU, max-pooling and full connections as in Petzka et al., arXiv 2001.00939.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from poster_jax.core.models import from_linen
      >>> init, x = from_linen(LeNet5()).init, jnp.ones((1, 32, 32, 1))
      >>> sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init, jax.random.key(0), x)))
      61706
    """

    num_classes: int = 10
    activation: Activation = nn.relu
    padding: str = "VALID"
    pool: Callable[..., Any] = nn.max_pool
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits (examples, num_classes) of `x` (examples, height, width, channels)."""
        check_choice("padding", self.padding, ["SAME", "VALID"])
        if self.padding == "VALID":
            remedy = "LeNet5(padding='SAME') takes 4x4 and larger."
            check_images("LeNet5 with padding 'VALID'", x, smallest=16, remedy=remedy)
        else:
            check_images("LeNet5", x, smallest=4)
        for features in (6, 16):
            layer = conv(features, 5, padding=self.padding, kernel_init=self.kernel_init)
            x = halve(self.activation(layer(x)), self.pool)
        x = flatten(x)
        for width in (120, 84):
            x = self.activation(nn.Dense(width, kernel_init=self.kernel_init)(x))
        return nn.Dense(self.num_classes, kernel_init=self.kernel_init)(x)
