"""How a network stretches small changes of its input: the singular values of its Jacobian.

A network with dynamical isometry has all of them near 1. Values are exact from the explicit
Jacobian of one example at a time while its smaller side is short, and the largest few come from
Golub-Kahan-Lanczos with products only; the moments of the whole spectrum,

    m_k = tr((J J')^k) / n,   n the outputs,

from random probes. `m_2 / m_1^2 - 1` is the variance that `mean_field_spectrum` predicts.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_count, check_key, check_positive
from poster_jax.core.typing import ApplyFn, Array, Estimate, Params, PRNGKey
from poster_jax.core.vectors import matmul
from poster_jax.jacobian._bidiagonal import Triplets, residuals, top_triplets
from poster_jax.jacobian._layer import check_layer
from poster_jax.jacobian._linear_map import explicit_svd, linear_map, working_dtype

__all__ = ["SingularValues", "singular_values", "spectral_moments"]

# Up to this smaller side an SVD of the explicit Jacobian costs less than Lanczos steps.
EXACT_SIDE = 256


class SingularValues(NamedTuple):
    """Singular values of the Jacobian of each of B examples, with what is needed to believe them.

    Attributes:
      values: float (B, k); descending.
      residuals: float (B, k); sqrt((||J v - s u||^2 + ||J' u - s v||^2) / 2): a singular value
        lies within this distance. From new products with the vectors, not from the recurrence.
      converged: bool (B, k); whether the residual met the tolerance.
      num_products: integer (B,); products with J and J' spent in all.
    """

    values: Any
    residuals: Any
    converged: Any
    num_products: Any


def singular_values(
    apply_fn: ApplyFn,
    params: Params,
    x: Any,
    *,
    num: int | None = None,
    key: PRNGKey | None = None,
    block_size: int | None = None,
    tol: float | None = None,
    max_steps: int | None = None,
) -> SingularValues:
    """By how much a network, or one layer, stretches each direction around each example.

    All values come from the SVD of the explicit Jacobian, one example at a time, when `num` is None
    or the smaller of inputs and outputs is at most 256 or 4 `num`. Otherwise the `num` largest come
    from Golub-Kahan-Lanczos: memory is `max_steps` times inputs and outputs together.

    Args:
      apply_fn: `apply_fn(params, x) -> h`, (B, ...) to (B, ...), examples uncoupled.
      params: pytree of floating point arrays.
      x: (B, ...) examples, floating point.
      num: how many, the largest first; None for all, min(inputs, outputs).
      key: PRNG key of the starting vectors; needed only where Lanczos is taken.
      block_size: of Lanczos: how many copies of one singular value can be found. None takes `num`,
        which misses none; 1 spends fewer products where no value is repeated.
      tol: of Lanczos: a value has converged when its residual is at most `tol` times the largest
        value. None takes the root of the machine's precision (1.5e-8 in float64, 3.5e-4 in
        float32); the error of a value is of the order of its residual squared over the gap to the
        next.
      max_steps: of Lanczos: pairs of products after which it stops, converged or not; None takes
        `20 block_size + 60`.

    Returns:
      SingularValues, in float32 at least.

    Raises:
      ValueError: num above min(inputs, outputs), num, block_size or max_steps below 1, tol not
        positive, max_steps below num or block_size, block_size above min(inputs, outputs), params
        and x that do not fit.
      TypeError: apply_fn is no function, x is no floating point array, no key where one is needed.

    Source: Golub, Kahan 1965, SIAM J. Numer. Anal. B 2(2); block form: Golub, Luk, Overton 1981,
      ACM TOMS 7(2).

    Example:
      >>> linear = lambda w, x: x @ w
      >>> found = singular_values(linear, jnp.diag(jnp.array([3.0, 1.0, 2.0])), jnp.ones((1, 3)))
      >>> found.values.round(5).tolist()
      [[3.0, 2.0, 1.0]]
    """
    out = check_layer(apply_fn, params, x, "apply_fn")
    small = min(math.prod(a.shape[1:]) for a in (x, out))
    if num is not None:
        check_count("num", num)
        if num > small:
            raise ValueError(
                f"num must be at most the smaller of inputs and outputs, {small}, got {num}."
            )
    for name, count in (("block_size", block_size), ("max_steps", max_steps)):
        if count is not None:
            check_count(name, count)
    if tol is not None:
        check_positive("tol", tol)
    if num is None or small <= max(EXACT_SIDE, 4 * num):
        return _exact(apply_fn, params, x, num=num or small)
    check_key("key", key)
    block_size = num if block_size is None else block_size
    max_steps = 20 * block_size + 60 if max_steps is None else max_steps
    if block_size > small:
        raise ValueError(
            "block_size must be at most the smaller of inputs and outputs, "
            f"{small}, got {block_size}."
        )
    needed = max(num, block_size)
    check_count("max_steps", max_steps, minimum=needed, hint="It must reach num and block_size.")
    keys = jax.random.split(key, x.shape[0])
    if tol is None:
        tol = float(jnp.finfo(working_dtype(x.dtype)).eps) ** 0.5
    return _lanczos(
        apply_fn,
        params,
        x,
        keys,
        tol,
        num=num,
        block_size=block_size,
        max_steps=min(max_steps, small),
    )


def spectral_moments(
    apply_fn: ApplyFn, params: Params, x: Any, key: PRNGKey, *, order: int = 2, num_probes: int
) -> Estimate:
    """The first moments of the spectrum of J J' around each example, m_k = tr((J J')^k) / n.

    One product with J' or J gives one more moment from the same probe, and one product of the
    whole batch serves all examples. The relative error of m_k is about sqrt(2 m_2k / n) / m_k over
    the root of `num_probes`: wide layers need few.

    Args:
      apply_fn: `apply_fn(params, x) -> h`, (B, ...) to (B, ...), examples uncoupled.
      params: pytree of floating point arrays.
      x: (B, ...) examples, floating point.
      key: PRNG key of the probes, which have entries +1 and -1.
      order: the highest moment, K.
      num_probes: probes of each example; the standard error needs at least 2.

    Returns:
      Estimate with mean and stderr of shape (B, K), m_1 first; the moments of one example share
      their probes, examples do not.

    Raises:
      ValueError: order or num_probes below 1, params and x that do not fit.
      TypeError: apply_fn is no function, x is no floating point array, key is no PRNG key.

    Source: Hutchinson 1990, Communications in Statistics 19(2).

    Example:
      >>> linear = lambda w, x: x @ w
      >>> w = jnp.diag(jnp.array([2.0, 1.0]))
      >>> spectral_moments(linear, w, jnp.ones((1, 2)), jax.random.key(0), num_probes=4).mean
      Array([[2.5, 8.5]], dtype=float32)
    """
    check_layer(apply_fn, params, x, "apply_fn")
    check_key("key", key)
    check_count("order", order)
    hint = "The standard error needs at least 2."
    check_count("num_probes", num_probes, hint=hint)
    return _moments(apply_fn, params, x, key, order=order, num_probes=num_probes)


@partial(jax.jit, static_argnums=0, static_argnames=("num",))
def _exact(apply_fn: ApplyFn, params: Params, x: Array, *, num: int) -> SingularValues:
    def one(example: Array) -> SingularValues:
        linear = linear_map(apply_fn, params, example)
        matrix, left, values, right = explicit_svd(linear)
        found = Triplets(values[:num], left.T[:num], right[:num], jnp.int32(linear.num_in))
        product = linear._replace(
            forward=lambda v: matmul(matrix, v), backward=lambda u: matmul(u, matrix)
        )
        # An SVD is backward stable: what it leaves is rounding.
        rest = residuals(product, found)
        return SingularValues(found.values, rest, jnp.isfinite(rest), found.num_products)

    return jax.lax.map(one, x)


@partial(jax.jit, static_argnums=0, static_argnames=("num", "block_size", "max_steps"))
def _lanczos(
    apply_fn: ApplyFn,
    params: Params,
    x: Array,
    keys: PRNGKey,
    tol: Any,
    *,
    num: int,
    block_size: int,
    max_steps: int,
) -> SingularValues:
    def one(example_and_key: tuple[Array, PRNGKey]) -> SingularValues:
        example, key = example_and_key
        linear = linear_map(apply_fn, params, example)
        found = top_triplets(linear, key, tol, num=num, block_size=block_size, max_steps=max_steps)
        rest = residuals(linear, found)
        converged = rest <= tol * found.values[0]
        return SingularValues(found.values, rest, converged, found.num_products + 2 * num)

    return jax.lax.map(one, (x, keys))


@partial(jax.jit, static_argnums=0, static_argnames=("order", "num_probes"))
def _moments(
    apply_fn: ApplyFn, params: Params, x: Array, key: PRNGKey, *, order: int, num_probes: int
) -> Estimate:
    outputs, forward = jax.linearize(lambda x: apply_fn(params, x), x)
    transpose = jax.linear_transpose(forward, x)
    dtype = working_dtype(outputs.dtype)
    num_outputs = outputs[0].size

    def powers(key: PRNGKey) -> Array:
        vector = jax.random.rademacher(key, outputs.shape, outputs.dtype)
        squares = []
        for k in range(order):
            vector = transpose(vector)[0] if k % 2 == 0 else forward(vector)
            rows = vector.reshape(len(vector), -1).astype(dtype)
            squares.append((rows**2).sum(axis=1))
        return jnp.stack(squares, axis=1) / num_outputs

    samples = jax.lax.map(powers, jax.random.split(key, num_probes))
    mean = samples.mean(axis=0)
    # One probe gives 0 / 0: the standard error of a single sample is not known, NaN says so.
    squares = ((samples - mean) ** 2).sum(axis=0)
    stderr = jnp.sqrt(squares / (num_probes - jnp.ones((), dtype)) / num_probes)
    return Estimate(mean, stderr, jnp.int32(num_probes))
