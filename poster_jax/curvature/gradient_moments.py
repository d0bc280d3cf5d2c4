"""Second moments of per-example gradients: the empirical Fisher, and the Fisher by sampled labels.

`(1/N) sum_i g_i <g_i, v>` needs no per-example gradient in memory: the derivative of the vector of
the N losses along v gives all `<g_i, v>` at once, and its transpose sums the `g_i` with these as
weights.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from poster_jax.core.batching import map_over_batch
from poster_jax.core.checks import check_count, check_key, check_loss
from poster_jax.core.typing import ApplyFn, Batch, LossFn, Params, PRNGKey
from poster_jax.curvature.gauss_newton import check_logits, check_pair
from poster_jax.curvature.operator import LinearOperator, make_operator

__all__ = ["empirical_fisher_operator", "sampled_fisher_operator"]


def empirical_fisher_operator(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    *,
    microbatch: int | None = None,
    mesh: Mesh | None = None,
) -> LinearOperator:
    """The second moment of the gradients of single examples: `v -> (1/N) sum_i g_i <g_i, v>`.

    Caution: it uses the labels of the data, not of the model, and is neither the Fisher nor near
    the Hessian away from a perfect fit (Kunstner, Hennig, Balles 2019).

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`, a mean over the examples; it is evaluated on
        batches of one.
      params: any pytree of floating point arrays.
      batch: pytree whose leaves share a leading axis of N examples.
      microbatch: examples taken at once (memory); None takes all.
      mesh: spreads the examples over the devices of its axis "data".

    Returns:
      The operator on vectors like `params`; positive semi-definite, rank at most N.

    Raises:
      ValueError, TypeError: as `hessian_operator`.

    Source: Kunstner, Hennig, Balles 2019, "Limitations of the empirical Fisher approximation",
      NeurIPS, equation 3.

    Example:
      >>> loss_fn = lambda w, x: jnp.mean(x * w)  # the gradient of example x is x
      >>> op = empirical_fisher_operator(loss_fn, jnp.ones(()), jnp.array([1.0, 3.0]))
      >>> float(op(jnp.ones(())))
      5.0
    """
    check_loss(loss_fn, params, batch)
    return make_operator(
        loss_fn, _linearize_losses, params, batch, microbatch=microbatch, mesh=mesh
    )


def sampled_fisher_operator(
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    key: PRNGKey,
    *,
    num_samples: int = 1,
    microbatch: int | None = None,
    mesh: Mesh | None = None,
) -> LinearOperator:
    """The Fisher information of a classifier with labels drawn from the model itself.

    An unbiased estimate of `fisher_operator`, of rank at most N * num_samples, as the
    approximations in the literature compute it; the exact one costs no more here.

    Args:
      apply_fn: `apply_fn(params, x) -> logits (examples, classes)`, in evaluation mode.
      params: any pytree of floating point arrays.
      batch: the pair `(x, y)`; the labels have no part in it.
      key: PRNG key of the drawn labels.
      num_samples: labels drawn for each example.
      microbatch: drawn examples taken at once (memory), of N * num_samples; None takes all.
      mesh: spreads the drawn examples over the devices of its axis "data".

    Returns:
      The operator on vectors like `params`; positive semi-definite.

    Raises:
      ValueError: as `fisher_operator`; num_samples below 1.
      TypeError: apply_fn is no function or cannot be hashed; key is no PRNG key.

    Source: Martens 2020, "New insights and perspectives on the natural gradient method", JMLR 21.

    Example:
      >>> apply_fn = lambda w, x: x @ w
      >>> batch = (jnp.ones((4, 2)), jnp.zeros(4, int))
      >>> op = sampled_fisher_operator(apply_fn, jnp.zeros((2, 3)), batch, jax.random.key(0))
      >>> op(jnp.ones((2, 3))).shape
      (2, 3)
    """
    check_key("key", key)
    check_count("num_samples", num_samples)
    x, _ = check_pair(batch)
    check_logits(apply_fn, params, x)
    logits = map_over_batch(lambda x: apply_fn(params, x), x, microbatch=microbatch)
    x, logits = jax.tree.map(lambda leaf: jnp.repeat(leaf, num_samples, axis=0), (x, logits))
    drawn = (x, jax.random.categorical(key, logits))
    loss_fn = _CrossEntropy(apply_fn)
    return make_operator(
        loss_fn, _linearize_losses, params, drawn, microbatch=microbatch, mesh=mesh
    )


@dataclasses.dataclass(frozen=True)
class _CrossEntropy:
    """A class, not a closure: two of the same `apply_fn` are equal, and compile once."""

    apply_fn: ApplyFn

    def __call__(self, params: Params, batch: Batch) -> Any:
        x, labels = batch
        logits = self.apply_fn(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _linearize_losses(loss_fn: LossFn, params: Params, batch: Batch) -> Callable[[Params], Params]:
    def losses(p: Params) -> Any:
        return jax.vmap(lambda one: loss_fn(p, jax.tree.map(lambda leaf: leaf[None], one)))(batch)

    values, push = jax.linearize(losses, params)
    pull = jax.linear_transpose(push, params)
    return lambda vector: pull(push(vector) / len(values))[0]
