"""A matplotlib figure in the house style, and as PNG with words."""

import io
from pathlib import Path
from typing import NamedTuple

from matplotlib import style
from matplotlib.figure import Figure

__all__ = ["STYLE", "Picture", "new_figure", "picture"]

STYLE = Path(__file__).with_name("style.mplstyle")
"""The style file; `with matplotlib.style.context(STYLE)` puts any figure into it."""


class Picture(NamedTuple):
    """A picture as it goes into a page.

    Attributes:
      name: file name without ending, "scatter".
      png: the image.
      alt: what it shows, for those who cannot see it.
      caption: one or two sentences under it.
      wide: whether it has several panels side by side; a phone then scrolls it.
    """

    name: str
    png: bytes
    alt: str
    caption: str
    wide: bool = False


def new_figure(width: float = 5.2, height: float = 3.4) -> Figure:
    """An empty figure in the house style, apart from pyplot: no window, no global state.

    Args:
      width: inches.
      height: inches.

    Returns:
      matplotlib Figure; draw on it inside `matplotlib.style.context(STYLE)`.

    Source: matplotlib.

    Example:
      >>> new_figure(4.0, 3.0).get_size_inches().tolist()
      [4.0, 3.0]
    """
    with style.context(STYLE):
        return Figure(figsize=(width, height))


def picture(figure: Figure, *, name: str, alt: str, caption: str, wide: bool = False) -> Picture:
    """The figure as PNG with its words.

    Args:
      figure: a matplotlib Figure.
      name: file name without ending: lower case letters, digits and underscores.
      alt: what it shows, in words.
      caption: stands under it.
      wide: several panels side by side.

    Returns:
      Picture; the same figure gives the same bytes.

    Raises:
      ValueError: a name that is no file name, empty alt or caption.

    Source: matplotlib.

    Example:
      >>> drawn = picture(new_figure(), name="empty", alt="nothing", caption="Nothing.")
      >>> drawn.png[1:4]
      b'PNG'
    """
    if not name.isidentifier() or name != name.lower():
        raise ValueError(f"name must be lower case letters, digits and underscores, got {name!r}.")
    for label, text in (("alt", alt), ("caption", caption)):
        if not text.strip():
            raise ValueError(f"{label} must be a text, got {text!r}.")
    buffer = io.BytesIO()
    with style.context(STYLE):
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return Picture(name, buffer.getvalue(), alt, caption, wide)
