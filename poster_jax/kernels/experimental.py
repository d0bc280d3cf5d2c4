"""What the original keeps under `experimental`: empirical kernels of TensorFlow models.

They need TensorFlow beside JAX, which this library does not. The names are here so that a program
that reaches for them is told what to do instead.
"""

from collections.abc import Callable, Sequence
from typing import Any

from poster_jax.kernels.empirical.ntk import DEFAULT_NTK_IMPLEMENTATION, NtkImplementation

__all__ = ["empirical_ntk_fn_tf", "get_apply_fn_and_params"]

_INSTEAD = (
    "convert the model to a JAX function (tf2jax.convert gives `apply_fn` and its parameters) and "
    "hand that to kernels.empirical_ntk_fn."
)


def empirical_ntk_fn_tf(
    f: Any,
    trace_axes: int | Sequence[int] = (-1,),
    diagonal_axes: int | Sequence[int] = (),
    vmap_axes: Any = None,
    implementation: NtkImplementation | int = DEFAULT_NTK_IMPLEMENTATION,
    _j_rules: bool = True,
    _s_rules: bool = True,
    _fwd: bool | None = None,
) -> Callable[..., Any]:
    """The empirical NTK of a TensorFlow model: not in this library, which has no TensorFlow.

    Args:
      f: a `tf.Module`, `tf.keras.Model` or `tf.function`.
      trace_axes: as in `empirical_ntk_fn`, and so on.
      diagonal_axes: as there.
      vmap_axes: as there.
      implementation: as there.
      _j_rules: as there.
      _s_rules: as there.
      _fwd: as there.

    Raises:
      NotImplementedError: always; the message says what to do instead.

    Source: Novak et al. 2022 (arXiv 2206.08720).

    Example:
      >>> empirical_ntk_fn_tf(None)
      Traceback (most recent call last):
      NotImplementedError: f must be a JAX function in this library, which has no TensorFlow: ...
    """
    raise NotImplementedError(
        f"f must be a JAX function in this library, which has no TensorFlow: {_INSTEAD}"
    )


def get_apply_fn_and_params(f: Any) -> tuple[Callable[..., Any], Any]:
    """A TensorFlow model as a JAX function: not in this library, which has no TensorFlow.

    Args:
      f: a `tf.Module`.

    Raises:
      NotImplementedError: always; the message says what to do instead.

    Source: Novak et al. 2022 (arXiv 2206.08720).

    Example:
      >>> get_apply_fn_and_params(None)
      Traceback (most recent call last):
      NotImplementedError: f must be a JAX function in this library, which has no TensorFlow: ...
    """
    raise NotImplementedError(
        f"f must be a JAX function in this library, which has no TensorFlow: {_INSTEAD}"
    )
