"""Images at another size, and several augmented copies of each."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_callable, check_choice, check_count, check_key
from poster_jax.core.typing import Array, Float, PRNGKey

__all__ = ["augment_duplicates", "resize_batch"]


def resize_batch(
    images: Float[Array, "..."],
    size: int,
    *,
    method: str = "linear",
    antialias: bool = True,
) -> Array:
    """Square images of another size; images of that size already are returned as they are.

    Args:
      images: (examples, height, width, channels).
      size: side of the result, in pixels.
      method: "linear" or "nearest".
      antialias: whether "linear" averages over all pixels that a smaller one covers.

    Returns:
      (examples, size, size, channels), of the dtype of images.

    Raises:
      ValueError: images of no four axes, a size below 1, or an unknown method.

    Source: pixel centres at half integers, as torch's `interpolate(align_corners=False)`.

    Example:
      >>> resize_batch(jnp.arange(4.0).reshape(1, 2, 2, 1), 1).item()
      1.5
    """
    size = check_count("size", size)
    check_choice("method", method, ("linear", "nearest"))
    if images.ndim != 4:
        raise ValueError(
            "images must be of shape (examples, height, width, channels), got shape "
            f"{images.shape}."
        )
    if images.shape[1:3] == (size, size):
        return images
    shape = (images.shape[0], size, size, images.shape[3])
    return jax.image.resize(images, shape, method, antialias=antialias)


def augment_duplicates(
    key: PRNGKey,
    images: Any,
    labels: Any,
    *,
    duplicates: int,
    augment: Callable[[PRNGKey, Any], Any],
) -> tuple[Array, Array]:
    """Each example `duplicates` times, every copy augmented independently (batch augmentation).

    Args:
      key: a PRNG key.
      images: (examples, ...).
      labels: (examples, ...).
      duplicates: copies of each example.
      augment: `augment(key, image) -> image` for one image.

    Returns:
      Images and labels with a leading axis of examples * duplicates, copies side by side.

    Raises:
      ValueError: duplicates below 1.
      TypeError: augment is no function.

    Source: Hoffer et al. 2019, arXiv 1908.08986, the regimes D+.

    Example:
      >>> flip = lambda key, x: jnp.where(jax.random.bernoulli(key), x, -x)
      >>> x, y = augment_duplicates(
      ...     jax.random.key(0), jnp.ones(2), jnp.arange(2), duplicates=3, augment=flip)
      >>> x.shape, y.tolist()
      ((6,), [0, 0, 0, 1, 1, 1])
    """
    check_key("key", key)
    duplicates = check_count("duplicates", duplicates)
    check_callable("augment", augment)
    images = jnp.repeat(jnp.asarray(images), duplicates, axis=0)
    keys = jax.random.split(key, images.shape[0])
    return jax.vmap(augment)(keys, images), jnp.repeat(jnp.asarray(labels), duplicates, axis=0)
