"""The authors' regimes: sizes and fractions, to be completed by `size_regime`."""

from typing import NamedTuple

__all__ = ["CIFAR", "IMAGENET_144", "IMAGENET_224", "SizeMixture"]


class SizeMixture(NamedTuple):
    """Arguments of `size_regime`: `size_regime(**CIFAR._asdict(), adapt="duplicates")`."""

    sizes: tuple[int, ...]
    fractions: tuple[float, ...]
    base_size: int
    base_batch: int


CIFAR = SizeMixture((32, 48, 24, 16), (0.3, 0.2, 0.3, 0.2), 32, 64)

IMAGENET_224 = SizeMixture(
    (128, 160, 192, 224, 256, 288, 320), (*[0.8 / 6] * 3, 0.2, *[0.8 / 6] * 3), 224, 64
)
"""Mean size 224: for accuracy. The batch is that of one of the authors' four devices."""

IMAGENET_144 = SizeMixture((256, 224, 128, 96), (0.1, 0.1, 0.6, 0.2), 224, 64)
"""Mean size 144: for speed."""
