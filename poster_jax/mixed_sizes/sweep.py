"""How accurate is a network at each size of its images?"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poster_jax.core.batching import map_over_batch
from poster_jax.core.checks import check_count, check_key
from poster_jax.core.losses import top_1
from poster_jax.core.models.model import Model
from poster_jax.core.recalibration import recalibrate
from poster_jax.core.typing import Array, Params, PRNGKey
from poster_jax.mixed_sizes.images import resize_batch

__all__ = ["SizeSweep", "size_sweep"]


class SizeSweep(NamedTuple):
    """Attributes: accuracy, (sizes,) in [0, 1]; pixels, (sizes,) int32, of an image."""

    accuracy: Array
    pixels: Array


def size_sweep(
    model: Model,
    params: Params,
    state: Any,
    test: tuple[Any, Any],
    train_batches: Any,
    key: PRNGKey,
    *,
    sizes: Sequence[int],
    calibrate: bool = True,
    microbatch: int | None = None,
    resize: Callable[[Any, int], Any] = resize_batch,
) -> SizeSweep:
    """Accuracy at each test size, with BatchNorm recalibrated for the size or left as it is.

    Args:
      model: a `Model` that takes images of any size.
      params: of the model.
      state: of the model.
      test: images (examples, height, width, channels) and integer labels (examples,).
      train_batches: (batches, examples, height, width, channels), for calibration.
      key: a PRNG key, for dropout during calibration.
      sizes: sides in pixels to which both are resized.
      calibrate: whether statistics are those of train_batches at the test size.
      microbatch: test images evaluated at once; None takes all.
      resize: `resize(images, size)` of both; images may be stored in any form that it takes.

    Returns:
      `SizeSweep(accuracy, pixels)`.

    Raises:
      ValueError: no sizes, or a size below 1.

    Source: Hoffer et al. 2019, arXiv 1908.08986, evaluation after calibration for each size.

    Example:
      >>> from poster_jax.core.models import from_function
      >>> net = from_function(lambda key, x: 1.0, lambda params, x: params * x.mean((1, 2)))
      >>> test = jnp.eye(2).reshape(2, 1, 1, 2), jnp.arange(2)
      >>> size_sweep(net, 1.0, (), test, (), jax.random.key(0), sizes=(1, 4), calibrate=False)[1]
      Array([ 1, 16], dtype=int32)
    """
    check_key("key", key)
    sizes = [check_count("sizes", size) for size in sizes]
    if not sizes:
        raise ValueError("sizes must hold at least one size, got none.")
    images, labels = test
    accuracy = []
    for size in sizes:
        fresh = state
        if calibrate:
            batches = jax.vmap(partial(resize, size=size))(train_batches)
            fresh = recalibrate(model, params, state, batches, key)

        def logits(x: Any, fresh: Any = fresh, size: int = size) -> Any:
            return model.apply_eval(params, fresh, resize(x, size))

        outputs = map_over_batch(logits, images, microbatch=microbatch)
        accuracy.append(top_1(outputs, labels))
    return SizeSweep(jnp.stack(accuracy), jnp.array([s * s for s in sizes], jnp.int32))
