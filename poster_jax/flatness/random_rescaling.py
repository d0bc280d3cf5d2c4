"""What random rescalings that keep the function do to a measure of it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_callable, check_count, check_key
from poster_jax.core.typing import Array, Float, Params, PRNGKey
from poster_jax.flatness.rescaling import rescale_layers

__all__ = ["Rescaled", "measure_under_rescaling", "random_layer_factors"]


class Rescaled(NamedTuple):
    """A measure before and after rescalings.

    Attributes:
      before: pytree of `measure_fn(params)`.
      after: the same with a leading axis, one entry a rescaling.
      factors: (rescalings, layers).
    """

    before: Any
    after: Any
    factors: Float[Array, "rescalings layers"]


def random_layer_factors(
    key: PRNGKey, num_layers: int, *, largest: float = 1e3
) -> Float[Array, "layers"]:
    """Random factors for `rescale_layers`: positive, spread over decades, with product 1.

    Each lies in [1 / largest, largest]; for two layers the logarithm is uniform, and for more each
    layer in turn takes what the others can still make up for, in random order.

    Args:
      key: PRNG key.
      num_layers: how many, at least 2.
      largest: the largest factor, above 1.

    Returns:
      Float (layers,).

    Raises:
      ValueError: fewer than 2 layers, largest not above 1.

    Source: this library; Petzka et al. 2019 (arXiv 1912.00058) rescale two layers by 5 to 25.

    Example:
      >>> factors = random_layer_factors(jax.random.key(0), 3)
      >>> factors.shape, round(float(jnp.prod(factors)), 3)
      ((3,), 1.0)
    """
    check_key("key", key)
    check_count("num_layers", num_layers, minimum=2)
    if not largest > 1:
        raise ValueError(f"largest must be above 1, got {largest}.")
    bound = jnp.log(jnp.asarray(largest, float))
    order_key, *keys = jax.random.split(key, num_layers)
    logs, total = [], jnp.zeros_like(bound)
    for index, draw_key in enumerate(keys):
        reach = (num_layers - 1 - index) * bound
        low, high = jnp.maximum(-bound, -total - reach), jnp.minimum(bound, -total + reach)
        logs.append(jax.random.uniform(draw_key, (), bound.dtype, low, high))
        total = total + logs[-1]
    logs.append(-total)
    return jnp.exp(jax.random.permutation(order_key, jnp.stack(logs)))


def measure_under_rescaling(
    measure_fn: Callable[[Params], Any],
    params: Params,
    key: PRNGKey,
    *,
    layers: Sequence[str],
    biases: Sequence[str | None] | None = None,
    num_rescalings: int = 100,
    largest: float = 1e3,
    at_once: int = 10,
    neuron_axis: int = -1,
    input_axis: int | None = None,
) -> Rescaled:
    """What a measure says of one network and of many rescalings of it, all the same function.

    Args:
      measure_fn: `measure_fn(params) -> pytree of arrays`; a sampled measure must draw the same
        probes on every call, or its noise is taken for change.
      params: pytree of a network with positively homogeneous activations.
      key: PRNG key of the factors.
      layers: as in `rescale_layers`: paths of the kernels in the order in which the data meet them.
      biases: as in `rescale_layers`.
      num_rescalings: how many.
      largest: largest factor of a layer, as in `random_layer_factors`.
      at_once: rescalings measured side by side (memory).
      neuron_axis: as in `rescale_layers`.
      input_axis: as in `rescale_layers`.

    Returns:
      Rescaled(before, after, factors).

    Raises:
      ValueError, TypeError: as `rescale_layers` and `random_layer_factors`; counts below 1.

    Source: Petzka et al. 2019 (arXiv 1912.00058), the experiment on reparameterisation.

    Example:
      >>> params = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 1))}
      >>> found = measure_under_rescaling(lambda p: jnp.sum(p["a"] @ p["b"]), params,
      ...     jax.random.key(0), layers=["a", "b"], num_rescalings=4)
      >>> float(found.before), [round(float(x), 3) for x in found.after]
      (6.0, [6.0, 6.0, 6.0, 6.0])
    """
    check_callable("measure_fn", measure_fn)
    check_key("key", key)
    check_count("num_rescalings", num_rescalings)
    check_count("at_once", at_once)
    draw = jax.vmap(lambda key: random_layer_factors(key, len(layers), largest=largest))
    factors = draw(jax.random.split(key, num_rescalings))

    def measured(factors: Array) -> Any:
        moved = rescale_layers(
            params,
            factors,
            layers=layers,
            biases=biases,
            neuron_axis=neuron_axis,
            input_axis=input_axis,
        )
        return measure_fn(moved)

    # The network as it is goes along as the rescaling by 1, and fills up the last group: one loop
    # over full groups is one program, where `before` and a rest would be compiled by themselves.
    num_groups = -(-(num_rescalings + 1) // min(at_once, num_rescalings + 1))
    group = -(-(num_rescalings + 1) // num_groups)
    ones = jnp.ones((num_groups * group - num_rescalings, len(layers)), factors.dtype)
    all_of_them = jnp.concatenate([factors, ones]).reshape(num_groups, group, len(layers))
    out = jax.lax.map(jax.vmap(measured), all_of_them)
    out = jax.tree.map(lambda a: a.reshape(num_groups * group, *a.shape[2:]), out)
    pick = lambda rows: jax.tree.map(lambda a: a[rows], out)  # noqa: E731
    return Rescaled(pick(-1), pick(slice(num_rescalings)), factors)
