"""Kernels of infinitely wide networks as means over random finite ones."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax

from poster_jax.core.checks import check_callable, check_count, check_key
from poster_jax.kernels.batch import batch
from poster_jax.kernels.empirical import NtkImplementation, empirical_kernel_fn
from poster_jax.kernels.empirical.ntk import DEFAULT_NTK_IMPLEMENTATION

__all__ = ["monte_carlo_kernel_fn"]


def monte_carlo_kernel_fn(
    init_fn: Callable[..., Any],
    apply_fn: Callable[..., Any],
    key: Any,
    n_samples: int | Iterable[int],
    batch_size: int = 0,
    device_count: int = -1,
    store_on_device: bool = True,
    trace_axes: int | Sequence[int] = (-1,),
    diagonal_axes: int | Sequence[int] = (),
    vmap_axes: Any = None,
    implementation: NtkImplementation | int = DEFAULT_NTK_IMPLEMENTATION,
    _j_rules: bool = True,
    _s_rules: bool = True,
    _fwd: bool | None = None,
) -> Callable[..., Any]:
    """Empirical kernels averaged over draws of the parameters.

    Args:
      init_fn: `init_fn(key, input_shape) -> (output_shape, params)`.
      apply_fn: `apply_fn(params, x, rng=key, **kwargs) -> outputs`.
      key: PRNG key that all draws follow from.
      n_samples: how many draws; or several numbers of them, at each of which the answer is given.
      batch_size: examples of each side in one tile, as in `batch`.
      device_count: as in `batch`.
      store_on_device: as in `batch`.
      trace_axes: as in `empirical_ntk_fn`, and so on.
      diagonal_axes: as there.
      vmap_axes: as there.
      implementation: as there.
      _j_rules: as there.
      _s_rules: as there.
      _fwd: as there.

    Returns:
      `kernel_fn(x1, x2=None, get=None, **kwargs)`: the mean kernels that `get` names (None: "nngp"
      and "ntk"). For several `n_samples` a generator of such answers, in increasing order.

    Raises:
      ValueError: `n_samples` is below 1 or holds another thing than integers. TypeError when it is
        no number nor a collection, or when `key` is no key.

    Source: Novak et al. 2019 (arXiv 1810.05148), section 4; Novak et al. 2020 (arXiv 1912.02803).

    Example:
      >>> from poster_jax.kernels import stax
      >>> init_fn, apply_fn, _ = stax.serial(stax.Dense(64), stax.Relu(), stax.Dense(1))
      >>> kernel_fn = monte_carlo_kernel_fn(init_fn, apply_fn, jax.random.key(0), 4)
      >>> kernel_fn(jax.numpy.ones((3, 2)), None, "nngp").shape
      (3, 3)
    """
    check_callable("init_fn", init_fn)
    check_callable("apply_fn", apply_fn)
    check_key("key", key)
    counts = _counts(n_samples)
    kernel_fn = empirical_kernel_fn(
        apply_fn, trace_axes, diagonal_axes, vmap_axes, implementation, _j_rules, _s_rules, _fwd
    )

    def one_draw(x1: Any, x2: Any, key: Any, get: Any, **apply_fn_kwargs: Any) -> Any:
        init_key, dropout_key = jax.random.split(key)
        _, params = init_fn(init_key, jax.tree.map(lambda x: x.shape, x1))
        return kernel_fn(x1, x2, get, params, rng=dropout_key, **apply_fn_kwargs)

    draw = batch(one_draw, batch_size, device_count, store_on_device)

    def means(x1: Any, x2: Any, get: Any, kwargs: dict[str, Any]) -> Iterator[Any]:
        state, total = key, None
        for n in range(1, max(counts) + 1):
            state, split = jax.random.split(state)
            sample = draw(x1, x2, split, get, **kwargs)
            total = sample if total is None else jax.tree.map(jax.numpy.add, total, sample)
            if n in counts:
                yield jax.tree.map(lambda t: t / n, total)  # noqa: B023

    def monte_carlo_fn(x1: Any, x2: Any = None, get: Any = None, **apply_fn_kwargs: Any) -> Any:
        """The mean kernels, or a generator of them."""
        answers = means(x1, x2, get, apply_fn_kwargs)
        return next(answers) if isinstance(n_samples, int) else answers

    return monte_carlo_fn


def _counts(n_samples: int | Iterable[int]) -> set[int]:
    if isinstance(n_samples, int):
        return {check_count("n_samples", n_samples)}
    if not isinstance(n_samples, Iterable):
        raise TypeError(f"n_samples must be an integer or several, got {type(n_samples).__name__}.")
    counts = set(n_samples)
    if not counts or not all(isinstance(n, int) for n in counts):
        raise ValueError(f"n_samples must hold integers, got {counts}.")
    return {check_count("n_samples", n) for n in counts}
