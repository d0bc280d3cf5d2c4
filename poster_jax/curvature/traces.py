"""How large the curvature is in all directions together: the trace, from a few products.

Three estimators, the simplest first. `trace` (Hutchinson) draws probes z with E[z z^T] = I and
averages z^T H z; its error depends on the off-diagonal part of H alone. `hutchpp_trace` and
`xtrace` first find the few directions in which most of the curvature of a trained network lies,
take their share exactly, and sample only the rest: far better when the spectrum decays.
"""

from functools import partial

import jax
import jax.numpy as jnp

from poster_jax.core.linalg import qr
from poster_jax.core.typing import Array, Estimate, PRNGKey
from poster_jax.core.vectors import inner, matmul
from poster_jax.curvature._flat import flatten
from poster_jax.curvature._probes import check_probes, mean_and_stderr, sample
from poster_jax.curvature.operator import LinearOperator, map_vectors

__all__ = ["hutchpp_trace", "trace", "xtrace"]


def trace(
    op: LinearOperator,
    key: PRNGKey,
    *,
    num_probes: int,
    probe: str = "rademacher",
    block_size: int | None = None,
) -> Estimate:
    """The sum of the eigenvalues, by Hutchinson's estimator with its standard error.

    Args:
      op: the operator, dim P.
      key: PRNG key.
      num_probes: products to spend; the standard error falls as one over its square root.
      probe: "rademacher" (least variance), "gaussian" or "sphere".
      block_size: probes at a time; the result does not depend on it, memory does. None takes 1 on
        the CPU, 8 elsewhere.

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
    check_probes(op, key, num_probes, probe, block_size)
    return _trace(op, key, num_probes=num_probes, probe=probe, block_size=block_size)


def hutchpp_trace(
    op: LinearOperator,
    key: PRNGKey,
    *,
    num_probes: int,
    probe: str = "rademacher",
    block_size: int | None = None,
) -> Estimate:
    """The trace, with the large eigenvalues found first and summed exactly.

    With Q an orthonormal basis of H times random vectors, `tr(Q^T H Q)` is exact and the rest of
    the trace is sampled in the complement of Q. Unbiased; the error falls as one over the number of
    products for positive semi-definite operators, not as one over its square root.

    Args:
      op: the operator, dim P.
      key: PRNG key.
      num_probes: products to spend in all, a third in each part (at least 3; the standard error
        needs 6). At P and more the trace is computed exactly instead.
      probe: "rademacher", "gaussian" or "sphere".
      block_size: products at a time; None takes 1 on the CPU, 8 elsewhere.

    Returns:
      Estimate of scalars; `num_samples` counts the probes of the sampled part, 0 when exact. Its
      standard error is that of the sampled part, given Q.

    Raises:
      ValueError: num_probes below 3, block_size below 1, unknown probe.
      TypeError: op is no LinearOperator, key is no PRNG key.

    Source: Meyer, Musco, Musco, Woodruff 2021, "Hutch++: optimal stochastic trace estimation",
      SOSA, algorithm 1 (arXiv 2010.09649).

    Example:
      >>> from poster_jax.curvature import matrix_operator
      >>> op = matrix_operator(jnp.diag(1.0 / jnp.arange(1.0, 101.0) ** 2))
      >>> estimate = hutchpp_trace(op, jax.random.key(0), num_probes=30)
      >>> abs(float(estimate.mean) - 1.635) < 0.05
      True
    """
    check_probes(op, key, num_probes, probe, block_size, minimum=3)
    if num_probes >= op.dim:
        return _exact_trace(op, block_size=block_size)
    return _hutchpp_trace(op, key, num_probes=num_probes, probe=probe, block_size=block_size)


def xtrace(
    op: LinearOperator,
    key: PRNGKey,
    *,
    num_probes: int,
    probe: str = "sphere",
    block_size: int | None = None,
) -> Estimate:
    """The trace with every probe used twice: to find the large eigenvalues, and to sample the rest.

    Each probe in turn is left out of the basis and estimates what the basis of the others misses;
    the mean over them all has less variance than `hutchpp_trace` for the same products.

    Args:
      op: the operator, dim P.
      key: PRNG key.
      num_probes: n vectors, 2 n products. At P / 2 and more the trace is computed exactly instead.
      probe: "sphere" (best), "gaussian" or "rademacher".
      block_size: products at a time; None takes 1 on the CPU, 8 elsewhere.

    Returns:
      Estimate of scalars; `num_samples` counts the vectors, 0 when exact. The standard error is
      that of the n leave-one-out estimates, which share most of their basis: it is up to a quarter
      low.

    Raises:
      ValueError: num_probes below 2, block_size below 1, unknown probe.
      TypeError: op is no LinearOperator, key is no PRNG key.

    Source: Epperly, Tropp, Webber 2024, "XTrace: making the most of every sample in stochastic
      trace estimation", SIAM J. Matrix Anal. Appl. 45(1) (arXiv 2301.07825), section 2.

    Example:
      >>> from poster_jax.curvature import matrix_operator
      >>> op = matrix_operator(jnp.diag(1.0 / jnp.arange(1.0, 101.0) ** 2))
      >>> abs(float(xtrace(op, jax.random.key(0), num_probes=15).mean) - 1.635) < 0.05
      True
    """
    check_probes(op, key, num_probes, probe, block_size, minimum=2)
    if 2 * num_probes >= op.dim:
        return _exact_trace(op, block_size=block_size)
    return _xtrace(op, key, num_probes=num_probes, probe=probe, block_size=block_size)


@partial(jax.jit, static_argnames=("num_probes", "probe", "block_size"))
def _trace(
    op: LinearOperator, key: PRNGKey, *, num_probes: int, probe: str, block_size: int | None
) -> Estimate:
    flat = flatten(op)
    mean, stderr = mean_and_stderr(
        lambda z: inner(z, flat.product(z)),
        key,
        flat,
        num_probes=num_probes,
        probe=probe,
        block_size=block_size,
    )
    return Estimate(mean, stderr, jnp.int32(num_probes))


@partial(jax.jit, static_argnames=("block_size",))
def _exact_trace(op: LinearOperator, *, block_size: int | None) -> Estimate:
    flat = flatten(op)

    def entry(i: Array) -> Array:
        return flat.product(jax.nn.one_hot(i, flat.dim, dtype=flat.dtype))[i]

    total = map_vectors(entry, jnp.arange(flat.dim), block_size).sum()
    return Estimate(total, jnp.zeros_like(total), jnp.int32(0))


@partial(jax.jit, static_argnames=("num_probes", "probe", "block_size"))
def _hutchpp_trace(
    op: LinearOperator, key: PRNGKey, *, num_probes: int, probe: str, block_size: int | None
) -> Estimate:
    flat = flatten(op)
    sketch_key, rest_key = jax.random.split(key)
    third = num_probes // 3
    sketch = map_vectors(flat.product, sample(sketch_key, probe, third, flat), block_size)
    basis = qr(sketch.T)[0].T
    head = map_vectors(lambda q: inner(q, flat.product(q)), basis, block_size).sum()

    def outside(z: Array) -> Array:
        z = z - matmul(matmul(basis, z), basis)
        return inner(z, flat.product(z))

    rest = num_probes - 2 * third
    mean, stderr = mean_and_stderr(
        outside, rest_key, flat, num_probes=rest, probe=probe, block_size=block_size
    )
    return Estimate(head + mean, stderr, jnp.int32(rest))


@partial(jax.jit, static_argnames=("num_probes", "probe", "block_size"))
def _xtrace(
    op: LinearOperator, key: PRNGKey, *, num_probes: int, probe: str, block_size: int | None
) -> Estimate:
    """Letters as in the paper: Y = H Omega = Q R, Z = H Q; column i of S spans what y_i alone adds.

    Not matfree's `leave_one_out_xtrace`: it compares R with an absolute threshold, and for an
    operator of small norm (1e-9) takes all of it for rank deficient and returns the head alone as
    if it were exact.
    """
    flat = flatten(op)
    omega = sample(key, probe, num_probes, flat)
    y = map_vectors(flat.product, omega, block_size)
    q, r = qr(y.T)
    z = map_vectors(flat.product, q.T, block_size)
    size = jnp.abs(jnp.diag(r))
    deficient = size.min() <= num_probes * jnp.finfo(flat.dtype).eps * size.max()
    safe = jnp.where(deficient, jnp.eye(num_probes, dtype=flat.dtype), r)
    s = _inverse_transpose(safe)
    s = s / jnp.linalg.norm(s, axis=0)

    h = matmul(z, q)  # Q^T H Q
    w = matmul(q.T, omega.T)  # Q^T Omega
    t = matmul(z, omega.T)  # Z^T Omega
    ws = (w * s).sum(axis=0)
    x = w - s * ws  # probe i in the basis without vector i
    head = jnp.trace(h) - (s * matmul(h, s)).sum(axis=0)
    rest = -(t * x).sum(axis=0) + (x * matmul(h, x)).sum(axis=0) + ws * (s * safe).sum(axis=0)
    # Scaled to the length that a probe has, on average, outside of the basis.
    length = (omega**2).sum(axis=1) - (x**2).sum(axis=0)
    rest = rest * (flat.dim - num_probes + 1) / length
    estimates = jnp.where(deficient, jnp.trace(h), head + rest)
    stderr = estimates.std(ddof=1) / jnp.sqrt(num_probes)
    return Estimate(estimates.mean(), stderr, jnp.int32(num_probes))


@jax.custom_batching.sequential_vmap  # for the reason that `core.linalg` gives
def _inverse_transpose(triangle: Array) -> Array:
    identity = jnp.eye(len(triangle), dtype=triangle.dtype)
    return jax.scipy.linalg.solve_triangular(triangle, identity, trans=1)
