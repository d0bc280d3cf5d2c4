"""Feature robustness: how much the loss rises when a layer's inputs are mixed among themselves."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_count, check_key, check_loss, check_positive
from poster_jax.core.linalg import qr
from poster_jax.core.paths import get_path, restrict
from poster_jax.core.typing import Array, Batch, Estimate, LossFn, Params, PRNGKey
from poster_jax.flatness.layout import as_kernel, as_matrix, check_kernel
from poster_jax.flatness.sampling import estimate_from_samples

__all__ = ["feature_robustness"]


def feature_robustness(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    key: PRNGKey,
    *,
    layer: str,
    delta: float,
    num_samples: int,
    neuron_axis: int = -1,
) -> Estimate:
    r"""How much the loss rises on average when features phi become phi + delta A phi.

    A is a random rotation or reflection of the m inputs, uniform over the orthogonal matrices. As
    W (phi + delta A phi) = (W + delta W A) phi, the features need not be known, and to second order

    $$\mathbb E_A\left[E(W + \delta W A)\right] - E(W) = \frac{\delta^2}{2m}\,\kappa^\phi_{Tr}(W):$$

    relative flatness is the robustness of the loss to changes of the features.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`.
      params: pytree of the network.
      batch: pytree with a leading example axis.
      key: PRNG key of the rotations.
      layer: path of the kernel; m is the number of its inputs, for a convolution the entries of the
        patch.
      delta: size of the change relative to the features.
      num_samples: rotations; each is used with both signs (A and -A are equally likely), so that
        the slope of the loss at a point that is no exact minimum adds no noise. Two evaluations of
        the loss and a QR decomposition (m, m) each.
      neuron_axis: axis of the kernel over its neurons, -1 or 0 as in `relative_flatness`.

    Returns:
      Estimate of the rise.

    Raises:
      ValueError: a path that names no kernel, delta not positive, num_samples below 1, bad params,
        batch or loss.
      TypeError: a wrong kind of argument.

    Source: Petzka et al. 2021 (arXiv 2001.00939), feature robustness; the average: this library.
      Caution: behind the layer a ReLU bends the loss at every kink that a change of size delta
      crosses, which no Hessian sees: compare with the right hand side at small delta, and mind that
      a difference of two float32 losses holds about 1e-7 of their size.

    Example:
      >>> def loss_fn(params, x): return 0.5 * jnp.mean(jnp.sum((x @ params["kernel"]) ** 2, 1))
      >>> params, x = {"kernel": jnp.ones((3, 2))}, jnp.eye(3)
      >>> args = (loss_fn, params, x, jax.random.key(0))
      >>> rise = feature_robustness(*args, layer="kernel", delta=0.1, num_samples=10)
      >>> round(float(rise.mean), 4)  # 0.1**2 / (2 * 3) * |W|^2 * mean |x|^2
      0.01
    """
    check_loss(loss_fn, params, batch)
    check_key("key", key)
    check_positive("delta", delta)
    check_count("num_samples", num_samples, hint="The standard error needs at least 2.")
    kernel = get_path(params, layer)
    check_kernel(f"layer {layer!r}", kernel, neuron_axis)
    return _feature_robustness(loss_fn, params, batch, key, delta, layer, num_samples, neuron_axis)


@partial(jax.jit, static_argnums=(0, 5, 6, 7))
def _feature_robustness(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    key: PRNGKey,
    delta: Array,
    layer: str,
    num_samples: int,
    neuron_axis: int,
) -> Estimate:
    kernel = get_path(params, layer)
    loss_of_layer, _ = restrict(loss_fn, params, layer)
    weights = as_matrix(kernel, neuron_axis)
    base = loss_fn(params, batch)

    def rise(key: PRNGKey) -> Array:
        rotation = _random_rotation(key, weights.shape[1], weights.dtype)
        step = delta * jnp.matmul(weights, rotation, precision="highest")
        step = as_kernel(step, kernel.shape, neuron_axis).astype(kernel.dtype)
        up, down = loss_of_layer(kernel + step, batch), loss_of_layer(kernel - step, batch)
        return (up + down) / 2 - base

    return estimate_from_samples(jax.lax.map(rise, jax.random.split(key, num_samples)))


def _random_rotation(key: PRNGKey, size: int, dtype: Any) -> Array:
    """Uniform over the orthogonal matrices: QR of normals, its signs fixed (Mezzadri 2007)."""
    q, r = qr(jax.random.normal(key, (size, size), dtype))
    return q * jnp.sign(jnp.diagonal(r))
