"""Residual networks for small images."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from poster_jax.core.checks import check_choice, check_count
from poster_jax.core.models.layers import (
    Activation,
    Initializer,
    check_images,
    conv,
    normalisation,
)

NORMS = ("batch", "affine", "normalise")

__all__ = ["ResNet"]


class ResNet(nn.Module):
    """The CIFAR network of He et al.: 6n + 2 layers, stages of 16, 32 and 64 channels.

    n blocks of two 3x3 convolutions a stage; stages two and three begin with stride 2; then the
    mean over the pixels and one dense layer. ResNet-20 (n = 3) has 269,722 parameters on 32x32x3
    images, ResNet-56 (n = 9) 853,018, ResNet-110 (n = 18) 1,727,962.

    Parameters stand at `Conv_0`, `Block_0/Conv_0`, `Block_0/Conv_1`, ..., `Dense_0`, with
    BatchNorm's at `BatchNorm_0`, `Block_0/BatchNorm_0`, ...; its statistics are the model's state.

    Attributes:
      num_blocks: n, blocks a stage.
      norm: "batch", BatchNorm after every convolution, which then has no bias; "affine", its scale
        and bias without the statistics; "normalise", the statistics without scale and bias; or
        None, biases and no norm. Without norm the last convolution of each block starts at zero, so
        that the network starts as its shortcuts: drawn as the others its outputs would grow with
        every block (Zhang et al., "Fixup initialization", arXiv 1901.09321).
      projection: what a shortcut does where channels double. False, option A of the paper: every
        second pixel, new channels zero, no parameters, which is what the paper uses on CIFAR. True,
        option B: a 1x1 convolution with stride 2 (272,474 parameters for ResNet-20).
      width: channels of the first stage.
      num_classes: outputs.
      activation: after every norm but a block's second, and after every sum.
      kernel_init: how kernels are drawn.
      scale_init: how the scales of "batch" and "affine" are drawn.
      scan: whether equal blocks of a stage are one `nn.scan`, recomputed in the backward pass
        (`nn.remat`): compile time and, but for the inputs of blocks, memory then do not grow with
        depth. Their parameters are stacked, at `Stage_0/Block_0/Conv_0`, ...; so is what
        `capture_intermediates` finds there.

    Raises (when called): ValueError when the input is no images, or an attribute does not fit;
    TypeError when the input is no float.

    Source: He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016, arXiv
    1512.03385, sections 3.3 and 4.2, table 6.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from poster_jax.core.models import from_linen
      >>> model = from_linen(ResNet(num_blocks=1))
      >>> x, key = jnp.ones((4, 8, 8, 1)), jax.random.key(0)
      >>> params, state = model.init(key, x), model.init_state(key, x)
      >>> logits, state = model.apply_train(params, state, x, key)
      >>> model.freeze(state)(params, x).shape
      (4, 10)
    """

    num_blocks: int = 3
    norm: str | None = "batch"
    projection: bool = False
    width: int = 16
    num_classes: int = 10
    activation: Activation = nn.relu
    kernel_init: Initializer = nn.initializers.he_normal()
    scale_init: Initializer = nn.initializers.ones
    scan: bool = False

    @nn.compact
    def __call__(self, x: Any, *, train: bool = False) -> Any:
        """Logits (examples, num_classes) of `x` (examples, height, width, channels)."""
        check_count("num_blocks", self.num_blocks)
        check_count("width", self.width)
        if self.norm is not None:
            check_choice("norm", self.norm, list(NORMS))
        check_images("ResNet", x)
        stem = conv(
            self.width, 3, padding=1, use_bias=self.norm is None, kernel_init=self.kernel_init
        )
        x = stem(x)
        if self.norm is not None:
            x = normalisation(self.norm, train, self.scale_init)(x)
        x = self.activation(x)
        for stage in range(3):
            options = {
                "features": self.width * 2**stage,
                "norm": self.norm,
                "projection": self.projection,
                "activation": self.activation,
                "kernel_init": self.kernel_init,
                "scale_init": self.scale_init,
            }
            strides = [2 if stage and not block else 1 for block in range(self.num_blocks)]
            same = (1 if stage else 0) if self.scan else self.num_blocks
            x = run_stage(x, strides, same, options, train, f"Stage_{stage}")
        return nn.Dense(self.num_classes, kernel_init=self.kernel_init)(x.mean((1, 2)))


def run_stage(x: Any, strides: list[int], same: int, options: Any, train: bool, name: str) -> Any:
    """`x` behind blocks of these strides; those from `same` on, all of one shape, are scanned."""
    for stride in strides[:same]:
        x = Block(stride=stride, **options)(x, train=train)
    if len(strides) > same:
        links = nn.scan(
            nn.remat(_Link, prevent_cse=False),
            variable_axes={"params": 0, "batch_stats": 0, "intermediates": 0},
            split_rngs={"params": True},
            length=len(strides) - same,
        )
        x, _ = links(options, train, name=name)(x, None)
    return x


class Block(nn.Module):
    """Two 3x3 convolutions, or a bottleneck, and the shortcut around; attributes as in `ResNet`.

    Attributes:
      features: channels that leave the block; a quarter of them for a bottleneck.
      stride: of the first 3x3 convolution.
      norm: as in `ResNet`.
      projection: as in `ResNet`.
      activation: as in `ResNet`.
      kernel_init: as in `ResNet`.
      scale_init: as in `ResNet`.
      last_scale_init: of the scale before the sum; None takes `scale_init`.
      bottleneck: whether one 3x3 convolution stands between two of 1x1, the second of which has
        four times as many channels.
      shortcut: what the convolution of a projection is called; None counts it with the others.
    """

    features: int
    stride: int
    norm: str | None
    projection: bool
    activation: Activation
    kernel_init: Initializer
    scale_init: Initializer = nn.initializers.ones
    last_scale_init: Initializer | None = None
    bottleneck: bool = False
    shortcut: str | None = None

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        """The block's output for `x` (examples, height, width, channels)."""
        features, y = self.features, x
        if self.bottleneck:
            y = self.activation(self._conv(y, features, 1, 1, train))
            y = self.activation(self._conv(y, features, 3, self.stride, train))
            y = self._conv(y, 4 * features, 1, 1, train, last=True)
        else:
            y = self.activation(self._conv(y, features, 3, self.stride, train))
            y = self._conv(y, features, 3, 1, train, last=True)
        return self.activation(y + self._shortcut(x, y.shape[-1], train))

    def _conv(
        self,
        x: Any,
        features: int,
        size: int,
        stride: int,
        train: bool,
        *,
        last: bool = False,
        name: str | None = None,
    ) -> Any:
        layer = conv(
            features,
            size,
            strides=stride,
            padding=size // 2,
            use_bias=self.norm is None,
            kernel_init=nn.initializers.zeros if last and not self.norm else self.kernel_init,
            name=name,
        )
        if not self.norm:
            return layer(x)
        scale_init = (self.last_scale_init if last else None) or self.scale_init
        return normalisation(self.norm, train, scale_init)(layer(x))

    def _shortcut(self, x: jax.Array, features: int, train: bool) -> Any:
        channels = features - x.shape[-1]
        if not channels and self.stride == 1:
            return x
        if self.projection:
            return self._conv(x, features, 1, self.stride, train, name=self.shortcut)
        x = x[:, :: self.stride, :: self.stride]
        return jnp.pad(x, [(0, 0), (0, 0), (0, 0), (0, channels)])


class _Link(nn.Module):
    """A block in the form that `nn.scan` takes: one that keeps its shape.

    Attributes:
      options: of the Block.
      train: of its call.
    """

    options: Any
    train: bool

    @nn.compact
    def __call__(self, x: Any, _: Any) -> Any:
        """The carried activations, and nothing to stack."""
        return Block(stride=1, **self.options)(x, train=self.train), None
