"""ConstNet: a residual network that starts with identical features everywhere."""

from typing import Any

import jax
from flax import linen as nn
from jax.nn import initializers

from poster_jax.core.checks import check_choice, check_count, check_fraction
from poster_jax.core.models.layers import batch_norm, check_images, check_widths, conv
from poster_jax.feature_diversity.initialisers import averaging_init, mixed_init

__all__ = ["ConstNet", "const_net"]


class ConstNet(nn.Module):
    """A wide residual network of one convolution a block, whose features start identical.

    A block reads a = norm(x) and returns `conv3x3(relu(a)) + x`, or, where the number of channels
    changes, `conv3x3(relu(a)) + conv1x1(a)`: the shortcut takes the norm's output without ReLU.
    Stem and shortcuts start as averages over the channels, all 3x3 convolutions and the dense layer
    at zero: every feature is then the mean of the colours, and the logits are 0. `noise` mixes in a
    random start; at 1 it is the random counterpart, whose dense layer still starts at zero.

    Parameters stand at `Conv_0` (stem), `Block_0/Conv_0`, `Block_0/BatchNorm_0`, for shortcuts
    `Block_0/Conv_1`, ..., `Dense_0`.

    Attributes:
      widths: channels of the stem and of each group; groups after the first begin with stride 2.
      num_blocks: blocks a group; the authors' depth is 3 times this plus 4.
      num_classes: outputs.
      noise: share of the variance of a random start, from 0 to 1; may be traced where the
        parameters are made.
      norm: "batch"; or None, in the manner of Fixup: scalar biases before and after the convolution
        and a scalar factor.
      dropout: rate on the output of the 3x3 convolutions. These are zero at first, so it does
        nothing before the second update.
      stem_dropout: rate behind the stem, where it acts at once.
      shortcuts: one a group, whether its first block has a 1x1 convolution; None means where the
        shape changes. `reduced` sets it.

    Raises (when called): ValueError when the input is no images or an attribute does not fit;
    TypeError when the input is no float.

    Source: Blumenfeld, Gilboa, Soudry 2020 (arXiv 2007.01038) and the authors' code.

    Example:
      >>> import jax.numpy as jnp
      >>> from poster_jax.core.models import from_linen
      >>> model = from_linen(const_net(depth=7, widen=1))
      >>> x, key = jnp.ones((2, 8, 8, 3)), jax.random.key(0)
      >>> params, state = model.init(key, x), model.init_state(key, x)
      >>> float(jnp.abs(model.freeze(state)(params, x)).max())
      0.0
    """

    widths: tuple[int, ...] = (16, 160, 320, 640)
    num_blocks: int = 4
    num_classes: int = 10
    noise: Any = 0.0
    norm: str | None = "batch"
    dropout: float = 0.0
    stem_dropout: float = 0.0
    shortcuts: tuple[bool, ...] | None = None

    def reduced(self, num_unique: int = 1) -> "ConstNet":
        """The network that this one is while its features come in `num_unique` different kinds."""
        return self.clone(widths=(num_unique,) * len(self.widths), shortcuts=self._shortcuts())

    @nn.compact
    def __call__(self, x: Any, *, train: bool = False, with_layers: bool = False) -> Any:
        """Logits (examples, num_classes); `with_layers` also returns the output of every block."""
        check_count("num_blocks", self.num_blocks)
        check_widths("widths", self.widths)
        check_images("ConstNet", x)
        for name in ("noise", "dropout", "stem_dropout"):
            check_fraction(name, getattr(self, name))
        if self.norm is not None:
            check_choice("norm", self.norm, ["batch"])
        x = conv(self.widths[0], 3, padding=1, use_bias=False, kernel_init=_start(self.noise))(x)
        x = nn.Dropout(self.stem_dropout, deterministic=not train)(x)
        layers = [x]
        for group, (width, shortcut) in enumerate(
            zip(self.widths[1:], self._shortcuts(), strict=True)
        ):
            for block in range(self.num_blocks):
                x = Block(
                    features=width,
                    stride=2 if group and not block else 1,
                    shortcut=shortcut and not block,
                    noise=self.noise,
                    norm=self.norm,
                    dropout=self.dropout,
                )(x, train=train)
                layers.append(x)
        x = nn.relu(x).mean((1, 2))
        logits = nn.Dense(self.num_classes, kernel_init=initializers.zeros)(x)
        return (logits, tuple(layers)) if with_layers else logits

    def _shortcuts(self) -> tuple[bool, ...]:
        if self.shortcuts is not None:
            return self.shortcuts
        pairs = zip(self.widths, self.widths[1:], strict=False)
        return tuple(group > 0 or a != b for group, (a, b) in enumerate(pairs))


class Block(nn.Module):
    """One convolution and the shortcut around it; attributes as in `ConstNet`.

    Attributes:
      features: channels that leave the block.
      stride: of both convolutions.
      shortcut: whether there is a 1x1 convolution.
      noise: as in `ConstNet`.
      norm: as in `ConstNet`.
      dropout: as in `ConstNet`.
    """

    features: int
    stride: int
    shortcut: bool
    noise: Any
    norm: str | None
    dropout: float

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        """The block's output for `x` (examples, height, width, channels)."""
        layer = conv(
            self.features,
            3,
            strides=self.stride,
            padding=1,
            use_bias=False,
            kernel_init=_start(self.noise, constant=initializers.zeros, gain=2.0),
        )
        drop = nn.Dropout(self.dropout, deterministic=not train)
        if self.norm:
            a = batch_norm(train)(x)
            out = drop(layer(nn.relu(a)))
        else:
            a = x + self.param("bias_before", initializers.zeros, ())
            out = layer(nn.relu(a)) + self.param("bias_after", initializers.zeros, ())
            out = drop(out) * self.param("scale", initializers.ones, ())
        if not self.shortcut:
            return x + out
        across = conv(
            self.features,
            1,
            strides=self.stride,
            padding=0,
            use_bias=False,
            kernel_init=_start(self.noise),
        )
        return across(a) + out


def const_net(
    depth: int = 16, widen: int = 10, num_classes: int = 10, **attributes: Any
) -> ConstNet:
    """A `ConstNet` by the authors' numbers.

    Args:
      depth: 4 plus 3 times the blocks of a group.
      widen: channels of the groups are 16, 32 and 64 times this; the stem has 16.
      num_classes: outputs.
      **attributes: the others of `ConstNet`.

    Returns:
      The Linen module, for `core.models.from_linen`.

    Raises:
      ValueError: depth - 4 is no positive multiple of 3, widen below 1.
      TypeError: depth or widen is no integer.

    Source: as `ConstNet`.

    Example:
      >>> const_net().widths
      (16, 160, 320, 640)
    """
    check_count("depth", depth)
    check_count("widen", widen)
    if depth < 7 or (depth - 4) % 3:
        raise ValueError(f"depth must be 7, 10, 13, 16, ..., got {depth}.")
    widths = (16, 16 * widen, 32 * widen, 64 * widen)
    return ConstNet(widths, (depth - 4) // 3, num_classes, **attributes)


def _start(noise: Any, constant: Any = None, gain: float = 1.0) -> Any:
    """The mixture of a constant and a normal start; the authors' variances go by the outputs."""
    random = jax.nn.initializers.variance_scaling(gain, "fan_out", "normal")
    return mixed_init(constant or averaging_init(), random, noise=noise)
