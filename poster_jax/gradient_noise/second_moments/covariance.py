"""The covariance of the gradients of single examples, through products only.

    Sigma v = (1/N) sum_i (g_i - gbar) <g_i - gbar, v>

No g_i is ever held: the derivative of the N losses along v gives all <g_i, v> at once, and its
transpose sums the g_i with these as weights. Subtracting the linear function <gbar, theta> from
every loss makes that the centred sum, microbatch by microbatch, without cancellation between the
second moment and gbar gbar^T.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from poster_jax.core.batching import mean_over_batch
from poster_jax.core.paths import get_path, restrict
from poster_jax.core.typing import Batch, LossFn, Params
from poster_jax.curvature import LinearOperator, empirical_fisher_operator
from poster_jax.gradient_noise._separable import check_separable

__all__ = ["NoiseCovariance", "noise_covariance_operator"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NoiseCovariance(LinearOperator):
    """A LinearOperator that is the covariance of per-example gradients, and knows their mean.

    Attributes:
      mean: gbar, the gradient of the mean loss, a pytree like `params`.
    """

    mean: Params = ()

    @property
    def restricted_mean(self) -> Params:
        """The part of `mean` on which the operator acts, a pytree like `like`."""
        return self.mean if self.path is None else get_path(self.mean, self.path)

    def _linearize(self, batch: Batch) -> Callable[[Params], Params]:
        def centred(params: Params, batch: Batch) -> Any:
            return self.fn(params, batch) - _inner(self.mean, params)

        if self.path is None:
            return self.linearizer(centred, self.params, batch)
        return self.linearizer(*restrict(centred, self.params, self.path), batch)


def noise_covariance_operator(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    *,
    microbatch: int | None = None,
    mesh: Mesh | None = None,
) -> NoiseCovariance:
    """How gradients of single examples scatter: `v -> Sigma v`, for every solver of `curvature`.

    Its top eigenvectors are `curvature.top_eigenpairs(op, key, k=10)`, its density
    `curvature.spectral_density(op, key)`; a mini-batch drawn with replacement has Sigma / b.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`, a mean over the examples; it is evaluated on
        batches of one.
      params: pytree of floating point arrays.
      batch: pytree whose leaves share a leading axis of N examples.
      microbatch: examples taken at once (memory); None takes all.
      mesh: spreads the examples over the devices of its axis "data".

    Returns:
      The operator on vectors like `params`; positive semi-definite, rank at most N - 1. Making it
      costs one gradient, a product one derivative along a vector and one transposed.

    Raises:
      ValueError: a loss that couples its examples (batch norm in training mode) or sums over them;
        params or batch that do not fit it; microbatch below 1.
      TypeError: loss_fn is no function or cannot be hashed.

    Source: the definition of Sigma; Zhu et al. 2019 (arXiv 1803.00195) for what it is asked. The
      form is this library's.

    Example:
      >>> loss_fn = lambda w, x: jnp.mean(x * w)  # the gradient of example x is x
      >>> op = noise_covariance_operator(loss_fn, jnp.ones(()), jnp.array([1.0, 3.0]))
      >>> float(op(jnp.ones(()))), float(op.mean)
      (1.0, 2.0)
    """
    check_separable(loss_fn, params, batch)
    second = empirical_fisher_operator(loss_fn, params, batch, microbatch=microbatch, mesh=mesh)
    mean = mean_gradient(loss_fn, second.params, second.batch, microbatch=microbatch, mesh=mesh)
    fields = {f.name: getattr(second, f.name) for f in dataclasses.fields(LinearOperator)}
    return NoiseCovariance(**fields, mean=mean)


@partial(jax.jit, static_argnums=0, static_argnames=("microbatch", "mesh"))
def mean_gradient(
    loss_fn: LossFn, params: Params, batch: Batch, *, microbatch: int | None, mesh: Mesh | None
) -> Params:
    """The gradient of the mean loss, a microbatch at a time."""
    gradient = lambda part: jax.grad(loss_fn)(params, part)  # noqa: E731
    return mean_over_batch(gradient, batch, microbatch=microbatch, mesh=mesh)


def _inner(a: Params, b: Params) -> Any:
    products = jax.tree.map(lambda x, y: jnp.vdot(x, y, precision="highest"), a, b)
    return sum(jax.tree.leaves(products))
