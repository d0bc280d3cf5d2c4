"""The layers of any library's network as functions, without a line of its code written again."""

from poster_jax.jacobian.split.equinox import split_equinox
from poster_jax.jacobian.split.linen import split_linen
from poster_jax.jacobian.split.nnx import split_nnx

__all__ = ["split_equinox", "split_linen", "split_nnx"]
