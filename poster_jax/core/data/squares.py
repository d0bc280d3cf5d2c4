"""Pictures of any shape as squares of one side: the short side resized, the centre cut out."""

import io
from typing import Any

import numpy as np

__all__ = ["central_square", "gigabytes"]


def central_square(encoded: bytes, side: int, channels: int) -> Any:
    """A JPEG or PNG file as uint8 (side, side, channels), 1 channel or 3.

    The short side becomes `side`, by triangles wide enough to average all pixels that a smaller
    one covers; then as much is cut off on the left as on the right, at the top as at the bottom.
    """
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as picture:
        # Some pictures of ImageNet are grey or hold four inks.
        picture = picture.convert("L" if channels == 1 else "RGB")
        short = min(picture.size)
        width, height = (length * side // short for length in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - side) // 2, (height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    return np.asarray(square, np.uint8).reshape(side, side, channels)


def gigabytes(num_examples: int, side: int, channels: int) -> str:
    """What squares of bytes take in memory, such as "16 GB"."""
    return f"{num_examples * side**2 * channels / 1e9:.3g} GB"
