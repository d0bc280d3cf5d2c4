"""Images moved and mirrored at random, anew at every step: what trainings on photographs share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core import training


def crop_and_flip(x: Any, key: Any, padding: int = 4, mode: str = "constant") -> Any:
    """Each image of (B, height, width, channels) moved by up to `padding` pixels, half flipped.

    What comes in at the border is 0, or by another `mode` what `jnp.pad` makes of it.
    """
    place_key, flip_key = jax.random.split(key)
    places = jax.random.randint(place_key, (len(x), 2), 0, 2 * padding + 1)
    wide = jnp.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)], mode)
    cut = lambda image, at: jax.lax.dynamic_slice(image, (*at, 0), x.shape[1:])  # noqa: E731
    moved = jax.vmap(cut)(wide, places)
    flips = jax.random.bernoulli(flip_key, shape=(len(x), 1, 1, 1))
    return jnp.where(flips, moved[:, :, ::-1], moved)


def augmented(
    loss_fn: training.StatefulLoss, move: Callable[[Any, Any], Any] = crop_and_flip
) -> training.StatefulLoss:
    """The loss of a batch whose images are `move(x, key)`."""

    def fn(params: Any, state: Any, batch: Any, key: Any) -> Any:
        x, y = batch
        return loss_fn.fn(params, state, (move(x, jax.random.fold_in(key, 1)), y), key)

    return training.stateful(fn)
