"""Progress that nobody looks at."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["silent"]


@contextmanager
def silent(description: str, total: int, completed: int = 0) -> Iterator[Callable[..., None]]:
    """Stands where a progress bar could; shows nothing."""
    yield lambda completed: None
