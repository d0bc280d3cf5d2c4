"""One claim of a poster: what it says, what was found, and whether the two agree."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np

from poster_jax.core.checks import check_count

__all__ = ["Claim", "from_json", "load_claims", "save_claims", "to_json"]

_TEXTS = ("poster", "name", "claim", "paper", "rule")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement of a poster beside what was measured.

    Attributes:
      poster: name of the experiment, "relative_flatness".
      name: short name of the claim within the poster, "C2".
      claim: the statement, one sentence.
      paper: the paper's own figure or words.
      measured: the figure found here; may be NaN or infinite, and then the claim does not hold.
      unit: what `measured` is a number of, "Kendall tau", "relative change".
      interval: (low, high) around `measured`; None where nothing varies (an identity).
      interval_of: what the interval is, "95 % bootstrap (BCa) over 171 networks".
      rule: the rule, fixed before the measurement, by which `holds` was decided.
      holds: whether the rule is met.
      control: what was measured where the statement must be false, so that one sees the rule fail.
      num_samples: networks (or runs) behind `measured`.
      num_seeds: different seeds among them.
      num_nonfinite: values that were NaN or infinite, or networks that were dropped.

    Raises:
      ValueError: an empty text, an interval that is no (low, high), a claim that holds although
        its figure is not finite, negative counts.
      TypeError: `measured` is no number or `holds` no bool.
    """

    poster: str
    name: str
    claim: str
    paper: str
    measured: SupportsFloat
    unit: str
    interval: tuple[SupportsFloat, SupportsFloat] | None
    interval_of: str
    rule: str
    holds: bool | np.bool_
    control: str = ""
    num_samples: int = 1
    num_seeds: int = 1
    num_nonfinite: int = 0

    def __post_init__(self) -> None:
        for name in _TEXTS:
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise ValueError(f"{name} must be a text, got {getattr(self, name)!r}.")
        measured = _number("measured", self.measured)
        object.__setattr__(self, "measured", measured)
        if self.interval is not None:
            object.__setattr__(self, "interval", _interval(self.interval))
        if not isinstance(self.holds, bool | np.bool_):
            raise TypeError(f"holds must be True or False, got {self.holds!r}.")
        object.__setattr__(self, "holds", bool(self.holds))
        if self.holds and not math.isfinite(measured):
            raise ValueError(f"holds must be False when measured is not finite, got {measured}.")
        for name in ("num_samples", "num_seeds", "num_nonfinite"):
            value = check_count(name, getattr(self, name), minimum=0)
            object.__setattr__(self, name, value)


def to_json(claims: Sequence[Claim], *, about: dict[str, Any] | None = None) -> str:
    """The claims as a JSON object `{"about": {...}, "claims": [...]}`.

    Args:
      claims: any number of them.
      about: what else a reader should know (preset, seed, versions); a JSON object.

    Returns:
      Text. Numbers that are not finite stand as the strings "nan", "inf", "-inf", which JSON has no
      word for and `float` reads.

    Raises:
      TypeError: not a list of Claims, or `about` is no JSON object.

    Source: this library.

    Example:
      >>> to_json([])
      '{"about": {}, "claims": []}\\n'
    """
    rows = []
    for claim in claims:
        if not isinstance(claim, Claim):
            raise TypeError(f"claims must be a list of Claim, got {type(claim).__name__} in it.")
        row = dataclasses.asdict(claim)
        row["measured"] = _to_plain(claim.measured)
        row["interval"] = None if claim.interval is None else [_to_plain(x) for x in claim.interval]
        rows.append(row)
    indent = 1 if rows else None
    return json.dumps({"about": about or {}, "claims": rows}, allow_nan=False, indent=indent) + "\n"


def from_json(text: str) -> list[Claim]:
    """The claims that `to_json` wrote, equal to the bit.

    Args:
      text: of `to_json`.

    Returns:
      The claims.

    Raises:
      ValueError: not such a text.

    Source: this library.

    Example:
      >>> from_json(to_json([]))
      []
    """
    try:
        rows = json.loads(text)["claims"]
        return [Claim(**_from_plain(row)) for row in rows]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"text must be claims as to_json writes them: {error!r}.") from error


def save_claims(
    path: str | Path, claims: Sequence[Claim], *, about: dict[str, Any] | None = None
) -> None:
    """Writes `to_json(claims)` to a file, whole or not at all.

    Args:
      path: the file, usually `claims.json`.
      claims: as in `to_json`.
      about: as in `to_json`.

    Raises:
      TypeError: as `to_json`.

    Source: this library.

    Example:
      >>> import tempfile
      >>> path = tempfile.mkdtemp() + "/claims.json"
      >>> save_claims(path, [])
      >>> load_claims(path)
      []
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(to_json(claims, about=about))
    partial.replace(path)


def load_claims(path: str | Path) -> list[Claim]:
    """The claims in a file that `save_claims` wrote.

    Args:
      path: the file.

    Returns:
      The claims.

    Raises:
      ValueError: the file holds something else.

    Source: this library.

    Example:
      `load_claims("out/relative_flatness/claims.json")`
    """
    return from_json(Path(path).read_text())


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}.") from None


def _interval(interval: Any) -> tuple[float, float]:
    try:
        low, high = interval
    except (TypeError, ValueError):
        raise ValueError(f"interval must be (low, high) or None, got {interval!r}.") from None
    low, high = _number("interval's low end", low), _number("interval's high end", high)
    if low > high:
        raise ValueError(f"interval must be (low, high) with low <= high, got ({low}, {high}).")
    return low, high


def _from_plain(row: dict[str, Any]) -> dict[str, Any]:
    interval = row["interval"]
    ends = None if interval is None else tuple(float(end) for end in interval)
    return {**row, "measured": float(row["measured"]), "interval": ends}


def _to_plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
