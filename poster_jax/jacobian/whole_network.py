"""Penalties on the Jacobian of a whole network that ask for something else than orthogonality.

With J = d outputs / d inputs (m, n) of one example, flattened:

    Hoffman:  (1/2) ||J||_F^2                          small: robust to perturbed inputs,
    OroJaR:   2 (||J^T J||_F^2 - sum_i (J^T J)_ii^2)   columns at right angles, of any length.

The first is (m/2) E |J^T v|^2 over v uniform on the unit sphere; the second is the variance of
|J v|^2 over random signs v. `orthogonality_penalty` asks for both: right angles and length 1.
"""

from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_choice, check_count
from poster_jax.core.typing import ApplyFn, Array, Params, PRNGKey
from poster_jax.jacobian._layer import Linearised, check_uncoupled, linearise
from poster_jax.jacobian._penalty import (
    Penalty,
    check_probing,
    draw_probes,
    from_probes,
    squared_norms,
    without_probes,
)

__all__ = ["jacobian_norm_penalty", "off_diagonal_penalty"]


def jacobian_norm_penalty(
    apply_fn: ApplyFn,
    params: Params,
    x: Any,
    key: PRNGKey | None = None,
    *,
    method: str = "hutchinson",
    num_projections: int = 1,
) -> Penalty:
    """How strongly a network's outputs react to its inputs: `(1/2) ||J||_F^2`, mean over a batch.

    Added to the loss it makes a network robust to small perturbations. One random projection is
    enough in training: its gradient is unbiased, and a batch averages its noise.

    Args:
      apply_fn: `apply_fn(params, x) -> outputs`, a batch (B, ...) to a batch (B, ...), each example
        by itself (batch norm in evaluation mode).
      params: any pytree.
      x: (B, ...) floats.
      key: PRNG key of the projections; not needed by "exact".
      method: "hutchinson", random projections of the outputs, each example its own, at the cost of
        one transposed derivative each; or "exact", one derivative for each output or each input,
        whichever are fewer, which holds B m n numbers.
      num_projections: of the random ones; at least 2 tell the standard error.

    Returns:
      Penalty: value scalar, per_example (B,), standard_error scalar, of the outputs' dtype.

    Raises:
      ValueError: params and x that do not fit, an unknown method, num_projections below 1, or a
        network that couples its examples (seen where values can be read, so not under `jit`).
      TypeError: apply_fn is no function, x no float array, key is missing or no key.

    Source: Hoffman, Roberts, Yaida 2019 (arXiv 1908.02729), section 2; the authors' code
      (facebookresearch/jacobian_regularizer) has n_proj = 1 and weights of 0.01 and 0.1.

    Example:
      >>> apply_fn = lambda w, x: x @ w
      >>> w, x = 2 * jnp.eye(3), jnp.ones((4, 3))
      >>> float(jacobian_norm_penalty(apply_fn, w, x, method="exact").value)
      6.0
    """
    check_choice("method", method, ("hutchinson", "exact"))
    check_count("num_projections", num_projections, hint="The standard error needs at least 2.")
    network = _uncoupled(apply_fn, params, x, key, method)
    if method == "exact":
        return without_probes(jnp.sum(_explicit(network) ** 2, axis=(1, 2)) / 2)
    # Radius sqrt(m): the factor m of unit vectors is in them.
    projections = draw_probes(key, num_projections, network.h, "sphere")
    return from_probes(squared_norms(jax.vmap(network.vjp)(projections)) / 2, coupled=False)


