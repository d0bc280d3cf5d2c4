"""Layers made of layers: one after the other, side by side, again and again."""

import functools
import operator
import warnings
from collections.abc import Callable
from typing import Any

import jax

from poster_jax.kernels.stax.layer import combinator
from poster_jax.kernels.stax.requirements import Diagonal, requirements_of, requires

__all__ = ["parallel", "repeat", "serial"]


@combinator
def serial(*layers: Any) -> Any:
    """One layer after the other.

    Args:
      *layers: `(init_fn, apply_fn, kernel_fn)` triples, at least one.

    Returns:
      `(init_fn, apply_fn, kernel_fn)` of their composition; `params` is a list.

    Example:
      >>> from poster_jax.kernels import stax
      >>> init_fn, _, kernel_fn = serial(stax.Dense(64), stax.Relu(), stax.Dense(1))
      >>> shape, params = init_fn(jax.random.key(0), (-1, 8))
      >>> shape, len(params)
      ((-1, 1), 3)
    """
    _check_layers(layers)
    init_fns, apply_fns, kernel_fns = zip(*layers, strict=True)

    def init_fn(rng, input_shape):
        params = []
        for init in init_fns:
            rng, layer_rng = jax.random.split(rng)
            input_shape, param = init(layer_rng, input_shape)
            params.append(param)
        return input_shape, params

    def apply_fn(params, inputs, *, rng=None, **kwargs):
        rngs = _split(rng, len(apply_fns))
        for apply, param, layer_rng in zip(apply_fns, params, rngs, strict=True):
            inputs = apply(param, inputs, rng=layer_rng, **kwargs)
        return inputs

    @requires(**_joint_requirements(kernel_fns, operator.rshift))
    def kernel_fn(k, **kwargs):
        for layer_kernel_fn in kernel_fns:
            k = layer_kernel_fn(k, **kwargs)
        return k

    return init_fn, apply_fn, kernel_fn


@combinator
def parallel(*layers: Any) -> Any:
    """Layers side by side: a list of inputs to a list of outputs.

    Args:
      *layers: `(init_fn, apply_fn, kernel_fn)` triples, one for each input.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`; see `FanOut`, `FanInSum`.

    Example:
      >>> from poster_jax.kernels import stax
      >>> init_fn, _, _ = parallel(stax.Dense(3), stax.Dense(4))
      >>> init_fn(jax.random.key(0), [(-1, 8), (-1, 8)])[0]
      [(-1, 3), (-1, 4)]
    """
    _check_layers(layers)
    init_fns, apply_fns, kernel_fns = zip(*layers, strict=True)

    def check_inputs(inputs):
        if not isinstance(inputs, list | tuple) or len(inputs) != len(layers):
            got = len(inputs) if isinstance(inputs, list | tuple) else type(inputs).__name__
            raise ValueError(
                f"parallel needs a list or tuple of {len(layers)} inputs, one for each of its "
                f"layers, got {got}."
            )

    def init_fn(rng, input_shape):
        check_inputs(input_shape)
        rngs = jax.random.split(rng, len(init_fns))
        pairs = [f(r, shape) for f, r, shape in zip(init_fns, rngs, input_shape, strict=True)]
        shapes, params = zip(*pairs, strict=True)
        return type(input_shape)(shapes), params

    def apply_fn(params, inputs, *, rng=None, **kwargs):
        check_inputs(inputs)
        rngs = _split(rng, len(apply_fns))
        branches = zip(apply_fns, params, inputs, rngs, strict=True)
        return type(inputs)(f(p, x, rng=r, **kwargs) for f, p, x, r in branches)

    @requires(**_joint_requirements(kernel_fns, operator.and_))
    def kernel_fn(ks, **kwargs):
        check_inputs(ks)
        return type(ks)(f(k, **kwargs) for f, k in zip(kernel_fns, ks, strict=True))

    return init_fn, apply_fn, kernel_fn


@combinator
def repeat(layer: Any, n: int) -> Any:
    """`layer` n times, compiled once: `serial(*[layer] * n)` that compiles fast for large n.

    Args:
      layer: a triple whose outputs have the shape and layout of its inputs.
      n: how often.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`; `params` has a leading axis n.

    Raises:
      ValueError: (`init_fn`) the layer changes the shape of its inputs.

    Example:
      >>> from poster_jax.kernels import stax
      >>> init_fn, _, _ = repeat(stax.serial(stax.Dense(8), stax.Relu()), 100)
      >>> init_fn(jax.random.key(0), (-1, 8))[1][0][0].shape
      (100, 8, 8)
    """
    init_once, apply_once, kernel_once = layer

    def init_fn(rng, input_shape):
        shape, _ = init_once(rng, input_shape)
        if shape != input_shape:
            raise ValueError(
                f"layer must keep the shape of its inputs to be repeated, got {input_shape} to "
                f"{shape}: use serial(*[layer] * n)."
            )

        def draw(rng, _):
            rng, layer_rng = jax.random.split(rng)
            return rng, init_once(layer_rng, input_shape)[1]

        return shape, jax.lax.scan(draw, rng, None, n)[1]

    def apply_fn(params, inputs, **kwargs):
        def step(x, layer_params):
            return apply_once(layer_params, x, **kwargs), None

        return jax.lax.scan(step, inputs, params, n)[0]

    @requires(**requirements_of(kernel_once))
    def kernel_fn(k, **kwargs):
        if n == 0:
            return k
        # The first application gives the NTK its full shape, so that the rest can be a loop.
        k = kernel_once(k, **kwargs)
        return jax.lax.scan(lambda k, _: (kernel_once(k, **kwargs), None), k, None, n - 1)[0]

    return init_fn, apply_fn, kernel_fn


def _check_layers(layers: Any) -> None:
    if not layers:
        raise ValueError("layers must hold at least 1 layer, got none.")
    for i, layer in enumerate(layers):
        if not isinstance(layer, tuple | list) or len(layer) != 3:
            raise ValueError(
                f"layers[{i}] must be a triple (init_fn, apply_fn, kernel_fn), got "
                f"{getattr(layer, '__name__', layer)!r}: call the layer, as in Relu()."
            )


def _split(rng: Any, num: int) -> Any:
    return (None,) * num if rng is None else jax.random.split(rng, num)


def _joint_requirements(kernel_fns: Any, fold: Callable[[Any, Any], Any]) -> dict[str, Any]:
    """What the layers need together; `fold` composes (`>>`) or joins (`&`) them."""
    joint: dict[str, Any] = {}
    for kernel_fn in kernel_fns:
        for name, need in requirements_of(kernel_fn).items():
            if name not in joint:
                joint[name] = need
            elif name in ("diagonal_batch", "diagonal_spatial"):
                joint[name] = _fold(joint[name], need, fold)
            elif (
                name in ("batch_axis", "channel_axis")
                and fold is operator.and_
                and joint[name] != need
            ):
                warnings.warn(
                    f"parallel branches ask for different {name} ({joint[name]} and {need}); their "
                    "kernels are right only if both mean the same axis.",
                    stacklevel=3,
                )
            elif name == "use_dropout" and joint[name] != need:
                raise ValueError("use_dropout must be the same in the whole network.")
    return joint


def _fold(first: Any, second: Any, fold: Callable[[Any, Any], Any]) -> Any:
    if isinstance(first, Diagonal) and isinstance(second, Diagonal):
        return fold(first, second)
    return bool(functools.reduce(operator.and_, (bool(first), bool(second))))
