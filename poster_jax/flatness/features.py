"""What a layer reads: its inputs ("features") on given data, and their scale.

Under a neuron-wise rescaling the features of a layer change by a factor each. Dividing each by its
spread over the training set takes the factor out, and with it the ambiguity of the plain measures.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from poster_jax.core.checks import check_apply, check_batch
from poster_jax.core.convolution.primitive import convolution_p
from poster_jax.core.paths import get_path, leaf_paths
from poster_jax.core.typing import ApplyFn, Array, Float, Params

__all__ = ["feature_scales", "layer_features"]

# What may stand between the stored kernel and the product that uses it: a change of layout or type.
_LAYOUT = {"convert_element_type", "copy", "copy_p", "reshape", "squeeze", "transpose"}
_CALLS = {
    "checkpoint",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "jit",
    "pjit",
    "remat2",
}


def layer_features(
    apply_fn: ApplyFn, params: Params, x: Any, *, layer: str
) -> Float[Array, "... channels"]:
    """What the layer with the kernel at `layer` reads when the network is applied to `x`.

    The program of `apply_fn` is traced, and what meets the kernel in its one matrix product or
    convolution is returned; so it works for any library and any adapter.

    Args:
      apply_fn: `apply_fn(params, x) -> outputs`.
      params: pytree of the network.
      x: inputs, pytree with a leading example axis.
      layer: path of the kernel.

    Returns:
      Float (examples, channels) for a dense layer, (examples, positions ..., channels) for a
      convolution or a layer applied at every position: the axis that the kernel sums over is last.

    Raises:
      ValueError: the path names nothing, or the kernel does not enter through exactly one matrix
        product or ungrouped convolution (shared or standardised weights, a loop over layers): then
        compute the features yourself.

    Source: this library.

    Example:
      >>> params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
      >>> def apply_fn(params, x): return jax.nn.relu(x @ params["a"]) @ params["b"]
      >>> layer_features(apply_fn, params, jnp.ones((5, 3)), layer="b").tolist()[0]
      [3.0, 3.0, 3.0, 3.0]
    """
    check_apply(apply_fn, params, x)
    kernel = get_path(params, layer)
    if not hasattr(kernel, "shape"):
        raise ValueError(f"layer {layer!r} must be the path of a single kernel.")
    leaves, treedef = jax.tree.flatten(params)
    inputs, x_treedef = jax.tree.flatten(x)

    def flat(*args: Array) -> Any:
        tree = jax.tree.unflatten(treedef, args[: len(leaves)])
        return apply_fn(tree, jax.tree.unflatten(x_treedef, args[len(leaves) :]))

    program = jax.make_jaxpr(flat)(*leaves, *inputs)
    index = leaf_paths(params).index(layer)
    found: list[Array] = []
    marks = [i == index for i in range(len(leaves) + len(inputs))]
    _evaluate(program, [*leaves, *inputs], marks, found, layer)
    if len(found) != 1:
        raise ValueError(
            f"layer {layer!r} must enter exactly one matrix product or convolution, got "
            f"{len(found)}. Compute its features yourself."
        )
    return found[0]


def feature_scales(features: Float[Array, "... channels"]) -> Float[Array, "channels"]:
    """How far each feature spreads over the data: the divisor that makes it invariant.

    The standard deviation over all axes but the last (examples, and for a convolution positions).
    A feature that is constant has no spread: its magnitude stands in, which scales the same way; a
    feature that is zero on all data (a dead neuron) gets 0, and a measure given these scales leaves
    its weights out, as no training loss depends on them.

    Args:
      features: (examples, ..., channels), of `layer_features` on the training set.

    Returns:
      Float (channels,), not negative.

    Raises:
      ValueError: fewer than two axes, no examples, values that are not finite.

    Source: Petzka et al. 2021 (arXiv 2001.00939), the normalisation of the feature layer. Caution:
      their code of the synthetic experiments divides by the variance; only a divisor that scales as
      the feature itself, such as the standard deviation, makes the measure invariant. And the
      weights that read a dead neuron must go: left in, their free scale enters <w_s, w_s'>.

    Example:
      >>> feature_scales(jnp.array([[0.0, 2.0, 1.0], [0.0, 2.0, 3.0]])).tolist()
      [0.0, 2.0, 1.0]
    """
    check_batch(features, "features")
    if features.ndim < 2:
        raise ValueError(
            f"features must have shape (examples, ..., channels), got {features.shape}."
        )
    axes = tuple(range(features.ndim - 1))
    spread = jnp.std(features, axis=axes)
    magnitude = jnp.sqrt(jnp.mean(jnp.square(features), axis=axes))
    # The spread of a constant is rounding: a few units of the last place of its magnitude.
    rounding = 16 * jnp.finfo(features.dtype).eps * magnitude
    return jnp.where(spread > rounding, spread, magnitude)


def _evaluate(
    program: Any, args: list, marks: list[bool], found: list[Array], layer: str
) -> tuple[list, list[bool]]:
    """Runs a jaxpr; what meets the marked value in a product or convolution is added to `found`."""
    jaxpr, values, marked = program.jaxpr, {}, {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jex.Literal) else values[atom]

    def is_marked(atom: Any) -> bool:
        return not isinstance(atom, jex.Literal) and marked.get(atom, False)

    values.update(zip([*jaxpr.constvars, *jaxpr.invars], [*program.consts, *args], strict=True))
    marked.update(zip(jaxpr.invars, marks, strict=True))
    for eqn in jaxpr.eqns:
        invals, inmarks = [read(v) for v in eqn.invars], [is_marked(v) for v in eqn.invars]
        outmarks = [False] * len(eqn.outvars)
        inner = _called(eqn) if any(inmarks) else None
        if inner is not None:
            outvals, outmarks = _evaluate(inner, invals, inmarks, found, layer)
        else:
            outvals = eqn.primitive.bind(*invals, **eqn.primitive.get_bind_params(eqn.params))
            outvals = outvals if eqn.primitive.multiple_results else [outvals]
            if any(inmarks):
                outmarks = [_meet(eqn, invals, inmarks, found, layer)] * len(eqn.outvars)
        values.update(zip(eqn.outvars, outvals, strict=True))
        marked.update(zip(eqn.outvars, outmarks, strict=True))
    return [read(v) for v in jaxpr.outvars], [is_marked(v) for v in jaxpr.outvars]


def _called(eqn: Any) -> Any:
    """The jaxpr that an equation calls with its own arguments, or None."""
    if eqn.primitive.name not in _CALLS:
        return None
    for value in eqn.params.values():
        if isinstance(value, jex.Jaxpr):
            value = jex.ClosedJaxpr(value, ())
        if isinstance(value, jex.ClosedJaxpr) and len(value.jaxpr.invars) == len(eqn.invars):
            return value
    return None


def _meet(eqn: Any, invals: list, inmarks: list[bool], found: list[Array], layer: str) -> bool:
    """Whether the output of an equation that the kernel enters is still the kernel."""
    name = eqn.primitive.name
    if name in _LAYOUT:
        return True
    if name == "dot_general" and not all(inmarks):
        side = inmarks.index(False)
        contracted = eqn.params["dimension_numbers"][0][side]
        found.append(_channels_last(invals[side], contracted))
        return False
    if eqn.primitive is convolution_p and inmarks == [False, True] and len(invals[0]) == 1:
        found.append(invals[0][0])  # (groups, examples, positions ..., channels)
        return False
    grouped = max(eqn.params.get("feature_group_count", 1), eqn.params.get("batch_group_count", 1))
    if name == "conv_general_dilated" and inmarks == [False, True] and grouped == 1:
        spec = eqn.params["dimension_numbers"].lhs_spec
        found.append(jnp.transpose(invals[0], (spec[0], *spec[2:], spec[1])))
        return False
    raise ValueError(
        f"layer {layer!r} must enter one matrix product or ungrouped convolution, it enters "
        f"{name!r}. Compute its features yourself."
    )


def _channels_last(operand: Array, contracted: tuple[int, ...]) -> Array:
    kept = [axis for axis in range(operand.ndim) if axis not in contracted]
    moved = jnp.transpose(operand, (*kept, *contracted))
    channels = math.prod(operand.shape[axis] for axis in contracted)
    return moved.reshape(*(operand.shape[axis] for axis in kept), channels)
