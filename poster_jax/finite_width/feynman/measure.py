"""Correlators of any network with a width, measured over random networks."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from poster_jax.core.checks import check_callable, check_choice, check_count, check_key
from poster_jax.core.typing import ApplyFn, Params, PRNGKey
from poster_jax.finite_width.feynman._clusters import Plan, evaluate, plan
from poster_jax.finite_width.feynman._statistics import Statistic, jackknife_error, power_sums
from poster_jax.finite_width.feynman.correlator import Correlator
from poster_jax.finite_width.feynman.linear import check_correlator

__all__ = ["Measurement", "measure", "measure_all", "measurement_from_samples"]

_PARAMETERS_AT_ONCE = 2**16  # of all networks of one vmap: what a core keeps in its cache


class Measurement(NamedTuple):
    """A correlator at several widths.

    Attributes:
      correlator: what was measured; None when it is no correlator.
      widths: (widths,) int.
      mean: (widths,), the estimate: of the mean of the product, or of the joint cumulant.
      stderr: (widths,), its standard error (jackknife over networks).
      num_networks: (widths,) int, those with finite values.
      num_nonfinite: (widths,) int, those with a NaN or infinite value, left out.
      effective_sample_size: (widths,), (sum |X|)^2 / sum X^2 of the product X of all clusters: far
        below the number of networks, a few of them carry the mean, and the error is not to be
        trusted.
      samples: a (networks, clusters) array for each width, the finite ones.
    """

    correlator: Correlator | None
    widths: Any
    mean: Any
    stderr: Any
    num_networks: Any
    num_nonfinite: Any
    effective_sample_size: Any
    samples: tuple[Any, ...]


def measure(
    correlator: Correlator,
    init_fn: Callable[[PRNGKey, int], Params],
    apply_fn: ApplyFn,
    inputs: Mapping[str, Any],
    key: PRNGKey,
    *,
    widths: Sequence[int],
    num_networks: int | Sequence[int],
    loops: str = "hutchinson",
) -> Measurement:
    """A correlator at several widths, with standard errors, for any network that has a width.

    Derivative tensors are never written down: contractions are derivatives along gradients. The
    networks run side by side in groups that a core's cache holds. Call it under
    `jax.enable_x64(True)`: the higher orders of 1/n are lost in float32.

    Args:
      correlator: of `correlator(...)`; with `connected=True` its joint cumulant, by k-statistics.
      init_fn: `init_fn(key, width) -> params`.
      apply_fn: `apply_fn(params, x) -> outputs` for x of shape (1, ...), with one output.
      inputs: name -> array, one input without example axis.
      key: PRNG key.
      widths: each at least 1.
      num_networks: at every width, or one number for each.
      loops: how contractions that close a loop, as in `ddf:ddf`, are summed: "hutchinson", by one
        random sign vector a network (without bias), or "exact", over all parameters.

    Returns:
      Measurement.

    Raises:
      ValueError: inputs that are missing, widths below 1, too few networks for an error, an output
        that is no scalar, all values at a width not finite.
      TypeError: another kind of argument.

    Source: Dyer and Gur-Ari 2019 (arXiv 1909.11304), section 5 (experiments); the plan of
      contractions: this library; k-statistics: Fisher 1930.

    Example:
      >>> from poster_jax.finite_width.feynman import correlator, deep_network
      >>> init_fn, apply_fn = deep_network(lambda z: z, depth=1, input_dim=2)
      >>> found = measure(correlator("df.df"), init_fn, apply_fn, {"x": jnp.array([1.0, 0.0])},
      ...     jax.random.key(0), widths=[4, 8], num_networks=2000)
      >>> bool(np.all(abs(found.mean - 2) < 4 * found.stderr))  # the NTK of a linear network is 2
      True
    """
    check_correlator(correlator)
    options = {"widths": widths, "num_networks": num_networks, "loops": loops}
    return measure_all([correlator], init_fn, apply_fn, inputs, key, **options)[0]


def measure_all(
    correlators: Sequence[Correlator],
    init_fn: Callable[[PRNGKey, int], Params],
    apply_fn: ApplyFn,
    inputs: Mapping[str, Any],
    key: PRNGKey,
    *,
    widths: Sequence[int],
    num_networks: int | Sequence[int],
    loops: str = "hutchinson",
) -> tuple[Measurement, ...]:
    """Several correlators on the same networks; gradients and products are shared among them.

    Args:
      correlators: at least one.
      init_fn: as in `measure`.
      apply_fn: as in `measure`.
      inputs: as in `measure`.
      key: as in `measure`.
      widths: as in `measure`.
      num_networks: as in `measure`.
      loops: as in `measure`.

    Returns:
      A Measurement for each correlator.

    Raises:
      ValueError, TypeError: as `measure`; no correlators.

    Source: as `measure`.

    Example:
      >>> from poster_jax.finite_width.feynman import correlator, deep_network
      >>> both = [correlator("f f"), correlator("f df.ddf.df")]
      >>> found = measure_all(both, *deep_network(jnp.tanh, depth=2, input_dim=2),
      ...     {"x": jnp.array([1.0, 0.0])}, jax.random.key(0), widths=[4], num_networks=100)
      >>> [m.samples[0].shape for m in found]
      [(100, 2), (100, 2)]
    """
    widths, counts = _check(
        correlators, init_fn, apply_fn, inputs, key, widths, num_networks, loops
    )
    plans, columns = _columns(correlators)
    names = sorted({name for correlator in correlators for name in correlator.inputs})
    chosen = {name: jnp.asarray(inputs[name], jnp.zeros(()).dtype) for name in names}
    parts: list[list[np.ndarray]] = []
    for number, (width, count) in enumerate(zip(widths, counts, strict=True)):
        shape = jax.eval_shape(lambda key, width=width: init_fn(key, width), key)
        size = sum(leaf.size for leaf in jax.tree.leaves(shape))
        group = int(np.clip(_PARAMETERS_AT_ONCE // size, 1, 256))
        group = min(group, count)
        keys = jax.random.split(jax.random.fold_in(key, number), -(-count // group) * group)
        values = _values(
            keys, chosen, init_fn, apply_fn, width, plans, group=group, exact=loops == "exact"
        )
        parts.append([np.asarray(values)[:count, list(places)] for places in columns])
    return tuple(
        _summary(correlator, widths, [row[at] for row in parts], correlator.connected)
        for at, correlator in enumerate(correlators)
    )


def measurement_from_samples(samples: Sequence[Any], *, widths: Sequence[int]) -> Measurement:
    """Any quantity that was measured on networks of several widths, to fit its exponent.

    Args:
      samples: for each width (networks,), one value a network.
      widths: of the networks.

    Returns:
      Measurement of the mean, without a correlator.

    Raises:
      ValueError: not one array for each width, fewer than 2 finite values.

    Source: this library.

    Example:
      >>> found = measurement_from_samples([[1.0, 3.0], [1.0, 1.0, 4.0]], widths=[8, 16])
      >>> found.mean.tolist(), found.num_networks.tolist()
      ([2.0, 2.0], [2, 3])
    """
    widths = [check_count("widths", width) for width in widths]
    arrays = [np.asarray(values, np.float64) for values in samples]
    if len(arrays) != len(widths) or any(a.ndim != 1 for a in arrays):
        raise ValueError(
            f"samples must have one array of shape (networks,) for each of the {len(widths)} "
            f"widths, got shapes {[a.shape for a in arrays]}."
        )
    return _summary(None, widths, [a[:, None] for a in arrays], False)


def _check(
    correlators: Any,
    init_fn: Any,
    apply_fn: Any,
    inputs: Any,
    key: Any,
    widths: Any,
    num_networks: Any,
    loops: Any,
) -> tuple[list[int], list[int]]:
    if not len(correlators):
        raise ValueError("correlators must hold at least one, got none.")
    for correlator in correlators:
        check_correlator(correlator)
    check_callable("init_fn", init_fn)
    check_callable("apply_fn", apply_fn)
    check_key("key", key)
    check_choice("loops", loops, ["exact", "hutchinson"])
    if not isinstance(inputs, Mapping):
        raise TypeError(f"inputs must map names to arrays, got {type(inputs).__name__}.")
    missing = sorted({x for c in correlators for x in c.inputs} - set(inputs))
    if missing:
        raise ValueError(
            f"inputs must hold {missing}, which the correlator names, got {[*inputs]}."
        )
    widths = [check_count("widths", width) for width in widths]
    if not widths:
        raise ValueError("widths must hold at least one width, got none.")
    single = isinstance(num_networks, int | np.integer)
    counts = [num_networks] * len(widths) if single else list(num_networks)
    if len(counts) != len(widths):
        raise ValueError(
            f"num_networks must be one number, or one for each of the {len(widths)} widths, got "
            f"{len(counts)}."
        )
    least = max(
        Statistic(len(c.cluster_graph().clusters), connected=c.connected).min_networks
        for c in correlators
    )
    hint = "Its standard error needs them."
    counts = [check_count("num_networks", count, minimum=least, hint=hint) for count in counts]
    for name in {x for c in correlators for x in c.inputs}:
        if not np.isfinite(np.asarray(inputs[name], np.float64)).all():
            raise ValueError(f"inputs[{name!r}] must be finite.")
        params = jax.eval_shape(lambda key: init_fn(key, widths[0]), key)
        out = jax.eval_shape(apply_fn, params, jnp.asarray(inputs[name], float)[None])
        if getattr(out, "size", None) != 1:
            raise ValueError(
                "apply_fn must have one output for an input of one example, got "
                f"{getattr(out, 'shape', type(out).__name__)}."
            )
    return widths, counts


def _columns(
    correlators: Sequence[Correlator],
) -> tuple[tuple[tuple[Plan, int], ...], list[tuple[int, ...]]]:
    """What is computed on each network, and which of it each correlator multiplies.

    Equal clusters are computed once; those with loops once for each time they occur in a
    correlator, with probes of their own, since a product needs independent ones.
    """
    found: dict[tuple[Correlator, int], int] = {}
    plans: list[tuple[Plan, int]] = []
    columns = []
    for correlator in correlators:
        places, seen = [], {}
        for tensors in correlator.cluster_graph().clusters:
            cluster = correlator.part(tensors)
            how = plan(cluster)
            times = seen[cluster] = seen.get(cluster, -1) + 1
            copy = times if how.loops else 0
            if (cluster, copy) not in found:
                found[cluster, copy] = len(plans)
                plans.append((how, copy))
            places.append(found[cluster, copy])
        columns.append(tuple(places))
    return tuple(plans), columns


@partial(jax.jit, static_argnums=(2, 3, 4, 5), static_argnames=("group", "exact"))
def _values(
    keys: Any,
    inputs: Any,
    init_fn: Any,
    apply_fn: Any,
    width: int,
    plans: tuple[tuple[Plan, int], ...],
    *,
    group: int,
    exact: bool,
) -> Any:
    """(networks, clusters)."""
    any_loops = any(how.loops for how, _ in plans)  # few keys: each is work to compile

    def of_one(key: Any) -> Any:
        key_params, key_probes = jax.random.split(key) if any_loops else (key, key)
        params = init_fn(key_params, width)
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.zeros(()).dtype), params)
        functions = {
            name: lambda params, x=x: apply_fn(params, x[None]).reshape(())
            for name, x in inputs.items()
        }
        memory: dict[Any, Any] = {}
        values = []
        for number, (how, _) in enumerate(plans):
            if exact and how.loops:
                values.append(_sum_over_parameters(how, functions, params))
                continue
            probes = [
                _signs(jax.random.fold_in(key_probes, len(plans) * k + number), params)
                for k in range(len(how.loops))
            ]
            values.append(evaluate(how, functions, params, probes, memory, number))
        return jnp.stack(values)

    if group == 1:  # no vmap of size one
        return jax.lax.map(of_one, keys)
    grouped = keys.reshape(-1, group)
    return jax.lax.map(jax.vmap(of_one), grouped).reshape(len(keys), -1)


def _signs(key: Any, params: Params) -> Params:
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    return unravel(jax.random.rademacher(key, flat.shape, flat.dtype))


def _sum_over_parameters(how: Plan, functions: Any, params: Params) -> Any:
    """All loops, each over every parameter."""
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def summed(chosen: tuple[Any, ...]) -> Any:
        if len(chosen) == len(how.loops):
            return evaluate(how, functions, params, chosen, {})

        def add(total: Any, at: Any) -> tuple[Any, None]:
            vector = unravel(jnp.zeros_like(flat).at[at].set(1.0))
            return total + summed((*chosen, vector)), None

        return jax.lax.scan(add, jnp.zeros_like(flat[0]), jnp.arange(flat.size))[0]

    return summed(())


def _summary(
    correlator: Correlator | None,
    widths: Sequence[int],
    samples: Sequence[np.ndarray],
    connected: bool,
) -> Measurement:
    statistic = Statistic(samples[0].shape[1], connected=connected)
    rows, kept = [], []
    for width, values in zip(widths, samples, strict=True):
        finite = values[np.isfinite(values).all(axis=1)]
        if len(finite) < statistic.min_networks:
            raise ValueError(
                f"samples at width {width} must have at least {statistic.min_networks} networks "
                f"with finite values, got {len(finite)} of {len(values)}."
            )
        terms = power_sums(statistic, finite)
        product = np.abs(finite.prod(axis=1))
        squares = float(np.sum(product**2))
        rows.append(
            (
                float(statistic(terms.sum(axis=0))),
                jackknife_error(statistic, terms),
                len(finite),
                len(values) - len(finite),
                product.sum() ** 2 / squares if squares else float(len(finite)),
            )
        )
        kept.append(finite)
    mean, stderr, num, bad, effective = map(np.array, zip(*rows, strict=True))
    return Measurement(correlator, np.array(widths), mean, stderr, num, bad, effective, tuple(kept))
