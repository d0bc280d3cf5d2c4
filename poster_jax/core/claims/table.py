"""The claims as a table that a terminal shows."""

import io
import math
from collections.abc import Sequence
from typing import SupportsFloat

from poster_jax.core.claims.record import Claim

__all__ = ["format_number", "table"]


def table(claims: Sequence[Claim], *, width: int = 120) -> str:
    """The claims as text, one row each: held or not, statement, paper, measured, rule.

    Args:
      claims: any number of them.
      width: columns of the terminal; longer texts are wrapped.

    Returns:
      Text without colours.

    Source: rich.table.

    Example:
      >>> claim = Claim(poster="p", name="C1", claim="It is flat.", paper="none", measured=0.5,
      ...               unit="tau", interval=(0.25, 0.75), interval_of="95 %", rule="low end > 0",
      ...               holds=True)
      >>> "0.5 tau" in table([claim]), "0.25 to 0.75" in table([claim])
      (True, True)
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, show_lines=True, padding=(0, 1), pad_edge=False)
    for name, ratio in {"claim": 5, "paper": 3, "measured": 4, "rule": 4}.items():
        grid.add_column(name, ratio=ratio, overflow="fold")
    grid.add_column("holds", no_wrap=True)
    for claim in claims:
        grid.add_row(
            f"{claim.poster} {claim.name}: {claim.claim}",
            claim.paper,
            measured_text(claim),
            claim.rule,
            "yes" if claim.holds else "NO",
        )
    buffer = io.StringIO()
    # Square brackets in a statement are text, not markup.
    console = Console(file=buffer, width=width, markup=False, highlight=False, no_color=True)
    console.print(grid)
    held = sum(claim.holds for claim in claims)
    lines = [line.rstrip() for line in buffer.getvalue().splitlines()]
    return "\n".join([*lines, f"{held} of {len(claims)} claims hold."])


def measured_text(claim: Claim) -> str:
    """The measured figure with its unit, interval, and what was left out."""
    text = f"{format_number(claim.measured)} {claim.unit}"
    if claim.interval is not None:
        low, high = (format_number(end) for end in claim.interval)
        text += f", {low} to {high} ({claim.interval_of})"
    if claim.num_nonfinite:
        text += f"; {claim.num_nonfinite} not finite or dropped"
    return text


def format_number(value: SupportsFloat, *, digits: int = 3) -> str:
    """A number as a reader wants it: `digits` significant ones, powers of ten only where needed.

    Args:
      value: any float.
      digits: significant digits.

    Returns:
      Text, "not finite" words included: "nan", "inf".

    Source: this library.

    Example:
      >>> [format_number(x) for x in (0.12345, 1234.5, 3e-8, 2.0, float("nan"))]
      ['0.123', '1,230', '3e-08', '2', 'nan']
    """
    value = float(value)
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{exponent}"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    text = f"{round(value, decimals):,.{max(decimals, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
