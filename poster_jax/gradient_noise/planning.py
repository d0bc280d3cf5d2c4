"""Which of three ways to the projections costs least, counted before anything is compiled.

With P parameters, N examples, R directions, F operations of a forward pass of one example:

| way | what it does | operations, about | numbers held |
| --- | --- | --- | --- |
| "forward" | the derivative of all N losses along each w_r | 2 R N F | activations + P |
| "reverse" | the gradient of each example, then a product with the w_r | 3 N F + 2 N R P | c P |
| "minibatch" | the gradient of each of M batches, then a product | 3 M b F + 2 M R P | c P |

The first two serve every batch size by resampling; the third is the only one where examples are
coupled (batch norm in training mode). The counts are taken from the traced programs, so that they
know convolutions (F far above P) from dense layers (F = 2 P).
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_choice, check_count, num_examples
from poster_jax.core.cost import count_flops
from poster_jax.core.training import StatefulLoss
from poster_jax.core.training.state import lift
from poster_jax.core.typing import Batch, LossFn, Params
from poster_jax.gradient_noise._layout import Layout
from poster_jax.gradient_noise._separable import check_separable, losses_of
from poster_jax.gradient_noise.directions import Directions

__all__ = ["ProjectionPlan", "plan_projections"]

MODES = ("forward", "reverse", "minibatch")
# What drawing a number costs, in operations of a matrix product. Two CPU cores: 10 ns a normal
# number, 0.2 ns a sign, 200 operations of a product in a nanosecond.
DRAW = {"gaussian": 2000.0, "rademacher": 50.0}
# Examples in the programs that are counted.
FEW = 8


# Gradients of single examples below which a network's operations are too short, even where more
# no longer fit the cache: 256 at once take 0.8 of the time of some 30, for the CNN of 66 k
# parameters and for ResNet-8 (two CPU cores).
FULL = 256
# Numbers of gradients or activations that are held at once at most (256 MB of float32).
MOST = 2**26


def budget() -> int:
    """Numbers of gradients or activations to hold at once.

    On the CPU what stays in the cache: 8 MB of float32. The digits' MLP (1,797 gradients of 8,970
    numbers, 200 directions) takes 0.08 s in microbatches of 256, 0.15 s in one piece.
    """
    return 2**21 if jax.default_backend() == "cpu" else MOST


class ProjectionPlan(NamedTuple):
    """How projections will be computed, and what that costs.

    Attributes:
      mode: "forward", "reverse" or "minibatch".
      microbatch: examples (batches, for "minibatch") taken at once.
      flops: operations of each way that is possible, by its name.
      memory: numbers that each way holds beside the model, the data and the (R, N) result.
    """

    mode: str
    microbatch: int
    flops: dict[str, float]
    memory: dict[str, int]


def plan_projections(
    loss_fn: LossFn | StatefulLoss,
    params: Params,
    batch: Batch,
    directions: Directions,
    *,
    batch_sizes: Sequence[int] = (),
    num_batches: int = 0,
    mode: str | None = None,
    microbatch: int | None = None,
    model_state: Any = (),
) -> ProjectionPlan:
    """What the projections cost each way, and which way is taken; nothing is run.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`, a mean over the examples, or a StatefulLoss.
      params: pytree of floating point arrays.
      batch: pytree whose leaves share a leading axis of N examples.
      directions: R directions.
      batch_sizes: for which the projections will be asked, so that "minibatch" can be counted.
      num_batches: M, batches of each size.
      mode: a way to take whatever it costs; None takes the one of fewest operations.
      microbatch: examples (batches) at once; None takes what stays in the CPU's cache (2^21
        numbers) but 256 gradients at least, and 2^26 numbers at most, as on an accelerator or
        where directions are drawn each time.
      model_state: where a StatefulLoss starts.

    Returns:
      ProjectionPlan of Python numbers.

    Raises:
      ValueError: an unknown mode; "forward" or "reverse" for a StatefulLoss, or a loss that couples
        its examples; counts below 1.

    Source: this library.

    Example:
      >>> from poster_jax.gradient_noise import random_directions
      >>> loss_fn = lambda w, x: jnp.mean(jnp.tanh(x @ w) ** 2)
      >>> w, x = jnp.ones((3, 2)), jnp.ones((10, 3))
      >>> directions = random_directions(w, jax.random.key(0), num=4)
      >>> plan_projections(loss_fn, w, x, directions).mode
      'reverse'
    """
    for size in batch_sizes:
        check_count("batch_sizes", size)
    if microbatch is not None:
        check_count("microbatch", microbatch)
    if mode is not None:
        check_choice("mode", mode, MODES)
    directions.layout.check("params", params)
    _check_hashable(loss_fn)
    coupled = isinstance(loss_fn, StatefulLoss)
    if mode in ("forward", "reverse") or (mode is None and not coupled):
        check_separable(loss_fn, params, batch)
    costs = {}
    if not coupled:
        costs["forward"] = _forward(loss_fn, params, batch, directions, microbatch)
        costs["reverse"] = _reverse(loss_fn, params, batch, directions, microbatch)
    if batch_sizes and num_batches:
        gradients = [_gradient_flops(loss_fn, params, model_state, batch, b) for b in batch_sizes]
        costs["minibatch"] = _minibatch(directions, gradients, num_batches, microbatch)
    mode = mode or min(costs, key=lambda name: costs[name].flops, default="minibatch")
    if mode not in costs:
        raise ValueError(
            f"batch_sizes and num_batches must be given for mode {mode!r}, got {batch_sizes!r} and "
            f"{num_batches}."
        )
    return ProjectionPlan(
        mode,
        costs[mode].microbatch,
        {name: cost.flops for name, cost in costs.items()},
        {name: cost.memory for name, cost in costs.items()},
    )


def _check_hashable(loss_fn: Any) -> None:
    try:
        hash(loss_fn)
    except TypeError:
        raise TypeError(
            f"loss_fn must be hashable, as plain functions are, got {type(loss_fn).__name__}; wrap "
            "it in a function."
        ) from None


class _Cost(NamedTuple):
    flops: float
    memory: int
    microbatch: int


def _forward(
    loss_fn: LossFn, params: Params, batch: Batch, directions: Directions, microbatch: int | None
) -> _Cost:
    one = _count_example(loss_fn, directions.layout, *_shapes(params), *_shapes(batch))
    size = num_examples(batch)
    at_once = min(size, microbatch or max(1, budget() // one.activations))
    drawn = -(-size // at_once) * directions.num * _draw(directions)
    flops = size * (one.primal + directions.num * one.along) + drawn
    return _Cost(flops, at_once * one.activations + directions.dim, at_once)


def _reverse(
    loss_fn: LossFn, params: Params, batch: Batch, directions: Directions, microbatch: int | None
) -> _Cost:
    one = _count_example(loss_fn, directions.layout, *_shapes(params), *_shapes(batch))
    size = num_examples(batch)
    at_once = min(size, microbatch or _gradients_at_once(directions))
    flops = size * one.gradient + _products(directions, size, at_once)
    return _Cost(flops, at_once * directions.dim + directions.numbers_held, at_once)


def _minibatch(
    directions: Directions, gradients: Sequence[float], num_batches: int, microbatch: int | None
) -> _Cost:
    at_once = min(num_batches, microbatch or _gradients_at_once(directions))
    products = _products(directions, num_batches, at_once)
    flops = sum(num_batches * gradient + products for gradient in gradients)
    return _Cost(flops, at_once * directions.dim + directions.numbers_held, at_once)


def _gradients_at_once(directions: Directions) -> int:
    drawn_anew = directions.kind in DRAW and not directions.fits
    most = MOST // directions.dim
    return max(1, most if drawn_anew else min(most, max(FULL, budget() // directions.dim)))


class _ExampleCost(NamedTuple):
    """Of one example: operations of its loss, of that along a vector, of its gradient."""

    primal: float
    along: float
    gradient: float
    activations: int


def _shapes(tree: Any) -> tuple[Any, tuple[Any, ...]]:
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, tuple((jnp.shape(a), jnp.dtype(jnp.result_type(a))) for a in leaves)


@functools.lru_cache(maxsize=256)  # tracing takes longer than the work of a small network
def _count_example(
    loss_fn: LossFn,
    layout: Layout,
    params_treedef: Any,
    params_shapes: tuple[Any, ...],
    batch_treedef: Any,
    batch_shapes: tuple[Any, ...],
) -> _ExampleCost:
    params = jax.tree.unflatten(
        params_treedef, [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in params_shapes]
    )
    few = jax.tree.unflatten(
        batch_treedef,
        [jax.ShapeDtypeStruct((FEW, *shape[1:]), dtype) for shape, dtype in batch_shapes],
    )
    free = layout.select(params)

    def losses(free: Any, params: Params, few: Batch) -> Any:
        return losses_of(loss_fn, layout.merge(params, free), few)

    def along(free: Any, params: Params, few: Batch) -> Any:
        return jax.jvp(lambda free: losses(free, params, few), (free,), (free,))[1]

    def gradient(free: Any, params: Params, few: Batch) -> Any:
        return jax.grad(lambda free: losses(free, params, few).sum())(free)

    def kept(free: Any, params: Params, few: Batch) -> Any:
        return jax.vjp(lambda free: losses(free, params, few), free)[1]

    arguments = (free, params, few)
    primal = count_flops(losses, *arguments)
    numbers = sum(a.size for a in jax.tree.leaves(jax.eval_shape(kept, *arguments)))
    return _ExampleCost(
        primal / FEW,
        (count_flops(along, *arguments) - primal) / FEW,
        count_flops(gradient, *arguments) / FEW,
        max(1, (numbers - layout.size) // FEW),
    )


def _gradient_flops(
    loss_fn: LossFn | StatefulLoss, params: Params, model_state: Any, batch: Batch, size: int
) -> float:
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype), batch)
    key = jax.random.key(0)
    gradient = jax.grad(lambda p, b: lift(loss_fn)(p, model_state, b, key)[0])
    return count_flops(gradient, params, like)


def _products(directions: Directions, num: int, at_once: int) -> float:
    """Operations of all projections of `num` gradients, `at_once` of them to one drawing."""
    if directions.kind == "hadamard":
        return num * directions.dim * 2.0 * math.log2(max(2, directions.dim))
    if directions.kind == "coordinates":
        return float(num * directions.num)
    rounds = 1 if directions.fits else -(-num // at_once)
    return directions.num * (2.0 * num * directions.dim + rounds * _draw(directions))


def _draw(directions: Directions) -> float:
    return directions.dim * DRAW.get(directions.kind, 1.0)
