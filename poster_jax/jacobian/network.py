"""A penalty of every layer of a network, from the one forward pass that the loss needs anyway.

    total = 1/L sum_l 1/m_l (1/B sum_b R_l(x_lb)),      x_(l+1) = layer_l(params_l, x_l),

over the L selected layers; m_l is the number of outputs of one example. Dividing by m_l and L makes
one strength serve all widths and depths: a convention of this library, the poster's is unknown.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poster_jax.core.checks import (
    check_batch,
    check_callable,
    check_count,
    check_key,
    check_positive,
    num_examples,
)
from poster_jax.core.typing import Array, Batch, LossFn, Params, PRNGKey
from poster_jax.jacobian._layer import LayerFn, check_layer, linearise
from poster_jax.jacobian._penalty import Penalty
from poster_jax.jacobian._selection import Select, chosen_layers, layer_names
from poster_jax.jacobian.orthogonality import orthogonality_penalty

__all__ = [
    "NetworkPenalty",
    "StackedLayers",
    "layer_counts",
    "network_penalty",
    "regularised_loss",
]


class NetworkPenalty(NamedTuple):
    """The penalty of a network, layer by layer, and the network's outputs.

    Attributes:
      total: scalar, the mean of `per_layer`; what a loss adds.
      per_layer: (S,) of the S selected layers, first to last, each divided by its m_l.
      outputs: what the network gives for x, differentiable: the loss need not run it again.
      standard_error: scalar, of `total`, by the random probes; the layers' are independent.
    """

    total: Any
    per_layer: Any
    outputs: Any
    standard_error: Any


class StackedLayers(NamedTuple):
    """`num_layers` layers of one form; their params have a leading axis of that length.

    They run under `lax.scan`, so that compile time does not grow with depth. As a member of
    `layers` it counts as `num_layers` layers; called, it is their composition.

    Attributes:
      layer_fn: `layer_fn(params_l, x) -> h`, h shaped like x.
      num_layers: how many.
      name: of the stack, whose layers are then called "name/0", "name/1", ...; for `select`.

    Example:
      >>> deep = StackedLayers(lambda w, x: jnp.tanh(x @ w), 3)
      >>> deep(jnp.stack([jnp.eye(2)] * 3), jnp.zeros((5, 2))).shape
      (5, 2)
    """

    layer_fn: LayerFn
    num_layers: int
    name: str = ""

    def __call__(self, params: Params, x: Any) -> Any:
        """All layers, one after another."""
        return jax.lax.scan(lambda h, p: (self.layer_fn(p, h), None), x, params)[0]


def network_penalty(
    layers: Sequence[LayerFn | StackedLayers] | LayerFn,
    params: Sequence[Params] | Params,
    x: Any,
    key: PRNGKey | None = None,
    *,
    penalty: Callable[..., Penalty] = orthogonality_penalty,
    select: Select = "hidden",
    **options: Any,
) -> NetworkPenalty:
    """The mean over layers of a penalty of each, beside the outputs of the network.

    Equation: `total = 1/L sum_l value_l / m_l`, value_l a mean over the batch, m_l the outputs of
    one example of layer l: convolutions count positions and channels.

    Args:
      layers: tuple of `layer_fn(params_l, x) -> h`, composed first to last; `StackedLayers` for
        many of one form; or one function, which counts as one layer. Modules are cut into layers
        by `split_linen`, `split_nnx`, `split_equinox`.
      params: tuple of as many pytrees; for one function its params.
      x: (B, ...) floats, the inputs of the network.
      key: PRNG key; layer l draws from `fold_in(key, l)`. None for penalties that draw nothing.
      penalty: `penalty(layer_fn, params_l, x_l, key_l, **options) -> Penalty`. Those of this room
        reuse the linearisation of the forward pass; with `stop_gradient_input` (and noise) a layer
        is linearised anew, of which XLA merges what is equal.
      select: "hidden", layers from one hidden representation to the next (neither the first nor the
        last); "all"; a name or pattern ("Conv_*"), or a tuple of names and of numbers, from 0,
        negative ones from the end; or a function `select(number, name) -> bool`. `NamedLayer`s, as
        `split_linen` and its like make them, have names; others are named by their number. A name
        also selects what is below it: "Block_0" the layer "Block_0/Conv_1".
      **options: for the penalty, the same for all layers: `method="exact"`, `num_probes=4`, ...

    Returns:
      NetworkPenalty.

    Raises:
      ValueError: layers and params of different number, a select that names no layer or one that
        is not there, stacked layers that change the shape, and what the penalty raises.
      TypeError: a layer that is no function, a select of another kind; what the penalty raises.

    Source: Choe, Jeong, Carbonell 2019 (NeurIPS workshop SEDL) penalise every layer; the
      normalisation is this library's.

    Example:
      >>> layer = lambda w, x: x @ w
      >>> ws = (jnp.eye(3), 2 * jnp.eye(3), jnp.ones((3, 1)))
      >>> found = network_penalty((layer,) * 3, ws, jnp.ones((5, 3)), jax.random.key(0))
      >>> float(found.total), found.outputs.shape  # (4 - 1)^2 in each of 3 directions, over 3
      (9.0, (5, 1))
    """
    check_callable("penalty", penalty)
    if key is not None:
        check_key("key", key)
    if callable(layers) and not isinstance(layers, StackedLayers):
        layers, params, select = (layers,), (params,), "all"
    elif isinstance(layers, StackedLayers):
        layers, params = (layers,), (params,)
    lengths = layer_counts(layers, params)
    check_batch(x, "x")
    x = jnp.asarray(x)
    chosen = chosen_layers(select, layer_names(layers, lengths))
    keys = None
    if key is not None:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(sum(lengths)))

    def measured(layer_fn: LayerFn, params_l: Params, x: Any, key: Any) -> tuple[Any, Any]:
        layer = linearise(layer_fn, params_l, x)
        found = penalty(layer, params_l, layer.x, key, **options)
        pair = jnp.stack([found.value, jnp.asarray(found.standard_error, found.value.dtype)])
        return layer.h, pair / layer.num_outputs

    rows, first = [], 0
    for layer_fn, params_l, length in zip(layers, params, lengths, strict=True):
        for start, stop, wanted in _runs(chosen[first : first + length]):
            part = None if keys is None else keys[first + start : first + stop]
            if isinstance(layer_fn, StackedLayers):
                stack = StackedLayers(layer_fn.layer_fn, stop - start)
                x, row = _scan(stack, _slice(params_l, start, stop), x, part, wanted and measured)
            elif wanted:
                x, row = measured(layer_fn, params_l, x, None if part is None else part[0])
                row = row[None]
            else:
                x, row = layer_fn(params_l, x), None
            if row is not None:
                rows.append(row)
        first += length
    values, errors = jnp.concatenate(rows).T
    error = jnp.sqrt((errors**2).sum()) / len(values)
    return NetworkPenalty(values.mean(), values, x, jax.lax.stop_gradient(error))


def regularised_loss(
    loss_fn: LossFn,
    penalty: Callable[[Params, Batch, PRNGKey], Any],
    strength: float | Array | Callable[[Any], Any],
) -> Callable[..., Any]:
    """`loss_fn(params, batch) + strength * penalty(params, batch, key)` as one function.

    In `core.training` take `fit(stateful(lambda p, s, b, k: (loss(p, b, k), s)), ...)`; with a
    schedule let the model state count the steps, `lambda p, t, b, k: (loss(p, b, k, t), t + 1)`
    from `model_state=jnp.int32(0)`. A sweep is `jax.vmap(lambda s: fit(... regularised_loss(
    loss_fn, penalty, s) ...))(strengths)`.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`.
      penalty: `penalty(params, batch, key)`, a scalar, a Penalty or a NetworkPenalty.
      strength: at least 0, a number or a traced scalar; (S,) of them for a NetworkPenalty of S
        layers, each layer's own; or an optax schedule, a function of the step to either.

    Returns:
      `loss(params, batch, key=None, step=0) -> scalar`, for `jax.grad` and optax.

    Raises:
      ValueError: strength is negative or not finite; when called: strengths that are not as many as
        the layers of the penalty, or of a penalty that has none.
      TypeError: loss_fn or penalty is no function, strength neither number nor function.

    Source: this library.

    Example:
      >>> loss = regularised_loss(lambda w, x: jnp.mean(w * x), lambda w, x, key: w**2, 0.5)
      >>> float(loss(jnp.float32(2.0), jnp.ones(3)))
      4.0
    """
    check_callable("loss_fn", loss_fn)
    check_callable("penalty", penalty)
    if not callable(strength):
        check_positive("strength", strength, zero_allowed=True)

    def loss(params: Params, batch: Batch, key: Any = None, step: Any = 0) -> Any:
        found = penalty(params, batch, key)
        weight = strength(step) if callable(strength) else strength
        return loss_fn(params, batch) + _weighted(weight, found)

    return loss


def _weighted(weight: Any, found: Any) -> Any:
    """`weight` times a penalty; one weight a layer gives the mean of the weighted layers."""
    if jnp.ndim(weight):
        shape = found.per_layer.shape if isinstance(found, NetworkPenalty) else None
        if not isinstance(found, NetworkPenalty) or jnp.shape(weight) != shape:
            of = "a penalty that has no layers" if shape is None else f"a penalty of {shape}"
            raise ValueError(
                "strength must be a scalar, or as many as a NetworkPenalty has layers, got shape "
                f"{jnp.shape(weight)} for {of}. A sweep over strengths is a vmap."
            )
        return (jnp.asarray(weight) * found.per_layer).mean()
    if isinstance(found, NetworkPenalty):
        return weight * found.total
    return weight * (found.value if isinstance(found, Penalty) else found)


def layer_counts(layers: Any, params: Any) -> list[int]:
    """How many layers each member counts for; ValueError or TypeError for what does not fit."""
    layers, params = list(layers), list(params)
    if not layers or len(layers) != len(params):
        raise ValueError(
            f"layers and params must be as many, and at least 1, got {len(layers)} layers and "
            f"{len(params)} params."
        )
    lengths = []
    for i, (layer, part) in enumerate(zip(layers, params, strict=True)):
        if not isinstance(layer, StackedLayers):
            check_callable(f"layers[{i}]", layer)
            lengths.append(1)
            continue
        length = check_count(f"layers[{i}].num_layers", layer.num_layers)
        if num_examples(part, f"params[{i}]") != length:
            raise ValueError(
                f"params[{i}] must have a leading axis of num_layers={length}, got "
                f"{num_examples(part)}."
            )
        lengths.append(length)
    return lengths


def _runs(flags: list[bool]) -> list[tuple[int, int, bool]]:
    """(start, stop, flag) of each stretch of equal flags."""
    runs, start = [], 0
    for flag, group in groupby(flags):
        stop = start + len(list(group))
        runs.append((start, stop, flag))
        start = stop
    return runs


def _slice(params: Params, start: int, stop: int) -> Params:
    return jax.tree.map(lambda a: a[start:stop], params)


def _scan(stack: StackedLayers, params: Params, x: Any, keys: Any, measured: Any) -> Any:
    """The outputs of the stack, and what `measured` (False: nothing) says of each layer."""
    first = jax.tree.map(lambda a: a[0], params)
    out = check_layer(stack.layer_fn, first, x, "StackedLayers.layer_fn")
    if (out.shape, out.dtype) != (x.shape, x.dtype):
        raise ValueError(
            f"StackedLayers.layer_fn must keep shape and dtype, {x.dtype} {x.shape}, got "
            f"{out.dtype} {out.shape}."
        )
    if not measured:
        return stack(params, x), None
    return jax.lax.scan(
        lambda h, both: measured(stack.layer_fn, both[0], h, both[1]), x, (params, keys)
    )
