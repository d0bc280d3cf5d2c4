"""The epoch-level controller of the learning rate: a pure state machine, one update an epoch."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_choice, check_count, check_positive, is_traced
from poster_jax.core.typing import Array, Bool, Float, Int

__all__ = ["EVENTS", "AalrOptions", "AalrState", "aalr_best", "aalr_init", "aalr_update"]

EVENTS = ("went on", "success", "second chance", "halving", "restore")
_WENT_ON, _SUCCESS, _SECOND, _HALVING, _RESTORE = range(len(EVENTS))
# A block this long outlasts every budget; twice it still is an int32.
_MAX_PATIENCE = 2**29


class AalrOptions(NamedTuple):
    """What the published description leaves open; the defaults are the reading of this library.

    Attributes:
      factor: by which the rate rises after a success and falls after a failure, above 1.
      phase1_patience: epochs in a row without a rise of the loss that end the first phase; a loss
        that stays level has not risen, while the second phase wants it lower.
      phase1_restore: where a failure of the first phase goes on: "initial" (from where training
        began, with its loss), "last" (from the last epoch that did not fail) or "none" (from where
        it is; a loss that is not finite goes back to where training began, and the loss to be
        beaten stays).
      restore: which failures of the second phase go back to the checkpoint: "nonfinite" or
        "always".
      stop_block_on_nonfinite: whether a loss that is not finite ends a block of epochs early.
      max_rate: the rate never rises above it.
      explosion_factor: a loss above this many times the best one counts as not finite.
    """

    factor: float = 2.0
    phase1_patience: int = 10
    phase1_restore: str = "initial"
    restore: str = "nonfinite"
    stop_block_on_nonfinite: bool = True
    max_rate: float = float("inf")
    explosion_factor: float = float("inf")


class AalrState(NamedTuple):
    """Everything the controller remembers; a pytree of arrays, so it can be saved and batched.

    Attributes:
      phase: int32; 1 while the first rate is sought, then 2.
      rate: the learning rate of the next epoch.
      patience: int32; epochs of a block in phase 2.
      counter: int32; epochs so far of the block, or (phase 1) in a row without a rise.
      second_chance: whether the block is the second at this rate.
      best_loss: the lowest loss with which an epoch of phase 1 or a block of phase 2 has ended;
        lower ones within a block do not count.
      initial_loss: to which `best_loss` goes back when phase 1 starts again.
      checkpoint: what a restore brings back, like `current` in `aalr_update`.
      event: int32; what the last update did, an index into `EVENTS`.
      num_restores: int32.
      num_halvings: int32; restores lower the rate too and are counted here as well.
    """

    phase: Int[Array, "..."]
    rate: Float[Array, "..."]
    patience: Int[Array, "..."]
    counter: Int[Array, "..."]
    second_chance: Bool[Array, "..."]
    best_loss: Float[Array, "..."]
    initial_loss: Float[Array, "..."]
    checkpoint: Any
    event: Int[Array, "..."]
    num_restores: Int[Array, "..."]
    num_halvings: Int[Array, "..."]


def aalr_init(
    current: Any, initial_loss: Any = float("inf"), *, initial_rate: Any = 0.1
) -> AalrState:
    """The controller before the first epoch.

    Args:
      current: what is trained and must be restored together: parameters, the optimiser's state,
        running statistics; any pytree.
      initial_loss: the loss before training, of the same kind as those to come (an evaluated loss
        and a mean over an epoch's batches are not); infinity lets the first epoch set it.
      initial_rate: above 0; may be traced.

    Returns:
      An AalrState in phase 1.

    Raises:
      ValueError, TypeError: initial_rate is not positive and finite.

    Source: Mukherjee, Khare, Sabharwal and Verma 2019, arXiv 1910.11605.

    Example:
      >>> float(aalr_init(jnp.ones(2), 0.5, initial_rate=3.0).rate)
      3.0
    """
    check_positive("initial_rate", initial_rate)
    loss = jnp.asarray(initial_loss)
    loss = loss if jnp.issubdtype(loss.dtype, jnp.floating) else loss.astype(float)
    zero, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    return AalrState(
        phase=zero + 1,
        rate=jnp.asarray(initial_rate, loss.dtype),
        patience=zero + 1,
        counter=zero,
        second_chance=no,
        best_loss=loss,
        initial_loss=loss,
        checkpoint=jax.tree.map(jnp.asarray, current),
        event=zero,
        num_restores=zero,
        num_halvings=zero,
    )


def aalr_update(
    state: AalrState, loss: Any, current: Any, *, options: AalrOptions | None = None
) -> tuple[AalrState, Any]:
    """What the rate becomes, and from where training goes on, after an epoch with this loss.

    Phase 1 halves the rate and starts anew whenever the loss rises, until it has not risen for
    `phase1_patience` epochs. Phase 2 doubles the rate after every new lowest loss, and keeps a
    checkpoint there; a block of epochs without one gets a second chance, then the rate is halved
    and the next blocks are twice as long. A loss that is not finite goes back to the checkpoint at
    once. Branches are selections between copies: it runs under `jit` and `vmap`.

    Args:
      state: of `aalr_init` or the last update.
      loss: scalar, the loss of the epoch.
      current: as in `aalr_init`, after the epoch. Where it would become the checkpoint and a number
        in it is not finite, the loss counts as not finite, whatever it says.
      options: an AalrOptions; None takes the defaults.

    Returns:
      The new state, and what to train from: `current` or the checkpoint. The next epoch's rate is
      `state.rate`.

    Raises:
      ValueError, TypeError: an option that does not fit, named.

    Source: arXiv 1910.11605. Its steps are described there in words; this is a faithful reading,
    not a transcript, and `AalrOptions` holds the steps that can be read in more than one way.

    Example:
      >>> state = aalr_init(jnp.array(1.0), 0.5, initial_rate=3.0)
      >>> state, x = aalr_update(state, 2.0, jnp.array(-2.0))
      >>> float(state.rate), float(x)  # the loss rose: half the rate, back to the start
      (1.5, 1.0)
    """
    options = check_options(options)
    loss = jnp.asarray(loss, state.best_loss.dtype)
    counter = state.counter + 1
    first = state.phase == 1
    full = jnp.where(first, options.phase1_patience, state.patience)
    # Comparisons with NaN are False: what is not finite is looked for first.
    bad = ~jnp.isfinite(loss) | (loss > options.explosion_factor * state.best_loss)
    below = jnp.where(first, loss <= state.best_loss, loss < state.best_loss) & ~bad
    keeps = below & (counter >= full)
    if options.phase1_restore == "last":
        keeps |= below & first
    # To look at every number takes as long as a step of a small network: only when it matters.
    bad |= ~jax.lax.cond(keeps, _all_finite, lambda _: jnp.ones((), bool), current)

    rose = first & (bad | (loss > state.best_loss))
    found = first & ~rose & (counter >= full)
    stops = bad if options.stop_block_on_nonfinite else False
    ends = ~first & ((counter >= full) | stops)
    better = ends & ~bad & (loss < state.best_loss)
    again = ends & ~bad & ~better & ~state.second_chance
    failed = ends & ~better & ~again

    restores = (rose | failed) & bad
    if options.phase1_restore != "none":
        restores |= rose
    if options.restore == "always":
        restores |= failed
    lower = rose | failed
    saves = found | better
    if options.phase1_restore == "last":
        saves |= first & ~rose
    afresh = rose if options.phase1_restore == "initial" else jnp.zeros((), bool)
    improves = better | (first & ~rose)

    limits = jnp.finfo(state.rate.dtype)
    top = jnp.minimum(jnp.asarray(options.max_rate, state.rate.dtype), limits.max)
    # An infinite rate could never be halved, nor one of zero doubled.
    raised = jnp.minimum(state.rate * options.factor, top)
    lowered = jnp.maximum(state.rate / options.factor, limits.tiny)
    doubled = jnp.minimum(state.patience, _MAX_PATIENCE) * 2
    event = jnp.where(first & ~rose | better, _SUCCESS, _WENT_ON)
    event = jnp.where(again, _SECOND, jnp.where(lower, _HALVING, event))
    checkpoint, current = _exchange(saves, restores, state.checkpoint, current)
    return AalrState(
        phase=jnp.where(found, 2, state.phase).astype(jnp.int32),
        rate=jnp.where(lower, lowered, jnp.where(found | better, raised, state.rate)),
        patience=jnp.where(found | better, 1, jnp.where(failed, doubled, state.patience)).astype(
            jnp.int32
        ),
        counter=jnp.where(rose | found | ends, 0, counter).astype(jnp.int32),
        second_chance=jnp.where(ends, again, state.second_chance),
        best_loss=jnp.where(afresh, state.initial_loss, jnp.where(improves, loss, state.best_loss)),
        initial_loss=state.initial_loss,
        checkpoint=checkpoint,
        event=jnp.where(restores, _RESTORE, event).astype(jnp.int32),
        num_restores=state.num_restores + restores,
        num_halvings=state.num_halvings + lower,
    ), current


def aalr_best(state: AalrState, current: Any) -> Any:
    """What had the lowest loss: the checkpoint, or in phase 1 where training stands, if finite.

    Args:
      state: of the last update.
      current: what the last update handed back.

    Returns:
      A pytree like `current`; of a population its members' own.

    Source: this library; the first phase moves its checkpoint only when it ends.

    Example:
      >>> state, x = aalr_update(aalr_init(jnp.array(1.0)), 0.1, jnp.array(0.5))
      >>> float(aalr_best(state, x))
      0.5
    """
    here = (state.phase == 1) & (state.counter > 0)
    for leaf in jax.tree.leaves(current):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            here &= jnp.isfinite(leaf).all(tuple(range(here.ndim, leaf.ndim)))

    def pick(now: Any, kept: Any) -> Any:
        axes = tuple(range(here.ndim, jnp.ndim(now)))  # beyond those of a population
        return jnp.where(jnp.expand_dims(here, axes), now, kept)

    return jax.tree.map(pick, current, state.checkpoint)


def check_options(options: AalrOptions | None) -> AalrOptions:
    """The options, looked at; ValueError or TypeError names the one that does not fit."""
    options = AalrOptions() if options is None else options
    if not isinstance(options, AalrOptions):
        raise TypeError(f"options must be an AalrOptions, got {type(options).__name__}.")
    check_positive("factor", options.factor)
    check_count("phase1_patience", options.phase1_patience)
    check_choice("phase1_restore", options.phase1_restore, ["initial", "last", "none"])
    check_choice("restore", options.restore, ["nonfinite", "always"])
    for name in ("factor", "explosion_factor", "max_rate"):
        value, least = getattr(options, name), 0 if name == "max_rate" else 1
        if not is_traced(value) and not value > least:
            raise ValueError(f"{name} must be above {least}, got {value}.")
    return options


@jax.custom_batching.custom_vmap
def _all_finite(tree: Any) -> Any:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    finite = [jnp.isfinite(leaf).all() for leaf in leaves]
    return functools.reduce(jnp.logical_and, finite, jnp.ones((), bool))


@_all_finite.def_vmap
def _all_finite_in_population(size: int, batched: Any, tree: Any) -> Any:
    """One flag a member; on a CPU in half the time that a batched `isfinite(...).all()` takes.

    Without its sign a number is finite if as an integer it is below infinity, and vector
    instructions find the largest integer.
    """
    finite = jnp.ones(size, bool)
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(batched[0]), strict=True)
    for leaf, is_batched in pairs:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            word = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
            magnitude = jax.lax.bitcast_convert_type(jnp.abs(leaf), word)
            infinity = jax.lax.bitcast_convert_type(jnp.array(jnp.inf, leaf.dtype), word)
            own = tuple(range(int(is_batched), leaf.ndim))
            finite &= magnitude.max(own, initial=0) < infinity
    return finite, True


def _exchange(saves: Any, restores: Any, kept: Any, now: Any) -> tuple[Any, Any]:
    """The checkpoint and what training goes on from; most epochs leave both as they are."""
    return _replace(saves, kept, now), _replace(restores, now, kept)


@jax.custom_batching.custom_vmap
def _replace(flag: Any, old: Any, new: Any) -> Any:
    """`new` where the flag is set, else `old`.

    A loop of no or one turn: its buffers are those of the training loop around it, so that where
    nothing moves nothing is copied, while a conditional copies whatever passes through it. Of a
    population it turns where one member moves, and selects once.
    """

    def turn(carry: Any) -> Any:
        def pick(o: Any, n: Any) -> Any:
            return jnp.where(jnp.expand_dims(flag, tuple(range(flag.ndim, o.ndim))), n, o)

        return jnp.zeros((), bool), jax.tree.map(pick, carry[1], new)

    return jax.lax.while_loop(lambda carry: carry[0], turn, (flag.any(), old))[1]


@_replace.def_vmap
def _replace_in_population(size: int, batched: Any, flag: Any, old: Any, new: Any) -> Any:
    def spread(tree: Any, is_batched: Any) -> Any:
        return jax.tree.map(
            lambda a, b: a if b else jnp.broadcast_to(a, (size, *jnp.shape(a))), tree, is_batched
        )

    args = (spread(tree, b) for tree, b in zip((flag, old, new), batched, strict=True))
    return _replace(*args), jax.tree.map(lambda _: True, old)
