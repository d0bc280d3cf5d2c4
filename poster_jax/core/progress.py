"""A progress bar with the loss and the time left; silent when nobody looks at a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(
    description: str, total: int, completed: int = 0
) -> Iterator[Callable[[int, str], None]]:
    """Shows how far a loop is, on standard error, when that is a terminal.

    Args:
      description: what is going on, a word or two.
      total: how many units the whole has.
      completed: how many were done before (a resumed run); they do not count for the time left.

    Yields:
      `update(completed, note)`: sets the units done and a short note such as "loss 0.123".

    Source: rich.progress.

    Example:
      >>> with progress_bar("training", 10) as update:
      ...     update(5, "loss 0.123")
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total, completed=completed, note="")
        yield lambda done, note="": progress.update(task, completed=done, note=note)
