"""What the gradients of examples and of mini-batches are along given directions.

Per example by forward or reverse mode, which serves every batch size, or one mini-batch after
another; `planning` says what each costs, and `noise_projections` takes the cheapest.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from poster_jax.core.batching import map_over_batch
from poster_jax.core.checks import check_choice, check_key, num_examples
from poster_jax.core.devices import on_mesh
from poster_jax.core.training import StatefulLoss
from poster_jax.core.training.state import lift
from poster_jax.core.typing import Array, Batch, Float, LossFn, Params, PRNGKey
from poster_jax.curvature.operator import map_vectors
from poster_jax.gradient_noise._separable import check_separable, losses_of
from poster_jax.gradient_noise.directions import Directions
from poster_jax.gradient_noise.planning import plan_projections
from poster_jax.gradient_noise.resampling import check_draws, draw_batches, resample_projections

__all__ = ["minibatch_projections", "noise_projections", "per_example_projections"]

SPREADS = ("directions", "examples")


def per_example_projections(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    directions: Directions,
    *,
    mode: str | None = None,
    microbatch: int | None = None,
    mesh: Mesh | None = None,
    spread: str = "examples",
) -> Float[Array, "R N"]:
    """`<w_r, g_i>` for every direction and example: all that any batch size needs.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`, a mean over the examples; it is evaluated on
        batches of one. On the CPU a model with the convolutions of `jax.lax` is 40 times slower in
        the loops here: hand over `core.convolution.with_fast_convolutions(loss_fn)`.
      params: pytree of floating point arrays.
      batch: pytree whose leaves share a leading axis of N examples.
      directions: R of them.
      mode: "forward" (one derivative along each direction), "reverse" (one gradient an example) or
        None for the cheaper one by `plan_projections`. They agree to rounding.
      microbatch: examples taken at once; None as in `plan_projections`.
      mesh: devices to spread the work over.
      spread: what is spread over their axis "data": "examples", or "directions" when there are more
        of those (every device then sees all examples, and draws its own directions alone).

    Returns:
      (R, N) in the dtype of the directions, float32 at least.

    Raises:
      ValueError: a loss that couples its examples (batch norm in training mode: the gradient of one
        example has no meaning) or sums over them; params, batch, loss and directions that do not
        fit each other; an unknown mode.
      TypeError: a wrong kind of argument.

    Source: Panigrahi et al. 2019 (arXiv 1910.09626); the forward form is this library's.

    Example:
      >>> from poster_jax.gradient_noise import directions_along
      >>> loss_fn = lambda w, x: jnp.mean(x @ w)  # the gradient of example x is x
      >>> directions = directions_along(jnp.eye(2))
      >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
      >>> per_example_projections(loss_fn, jnp.ones(2), x, directions).tolist()
      [[1.0, 3.0, 5.0], [2.0, 4.0, 6.0]]
    """
    check_choice("spread", spread, SPREADS)
    if mode == "minibatch":
        raise ValueError(
            "mode must be 'forward' or 'reverse' for projections of single examples, got "
            "'minibatch': that is minibatch_projections."
        )
    if isinstance(loss_fn, StatefulLoss):
        check_separable(loss_fn, params, batch)  # refuses it
    plan = plan_projections(loss_fn, params, batch, directions, mode=mode, microbatch=microbatch)
    params, batch, directions = _placed((params, batch, directions), mesh)
    return _per_example(
        loss_fn,
        params,
        batch,
        directions,
        mode=plan.mode,
        microbatch=plan.microbatch,
        mesh=mesh,
        spread=spread,
    )


def minibatch_projections(
    loss_fn: LossFn | StatefulLoss,
    params: Params,
    batch: Batch,
    directions: Directions,
    key: PRNGKey,
    *,
    batch_size: int,
    num_batches: int,
    replacement: bool = True,
    model_state: Any = (),
    microbatch: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "R M"]:
    """Projections of the gradients of M random mini-batches, computed as training does.

    The only way for batch norm in training mode, where the gradient of a batch is no mean of
    gradients of examples (nor its expectation the gradient of the whole), and for dropout: each
    batch draws its own masks, whose randomness is then part of the noise.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar` or a StatefulLoss (`training.model_loss`).
      params: pytree of floating point arrays.
      batch: pytree whose leaves share a leading axis of N examples, from which batches are drawn.
      directions: R of them.
      key: PRNG key of the batches (and masks).
      batch_size: b.
      num_batches: M.
      replacement: as in `draw_batches`.
      model_state: where a StatefulLoss starts; every batch starts from it.
      microbatch: batches whose gradients are held at once; None as in `plan_projections`.
      mesh: devices over whose axis "data" the batches are spread.

    Returns:
      (R, M). The mean gradient is not subtracted: tests of normality do so themselves.

    Raises:
      ValueError, TypeError: counts below 1, a batch larger than the data without replacement,
        arguments that do not fit each other.

    Source: Panigrahi et al. 2019 (arXiv 1910.09626).

    Example:
      >>> from poster_jax.gradient_noise import random_directions
      >>> loss_fn = lambda w, x: jnp.mean(x @ w)
      >>> directions = random_directions(jnp.ones(3), jax.random.key(0), num=2)
      >>> minibatch_projections(loss_fn, jnp.ones(3), jnp.ones((9, 3)), directions,
      ...                       jax.random.key(1), batch_size=4, num_batches=5).shape
      (2, 5)
    """
    check_key("key", key)
    check_draws(num_examples(batch), batch_size, num_batches, replacement)
    plan = plan_projections(
        loss_fn,
        params,
        batch,
        directions,
        batch_sizes=(batch_size,),
        num_batches=num_batches,
        mode="minibatch",
        microbatch=microbatch,
        model_state=model_state,
    )
    arguments = _placed((params, model_state, batch, directions, key), mesh)
    return _minibatch(
        loss_fn,
        *arguments,
        batch_size=batch_size,
        num_batches=num_batches,
        replacement=replacement,
        microbatch=plan.microbatch,
        mesh=mesh,
    )


def noise_projections(
    loss_fn: LossFn | StatefulLoss,
    params: Params,
    batch: Batch,
    directions: Directions,
    key: PRNGKey,
    *,
    batch_sizes: Sequence[int],
    num_batches: int,
    replacement: bool = True,
    mode: str | None = None,
    model_state: Any = (),
    microbatch: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "sizes R M"]:
    """Projections of M mini-batch gradients of each size, the cheapest way: samples for a test.

    Args:
      loss_fn: as in `minibatch_projections`.
      params: pytree of floating point arrays.
      batch: pytree whose leaves share a leading axis of N examples.
      directions: R of them.
      key: PRNG key of the batches. The batches of a size are the same whichever way is taken.
      batch_sizes: sizes b.
      num_batches: M of each.
      replacement: as in `draw_batches`.
      mode: "forward" or "reverse" (per example, then resampled for every size), "minibatch", or
        None for the cheapest by `plan_projections`; a StatefulLoss has "minibatch" alone.
      model_state: where a StatefulLoss starts.
      microbatch: examples (batches) at once, as in `plan_projections`.
      mesh: devices over which examples (batches) are spread.

    Returns:
      (len(batch_sizes), R, M), ready for `gaussianity` size by size.

    Raises:
      ValueError, TypeError: as `per_example_projections` and `minibatch_projections`.

    Source: Panigrahi et al. 2019 (arXiv 1910.09626); the resampling is this library's.

    Example:
      >>> from poster_jax.gradient_noise import random_directions
      >>> loss_fn = lambda w, x: jnp.mean(jnp.tanh(x @ w))
      >>> directions = random_directions(jnp.ones(3), jax.random.key(0), num=2)
      >>> x = jax.random.normal(jax.random.key(1), (9, 3))
      >>> noise_projections(loss_fn, jnp.ones(3), x, directions, jax.random.key(2),
      ...                   batch_sizes=(2, 4), num_batches=5).shape
      (2, 2, 5)
    """
    check_key("key", key)
    if not batch_sizes:
        raise ValueError("batch_sizes must name at least 1 size, got none.")
    for size in batch_sizes:
        check_draws(num_examples(batch), size, num_batches, replacement)
    plan = plan_projections(
        loss_fn,
        params,
        batch,
        directions,
        batch_sizes=batch_sizes,
        num_batches=num_batches,
        mode=mode,
        microbatch=microbatch,
        model_state=model_state,
    )
    options = {"num_batches": num_batches, "replacement": replacement}
    keys = [jax.random.fold_in(key, size) for size in batch_sizes]
    params, batch, directions = _placed((params, batch, directions), mesh)
    if plan.mode == "minibatch":
        return jnp.stack(
            [
                _minibatch(
                    loss_fn,
                    *_placed((params, model_state, batch, directions, k), mesh),
                    batch_size=size,
                    microbatch=plan.microbatch,
                    mesh=mesh,
                    **options,
                )
                for k, size in zip(keys, batch_sizes, strict=True)
            ]
        )
    projections = _per_example(
        loss_fn,
        params,
        batch,
        directions,
        mode=plan.mode,
        microbatch=plan.microbatch,
        mesh=mesh,
        spread="examples",
    )
    return jnp.stack(
        [
            resample_projections(projections, k, batch_size=size, **options)
            for k, size in zip(keys, batch_sizes, strict=True)
        ]
    )


@partial(jax.jit, static_argnums=0, static_argnames=("mode", "microbatch", "mesh", "spread"))
def _per_example(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    directions: Directions,
    *,
    mode: str,
    microbatch: int,
    mesh: Mesh | None,
    spread: str,
) -> Array:
    one_way = _forward if mode == "forward" else _reverse

    def of(directions: Directions, mesh: Mesh | None) -> Array:
        directions = directions.kept()
        return map_over_batch(
            lambda part: one_way(loss_fn, params, part, directions),
            batch,
            microbatch=microbatch,
            mesh=mesh,
        )

    if mesh is None or spread == "examples":
        return of(directions, mesh).T
    return map_over_batch(
        lambda rows: of(directions.at_rows(rows), None).T, directions.rows, mesh=mesh
    )


def _forward(loss_fn: LossFn, params: Params, part: Batch, directions: Directions) -> Array:
    """(n, R): the losses' derivative along each direction, from one linearisation."""
    layout = directions.layout
    free = layout.select(params)
    _, push = jax.linearize(lambda free: losses_of(loss_fn, layout.merge(params, free), part), free)

    def along(r: Array) -> Array:
        tangent = layout.cut(directions.vector(r))
        tangent = [t.astype(leaf.dtype) for t, leaf in zip(tangent, free, strict=True)]
        return push(tangent).astype(layout.dtype)

    return map_vectors(along, jnp.arange(directions.num)).T


