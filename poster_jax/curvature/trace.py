"""How large the curvature is in all directions together: the trace, from a few products.

Three estimators, the simplest first. `trace` (Hutchinson) draws probes z with E[z z^T] = I and
averages z^T H z; its error depends on the off-diagonal part of H alone. `hutchpp_trace` and
`xtrace` first find the few directions in which most of the curvature of a trained network lies,
take their share exactly, and sample only the rest: far better when the spectrum decays.
"""

from functools import partial

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_count
from poster_jax.core.typing import Estimate, PRNGKey
from poster_jax.curvature._flat import flatten, inner
from poster_jax.curvature._probes import check_probes, mean_and_stderr
from poster_jax.curvature.operator import LinearOperator

__all__ = ["trace"]


def trace(
    op: LinearOperator,
    key: PRNGKey,
    *,
    num_probes: int,
    probe: str = "rademacher",
    block_size: int = 8,
) -> Estimate:
    """The sum of the eigenvalues, by Hutchinson's estimator with its standard error.

    Args:
      op: the operator, dim P.
      key: PRNG key.
      num_probes: products to spend; the standard error falls as one over its square root.
      probe: "rademacher" (least variance), "gaussian" or "sphere".
      block_size: probes at a time; memory grows with it, the result does not depend on it.

    Returns:
      Estimate of scalars. The trace of a minimum that is not reached can be negative: it is
      reported as it is.

    Raises:
      ValueError: num_probes or block_size below 1, unknown probe.
      TypeError: op is no LinearOperator, key is no PRNG key.

    Source: Hutchinson 1990, Communications in Statistics 19(2).

    Example:
      >>> from poster_jax.curvature import matrix_operator
      >>> op = matrix_operator(jnp.diag(jnp.arange(5.0)))
      >>> float(trace(op, jax.random.key(0), num_probes=4).mean)  # exact for a diagonal matrix
      10.0
    """
    check_probes(op, key, num_probes, probe)
    check_count("block_size", block_size)
    return _trace(op, key, num_probes=num_probes, probe=probe, block_size=block_size)


@partial(jax.jit, static_argnames=("num_probes", "probe", "block_size"))
def _trace(
    op: LinearOperator, key: PRNGKey, *, num_probes: int, probe: str, block_size: int
) -> Estimate:
    flat = flatten(op)
    mean, stderr = mean_and_stderr(
        lambda z: inner(z, flat.product(z)),
        key,
        num_probes=num_probes,
        probe=probe,
        block_size=block_size,
        dim=flat.dim,
        dtype=flat.dtype,
    )
    return Estimate(mean, stderr, jnp.asarray(num_probes))
