"""Sharpness: how much the loss rises when weights move: at worst, up the gradient, on average.

None of the three survives a rescaling of the layers that keeps the function; they are here to be
compared with the measures that do.
"""

from functools import partial

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_count, check_key, check_loss, check_positive
from poster_jax.core.typing import Array, Batch, Estimate, LossFn, Params, PRNGKey, Scalar
from poster_jax.flatness.sampling import estimate_from_samples, normal_like

__all__ = ["expected_sharpness", "keskar_sharpness", "sam_sharpness"]


def keskar_sharpness(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    key: PRNGKey,
    *,
    radius: float = 1e-3,
    num_steps: int = 20,
    num_starts: int = 1,
) -> Scalar:
    r"""By how many per cent the loss rises at worst in a small box around the weights.

    $$100\,\frac{\max_{|v_i| \le \epsilon(|w_i| + 1)} E(w + v) - E(w)}{1 + E(w)}$$

    The maximum is sought by projected ascent along the sign of the gradient, from random points of
    the box; what is returned was reached, so it is a lower bound of the maximum.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`.
      params: pytree of the network.
      batch: pytree with a leading example axis.
      key: PRNG key of the starting points (at a minimum the gradient shows no way out).
      radius: epsilon; Keskar et al. use 1e-3 and 5e-4.
      num_steps: ascent steps from each start, one gradient each.
      num_starts: random starting points; the best counts.

    Returns:
      Scalar, in per cent; never below 0, as v = 0 lies in the box.

    Raises:
      ValueError, TypeError: radius not positive, counts below 1, bad params, batch or loss.

    Source: Keskar et al. 2017 (arXiv 1609.04836), metric 2.1 with A the identity; they maximise by
      L-BFGS-B, which leaves the compiled program and cannot be vmapped.

    Example:
      >>> def loss_fn(params, batch): return jnp.mean(batch) * jnp.sum(params**2)
      >>> args = loss_fn, jnp.zeros(2), jnp.ones(4), jax.random.key(0)
      >>> round(float(keskar_sharpness(*args, radius=0.1)), 2)  # 100 * 2 * 0.1**2
      2.0
    """
    check_loss(loss_fn, params, batch)
    check_key("key", key)
    check_positive("radius", radius)
    check_count("num_steps", num_steps)
    check_count("num_starts", num_starts)
    return _keskar_sharpness(loss_fn, params, batch, key, radius, num_steps, num_starts)


@partial(jax.jit, static_argnums=(0, 5, 6))
def _keskar_sharpness(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    key: PRNGKey,
    radius: Array,
    num_steps: int,
    num_starts: int,
) -> Array:
    box = jax.tree.map(lambda w: radius * (jnp.abs(w) + 1), params)
    value_and_grad = jax.value_and_grad(lambda v: loss_fn(_add(params, v), batch))
    # The steps add up to more than the box's diameter, and their last ones are small.
    steps = jnp.linspace(1.0, 0.1, num_steps) * (4.0 / num_steps)
    loss = loss_fn(params, batch)

    def ascend(key: PRNGKey) -> Array:
        start = jax.tree.map(lambda b, n: b * jnp.tanh(n), box, normal_like(key, params))

        def step(carry: tuple, size: Array) -> tuple[tuple, None]:
            best, v = carry
            loss, gradient = value_and_grad(v)
            v = jax.tree.map(
                lambda v, b, g: jnp.clip(v + size.astype(b.dtype) * b * jnp.sign(g), -b, b),
                v,
                box,
                gradient,
            )
            return (jnp.maximum(best, loss), v), None

        (best, v), _ = jax.lax.scan(step, (loss, start), steps)
        best = jnp.maximum(best, loss_fn(_add(params, v), batch))
        return 100 * (best - loss) / (1 + loss)

    return jnp.max(jax.lax.map(ascend, jax.random.split(key, num_starts)))


