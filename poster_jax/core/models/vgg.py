"""VGG networks: stages of 3x3 convolutions, each followed by max-pooling."""

from typing import Any

from flax import linen as nn

from poster_jax.core.checks import check_choice, check_fraction
from poster_jax.core.models.layers import (
    Activation,
    Initializer,
    batch_norm,
    check_images,
    check_widths,
    conv,
    flatten,
    halve,
)

__all__ = ["VGG16"]


class VGG16(nn.Module):
    """Configuration D: 13 convolutions in five stages, a pooling after each, then dense layers.

    With the default head, one dense layer as in most work on CIFAR, 14,719,818 parameters on
    32x32x3 images (14,728,266 with BatchNorm). The published network is
    `VGG16(hidden=(4096, 4096), num_classes=1000, dropout_rate=0.5)` on 224x224x3: 138,357,544.

    Parameters stand at `Conv_0` to `Conv_12`, `Dense_0`, ...; BatchNorm's at `BatchNorm_0`, ...

    Attributes:
      num_classes: outputs.
      norm: None as published, or "batch": BatchNorm after every convolution, biases kept.
      stages: channels of the convolutions, stage by stage. Fewer stages take smaller images: each
        halves them.
      hidden: widths of the dense layers before the last.
      dropout_rate: of units dropped after each hidden layer in training mode.
      activation: after every layer but the last.
      kernel_init: how kernels are drawn.

    Raises (when called): ValueError when the images are too small or no images, or an attribute
    does not fit; TypeError when the input is no float.

    Source: Simonyan and Zisserman, ICLR 2015, arXiv 1409.1556, table 1 (D), table 2.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from poster_jax.core.models import from_linen
      >>> init, x = from_linen(VGG16()).init, jnp.ones((1, 32, 32, 3))
      >>> sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init, jax.random.key(0), x)))
      14719818
    """

    num_classes: int = 10
    norm: str | None = None
    stages: tuple[tuple[int, ...], ...] = (
        (64, 64),
        (128, 128),
        (256, 256, 256),
        (512, 512, 512),
        (512, 512, 512),
    )
    hidden: tuple[int, ...] = ()
    dropout_rate: float = 0.0
    activation: Activation = nn.relu
    kernel_init: Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: Any, *, train: bool = False) -> Any:
        """Logits (examples, num_classes) of `x` (examples, height, width, channels)."""
        self._check(x)
        for stage in self.stages:
            for width in stage:
                x = conv(width, 3, padding=1, kernel_init=self.kernel_init)(x)
                if self.norm is not None:
                    x = batch_norm(train)(x)
                x = self.activation(x)
            x = halve(x)
        x = flatten(x)
        for width in self.hidden:
            x = self.activation(nn.Dense(width, kernel_init=self.kernel_init)(x))
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, kernel_init=self.kernel_init)(x)

    def _check(self, x: Any) -> None:
        for stage in self.stages:
            check_widths("stages", stage)
        if self.hidden:
            check_widths("hidden", self.hidden)
        if self.norm is not None:
            check_choice("norm", self.norm, ["batch"])
        check_fraction("dropout_rate", self.dropout_rate)
        smallest = 2 ** len(self.stages)
        remedy = f"Leave out stages: each of the {len(self.stages)} halves the image."
        check_images("VGG16", x, smallest=smallest, remedy=remedy)
