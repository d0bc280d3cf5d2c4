"""One self-contained HTML page."""

import base64
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, SupportsFloat

from poster_jax.core.claims import Claim, format_number
from poster_jax.core.claims.table import measured_text
from poster_jax.core.report.picture import Picture

__all__ = ["Number", "Page", "Section", "number", "render_page"]


class Number(NamedTuple):
    """A number with its meaning.

    Attributes:
      name: what it is.
      text: the number as shown, with error and unit.
      meaning: what it says, in one sentence.
    """

    name: str
    text: str
    meaning: str


class Section(NamedTuple):
    """A part of a page.

    Attributes:
      title: its heading.
      text: paragraphs, separated by blank lines.
      numbers: a table of them.
      pictures: below the numbers.
      claims: a table of them.
    """

    title: str
    text: str
    numbers: Sequence[Number] = ()
    pictures: Sequence[Picture] = ()
    claims: Sequence[Claim] = ()


class Page(NamedTuple):
    """A page.

    Attributes:
      title: its heading.
      lead: what the page shows, one paragraph.
      sections: in order.
      about: name -> value, at the foot: preset, seed, versions, time.
    """

    title: str
    lead: str
    sections: Sequence[Section]
    about: dict[str, Any]


def number(
    name: str,
    value: SupportsFloat,
    meaning: str,
    *,
    stderr: SupportsFloat | None = None,
    unit: str = "",
) -> Number:
    """A number as a page shows it: three digits, its standard error behind it.

    Args:
      name: what it is.
      value: the number.
      meaning: what it says, in one sentence.
      stderr: its standard error.
      unit: its unit; nothing for a pure number.

    Returns:
      Number.

    Raises:
      ValueError: an empty name, or a meaning that is no sentence (it ends in a full stop).

    Source: this library.

    Example:
      >>> number("loss", 0.12345, "Mean cross-entropy.", stderr=0.001, unit="nats").text
      '0.123 ± 0.001 nats'
    """
    if not name.strip():
        raise ValueError(f"name must be a text, got {name!r}.")
    if not meaning.strip().endswith("."):
        raise ValueError(f"meaning must be a sentence that ends in a full stop, got {meaning!r}.")
    text = format_number(value)
    if stderr is not None:
        text += f" ± {format_number(stderr, digits=2)}"
    return Number(name, f"{text} {unit}".strip(), meaning)


def render_page(page: Page) -> str:
    """The page as one HTML document that loads nothing.

    Args:
      page: what to show.

    Returns:
      HTML. Texts are escaped; pictures stand inside as base64.

    Raises:
      ValueError: no sections.

    Source: jinja2.

    Example:
      >>> html = render_page(Page("A & B", "Lead.", [Section("One", "Text.")], {"seed": 0}))
      >>> "A &amp; B" in html, "http" in html
      (True, False)
    """
    if not page.sections:
        raise ValueError("page must have at least one section, got none.")
    return _template().render(page=page)


@functools.cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    environment.filters["paragraphs"] = lambda text: [p for p in text.split("\n\n") if p.strip()]
    environment.filters["measured"] = measured_text
    return environment.get_template("page.html")
