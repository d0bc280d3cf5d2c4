"""Norms that flatness is compared with: of the weights, and of the outputs they make."""

from functools import partial

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_batch, check_count, check_loss, check_params
from poster_jax.core.typing import Array, Batch, Float, Int, LossFn, Params, Scalar

__all__ = ["fisher_rao_norm", "fisher_rao_norm_of_params", "squared_norm"]


def squared_norm(params: Params) -> Scalar:
    """How long the weights are: the sum of squares of all leaves.

    Args:
      params: any pytree of floating point arrays; one layer's is `squared_norm(kernel)`.

    Returns:
      Scalar.

    Raises:
      ValueError, TypeError: params hold no floating point array, or one that is not finite.

    Source: Petzka et al. 2021 (arXiv 2001.00939), there "weight norm".
      Caution: changes under every rescaling that keeps the function.

    Example:
      >>> float(squared_norm({"w": jnp.array([3.0, 4.0])}))
      25.0
    """
    check_params(params)
    return jnp.asarray(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params)))


def fisher_rao_norm(
    logits: Float[Array, "examples classes"], labels: Int[Array, "examples"], *, num_layers: int
) -> Scalar:
    r"""Fisher-Rao norm of a ReLU network without biases, from its logits alone.

    $$\|\theta\|_{fr}^2 = \frac{K^2}{N} \sum_i (\langle p_i, z_i\rangle - z_{i, y_i})^2,$$

    p the softmax of the logits z and K the number of weight layers: a network of K layers without
    biases is homogeneous of degree K in its weights, so that <theta, d loss> = K <z, p - e_y>.

    Args:
      logits: (examples, classes).
      labels: integer (examples,).
      num_layers: K, the number of weight layers; 5 for LeNet5.

    Returns:
      Scalar.

    Raises:
      ValueError: shapes that do not fit, no examples, values that are not finite, num_layers < 1.

    Source: Liang et al. 2019 (arXiv 1711.01530), theorem 3.1 and its corollary for cross-entropy,
      with L hidden layers and L + 1 = K. Caution: the code of Petzka et al. 2021 takes 5 + 1 for
      LeNet5, which has 5 weight layers; the factor is the same for every network of one shape, so
      that no correlation sees it. For networks with biases see `fisher_rao_norm_of_params`.

    Example:
      >>> z, y = jnp.array([[2.0, 0.0], [0.0, 0.0]]), jnp.array([0, 1])
      >>> round(float(fisher_rao_norm(z, y, num_layers=3)), 4)
      0.5057
    """
    check_count("num_layers", num_layers)
    check_batch((logits, labels), "(logits, labels)")
    if logits.ndim != 2 or labels.ndim != 1:
        raise ValueError(
            "logits must have shape (examples, classes) and labels (examples,), got "
            f"{logits.shape} and {labels.shape}."
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, got {labels.dtype}.")
    expected = jnp.sum(jax.nn.softmax(logits) * logits, axis=1)
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return num_layers * jnp.sqrt(jnp.mean(jnp.square(expected - own)))


def fisher_rao_norm_of_params(loss_fn: LossFn, params: Params, batch: Batch) -> Scalar:
    r"""Fisher-Rao norm of any network.

    $$\|\theta\|_{fr}^2 = \frac1N \sum_i \langle\theta, \nabla_\theta \ell_i\rangle^2$$

    The length of the weights in the metric of the empirical Fisher matrix. One Jacobian-vector
    product of the per-example losses in the direction of the weights themselves; biases,
    convolutions and normalisation layers are allowed.

    Args:
      loss_fn: `loss_fn(params, batch)`, a mean over examples; called with batches of one example.
      params: pytree of the network.
      batch: pytree with a leading example axis.

    Returns:
      Scalar.

    Raises:
      ValueError, TypeError: a loss that is no scalar, an empty batch, values that are not finite.

    Source: Liang et al. 2019 (arXiv 1711.01530), definition 2. Caution: a loss with a weight decay
      term counts that term too.

    Example:
      >>> def loss_fn(params, batch): return jnp.mean(batch * params["w"])
      >>> float(fisher_rao_norm_of_params(loss_fn, {"w": jnp.float32(2.0)}, jnp.array([3.0, -3.0])))
      6.0
    """
    check_loss(loss_fn, params, batch)
    return _fisher_rao_norm_of_params(loss_fn, params, batch)


@partial(jax.jit, static_argnums=0)
def _fisher_rao_norm_of_params(loss_fn: LossFn, params: Params, batch: Batch) -> Array:
    def losses(params: Params) -> Array:
        single = jax.tree.map(lambda leaf: jnp.asarray(leaf)[:, None], batch)
        return jax.vmap(loss_fn, in_axes=(None, 0))(params, single)

    _, along = jax.jvp(losses, (params,), (params,))
    return jnp.sqrt(jnp.mean(jnp.square(along)))
