"""Photographs as networks see them: bytes in, a crop or the centre out, standardised.

They are stored as squares of bytes (`core.data.load` with `side` and scaling "bytes"), and cut,
resized, mirrored and scaled on the device, each time anew.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Of the channels of ImageNet's training pictures between 0 and 1, as torchvision's networks use.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
CENTRE = 0.875  # side of the tested part, 224 of 256 pixels
AREA = (0.08, 1.0)
LOG_RATIO = float(np.log(4 / 3))


def random_view(key: Any, image: Any, size: int) -> Any:
    """A random part of one square (side, side, 3), resized to `size`, half of them mirrored.

    Its area is 8 to 100 % of the square's, width to height 3/4 to 4/3. A part that is longer than
    the square in one direction is cut off there; torchvision draws again, up to ten times.
    """
    area, ratio, top, left, coin = jax.random.uniform(key, (5,))
    area = AREA[0] + (AREA[1] - AREA[0]) * area
    stretch = jnp.exp(LOG_RATIO * (ratio - 0.5))  # the square root of width to height
    lengths = jnp.minimum(jnp.sqrt(area) * jnp.stack([1 / stretch, stretch]), 1)
    starts = jnp.stack([top, left]) * (1 - lengths)
    view = cut(image, starts, lengths, size)
    return jnp.where(coin < 0.5, view[:, ::-1], view)


def random_views(images: Any, key: Any, size: int) -> Any:
    """`random_view` of each, (B, size, size, 3)."""
    return jax.vmap(partial(random_view, size=size))(jax.random.split(key, len(images)), images)


def centres(images: Any, size: int) -> Any:
    """The centre of each, 7/8 of the side, resized to `size`."""
    start, length = jnp.full(2, (1 - CENTRE) / 2), jnp.full(2, CENTRE)
    return jax.vmap(lambda image: cut(image, start, length, size))(images)


def cut(image: Any, starts: Any, lengths: Any, size: int) -> Any:
    """The part that begins at `starts` and is `lengths` long, shares of the side; standardised.

    Linear, averaging all pixels that a smaller one covers; at its border the part sees half a pixel
    of what is beyond.
    """
    scale = size / (lengths * image.shape[0])
    pixels = jax.image.scale_and_translate(
        image.astype(jnp.float32),
        (size, size, image.shape[-1]),
        (0, 1),
        scale,
        -starts * image.shape[0] * scale,
        method="linear",
    )
    return (pixels / 255 - MEAN) / STD
