"""Polynomials in one over the widths."""

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

__all__ = ["Polynomial"]


@dataclasses.dataclass(frozen=True)
class Polynomial:
    """A polynomial in 1/n, or in 1/n1, 1/n2, ..., that says its value at a width.

    Attributes:
      widths: names of the widths, `("n",)`.
      terms: powers of one over each width -> coefficient; Fractions (exact) or floats; no zeros.

    Raises:
      ValueError: powers that do not fit the names.

    Example:
      >>> p = Polynomial(("n",), {(0,): Fraction(3), (1,): Fraction(6)})
      >>> print(p), p(n=12), p.exponent
      3 + 6/n
      (None, Fraction(7, 2), 0)
    """

    widths: tuple[str, ...]
    terms: Mapping[tuple[int, ...], Any]

    def __post_init__(self) -> None:
        if any(len(powers) != len(self.widths) for powers in self.terms):
            raise ValueError(
                f"terms must have one power for each of the widths {self.widths}, got "
                f"{sorted(self.terms)}."
            )
        kept = {powers: value for powers, value in sorted(self.terms.items()) if value != 0}
        object.__setattr__(self, "terms", kept)

    def __call__(self, **widths: int) -> Any:
        """The value at the widths, `p(n=64)`; ValueError for a width that is missing or below 1."""
        if set(widths) != set(self.widths) or any(width < 1 for width in widths.values()):
            raise ValueError(f"widths must give {self.widths}, each at least 1, got {widths}.")
        total = Fraction(0)
        for powers, value in self.terms.items():
            scale = 1
            for name, power in zip(self.widths, powers, strict=True):
                scale *= widths[name] ** power
            total += value / scale if isinstance(value, float) else Fraction(value, scale)
        return total

    @property
    def exponent(self) -> int | None:
        """The s of C = O(n^s) when all widths grow together; None for the polynomial 0."""
        return -min(map(sum, self.terms)) if self.terms else None

    def coefficients(self) -> list[Any]:
        """Of 1, 1/n, 1/n^2, ... for a polynomial in one width."""
        if len(self.widths) != 1:
            raise ValueError(f"coefficients need one width, and this has {self.widths}.")
        top = max(self.terms, default=(-1,))[0]
        return [self.terms.get((power,), Fraction(0)) for power in range(top + 1)]

    def __add__(self, other: "Polynomial") -> "Polynomial":
        terms = dict(self.terms)
        for powers, value in other.terms.items():
            terms[powers] = terms.get(powers, 0) + value
        return Polynomial(self._widths_of_both(other), terms)

    def __mul__(self, other: Any) -> "Polynomial":
        if not isinstance(other, Polynomial):
            return Polynomial(self.widths, {p: v * other for p, v in self.terms.items()})
        terms: dict[tuple[int, ...], Any] = {}
        for p, v in self.terms.items():
            for q, w in other.terms.items():
                powers = tuple(a + b for a, b in zip(p, q, strict=True))
                terms[powers] = terms.get(powers, 0) + v * w
        return Polynomial(self._widths_of_both(other), terms)

    def __str__(self) -> str:
        return " ".join(self._words()) or "0"

    def _words(self) -> list[str]:
        words = []
        for powers, value in self.terms.items():
            down = [
                name if power == 1 else f"{name}^{power}"
                for name, power in zip(self.widths, powers, strict=True)
                if power
            ]
            size = f"{abs(value):.6g}" if isinstance(value, float) else str(abs(value))
            below = "/".join(down) if len(down) < 2 else "(" + " ".join(down) + ")"
            sign = "-" if value < 0 else "+"
            words += [sign] * bool(words or sign == "-") + [f"{size}/{below}" if down else size]
        return words

    def _widths_of_both(self, other: "Polynomial") -> tuple[str, ...]:
        if other.widths != self.widths:
            raise ValueError(
                f"polynomials must be in the same widths, got {self.widths} and {other.widths}."
            )
        return self.widths
