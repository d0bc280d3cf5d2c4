"""How large a mini-batch must be before its gradient is more signal than noise."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from poster_jax.core.batching import mean_over_batch
from poster_jax.core.checks import check_count
from poster_jax.core.devices import on_mesh
from poster_jax.core.typing import Array, Batch, Estimate, Float, LossFn, Params
from poster_jax.gradient_noise._ratios import of_means
from poster_jax.gradient_noise._separable import check_separable
from poster_jax.gradient_noise.planning import budget
from poster_jax.gradient_noise.second_moments.covariance import mean_gradient

__all__ = ["NoiseScale", "noise_scale", "noise_scale_from_norms"]


class NoiseScale(NamedTuple):
    """The simple noise scale and what it is made of, each with its standard error.

    Attributes:
      simple: Estimate of B_simple = tr Sigma / |gbar|^2, a batch size.
      trace: Estimate of tr Sigma.
      squared_norm: Estimate of |gbar|^2.
    """

    simple: Estimate
    trace: Estimate
    squared_norm: Estimate


def noise_scale(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    *,
    microbatch: int | None = None,
    mesh: Mesh | None = None,
) -> NoiseScale:
    """The noise scale of these N examples, exactly, from the gradient of each of them.

    The gradients are centred before they are squared, so that nothing cancels: one gradient of the
    whole, then one of each example.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`, a mean over the examples; it is evaluated on
        batches of one.
      params: pytree of floating point arrays, P numbers.
      batch: pytree whose leaves share a leading axis of N examples.
      microbatch: examples whose gradients are held at once; None as in `plan_projections`.
      mesh: spreads the examples over the devices of its axis "data".

    Returns:
      NoiseScale of exact values: stderr 0, num_samples 0. It is that of the data given, as if they
      were the whole population; |gbar|^2 of a sample of N holds tr Sigma / N of noise itself.

    Raises:
      ValueError, TypeError: as `noise_covariance_operator`.

    Source: McCandlish, Kaplan, Amodei 2018 (arXiv 1812.06162), equation 2.9.

    Example:
      >>> loss_fn = lambda w, x: jnp.mean(x * w)  # the gradient of example x is x
      >>> found = noise_scale(loss_fn, jnp.ones(()), jnp.array([1.0, 3.0]))
      >>> float(found.trace.mean), float(found.squared_norm.mean), float(found.simple.mean)
      (1.0, 4.0, 0.25)
    """
    check_separable(loss_fn, params, batch)
    if microbatch is None:
        microbatch = max(1, budget() // sum(jnp.size(leaf) for leaf in jax.tree.leaves(params)))
    check_count("microbatch", microbatch)
    params, batch = jax.tree.map(jnp.asarray, (params, batch))
    if mesh is not None:
        params, batch = on_mesh((params, batch), mesh)
    return _noise_scale(loss_fn, params, batch, microbatch=microbatch, mesh=mesh)


@partial(jax.jit, static_argnums=0, static_argnames=("microbatch", "mesh"))
def _noise_scale(
    loss_fn: LossFn, params: Params, batch: Batch, *, microbatch: int, mesh: Mesh | None
) -> NoiseScale:
    mean = mean_gradient(loss_fn, params, batch, microbatch=microbatch, mesh=mesh)

    def scatter(part: Batch) -> Array:
        def of_one(one: Any) -> Array:
            gradient = jax.grad(loss_fn)(params, jax.tree.map(lambda a: a[None], one))
            return _squares(jax.tree.map(jnp.subtract, gradient, mean))

        return jax.vmap(of_one)(part).mean()

    trace = mean_over_batch(scatter, batch, microbatch=microbatch, mesh=mesh)
    squared_norm = _squares(mean)
    exact = lambda value: Estimate(value, jnp.zeros_like(value), jnp.int32(0))  # noqa: E731
    return NoiseScale(exact(trace / squared_norm), exact(trace), exact(squared_norm))


def noise_scale_from_norms(
    small: Float[Array, "draws"],
    large: Float[Array, "draws"],
    *,
    small_batch: int,
    large_batch: int,
) -> NoiseScale:
    """The noise scale from squared lengths of gradients at two batch sizes; nothing else is needed.

    `|G|^2 = (b2 |G2|^2 - b1 |G1|^2) / (b2 - b1)` and `S = (|G1|^2 - |G2|^2) / (1/b1 - 1/b2)` are
    unbiased; their ratio is not, and is taken once, of the means over all draws: a mean of ratios
    would be far off, since single values of |G|^2 are near zero or negative.

    Args:
      small: (draws,); squared lengths of gradients of batches of size b1, at one theta.
      large: (draws,); of batches of size b2. A draw may share its examples between both (a device's
        share and the whole batch): the pairing enters the standard error.
      small_batch: b1.
      large_batch: b2, above b1.

    Returns:
      NoiseScale; standard errors by the delta method, NaN for a single draw.

    Raises:
      ValueError: arrays of different or no length, b1 below 1 or not below b2.

    Source: McCandlish, Kaplan, Amodei 2018 (arXiv 1812.06162), appendix A.1. For batches drawn with
      replacement, or small against the data.

    Example:
      >>> found = noise_scale_from_norms(jnp.array([3.0, 5.0]), jnp.array([2.0, 2.0]),
      ...                                small_batch=1, large_batch=2)
      >>> float(found.trace.mean), float(found.squared_norm.mean)
      (4.0, 0.0)
    """
    check_count("small_batch", small_batch)
    check_count("large_batch", large_batch, minimum=small_batch + 1)
    small, large = jnp.asarray(small), jnp.asarray(large)
    if small.ndim != 1 or small.shape != large.shape or not small.size:
        raise ValueError(
            "small and large must hold one squared length a draw each, got the shapes "
            f"{small.shape} and {large.shape}."
        )
    squared_norm = (large_batch * large - small_batch * small) / (large_batch - small_batch)
    trace = (small - large) / (1 / small_batch - 1 / large_batch)
    draws = jnp.stack([trace, squared_norm], axis=1)
    return NoiseScale(
        of_means(lambda m: m[0] / m[1], draws),
        of_means(lambda m: m[0], draws),
        of_means(lambda m: m[1], draws),
    )


def _squares(tree: Any) -> Array:
    wide = lambda a: a.astype(jnp.promote_types(a.dtype, jnp.float32))  # noqa: E731
    return jnp.stack([jnp.sum(wide(leaf) ** 2) for leaf in jax.tree.leaves(tree)]).sum()
