"""`metrics.jsonl`: one JSON object a line, appended, and cut back to a checkpoint on resume."""

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np


class Rows:
    """The rows of a run, in memory and, where a path is given, in a file.

    Attributes:
      rows: the rows so far, those of the interrupted run included.
      num_bytes: the length of the file that holds them.
      diverged_at: the first step at which each network's loss was not finite; -1 while it is well.
    """

    def __init__(self, path: Path | None, num_bytes: int) -> None:
        """Keeps the first `num_bytes` of the file at `path` and drops the rest."""
        self.rows: list[dict] = []
        self.diverged_at: Any = np.asarray(-1)
        self.num_bytes = num_bytes
        self._file = None
        if path is None:
            return
        if num_bytes:
            kept = path.read_bytes()[:num_bytes] if path.exists() else b""
            if len(kept) < num_bytes:
                raise ValueError(
                    f"{path} must hold the {num_bytes} bytes that belong to the last checkpoint, "
                    f"got {len(kept)}."
                )
            for line in kept.splitlines():
                self._remember(json.loads(line))
        # One process of a run on several hosts writes; the others only count.
        if jax.process_index() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("r+b" if path.exists() else "w+b")
            self._file.truncate(num_bytes)
            self._file.seek(num_bytes)

    def __enter__(self) -> "Rows":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row; it is on the disk when this returns."""
        row = {name: _plain(value) for name, value in row.items()}
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        self._remember(row)
        self.num_bytes += len(line)
        if self._file is not None:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())

    def all_diverged(self) -> bool:
        """Whether no network is left whose loss is finite."""
        return bool(np.all(self.diverged_at >= 0))

    def note(self) -> str:
        """The last loss for the progress bar; of a population the median."""
        losses = [x for x in np.ravel(self.rows[-1]["loss"]).tolist() if x is not None]
        lost = int(np.sum(self.diverged_at >= 0))
        note = f"loss {np.median(losses):.4g}" if losses else "loss not finite"
        return note + (f", {lost} diverged" if lost and losses else "")

    def _remember(self, row: dict) -> None:
        self.rows.append(row)
        now = np.asarray(row["diverged_at"])
        self.diverged_at = np.where(self.diverged_at >= 0, self.diverged_at, now)


def _plain(value: Any) -> Any:
    """Arrays as JSON: nested lists, None for what is not finite (JSON has no word for it)."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
