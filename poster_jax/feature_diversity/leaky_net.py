"""LeakyNet: no shortcuts, perfect signal propagation, and layers that erase diversity at will."""

from typing import Any

from flax import linen as nn
from jax.nn import initializers

from poster_jax.core.checks import check_choice, check_count, check_fraction, check_positive
from poster_jax.core.models.layers import batch_norm, check_images, check_widths, conv
from poster_jax.feature_diversity.initialisers import averaging_init, identity_init

__all__ = ["PATTERNS", "LeakyNet", "num_averaging"]

PATTERNS = (
    "h_hhhh_hhhh_hhhh",
    "i_iiii_iiii_iiii",
    "1_iiii_iiii_iiii",
    "1_iiii_11ii_iiii",
    "1_iiii_1111_iiii",
    "1_ii11_ii11_ii11",
    "1_1111_1111_1111",
)
"""The patterns of the authors' experiment."""

_UNIFORM = initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class LeakyNet(nn.Module):
    """Convolutions with leaky ReLUs in pairs that are linear together, one letter a layer.

    A layer computes `lrelu(conv(x + b))` with a scalar bias b. Phases alternate between 1 and -1,
    and a layer of phase -1 starts divided by the slope rho: `lrelu(-lrelu(x) / rho) = -x`, so a
    pair passes signals and gradients unchanged, whatever the signs. BatchNorm follows every pair.

    The letters: "i", channel o reads channel o mod C_in; "1", every channel is the mean of all,
    which erases what differs between them; "h", random. The first letter is the stem's, which has
    neither bias nor ReLU. The dense layer starts at zero; where every letter is "h", uniform in
    +-1 / sqrt(inputs).

    Parameters stand at `Conv_0` (stem) to `Conv_12`, `bias_1`, ..., `BatchNorm_0`, ..., `Dense_0`.

    Attributes:
      pattern: letters of the stem and the layers; underscores are for the eye.
      widths: channels of the stem and of each group; groups after the first begin with stride 2.
      num_classes: outputs.
      slope: rho.
      norm: "batch" or None.
      dropout: rate on each layer's output.
      random_init: "authors", variance sqrt(2) (1 + rho) / inputs as in their code; or "he",
        2 / (1 + rho^2) / inputs, which keeps the signal's size.

    Raises (when called): ValueError when the input is no images or an attribute does not fit;
    TypeError when the input is no float.

    Source: Blumenfeld, Gilboa, Soudry 2020 (arXiv 2007.01038) and the authors' code.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from poster_jax.core.models import from_linen
      >>> net = LeakyNet("1_ii_11_ii", widths=(4, 4, 8, 8), norm=None)
      >>> x = jnp.ones((1, 8, 8, 3))
      >>> sorted(from_linen(net).init(jax.random.key(0), x))[:3]
      ['Conv_0', 'Conv_1', 'Conv_2']
    """

    pattern: str = "1_iiii_iiii_iiii"
    widths: tuple[int, ...] = (16, 160, 320, 640)
    num_classes: int = 10
    slope: float = 0.01
    norm: str | None = "batch"
    dropout: float = 0.0
    random_init: str = "authors"

    def reduced(self, num_unique: int = 1) -> "LeakyNet":
        """The network that this one is while its features come in `num_unique` different kinds."""
        return self.clone(widths=(num_unique,) * len(self.widths))

    @nn.compact
    def __call__(self, x: Any, *, train: bool = False, with_layers: bool = False) -> Any:
        """Logits (examples, num_classes); `with_layers` also returns the output of every layer."""
        stem, *letters = self._letters()
        check_images("LeakyNet", x)
        x = conv(self.widths[0], 3, padding=1, use_bias=False, kernel_init=self._start(stem, 1))(x)
        layers = [x]
        per_group = len(letters) // (len(self.widths) - 1)
        for index, letter in enumerate(letters):
            group, place = divmod(index, per_group)
            phase = -1 if index % 2 else 1
            layer = conv(
                self.widths[group + 1],
                3,
                strides=2 if group and not place else 1,
                padding=1,
                use_bias=False,
                kernel_init=self._start(letter, phase),
            )
            bias = self.param(f"bias_{index + 1}", initializers.zeros, ())
            x = nn.leaky_relu(layer(x + bias), self.slope)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            if self.norm and phase == -1:
                x = batch_norm(train)(x)
            layers.append(x)
        x = nn.leaky_relu(x, self.slope).mean((1, 2))
        random = {stem, *letters} == {"h"}
        dense_start = _UNIFORM if random else initializers.zeros
        logits = nn.Dense(self.num_classes, kernel_init=dense_start)(x)
        return (logits, tuple(layers)) if with_layers else logits

    def _letters(self) -> str:
        check_widths("widths", self.widths)
        check_fraction("dropout", self.dropout)
        check_positive("slope", self.slope)
        check_choice("random_init", self.random_init, ("authors", "he"))
        if self.norm is not None:
            check_choice("norm", self.norm, ["batch"])
        letters, groups = self.pattern.replace("_", ""), len(self.widths) - 1
        if not set(letters) <= set("i1h"):
            raise ValueError(
                f"pattern must consist of the letters i, 1 and h, got {self.pattern!r}."
            )
        check_count("num_groups", groups)
        if len(letters) < 1 + groups or (len(letters) - 1) % groups:
            raise ValueError(
                f"pattern must have one letter for the stem and as many for each of {groups} "
                f"groups, got {self.pattern!r}."
            )
        return letters

    def _start(self, letter: str, phase: int) -> Any:
        if letter == "i":
            return identity_init(phase=phase, slope=self.slope)
        if letter == "1":
            return averaging_init(phase=phase, slope=self.slope)
        authors = self.random_init == "authors"
        gain = 2**0.5 * (1 + self.slope) if authors else 2 / (1 + self.slope**2)
        return initializers.variance_scaling(gain, "fan_in", "normal")


def num_averaging(pattern: str) -> int:
    """How many layers of a `LeakyNet`, the stem apart, start as averages.

    Args:
      pattern: as in `LeakyNet`.

    Returns:
      The count.

    Source: this library.

    Example:
      >>> [num_averaging(pattern) for pattern in PATTERNS]
      [0, 0, 0, 2, 4, 6, 12]
    """
    return pattern.replace("_", "")[1:].count("1")