def _reverse(loss_fn: LossFn, params: Params, part: Batch, directions: Directions) -> Array:
    """(n, R): the gradient of each example, projected."""
    layout = directions.layout

    def loss(free: Any, one: Any) -> Array:
        return loss_fn(layout.merge(params, free), jax.tree.map(lambda a: a[None], one))

    gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0))(layout.select(params), part)
    return jax.vmap(lambda free: directions.project_vector(layout.join(free)))(gradients)


@partial(
    jax.jit,
    static_argnums=0,
    static_argnames=("batch_size", "num_batches", "replacement", "microbatch", "mesh"),
)
def _minibatch(
    loss_fn: LossFn | StatefulLoss,
    params: Params,
    model_state: Any,
    batch: Batch,
    directions: Directions,
    key: PRNGKey,
    *,
    batch_size: int,
    num_batches: int,
    replacement: bool,
    microbatch: int,
    mesh: Mesh | None,
) -> Array:
    layout = directions.layout
    directions = directions.kept()
    free = layout.select(params)
    rows = draw_batches(
        key,
        num_examples=num_examples(batch),
        batch_size=batch_size,
        num_batches=num_batches,
        replacement=replacement,
    )
    # Batches draw from the key itself, masks from a key of their own.
    mask_keys = jax.random.split(jax.random.fold_in(key, num_batches), num_batches)

    def gradient(draw: Any) -> Array:
        chosen, mask_key = draw
        examples = jax.tree.map(lambda a: jnp.take(a, chosen, axis=0), batch)

        def loss(free: Any) -> Any:
            return lift(loss_fn)(layout.merge(params, free), model_state, examples, mask_key)[0]

        return layout.join(jax.grad(loss)(free))

    def part(draws: Any) -> Array:
        # One gradient after another (its activations are as many as training has), then together.
        return jax.vmap(directions.project_vector)(jax.lax.map(gradient, draws))

    return map_over_batch(part, (rows, mask_keys), microbatch=microbatch, mesh=mesh).T


def _placed(arguments: Any, mesh: Mesh | None) -> Any:
    arguments = jax.tree.map(jnp.asarray, arguments)
    return arguments if mesh is None else on_mesh(arguments, mesh)
