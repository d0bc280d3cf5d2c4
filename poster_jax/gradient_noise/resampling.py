"""Every batch size from one matrix: a mini-batch's gradient is a mean of columns.

With <w_r, g_i> known for all directions r and examples i, the projections of the gradient of a
batch B are (1/b) sum_{i in B} <w_r, g_i>: no further derivative is needed for any batch size.
"""

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_count, check_key
from poster_jax.core.training import epoch_order
from poster_jax.core.typing import Array, Float, Int, PRNGKey

__all__ = ["batch_projections", "draw_batches", "resample_projections"]

# Numbers of the matrix of counts held at once (64 MB).
BLOCK = 2**24


def draw_batches(
    key: PRNGKey, *, num_examples: int, batch_size: int, num_batches: int, replacement: bool = True
) -> Int[Array, "M b"]:
    """Which examples stand in each of M independently drawn mini-batches.

    Args:
      key: PRNG key.
      num_examples: N.
      batch_size: b.
      num_batches: M.
      replacement: whether an example can stand in a batch more than once. With it the noise has
        the covariance Sigma / b for every b; without, Sigma (N - b) / (b (N - 1)), and b is at most
        N. The batches are independent of one another either way, unlike the disjoint ones of an
        epoch, which sum to the whole and are no sample for a test.

    Returns:
      int32 (M, b), indices of examples.

    Raises:
      ValueError: a count below 1; without replacement, a batch larger than the data.
      TypeError: key is no key, a count no integer.

    Source: this library.

    Example:
      >>> rows = draw_batches(jax.random.key(0), num_examples=9, batch_size=4, num_batches=3)
      >>> rows.shape
      (3, 4)
    """
    check_key("key", key)
    check_draws(num_examples, batch_size, num_batches, replacement)
    keys = jax.random.split(key, num_batches)
    if replacement:
        return jax.vmap(lambda k: jax.random.randint(k, (batch_size,), 0, num_examples))(keys)
    # One order after another: a sort of each is held at a time.
    return jax.lax.map(lambda k: epoch_order(k, 0, num_examples)[:batch_size], keys)


def batch_projections(
    projections: Float[Array, "R N"], rows: Int[Array, "M b"]
) -> Float[Array, "R M"]:
    """Projections of the gradients of given batches, from those of single examples.

    Args:
      projections: (R, N), of `per_example_projections`.
      rows: (M, b), the examples of each batch.

    Returns:
      (R, M), means over each batch. They are formed as a product with the counts of the examples,
      whose cost does not depend on b; around the mean of all examples, so that rounding is relative
      to the noise and not to the mean.

    Raises:
      ValueError: projections or rows are no matrices.

    Source: this library.

    Example:
      >>> batch_projections(jnp.array([[1.0, 2.0, 6.0]]), jnp.array([[0, 1], [2, 2]])).tolist()
      [[1.5, 6.0]]
    """
    if projections.ndim != 2 or rows.ndim != 2:
        raise ValueError(
            "projections must be (directions, examples) and rows (batches, batch_size), got the "
            f"shapes {projections.shape} and {rows.shape}."
        )
    num_examples, (num_batches, batch_size) = projections.shape[1], rows.shape
    centre = projections.mean(axis=1)
    deviations = projections - centre[:, None]

    def mean(chosen: Array) -> Array:
        counts = jnp.zeros(num_examples, deviations.dtype).at[chosen].add(1)
        return jnp.matmul(deviations, counts, precision="highest") / batch_size

    block = min(num_batches, max(1, BLOCK // num_examples))
    if block == num_batches:
        found = jax.vmap(mean)(rows)
    else:
        found = jax.lax.map(mean, rows, batch_size=block)
    return (found + centre).T


def resample_projections(
    projections: Float[Array, "R N"],
    key: PRNGKey,
    *,
    batch_size: int,
    num_batches: int,
    replacement: bool = True,
) -> Float[Array, "R M"]:
    """Projections of the gradients of M random mini-batches, from those of single examples.

    Args:
      projections: (R, N), of `per_example_projections`.
      key: PRNG key of the batches; the same key draws the batches of `minibatch_projections`.
      batch_size: b.
      num_batches: M.
      replacement: as in `draw_batches`.

    Returns:
      (R, M). The mean gradient is not subtracted: tests of normality do so themselves.

    Raises:
      ValueError, TypeError: as `draw_batches` and `batch_projections`.

    Source: this library.

    Example:
      >>> ours = resample_projections(jnp.eye(2, 9), jax.random.key(0), batch_size=9, num_batches=3,
      ...                             replacement=False)
      >>> bool(jnp.allclose(ours, 1 / 9))
      True
    """
    rows = draw_batches(
        key,
        num_examples=projections.shape[-1],
        batch_size=batch_size,
        num_batches=num_batches,
        replacement=replacement,
    )
    return batch_projections(projections, rows)


def check_draws(num_examples: int, batch_size: int, num_batches: int, replacement: bool) -> None:
    """ValueError unless as many batches of this size can be drawn."""
    check_count("num_examples", num_examples)
    check_count("batch_size", batch_size)
    check_count("num_batches", num_batches)
    if not replacement and batch_size > num_examples:
        raise ValueError(
            f"batch_size must be at most the number of examples, {num_examples}, without "
            f"replacement, got {batch_size}."
        )
