"""What benchmarks against peers of another environment share.

A peer lives in a process of its own that answers one request at a time, so that repeats of both
sides can take turns: the machine is then equally busy for both, and the ratio of medians holds
where single timings do not.
"""

import contextlib
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


class Peer:
    """A program that reads a JSON request a line and writes a JSON answer a line."""

    def __init__(self, *command: str) -> None:
        self._command = command

    def __enter__(self) -> "Peer":
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *error: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended, and said why
            self._process.stdin.close()
        self._process.wait(timeout=60)

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer; its "seconds" are those of the work, without the transfer."""
        line = ""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peer ended at {request}: see its message above")
        return json.loads(line)


def timed(fn: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """Seconds of one call, and what it returns."""
    start = time.perf_counter()
    result = jax.block_until_ready(fn(*args))
    return time.perf_counter() - start, result


def in_turn(sides: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Median seconds of each side; one repeat of each in turn, after one that warms up."""
    seconds = [{name: side() for name, side in sides.items()} for _ in range(1 + repeats)][1:]
    return {name: statistics.median(repeat[name] for repeat in seconds) for name in sides}


def compile_seconds(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
    """Seconds of the first call less those of the second."""
    first, _ = timed(lambda: fn(*args, **kwargs))
    second, _ = timed(lambda: fn(*args, **kwargs))
    return max(0.0, first - second)


def row(case: str, ours: float, peer: str, theirs: float, goal: float, **more: Any) -> dict:
    """One line of the table, printed as soon as it is there."""
    found = {"case": case, "ours_s": ours, "peer": peer, "peer_s": theirs, "ratio": theirs / ours}
    found |= {"goal": goal, **more}
    print(json.dumps(found), flush=True)
    return found


def write_rows(rows: list[dict[str, Any]], notes: list[dict[str, Any]], path: str | None) -> None:
    """Rows as a table to the terminal; with `notes`, which compare nothing, to a file."""
    for row in rows:
        print(
            "{case}: ours {ours_s:.4g} s; {peer} {peer_s:.4g} s; ratio {ratio:.3g} (goal "
            "{goal})".format(**row)
        )
    if path:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(rows + notes, indent=1) + "\n")
