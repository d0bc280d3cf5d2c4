"""Random probe vectors with identity covariance, and averages over them in bounded memory.

The samplers are matfree's. The average is ours, because matfree's holds all probes in memory at
once and divides the squared deviations by n where a standard error needs n - 1.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from matfree import stochtrace

from poster_jax.core.checks import check_choice, check_count, check_key
from poster_jax.core.typing import Array, PRNGKey
from poster_jax.curvature._flat import FlatOperator
from poster_jax.curvature.operator import LinearOperator, default_block_size, map_vectors

SAMPLERS = {
    "rademacher": stochtrace.sampler_signs,
    "gaussian": stochtrace.sampler_normal,
    "sphere": stochtrace.sampler_sphere,
}
"""Names of the probe distributions; each has mean zero and identity covariance."""


def check_probes(
    op: Any, key: Any, num_probes: Any, probe: Any, block_size: Any, *, minimum: int = 1
) -> None:
    """The checks that all stochastic estimators share."""
    check_operator(op)
    check_key("key", key)
    check_count(
        "num_probes", num_probes, minimum=minimum, hint="The standard error needs at least 2."
    )
    check_choice("probe", probe, SAMPLERS)
    if block_size is not None:
        check_count("block_size", block_size)


def check_operator(op: Any) -> None:
    """TypeError unless `op` is a LinearOperator."""
    if not isinstance(op, LinearOperator):
        raise TypeError(
            "op must be a LinearOperator such as hessian_operator(loss_fn, params, batch), got "
            f"{type(op).__name__}."
        )


def sample(key: PRNGKey, probe: str, num: int, flat: FlatOperator) -> Array:
    """Probes (num, dim), one a row; row i is the same whatever `num` above i."""
    one = SAMPLERS[probe](jnp.zeros(flat.dim, flat.dtype), num=1)
    return jax.vmap(lambda k: one(k)[0])(jax.random.split(key, num))


def mean_and_stderr(
    statistic: Callable[[Array], Array],
    key: PRNGKey,
    flat: FlatOperator,
    *,
    num_probes: int,
    probe: str,
    block_size: int | None,
) -> tuple[Array, Array]:
    """Mean of `statistic(probe vector)` over probes, and its standard error (n - 1 in the divisor).

    `block_size` probes at a time, drawn when they are needed; probe i is the same whatever the
    block size. Means and sums of squares of blocks are merged as Chan, Golub, LeVeque 1983 do,
    without cancellation.
    """
    draw = SAMPLERS[probe](jnp.zeros(flat.dim, flat.dtype), num=1)
    keys = jax.random.split(key, num_probes)
    size = min(block_size or default_block_size(), num_probes)
    whole = num_probes - num_probes % size

    def moments(keys: Array) -> tuple[Array, Array, Array]:
        values = map_vectors(lambda k: statistic(draw(k)[0]), keys, len(keys))
        mean = values.mean(axis=0)
        return jnp.asarray(len(keys), flat.dtype), mean, ((values - mean) ** 2).sum(axis=0)

    def merge(a: tuple[Array, ...], b: tuple[Array, ...]) -> tuple[Array, Array, Array]:
        n = a[0] + b[0]
        delta = b[1] - a[1]
        return n, a[1] + delta * (b[0] / n), a[2] + b[2] + delta**2 * (a[0] * b[0] / n)

    nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(moments, keys[:size]))
    blocks = keys[:whole].reshape(-1, size, *keys.shape[1:])
    total, _ = jax.lax.scan(lambda t, k: (merge(t, moments(k)), None), nothing, blocks)
    if whole < num_probes:
        total = merge(total, moments(keys[whole:]))
    n, mean, squares = total
    # One probe gives 0 / 0: the standard error of a single sample is not known, NaN says so.
    return mean, jnp.sqrt(squares / (n - 1) / n)
