"""The argument `get`: which kernels a caller wants, and in which form they are handed back."""

from collections import namedtuple
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

__all__ = ["answer", "requested"]


def requested(get: str | Iterable[str] | None, default: tuple[str, ...]) -> tuple[str, ...]:
    """The names in `get` in lower case and in order; None asks for `default`."""
    if get is None:
        return default
    names = tuple(name.lower() for name in ((get,) if isinstance(get, str) else get))
    if not names:
        raise ValueError("get must name at least one kernel, got none.")
    if len(set(names)) < len(names):
        raise ValueError(f"get must name every kernel once, got {names}.")
    return names


def answer(type_name: str, get: str | Iterable[str] | None, values: Mapping[str, Any]) -> Any:
    """`values` as `get` asked for them: one name answers its value, several a namedtuple."""
    if isinstance(get, str):
        return values[get.lower()]
    names = requested(get, tuple(values))
    return _answer_type(type_name, names)(*(values[name] for name in names))


@lru_cache(None)  # one type for one set of names, so that two answers are the same pytree
def _answer_type(type_name: str, names: tuple[str, ...]) -> type:
    return namedtuple(type_name, names)