def off_diagonal_penalty(
    apply_fn: ApplyFn,
    params: Params,
    x: Any,
    key: PRNGKey | None = None,
    *,
    method: str = "probes",
    num_probes: int = 2,
) -> Penalty:
    """How far inputs are from acting at right angles: `2 (||J'J||_F^2 - sum_i (J'J)_ii^2)`.

    Zero when the columns of J are orthogonal, whatever their lengths: each latent variable of a
    generator then changes the output in its own direction (disentanglement).

    Args:
      apply_fn: as in `jacobian_norm_penalty`; in the paper a generator from its latent variables.
      params: any pytree.
      x: (B, ...) floats, n numbers an example.
      key: PRNG key of the probes; not needed by "exact".
      method: "probes", the unbiased variance of |J v|^2 over random signs v, each example its
        own, at the cost of one derivative along v each; or "exact", which holds B m n numbers.
      num_probes: of the random ones, at least 2; from 3 on they tell a standard error, by leaving
        one out at a time (the jackknife, which errs upwards for few).

    Returns:
      Penalty, as `jacobian_norm_penalty`; the standard error is infinite for 2 probes.

    Raises:
      ValueError, TypeError: as `jacobian_norm_penalty`; num_probes below 2.

    Source: Wei et al. 2021 (ICCV, arXiv 2108.07668). Differs from the authors' code
      (csyxwei/OroJaR): derivatives are exact, not differences at distance 0.1, and the batch is
      averaged, not its maximum taken.

    Example:
      >>> apply_fn = lambda w, x: x @ w
      >>> w = jnp.array([[1.0, 1.0], [0.0, 2.0]])  # J'J = [[2, 2], [2, 4]]
      >>> float(off_diagonal_penalty(apply_fn, w, jnp.ones((4, 2)), method="exact").value)
      16.0
    """
    check_choice("method", method, ("probes", "exact"))
    check_count("num_probes", num_probes, minimum=2, hint="A variance needs 2, its error 3.")
    network = _uncoupled(apply_fn, params, x, key, method)
    if method == "exact":
        return without_probes(2 * _off_diagonal_square(_explicit(network)))
    probes = draw_probes(key, num_probes, network.x, "rademacher")
    values = squared_norms(jax.vmap(network.jvp)(probes))
    deviations = (values - values.mean(axis=0)) ** 2
    per_example = deviations.sum(axis=0) / (num_probes - 1)
    return Penalty(per_example.mean(), per_example, _jackknife(deviations))


def _uncoupled(apply_fn: Any, params: Any, x: Any, key: Any, method: str) -> Linearised:
    """The network at x, where each example has a Jacobian of its own, and a key if need be."""
    if method != "exact":
        check_probing(key, 1, "sphere")
    network = linearise(apply_fn, params, x)
    check_uncoupled(network)
    return network


def _explicit(network: Linearised) -> Array:
    """J of every example, (B, m, n), from min(m, n) products with unit vectors."""
    size, m, n = len(network.x), network.num_outputs, network.num_inputs
    space, product = (network.h, network.vjp) if m <= n else (network.x, network.jvp)
    units = jnp.eye(min(m, n), dtype=space.dtype).reshape(-1, 1, *space.shape[1:])
    found = jax.vmap(lambda unit: product(jnp.broadcast_to(unit, space.shape)))(units)
    return jnp.moveaxis(found.reshape(len(units), size, -1), 0, 1 if m <= n else 2)


def _off_diagonal_square(J: Array) -> Array:
    """(B,) sum over i != j of (J'J)_ij^2."""
    m, n = J.shape[1:]
    if n <= m:
        gram = jnp.einsum("bki,bkj->bij", J, J, precision="highest")
        return jnp.sum((gram * (1 - jnp.eye(n, dtype=J.dtype))) ** 2, axis=(1, 2))
    # J'J and JJ' have the same norm, and m m numbers are fewer.
    gram = jnp.einsum("bik,bjk->bij", J, J, precision="highest")
    return jnp.sum(gram**2, axis=(1, 2)) - jnp.sum(jnp.sum(J**2, axis=1) ** 2, axis=1)


def _jackknife(deviations: Array) -> Array:
    """Standard error of the mean of B variances, from the squared deviations (K, B) of K samples.

    Without sample k the sum of squares is less by K / (K - 1) times its deviation. The examples'
    probes are independent, so that their B squared errors add.
    """
    num, size = deviations.shape
    if num == 2:
        return jnp.full((), jnp.inf, deviations.dtype)
    fixed = jax.lax.stop_gradient(deviations)  # sqrt has no derivative at 0, and nobody needs one
    spread = jnp.sum((fixed - fixed.mean(axis=0)) ** 2)
    return jnp.sqrt(spread * num / (num - 1)) / ((num - 2) * size)
