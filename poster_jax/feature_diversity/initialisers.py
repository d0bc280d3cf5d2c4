"""Initialisations that give every channel the same image, and their mixtures with random ones.

Each is a function `init(key, shape, dtype) -> kernel` of kernels (window..., inputs, outputs), as
`flax.linen.Conv(kernel_init=...)` takes it. They are zero but at the window's centre.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from poster_jax.core.checks import (
    check_callable,
    check_choice,
    check_fraction,
    check_positive,
    is_traced,
)
from poster_jax.core.typing import Array, PRNGKey

__all__ = ["averaging_init", "identity_init", "mixed_init"]

Initialiser = Callable[..., Array]


def averaging_init(*, gain: float = 1.0, phase: int = 1, slope: float | None = None) -> Initialiser:
    """Every output channel is the mean of the input channels: 1 / C_in at the centre, all pairs.

    Args:
      gain: the factor before the mean.
      phase: 1, or -1 for a layer that turns the sign back, see `LeakyNet`.
      slope: of the leaky ReLU; a layer of phase -1 is divided by it. None divides by nothing.

    Returns:
      `init(key, shape, dtype) -> kernel`; the key is not used.

    Raises:
      ValueError: gain or slope not above 0, phase neither 1 nor -1.

    Source: Blumenfeld, Gilboa, Soudry 2020 (arXiv 2007.01038), "ConstAvg" in the authors' code.

    Example:
      >>> averaging_init()(None, (1, 1, 4, 2), jnp.float32).ravel()
      Array([0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25], dtype=float32)
    """
    return _at_centre(
        lambda inputs, outputs: jnp.full((inputs, outputs), 1 / inputs), gain, phase, slope
    )


def identity_init(*, gain: float = 1.0, phase: int = 1, slope: float | None = None) -> Initialiser:
    """Output channel o is input channel o mod C_in.

    Args:
      gain: the factor before it.
      phase: as in `averaging_init`.
      slope: as in `averaging_init`.

    Returns:
      `init(key, shape, dtype) -> kernel`; the key is not used. ValueError when there are fewer
      outputs than inputs, since some input would then be lost.

    Raises:
      ValueError: as `averaging_init`.

    Source: Blumenfeld, Gilboa, Soudry 2020 (arXiv 2007.01038), "ConstIdentity" in the authors'
    code.

    Example:
      >>> identity_init()(None, (1, 1, 2, 3), jnp.float32)[0, 0]
      Array([[1., 0., 1.],
             [0., 1., 0.]], dtype=float32)
    """

    def matrix(inputs: int, outputs: int) -> Array:
        if outputs < inputs:
            raise ValueError(
                f"shape must have at least as many outputs as inputs for identity_init, got "
                f"{outputs} outputs of {inputs} inputs."
            )
        return (jnp.arange(inputs)[:, None] == jnp.arange(outputs) % inputs).astype(float)

    return _at_centre(matrix, gain, phase, slope)


def mixed_init(constant: Initialiser, random: Initialiser, *, noise: Any) -> Initialiser:
    """From a constant start to a random one: `sqrt(1 - s2) constant + sqrt(s2) random`.

    Args:
      constant: the start at s2 = 0.
      random: the start at s2 = 1.
      noise: s2, in [0, 1]; may be traced.

    Returns:
      `init(key, shape, dtype) -> kernel`.

    Raises:
      ValueError: noise outside [0, 1].
      TypeError: either is no function.

    Source: this library; as `duplicate_features`.

    Example:
      >>> mix = mixed_init(averaging_init(), averaging_init(gain=3.0), noise=0.5)
      >>> round(float(mix(None, (1, 1, 1, 1), jnp.float32)[0, 0, 0, 0]), 3)  # (1 + 3) / sqrt(2)
      2.828
    """
    check_callable("constant", constant)
    check_callable("random", random)
    check_fraction("noise", noise)

    def init(key: PRNGKey, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        if not is_traced(noise) and noise in (0, 1):
            return (random if noise else constant)(key, shape, dtype)
        share = jnp.asarray(noise, dtype)
        shared, own = constant(key, shape, dtype), random(key, shape, dtype)
        return jnp.sqrt(1 - share) * shared + jnp.sqrt(share) * own

    return init


def _at_centre(
    matrix: Callable[[int, int], Array], gain: float, phase: int, slope: float | None
) -> Initialiser:
    check_positive("gain", gain)
    check_choice("phase", str(phase), ("1", "-1"))
    if slope is not None:
        check_positive("slope", slope)
    factor = gain * phase / (slope if slope is not None and phase == -1 else 1)

    def init(key: Any, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        if len(shape) < 2:
            raise ValueError(f"shape must be (window..., inputs, outputs), got {tuple(shape)}.")
        centre = tuple((size - 1) // 2 for size in shape[:-2])
        value = (factor * matrix(*shape[-2:])).astype(dtype)
        return jnp.zeros(tuple(shape), dtype).at[centre].set(value)

    return init