def sam_sharpness(loss_fn: LossFn, params: Params, batch: Batch, *, radius: float = 0.05) -> Scalar:
    r"""What one step of length `radius` up the gradient adds to the loss.

    $$E\!\left(w + \rho \frac{\nabla E}{\|\nabla E\|}\right) - E(w)$$

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`.
      params: pytree of the network.
      batch: pytree with a leading example axis.
      radius: rho, the Euclidean length of the step.

    Returns:
      Scalar; 0 where the gradient vanishes. Add the loss for the loss that SAM minimises.

    Raises:
      ValueError, TypeError: radius not positive, bad params, batch or loss.

    Source: Foret et al. 2021 (arXiv 2010.01412), equation 2.

    Example:
      >>> def loss_fn(params, batch): return jnp.mean(batch) * jnp.sum(params)
      >>> round(float(sam_sharpness(loss_fn, jnp.zeros(4), jnp.ones(3), radius=0.5)), 4)
      1.0
    """
    check_loss(loss_fn, params, batch)
    check_positive("radius", radius)
    return _sam_sharpness(loss_fn, params, batch, radius)


@partial(jax.jit, static_argnums=0)
def _sam_sharpness(loss_fn: LossFn, params: Params, batch: Batch, radius: Array) -> Array:
    loss, gradient = jax.value_and_grad(loss_fn)(params, batch)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradient)))
    scale = jnp.where(norm > 0, radius / jnp.where(norm > 0, norm, 1), 0)
    step = jax.tree.map(lambda g: scale.astype(g.dtype) * g, gradient)
    return loss_fn(_add(params, step), batch) - loss


def expected_sharpness(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    key: PRNGKey,
    *,
    sigma: float,
    num_samples: int,
) -> Estimate:
    r"""How much the loss rises on average under Gaussian noise on the weights.

    $$\mathbb E_{\epsilon \sim N(0, I)}\, E(w + \sigma\epsilon) - E(w)
      = \tfrac{\sigma^2}{2} \operatorname{Tr} H + O(\sigma^4)$$

    Each sample is the mean of the two losses at +epsilon and -epsilon, so that the slope of the
    loss at a point that is no exact minimum adds no noise.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`.
      params: pytree of the network.
      batch: pytree with a leading example axis.
      key: PRNG key.
      sigma: standard deviation of the noise on every weight.
      num_samples: pairs drawn; each costs two evaluations of the loss.

    Returns:
      Estimate of the rise.

    Raises:
      ValueError, TypeError: sigma not positive, num_samples below 1, bad params, batch or loss.

    Source: Neyshabur et al. 2017 (arXiv 1706.08947).

    Example:
      >>> def loss_fn(params, batch): return jnp.mean(batch) * params**2
      >>> args = loss_fn, jnp.float32(0.0), jnp.ones(3), jax.random.key(0)
      >>> rise = expected_sharpness(*args, sigma=0.1, num_samples=4000)
      >>> round(float(rise.mean), 3)
      0.01
    """
    check_loss(loss_fn, params, batch)
    check_key("key", key)
    check_positive("sigma", sigma)
    check_count("num_samples", num_samples, hint="The standard error needs at least 2.")
    return _expected_sharpness(loss_fn, params, batch, key, sigma, num_samples)


@partial(jax.jit, static_argnums=(0, 5))
def _expected_sharpness(
    loss_fn: LossFn, params: Params, batch: Batch, key: PRNGKey, sigma: Array, num_samples: int
) -> Estimate:
    loss = loss_fn(params, batch)

    def rise(key: PRNGKey) -> Array:
        noise = jax.tree.map(lambda n: sigma * n, normal_like(key, params))
        up = loss_fn(_add(params, noise), batch)
        down = loss_fn(_add(params, jax.tree.map(jnp.negative, noise)), batch)
        return (up + down) / 2 - loss

    return estimate_from_samples(jax.lax.map(rise, jax.random.split(key, num_samples)))


def _add(params: Params, step: Params) -> Params:
    return jax.tree.map(jnp.add, params, step)
