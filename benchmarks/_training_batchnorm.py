"""Training BatchNorm alone: a step against a full one, populations, compilation against depth.

`rows(repeats)` for `benchmarks.training`.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks._harness import in_turn, row, timed
from poster_jax.batchnorm_only import GROUPS, trains
from poster_jax.core import cost, losses, models, training

STEPS, SEEDS = 3, 4


def problem(image: tuple[int, int, int], batch: int, **attributes: Any) -> tuple[Any, Any, Any]:
    """Model, its loss, and STEPS batches."""
    key = jax.random.key(0)
    model = models.from_linen(models.ResNet(projection=True, **attributes))
    x = jax.random.normal(key, (STEPS * batch, *image))
    y = jax.random.randint(key, (STEPS * batch,), 0, 10)
    return model, training.model_loss(model, losses.softmax_cross_entropy), (x, y)


def start(model: Any, x: Any) -> tuple[Any, Any]:
    """Parameters, and a state; drawn by numpy, as nothing has to be compiled for it."""
    rng = np.random.default_rng(0)
    shapes = [jax.eval_shape(fn, jax.random.key(0), x) for fn in (model.init, model.init_state)]
    params = jax.tree.map(lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape)), shapes[0])
    return params, jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes[1])


def run_of(
    groups: tuple[str, ...], image: tuple[int, int, int], batch: int, **attributes: Any
) -> tuple[Callable[..., Any], Any, Any]:
    """`run(trainable, frozen, key)`, the losses of STEPS steps, and the two parts."""
    model, loss_fn, data = problem(image, batch, **attributes)
    params, state = start(model, data[0])

    def run(trainable: Any, frozen: Any, key: Any) -> Any:
        return training.fit(
            training.freeze(loss_fn, frozen),
            trainable,
            data,
            key,
            optimizer=optax.sgd(0.1, momentum=0.9),
            num_steps=STEPS,
            batch_size=batch,
            model_state=state,
        ).losses

    return run, *training.partition(params, trains(params, *groups))


def step_row(repeats: int) -> dict[str, Any]:
    """A step that trains BatchNorm against one that trains everything."""
    key, sides, flops = jax.random.key(2), {}, {}
    for name, groups in (("part", ("batchnorm",)), ("full", GROUPS)):
        run, trainable, frozen = run_of(groups, (32, 32, 3), 64, num_blocks=2)
        flops[name] = cost.count_flops(run, trainable, frozen, key)
        compiled = jax.jit(run).lower(trainable, frozen, key).compile()
        sides[name] = partial(seconds_of, compiled, trainable, frozen, key)
    medians = in_turn(sides, repeats)
    return row(
        f"{STEPS} BatchNorm-only steps, ResNet-14, 32x32x3, batch 64",
        medians["part"],
        "steps that train everything",
        medians["full"],
        round(1 / 0.75, 2),
        flops_of_full=flops["part"] / flops["full"],
    )


def population_rows(repeats: int) -> list[dict[str, Any]]:
    """Seeds one by one against seeds side by side, with frozen weights of their own or shared."""
    run, trainable, frozen = run_of(("batchnorm",), (8, 8, 1), 128, num_blocks=1)
    keys = jax.random.split(jax.random.key(3), SEEDS)
    own = jax.tree.map(lambda leaf: jnp.stack([leaf] * SEEDS), frozen)
    rows = []
    for weights, axis, of in (("their own", 0, own), ("the same", None, frozen)):
        sides = {}
        for name, group in (("map", 1), ("vmap", SEEDS)):
            program = partial(
                training.map_population, run, in_axes=(None, axis, 0), group_size=group
            )
            compiled = jax.jit(program).lower(trainable, of, keys).compile()
            sides[name] = partial(seconds_of, compiled, trainable, of, keys)
        medians = in_turn(sides, repeats)
        rows.append(
            row(
                f"{SEEDS} seeds one by one, {STEPS} BatchNorm-only steps, ResNet-8, 8x8x1, batch "
                f"128, {weights} frozen weights",
                medians["map"],
                "side by side (vmap)",
                medians["vmap"],
                1,
            )
        )
    return rows


def compilation_rows() -> list[dict[str, Any]]:
    """Seconds of compiling a BatchNorm-only gradient, once each."""

    def seconds(num_blocks: int, *, scan: bool) -> float:
        model, loss_fn, data = problem((8, 8, 1), 8, num_blocks=num_blocks, scan=scan, width=4)
        key = jax.random.key(0)
        params, state = start(model, data[0])
        trainable, frozen = training.partition(params, trains(params, "batchnorm"))

        def loss(trainable: Any, frozen: Any, state: Any) -> Any:
            return loss_fn.fn(training.merge(trainable, frozen), state, data, key)

        begun = time.perf_counter()
        jax.jit(jax.grad(loss, has_aux=True)).lower(trainable, frozen, state).compile()
        return time.perf_counter() - begun

    shallow, deep, unrolled = seconds(4, scan=True), seconds(144, scan=True), seconds(4, scan=False)
    words = "compilation of a BatchNorm-only gradient,"
    return [
        row(f"{words} ResNet-866, blocks in a loop", deep, "ResNet-26, in a loop", shallow, 0.8),
        row(f"{words} ResNet-26, in a loop", shallow, "ResNet-26, block by block", unrolled, 1),
    ]


def seconds_of(fn: Callable[..., Any], *args: Any) -> float:
    """One repeat."""
    return timed(fn, *args)[0]


def rows(repeats: int) -> list[dict[str, Any]]:
    """Every case."""
    return [step_row(repeats), *population_rows(repeats), *compilation_rows()]
