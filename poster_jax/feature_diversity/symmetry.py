"""What a network of copies is: a narrow network whose layers learn at different rates.

Let the features of every layer come in u kinds, feature i of kind i mod u, and let weights depend
on the kinds alone. Gradients then do so too, and gradient descent never leaves this set. A kernel
between layers of k_in and k_out copies of each kind acts as v = k_in w, one entry a pair of kinds.
The chain rule gives the gradient of the narrow network's loss as dL_narrow/dv = k_out dL/dw, and so

    w <- w - eta dL/dw      is      v <- v - eta (k_in / k_out) dL_narrow/dv.

Multipliers are k_in / k_out for kernels, 1 / k for what a feature has one of (a bias, BatchNorm's
scale and shift), 1 for scalars. Weight decay needs none: it shrinks w and v alike.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from poster_jax.core.checks import check_count, check_params, is_traced
from poster_jax.core.paths import leaf_paths
from poster_jax.core.typing import Array, Float, Params

__all__ = [
    "SymmetricReduction",
    "scale_gradients",
    "symmetric_reduction",
    "symmetrise",
    "symmetry_leak",
]

Names = str | Sequence[str]
TOLERANCE = 1e-3


class SymmetricReduction(NamedTuple):
    """A network of copies as the narrow network that it is.

    Attributes:
      params: of the narrow network.
      multipliers: like `params`, a number a leaf: what each gradient is multiplied by before weight
        decay and the optimiser, see `scale_gradients`.
      model_state: of the narrow network; () when there was none.
    """

    params: Params
    multipliers: Params
    model_state: Any


def symmetric_reduction(
    params: Params,
    *,
    inputs: Names,
    outputs: Names,
    num_unique: int = 1,
    model_state: Any = (),
) -> SymmetricReduction:
    """The narrow network that takes the same steps as a network whose features are copies.

    Train it with the loss of the narrow architecture (`ConstNet.reduced`) and
    `optax.chain(scale_gradients(multipliers), add_decayed_weights, sgd)`; its outputs are those of
    the wide network at every step, in exact arithmetic. For SGD with momentum and weight decay; an
    optimiser that rescales gradients by itself (Adam) does not commute with the multipliers.

    Args:
      params: floating leaves of any of these forms: kernels (window..., inputs, outputs), vectors
        with one entry a feature, scalars.
      inputs: path, or paths, of layers that read the data: their inputs are no copies.
      outputs: path, or paths, of layers that make the outputs: their outputs are no copies.
      num_unique: u, kinds of features in every other layer; feature i is of kind i mod u.
      model_state: whose leaves are vectors with one entry a feature (BatchNorm's statistics).

    Returns:
      A SymmetricReduction.

    Raises:
      ValueError: params are not symmetric (concrete ones are looked at), a number of features is
        no multiple of num_unique, a path that names nothing.
      TypeError: params hold other than floats.

    Source: derived here; for one kind of features it is the reason why Blumenfeld, Gilboa, Soudry
    2019 need noise: without it ConstNet is a network of width 1.

    Example:
      >>> params = {"first": jnp.ones((3, 4)), "last": jnp.full((4, 2), 0.5)}
      >>> found = symmetric_reduction(params, inputs="first", outputs="last")
      >>> found.params["last"].tolist(), found.multipliers
      ([[2.0, 2.0]], {'first': 0.25, 'last': 4.0})
    """
    check_params(params)
    forms = _forms(params, inputs, outputs, num_unique)
    if not is_traced(params):
        leak = float(symmetry_leak(params, inputs=inputs, outputs=outputs, num_unique=num_unique))
        if not leak <= TOLERANCE:
            raise ValueError(
                f"params must be the same for all copies of {num_unique} kinds of features, got "
                f"relative differences up to {leak:.2g}."
            )
    leaves, treedef = jax.tree.flatten(params)
    narrow = [
        k_in * _first_copy(leaf, k_in, k_out)
        for leaf, (k_in, k_out) in zip(leaves, forms, strict=True)
    ]
    multipliers = [k_in / k_out for k_in, k_out in forms]
    state = jax.tree.map(lambda leaf: leaf[..., :num_unique], model_state)
    return SymmetricReduction(treedef.unflatten(narrow), treedef.unflatten(multipliers), state)


def symmetrise(params: Params, *, inputs: Names, outputs: Names, num_unique: int = 1) -> Params:
    """The nearest point at which copies are equal: every entry becomes the mean over its copies.

    Args:
      params: as in `symmetric_reduction`, symmetric or not.
      inputs: as there.
      outputs: as there.
      num_unique: as there.

    Returns:
      A pytree like params.

    Raises:
      ValueError, TypeError: as `symmetric_reduction`, but for the symmetry.

    Source: derived here; the projection on the subspace that gradient descent does not leave.

    Example:
      >>> params = {"first": jnp.array([[1.0, 3.0]]), "last": jnp.array([[0.0], [2.0]])}
      >>> symmetrise(params, inputs="first", outputs="last")["first"]
      Array([[2., 2.]], dtype=float32)
    """
    forms = _forms(params, inputs, outputs, num_unique)
    leaves, treedef = jax.tree.flatten(params)
    means = [_mean_of_copies(leaf, *form) for leaf, form in zip(leaves, forms, strict=True)]
    return treedef.unflatten(means)


def symmetry_leak(
    params: Params, *, inputs: Names, outputs: Names, num_unique: int = 1
) -> Float[Array, ""]:
    """How far copies are from equal: the largest difference from the first, relative to its leaf.

    A network that starts symmetric stays so in exact arithmetic only. Compiled sums may round
    differently from channel to channel; where copies attract deviations, these grow exponentially.
    A run is free of noise only while this is 0, or in the reduced network.

    Args:
      params: as in `symmetrise`.
      inputs: as there.
      outputs: as there.
      num_unique: as there.

    Returns:
      Scalar: the maximum over leaves of max |w - w_first| / sqrt(mean w^2), where w_first is the
      first copy; exactly 0 where copies are equal to the bit.

    Raises:
      ValueError, TypeError: as `symmetrise`.

    Source: derived here.

    Example:
      >>> params = {"first": jnp.array([[1.0, 1.1]]), "last": jnp.ones((2, 1))}
      >>> round(float(symmetry_leak(params, inputs="first", outputs="last")), 3)
      0.095
    """
    forms = _forms(params, inputs, outputs, num_unique)

    def leak(leaf: Array, form: tuple[int, int]) -> Array:
        size = jnp.sqrt(jnp.mean(leaf**2))
        far = jnp.abs(leaf - _repeated(_first_copy(leaf, *form), *form)).max()
        return jnp.where(far == 0, 0, far / size)

    leaves = zip(jax.tree.leaves(params), forms, strict=True)
    return jnp.stack([leak(jnp.asarray(leaf), form) for leaf, form in leaves]).max()


def scale_gradients(multipliers: Params) -> optax.GradientTransformation:
    """Multiplies the gradient of each leaf by a number of its own, before anything else.

    Args:
      multipliers: like the parameters, a number a leaf.

    Returns:
      An optax transformation, the first of a chain: weight decay comes after it.

    Source: derived here, see `symmetric_reduction`.

    Example:
      >>> optimizer = optax.chain(scale_gradients({"w": 4.0}), optax.sgd(0.5))
      >>> params = {"w": jnp.zeros(1)}
      >>> optimizer.update({"w": jnp.ones(1)}, optimizer.init(params), params)[0]["w"]
      Array([-2.], dtype=float32)
    """
    return optax.stateless(
        lambda gradients, _: jax.tree.map(lambda g, m: g * m, gradients, multipliers)
    )


def _forms(params: Params, inputs: Names, outputs: Names, num_unique: int) -> list[tuple[int, int]]:
    """Copies at the inputs and at the outputs of each leaf."""
    check_count("num_unique", num_unique)
    names = leaf_paths(params)
    reads, makes = (_below(names, given, what) for given, what in
                    ((inputs, "inputs"), (outputs, "outputs")))  # fmt: skip

    def copies(name: str, size: int, free: bool) -> int:
        if free:
            return 1
        if size % num_unique:
            raise ValueError(
                f"num_unique must divide the number of features, got {num_unique} for {size} at "
                f"{name!r}."
            )
        return size // num_unique

    forms = []
    for name, leaf in zip(names, jax.tree.leaves(params), strict=True):
        shape = jnp.shape(leaf)
        k_in = copies(name, shape[-2], name in reads) if len(shape) > 1 else 1
        k_out = copies(name, shape[-1], name in makes) if shape else 1
        forms.append((k_in, k_out))
    return forms


def _below(names: Sequence[str], given: Names, what: str) -> set[str]:
    """The leaves at or below the given paths."""
    found = set()
    for path in (given,) if isinstance(given, str) else given:
        here = {name for name in names if name == path or name.startswith(f"{path}/")}
        if not here:
            raise ValueError(f"{what} must be paths of layers, got {path!r}; there are {names}.")
        found |= here
    return found


def _first_copy(leaf: Array, k_in: int, k_out: int) -> Array:
    if leaf.ndim > 1:
        leaf = leaf[..., : leaf.shape[-2] // k_in, :]
    return leaf[..., : leaf.shape[-1] // k_out] if leaf.ndim else leaf


def _repeated(leaf: Array, k_in: int, k_out: int) -> Array:
    if leaf.ndim > 1:
        leaf = jnp.tile(leaf, (k_in, 1))
    return jnp.tile(leaf, k_out) if leaf.ndim else leaf


def _mean_of_copies(leaf: Array, k_in: int, k_out: int) -> Array:
    if leaf.ndim > 1:
        leaf = jnp.swapaxes(_mean_last(jnp.swapaxes(leaf, -1, -2), k_in), -1, -2)
    return _mean_last(leaf, k_out) if leaf.ndim else leaf


def _mean_last(leaf: Array, copies: int) -> Array:
    kinds = leaf.shape[-1] // copies
    mean = leaf.reshape(*leaf.shape[:-1], copies, kinds).mean(-2, keepdims=True)
    return jnp.broadcast_to(mean, (*leaf.shape[:-1], copies, kinds)).reshape(leaf.shape)
