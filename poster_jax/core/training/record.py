"""Metrics at chosen steps, inside the compiled program: a table with one row a chosen step."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.core.checks import check_callable, check_count
from poster_jax.core.training.state import TrainState


class Recorder:
    """Calls `metrics_fn` after the chosen steps and at no other.

    Attributes:
      rows: (num_steps,) int32; the row of the table that is written after each step, or -1.
    """

    def __init__(
        self,
        metrics_fn: Callable[[TrainState], Any] | None,
        metrics_steps: Sequence[int],
        num_steps: int,
    ) -> None:
        """`metrics_steps` counts updates: increasing, from 0 (before the first) to `num_steps`."""
        self.metrics_fn = metrics_fn
        self.rows = np.full(num_steps, -1, np.int32)
        self._steps = [check_count("metrics_steps", step, minimum=0) for step in metrics_steps]
        if metrics_fn is None:
            if self._steps:
                raise ValueError("metrics_steps needs a metrics_fn, got None.")
            return
        check_callable("metrics_fn", metrics_fn)
        if (
            not self._steps
            or self._steps != sorted(set(self._steps))
            or self._steps[-1] > num_steps
        ):
            raise ValueError(
                f"metrics_steps must be increasing steps from 0 to num_steps={num_steps}, got "
                f"{self._steps}."
            )
        for row, after in enumerate(self._steps):
            if after > 0:
                self.rows[after - 1] = row

    def table(self, state: TrainState) -> Any:
        """The empty table; its first row is filled already when step 0 is one of the chosen."""
        if self.metrics_fn is None:
            return ()
        shapes = jax.eval_shape(self.metrics_fn, state)
        size = len(self._steps)
        table = jax.tree.map(lambda s: jnp.zeros((size, *s.shape), s.dtype), shapes)
        return _put(table, 0, self.metrics_fn(state)) if self._steps[0] == 0 else table

    def write(self, table: Any, row: Any, state: TrainState) -> Any:
        """The table with row `row` filled from `state`; as it was when row is -1."""
        metrics_fn = self.metrics_fn
        if metrics_fn is None:
            return table
        return jax.lax.cond(
            row >= 0, lambda table: _put(table, row, metrics_fn(state)), lambda table: table, table
        )


def _put(table: Any, row: Any, values: Any) -> Any:
    return jax.tree.map(lambda t, v: t.at[row].set(v), table, values)
