"""Entry by entry: the diagonal of a curvature, and the root of the sum of its squared entries."""

from functools import partial

import jax
import jax.numpy as jnp

from poster_jax.core.typing import Estimate, PRNGKey
from poster_jax.core.vectors import inner
from poster_jax.curvature._flat import flatten
from poster_jax.curvature._probes import check_probes, mean_and_stderr
from poster_jax.curvature.operator import LinearOperator

__all__ = ["diagonal", "frobenius_norm"]


def diagonal(
    op: LinearOperator,
    key: PRNGKey,
    *,
    num_probes: int,
    probe: str = "rademacher",
    block_size: int | None = None,
) -> Estimate:
    """The curvature along each single parameter, estimated as the mean of `z * (H z)`.

    Args:
      op: the operator, dim P.
      key: PRNG key.
      num_probes: products to spend. The variance of entry i is the sum of the squared
        off-diagonal entries of row i, over num_probes.
      probe: "rademacher" (least variance), "gaussian" or "sphere".
      block_size: probes at a time; None takes 1 on the CPU, 8 elsewhere.

    Returns:
      Estimate whose mean and stderr are pytrees like the parameters.

    Raises:
      ValueError: num_probes or block_size below 1, unknown probe.
      TypeError: op is no LinearOperator, key is no PRNG key.

    Source: Bekas, Kokiopoulou, Saad 2007, "An estimator for the diagonal of a matrix", Applied
      Numerical Mathematics 57(11).

    Example:
      >>> from poster_jax.curvature import matrix_operator
      >>> op = matrix_operator(jnp.diag(jnp.arange(3.0)))
      >>> diagonal(op, jax.random.key(0), num_probes=2).mean.tolist()
      [0.0, 1.0, 2.0]
    """
    check_probes(op, key, num_probes, probe, block_size)
    return _diagonal(op, key, num_probes=num_probes, probe=probe, block_size=block_size)


def frobenius_norm(
    op: LinearOperator,
    key: PRNGKey,
    *,
    num_probes: int,
    probe: str = "rademacher",
    block_size: int | None = None,
) -> Estimate:
    """The root of the sum of the squared eigenvalues, from the mean of `||H z||^2`.

    Args:
      op: the operator, dim P.
      key: PRNG key.
      num_probes: products to spend.
      probe: "rademacher", "gaussian" or "sphere".
      block_size: probes at a time; None takes 1 on the CPU, 8 elsewhere.

    Returns:
      Estimate of scalars. The square is unbiased; the root is low by about half of stderr^2 / mean.

    Raises:
      ValueError: num_probes or block_size below 1, unknown probe.
      TypeError: op is no LinearOperator, key is no PRNG key.

    Source: Hutchinson 1990 applied to H^2, and the delta method for the root.

    Example:
      >>> from poster_jax.curvature import matrix_operator
      >>> op = matrix_operator(jnp.diag(jnp.array([3.0, 4.0])))
      >>> float(frobenius_norm(op, jax.random.key(0), num_probes=2).mean)
      5.0
    """
    check_probes(op, key, num_probes, probe, block_size)
    return _frobenius_norm(op, key, num_probes=num_probes, probe=probe, block_size=block_size)


@partial(jax.jit, static_argnames=("num_probes", "probe", "block_size"))
def _diagonal(
    op: LinearOperator, key: PRNGKey, *, num_probes: int, probe: str, block_size: int | None
) -> Estimate:
    flat = flatten(op)
    mean, stderr = mean_and_stderr(
        lambda z: z * flat.product(z),
        key,
        flat,
        num_probes=num_probes,
        probe=probe,
        block_size=block_size,
    )
    return Estimate(flat.unflatten(mean), flat.unflatten(stderr), jnp.int32(num_probes))


@partial(jax.jit, static_argnames=("num_probes", "probe", "block_size"))
def _frobenius_norm(
    op: LinearOperator, key: PRNGKey, *, num_probes: int, probe: str, block_size: int | None
) -> Estimate:
    flat = flatten(op)

    def squared_length(z: jax.Array) -> jax.Array:
        product = flat.product(z)
        return inner(product, product)

    mean, stderr = mean_and_stderr(
        squared_length,
        key,
        flat,
        num_probes=num_probes,
        probe=probe,
        block_size=block_size,
    )
    root = jnp.sqrt(mean)
    return Estimate(root, stderr / (2 * root), jnp.int32(num_probes))
