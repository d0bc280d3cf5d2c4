"""One step of training at each size: the branches among which a run switches."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from poster_jax.core.checks import check_callable, check_key
from poster_jax.core.training import StatefulLoss, TrainState
from poster_jax.core.training.state import check_optimizer
from poster_jax.core.training.step import make_step, spread_batch
from poster_jax.core.typing import Batch, LossFn, PRNGKey
from poster_jax.mixed_sizes.images import augment_duplicates, resize_batch
from poster_jax.mixed_sizes.regime import SizeConfig

Augment = Callable[[PRNGKey, Any, int], Any]


def size_steps(
    loss_fn: LossFn | StatefulLoss,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    data: Batch,
    regime: Sequence[SizeConfig],
    augment: Augment | None,
    mesh: Mesh | None,
) -> list[Callable[..., tuple[TrainState, Any]]]:
    """The step of each size, `step(state, data, tables, row, view_key) -> (state, loss)`."""
    check_optimizer(optimizer)
    check_key("state.key", state.key)
    if augment is not None:
        check_callable("augment", augment)
    elif any(config.duplicates > 1 for config in regime):
        raise ValueError(
            "augment must be given where the regime repeats examples: equal copies of an image "
            "teach nothing, got None."
        )
    step = make_step(loss_fn, optimizer)
    return [_at_size(step, index, config, augment, mesh) for index, config in enumerate(regime)]


def _at_size(
    step: Any, index: int, config: SizeConfig, augment: Augment | None, mesh: Mesh | None
) -> Callable[..., tuple[TrainState, Any]]:
    size, duplicates = config.size, config.duplicates
    spread = spread_batch(mesh, config.batch_size * duplicates)
    view = None if augment is None else lambda key, image: augment(key, image, size)

    def at_size(
        state: TrainState, data: Batch, tables: Any, row: Any, view_key: PRNGKey
    ) -> tuple[TrainState, Any]:
        rows = tables[index][row]
        # Rows lie in range by construction: no clamping to compute.
        x, y = jax.tree.map(lambda a: a.at[rows].get(mode="promise_in_bounds"), data)
        if view is None:
            x = resize_batch(x, size)
        else:
            x, y = augment_duplicates(view_key, x, y, duplicates=duplicates, augment=view)
        try:
            return step(state, spread((x, y)))
        except (TypeError, ValueError) as error:  # a model may raise anything
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"loss_fn could not be evaluated on a batch of {x.shape[0]} images of {size} x "
                f"{size} pixels: {first} (A network for several sizes ends in global pooling.)"
            ) from error

    return at_size
