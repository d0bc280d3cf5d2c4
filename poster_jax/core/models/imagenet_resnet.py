"""Residual networks for photographs."""

from typing import Any

from flax import linen as nn

from poster_jax.core.checks import check_choice, check_count
from poster_jax.core.models.layers import (
    Activation,
    Initializer,
    check_images,
    conv,
    normalisation,
)
from poster_jax.core.models.resnet import NORMS, run_stage

__all__ = ["ImageNetResNet"]

# Blocks of each stage; from 50 on they are bottlenecks.
STAGES = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class ImageNetResNet(nn.Module):
    """The ImageNet network of He et al.: 18 to 200 layers, as torchvision builds it.

    A 7x7 convolution and a 3x3 maximum, each with stride 2; four stages of blocks of 64, 128, 256
    and 512 channels, from the second on with stride 2 in their first 3x3 convolution; the mean over
    the pixels and one dense layer. Blocks are two 3x3 convolutions, from 50 layers on bottlenecks
    with four times as many channels at their end. ResNet-50 has 25,557,032 parameters.

    Parameters stand at `Conv_0`, `Block_0/Conv_0`, ..., `Dense_0`, those of a 1x1 convolution in a
    shortcut at `Block_0/shortcut`, with BatchNorm's at `BatchNorm_0`, `Block_0/BatchNorm_0`, ...;
    its statistics are the model's state.

    Attributes:
      depth: layers: 18, 34, 50, 101, 152 or 200.
      norm: as in `ResNet`.
      width: channels of the first stage, a quarter of them for bottlenecks.
      num_classes: outputs.
      activation: after every norm but a block's last, and after every sum.
      kernel_init: how kernels of convolutions are drawn.
      dense_init: how the kernel of the dense layer is drawn; its bias starts at 0.
      scale_init: how the scales of "batch" and "affine" are drawn.
      last_scale_init: the same for a block's last norm; `nn.initializers.zeros` starts blocks as
        their shortcuts. None takes `scale_init`.
      scan: whether the blocks of a stage but its first are one `nn.scan`, as in `ResNet`.

    Raises (when called): ValueError when the input is no images, or an attribute does not fit;
    TypeError when the input is no float.

    Source: He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016, arXiv
    1512.03385, table 1; stride on the 3x3 convolution as in torchvision; 200 layers as in He,
    Zhang, Ren, Sun, arXiv 1603.05027, but with the norms of the former.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from poster_jax.core.models import from_linen
      >>> model, x = from_linen(ImageNetResNet(50)), jnp.ones((2, 224, 224, 3))
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0), x)
      >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
      25557032
    """

    depth: int = 50
    norm: str | None = "batch"
    width: int = 64
    num_classes: int = 1000
    activation: Activation = nn.relu
    kernel_init: Initializer = FAN_OUT
    dense_init: Initializer = UNIFORM
    scale_init: Initializer = nn.initializers.ones
    last_scale_init: Initializer | None = None
    scan: bool = False

    @nn.compact
    def __call__(self, x: Any, *, train: bool = False) -> Any:
        """Logits (examples, num_classes) of `x` (examples, height, width, channels)."""
        if self.depth not in STAGES:
            raise ValueError(f"depth must be one of {list(STAGES)}, got {self.depth!r}.")
        check_count("width", self.width)
        if self.norm is not None:
            check_choice("norm", self.norm, list(NORMS))
        check_images("ImageNetResNet", x)
        no_norm = self.norm is None
        stem = {"strides": 2, "padding": 3, "use_bias": no_norm, "kernel_init": self.kernel_init}
        x = conv(self.width, 7, **stem)(x)
        if self.norm is not None:
            x = normalisation(self.norm, train, self.scale_init)(x)
        x = nn.max_pool(self.activation(x), (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, num_blocks in enumerate(STAGES[self.depth]):
            options = {
                "features": self.width * 2**stage,
                "norm": self.norm,
                "projection": True,
                "activation": self.activation,
                "kernel_init": self.kernel_init,
                "scale_init": self.scale_init,
                "last_scale_init": self.last_scale_init,
                "bottleneck": self.depth >= 50,
                "shortcut": "shortcut",
            }
            strides = [2 if stage else 1, *(1,) * (num_blocks - 1)]
            same = 1 if self.scan else num_blocks
            x = run_stage(x, strides, same, options, train, f"Stage_{stage}")
        return nn.Dense(self.num_classes, kernel_init=self.dense_init)(x.mean((1, 2)))
