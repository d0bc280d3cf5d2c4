"""`train`: the host loop around jitted chunks of the steps of `fit`.

It adds what people expect of a run of hours: a progress bar with the loss and the time left, a row
of `metrics.jsonl` a chunk, a checkpoint at the end of chunks, and a resume after `kill -9` to the
same bits: the chunks are the same programs on the same states, and rows that were written after the
last checkpoint are cut off before they are written again.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from poster_jax.core import checkpoints
from poster_jax.core.checks import check_callable, check_count
from poster_jax.core.devices import replicate
from poster_jax.core.progress import progress_bar
from poster_jax.core.training.batches import BatchStream, order_key
from poster_jax.core.training.fit import continue_fit
from poster_jax.core.training.identity import check_identity, digest_arrays, digest_program
from poster_jax.core.training.rows import Rows
from poster_jax.core.training.state import (
    StatefulLoss,
    TrainState,
    check_training_loss,
    init_state,
    lift,
)
from poster_jax.core.typing import Batch, LossFn, Params, PRNGKey

__all__ = ["Trained", "run_chunks", "train"]


class Trained(NamedTuple):
    """A finished run.

    Attributes:
      state: the TrainState (or whatever state `run_chunks` was given) at the end.
      history: the rows of the run from its beginning, one a chunk: dicts with "step", "loss",
        "diverged_at" and the metrics. A number that is not finite stands as None.
      diverged: whether a loss was NaN or infinite; for a population one entry a network.
      diverged_at: the first such step, counted from 0; -1 when none.
    """

    state: Any
    history: tuple[dict, ...]
    diverged: Any
    diverged_at: Any

    @property
    def params(self) -> Params:
        """The trained parameters."""
        return self.state.params


def train(
    loss_fn: LossFn | StatefulLoss,
    params: Params,
    data: Batch,
    key: PRNGKey,
    *,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    batch_size: int | None = None,
    model_state: Any = (),
    workdir: str | Path | None = None,
    chunk_steps: int = 100,
    checkpoint_every: int = 1,
    keep: int = 3,
    metrics_fn: Callable[[TrainState], dict[str, Any]] | None = None,
    mesh: Mesh | None = None,
    unroll: int = 1,
    description: str = "training",
) -> Trained:
    """What `fit` makes of a network, with a progress bar, rows of metrics, checkpoints and resume.

    Called again with the same arguments after an interruption, it goes on from the last checkpoint
    in `workdir` and ends in the same bits as an unbroken run; after the end it returns at once.

    Args:
      loss_fn: as in `fit`.
      params: as in `fit`.
      data: as in `fit`.
      key: as in `fit`.
      optimizer: as in `fit`.
      num_steps: as in `fit`; a multiple of chunk_steps saves the compilation of a last short chunk.
      batch_size: as in `fit`.
      model_state: as in `fit`.
      workdir: where `metrics.jsonl` and `checkpoints/` go, a directory for this run alone; None
        writes nothing.
      chunk_steps: steps between two rows of metrics, and between two looks at the loss.
      checkpoint_every: chunks between two checkpoints; the last chunk always ends in one.
      keep: how many checkpoints stay.
      metrics_fn: `metrics_fn(state) -> dict of arrays`, jitted, called once a chunk.
      mesh: as in `fit`.
      unroll: as in `fit`.
      description: stands before the progress bar.

    Returns:
      A Trained. A run whose loss is no longer finite ends with that chunk and says so.

    Raises:
      ValueError, TypeError: as `fit`; ValueError also when `workdir` holds a run with another loss,
        optimiser, data, start, number or size of steps.

    Source: this library.

    Example:
      >>> x = jnp.linspace(-1.0, 1.0, 32)
      >>> loss = lambda w, batch: jnp.mean((w * batch[0] - batch[1]) ** 2)
      >>> run = train(loss, jnp.zeros(()), (x, 3 * x), jax.random.key(0), batch_size=8,
      ...             optimizer=optax.sgd(0.3), num_steps=100, chunk_steps=50)
      >>> round(float(run.params), 2), [row["step"] for row in run.history]
      (3.0, [50, 100])
    """
    # A copy: the chunks give the state's memory back to XLA, and `params` belongs to the caller.
    state = jax.tree.map(
        jnp.copy, init_state(params, key, optimizer=optimizer, model_state=model_state)
    )
    stream = BatchStream(data, batch_size, order_key(key))
    _check_metrics(metrics_fn, state)
    data = jax.tree.map(jnp.asarray, data)
    check_training_loss(loss_fn, state, stream.example)
    if mesh is not None:
        state, data = replicate((state, data), mesh)

    @partial(jax.jit, static_argnums=3, donate_argnums=0)
    def chunk(state: TrainState, data: Batch, start: Any, steps: int) -> tuple[TrainState, dict]:
        run = continue_fit(
            loss_fn,
            state,
            data,
            optimizer=optimizer,
            num_steps=steps,
            batch_size=batch_size,
            start=start,
            mesh=mesh,
            unroll=unroll,
        )
        metrics = {} if metrics_fn is None else metrics_fn(run.state)
        # The mean of a chunk with a NaN is NaN: nothing is averaged away.
        return run.state, {
            "loss": run.losses.mean(),
            "diverged_at": run.diverged_at,
            **metrics,
        }

    identity = {}
    if workdir is not None:
        identity = {
            "batch_size": stream.batch_size,
            "unroll": unroll,
            "data": digest_arrays(data),
            "params, model_state or key": digest_arrays(
                (state.params, state.model_state, state.key)
            ),
            "optimizer": _digest_optimizer(optimizer, state),
            "loss_fn": digest_program(
                lift(loss_fn), state.params, state.model_state, stream.example, state.key
            ),
            "metrics_fn": None if metrics_fn is None else digest_program(metrics_fn, state),
            "devices": 1 if mesh is None else mesh.size,
        }
    return run_chunks(
        lambda state, start, steps: chunk(state, data, start, steps),
        state,
        num_steps=num_steps,
        chunk_steps=chunk_steps,
        workdir=workdir,
        identity=identity,
        checkpoint_every=checkpoint_every,
        keep=keep,
        description=description,
    )


def run_chunks(
    advance: Callable[[Any, int, int], tuple[Any, dict[str, Any]]],
    state: Any,
    *,
    num_steps: int,
    chunk_steps: int,
    workdir: str | Path | None = None,
    identity: dict[str, Any] | None = None,
    checkpoint_every: int = 1,
    keep: int = 3,
    description: str = "training",
) -> Trained:
    """The host loop of `train` around any program: a population, another algorithm.

    Args:
      advance: `advance(state, start, steps) -> (state, metrics)` takes `steps` steps from step
        `start`. `metrics` is a dict of arrays with "loss" and "diverged_at" (-1 while all is well)
        among them, scalars or one entry a network.
      state: pytree of arrays before the first step; `advance` may donate it.
      num_steps: steps in all.
      chunk_steps: steps in one call; the last one may be shorter.
      workdir: as in `train`.
      identity: what decides the bits of this run, names to JSON values; compared on resume.
      checkpoint_every: as in `train`.
      keep: as in `train`.
      description: as in `train`.

    Returns:
      A Trained. The loop ends early when every network has diverged.

    Raises:
      ValueError: a count below 1; `workdir` holds another run, or its `metrics.jsonl` was cut.

    Source: this library.

    Example:
      >>> def advance(state, start, steps):
      ...     return state + steps, {"loss": 1.0 / (state + steps), "diverged_at": -1}
      >>> run = run_chunks(advance, jnp.zeros(()), num_steps=5, chunk_steps=2)
      >>> float(run.state), [row["loss"] for row in run.history]
      (5.0, [0.5, 0.25, 0.2...])
    """
    check_callable("advance", advance)
    for name, value in {
        "num_steps": num_steps,
        "chunk_steps": chunk_steps,
        "checkpoint_every": checkpoint_every,
        "keep": keep,
    }.items():
        check_count(name, value)
    identity = {"num_steps": num_steps, "chunk_steps": chunk_steps, **(identity or {})}
    store = None if workdir is None else Path(workdir) / "checkpoints"
    saved = None if store is None else checkpoints.latest(store)
    done, written = 0, 0
    if saved is not None:
        done, about = saved
        check_identity(identity, about["identity"], str(workdir))
        state, written = checkpoints.restore(store, state), about["metrics_bytes"]
    rows = Rows(None if workdir is None else Path(workdir) / "metrics.jsonl", written)
    with rows, progress_bar(description, num_steps, done) as update:
        while done < num_steps and not rows.all_diverged():
            steps = min(chunk_steps, num_steps - done)
            state, metrics = advance(state, done, steps)
            done += steps
            rows.append({"step": done, **metrics})
            update(done, rows.note())
            if store is None:
                continue
            last = done == num_steps or rows.all_diverged()
            if last or (done // chunk_steps) % checkpoint_every == 0:
                about = {"identity": identity, "metrics_bytes": rows.num_bytes}
                checkpoints.save(store, done, state, metadata=about, keep=keep)
    return Trained(state, tuple(rows.rows), rows.diverged_at >= 0, rows.diverged_at)


def _check_metrics(metrics_fn: Any, state: TrainState) -> None:
    if metrics_fn is None:
        return
    check_callable("metrics_fn", metrics_fn)
    metrics = jax.eval_shape(metrics_fn, state)
    if not isinstance(metrics, dict):
        raise TypeError(f"metrics_fn must return a dict of arrays, got {type(metrics).__name__}.")
    taken = {"step", "loss", "diverged_at"} & metrics.keys()
    if taken:
        raise ValueError(f"metrics_fn must not return {sorted(taken)}: every row has them already.")


def _digest_optimizer(optimizer: optax.GradientTransformation, state: TrainState) -> str:
    """What it does, and where it starts (`optax.inject_hyperparams` keeps its rates there)."""

    def update(grads: Any, opt_state: Any, params: Any) -> Any:
        inner = optax.with_extra_args_support(optimizer)
        return inner.update(grads, opt_state, params, value=jnp.zeros(()))

    program = digest_program(update, state.params, state.opt_state, state.params)
    return f"{program} {digest_arrays(state.opt_state)}"
