"""Which layers of a network are meant: by place, by number, by name or by a rule."""

import difflib
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

__all__ = ["Select", "chosen_layers", "layer_names"]

Select = str | Sequence[int | str] | Callable[[int, str], Any]


def layer_names(layers: Sequence[Any], lengths: Sequence[int]) -> list[str]:
    """One name a layer, a stack's "name/0", "name/1", ...; where there is none, its number."""
    names = []
    for layer, length in zip(layers, lengths, strict=True):
        own = getattr(layer, "name", None)
        for i in range(length):
            if not isinstance(own, str) or not own:
                names.append(str(len(names)))
            else:
                names.append(f"{own}/{i}" if hasattr(layer, "num_layers") else own)
    return names


def chosen_layers(select: Any, names: Sequence[str]) -> list[bool]:
    """Of each layer, whether it is selected; ValueError or TypeError where none can be."""
    total = len(names)
    if isinstance(select, str) and select in ("hidden", "all"):
        wanted = set(range(1, total - 1) if select == "hidden" else range(total))
    elif callable(select):
        wanted = {number for number, name in enumerate(names) if select(number, name)}
    else:
        wanted = set()
        for entry in [select] if isinstance(select, str) else select:
            wanted |= _named(entry, names) if isinstance(entry, str) else {_number(entry, total)}
    if not wanted:
        raise ValueError(
            f"select must name at least one of the {total} layers, got {select!r}. 'hidden' leaves "
            "out the first and the last."
        )
    return [number in wanted for number in range(total)]


def _number(entry: Any, total: int) -> int:
    if isinstance(entry, bool) or not isinstance(entry, int | np.integer):
        raise TypeError(
            "select must be 'hidden', 'all', names or numbers of layers, or a function of both, "
            f"got an entry {entry!r}."
        )
    if not -total <= entry < total:
        raise ValueError(f"select must name layers from 0 to {total - 1}, got {entry}.")
    return int(entry) % total


def _named(pattern: str, names: Sequence[str]) -> set[int]:
    """Layers of that name, those below it ("Block_0" of "Block_0/Conv_1"), or of that pattern."""
    below = pattern.rstrip("/") + "/"
    found = {
        number
        for number, name in enumerate(names)
        if name == pattern or name.startswith(below) or fnmatchcase(name, pattern)
    }
    if not found:
        near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
        raise ValueError(
            f"select must be 'hidden', 'all', or name layers, got {pattern!r}, which names none of "
            f"{len(names)}. Nearest: {list(near)}."
        )
    return found
