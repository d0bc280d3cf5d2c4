"""A hidden layer with as many different features as one likes, and so much noise on top."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers

from poster_jax.core.checks import check_callable, check_choice, check_count, check_fraction
from poster_jax.core.typing import Array, Float, Int, PRNGKey

__all__ = ["duplicate_features", "tie_output"]

MODES = ("zero", "duplicated", "independent")
LECUN = initializers.lecun_normal()


def duplicate_features(
    key: PRNGKey,
    shape: Sequence[int],
    *,
    num_unique: Int[Array, ""] | int,
    noise: Float[Array, ""] | float = 0.0,
    law: Callable[..., Array] = LECUN,
    dtype: Any = jnp.float32,
) -> Array:
    """A kernel with `num_unique` different features, each with a share of noise of its own.

    Equation: feature i is `sqrt(1 - s2) w_(i mod u) + sqrt(s2) e_i`, where w_1, ..., w_u and the
    e_i are draws of one law: the variance of a weight does not depend on s2 or u.

    Args:
      key: of both draws.
      shape: (inputs..., features): the last axis counts the features, as in Flax.
      num_unique: u, from 1 to the number of features; may be traced, so that one program holds a
        whole population.
      noise: s2, the share of the variance that is noise, in [0, 1]; may be traced. 0 makes copies
        equal to the bit, 1 leaves the law alone.
      law: `law(key, shape, dtype) -> kernel`; LeCun's normal law by default.
      dtype: of the kernel.

    Returns:
      The kernel.

    Raises:
      ValueError: num_unique outside 1 to the number of features, noise outside [0, 1].
      TypeError: law is no function, num_unique no integer.

    Source: Blumenfeld, Gilboa, Soudry 2019 (arXiv 1912.05137), and the mixture of constant and
    noise in the authors' code; one parameter here for both of its weights.

    Example:
      >>> kernel = duplicate_features(jax.random.key(0), (3, 4), num_unique=2)
      >>> bool((kernel[:, 0] == kernel[:, 2]).all()), bool((kernel[:, 0] == kernel[:, 1]).any())
      (True, False)
    """
    check_callable("law", law)
    check_fraction("noise", noise)
    _check_unique(num_unique, shape[-1])
    shared_key, own_key = jax.random.split(key)
    noise = jnp.asarray(noise, dtype)
    shared = law(shared_key, tuple(shape), dtype)[..., copy_of(shape[-1], num_unique)]
    return jnp.sqrt(1 - noise) * shared + jnp.sqrt(noise) * law(own_key, tuple(shape), dtype)


def tie_output(
    weights: Float[Array, "features outputs"],
    *,
    num_unique: Int[Array, ""] | int,
    mode: str,
) -> Float[Array, "features outputs"]:
    """The output weights that go with duplicated features; what becomes of the network rests on it.

    Copies stay copies for ever where they are read with equal weights ("zero", "duplicated"): equal
    features with equal readers have equal gradients. With "independent" weights they part at the
    first step, since the gradients of copies i and j differ in proportion to their readers.

    Args:
      weights: a draw, one row a feature.
      num_unique: as in `duplicate_features`; may be traced.
      mode: "zero", all weights zero; "duplicated", copies have the row of the first among them;
        "independent", as drawn.

    Returns:
      The weights.

    Raises:
      ValueError: an unknown mode, num_unique outside 1 to the number of features.
      TypeError: num_unique is no integer.

    Source: derived here; Blumenfeld, Gilboa, Soudry 2019 start their last layer at zero.

    Example:
      >>> tie_output(jnp.array([[1.0], [2.0], [3.0]]), num_unique=2, mode="duplicated").ravel()
      Array([1., 2., 1.], dtype=float32)
    """
    check_choice("mode", mode, MODES)
    _check_unique(num_unique, len(weights))
    if mode == "zero":
        return jnp.zeros_like(weights)
    return weights[copy_of(len(weights), num_unique)] if mode == "duplicated" else weights


def copy_of(num_features: int, num_unique: Any) -> Array:
    """Of which feature each one is a copy: i mod u."""
    return jnp.arange(num_features) % num_unique


def _check_unique(num_unique: Any, num_features: int) -> None:
    if isinstance(num_unique, jax.core.Tracer):
        return
    if isinstance(num_unique, jax.Array):
        num_unique = num_unique.item()
    if check_count("num_unique", num_unique) > num_features:
        raise ValueError(
            f"num_unique must be at most the number of features, {num_features}, got {num_unique}."
        )
