"""A small convolutional network."""

from typing import Any

from flax import linen as nn

from poster_jax.core.models.layers import (
    Activation,
    Initializer,
    check_images,
    check_widths,
    conv,
)

__all__ = ["CNN"]


class CNN(nn.Module):
    """3x3 convolutions, the mean over the pixels, one dense layer; images of any size.

    The default has 66,218 parameters on 32x32x3 images. Parameters stand at `Conv_0` to `Conv_3`
    and `Dense_0`.

    Attributes:
      features: channels of each convolution.
      strides: of each convolution; 2 halves the image.
      num_classes: outputs.
      activation: after every convolution.
      kernel_init: how kernels are drawn.

    Raises (when called): ValueError when the input is no images or features and strides differ in
    length, TypeError when the input is no float.

    Source: this library.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from poster_jax.core.models import from_linen
      >>> init, x = from_linen(CNN()).init, jnp.ones((1, 32, 32, 3))
      >>> sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init, jax.random.key(0), x)))
      66218
    """

    features: tuple[int, ...] = (32, 32, 64, 64)
    strides: tuple[int, ...] = (1, 1, 1, 1)
    num_classes: int = 10
    activation: Activation = nn.relu
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits (examples, num_classes) of `x` (examples, height, width, channels)."""
        check_widths("features", self.features)
        check_widths("strides", self.strides)
        check_images("CNN", x)
        if len(self.features) != len(self.strides):
            raise ValueError(
                f"strides must be one a convolution, got {len(self.strides)} for "
                f"{len(self.features)} features."
            )
        for width, stride in zip(self.features, self.strides, strict=True):
            # Padding 1 on both sides, as in torch; "SAME" would shift the grid where stride is 2.
            layer = conv(width, 3, strides=stride, padding=1, kernel_init=self.kernel_init)
            x = self.activation(layer(x))
        return nn.Dense(self.num_classes, kernel_init=self.kernel_init)(x.mean((1, 2)))
