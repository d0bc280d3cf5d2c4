"""BatchNorm statistics for other data than a network was trained on."""

from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_choice, check_fraction, check_key, num_examples
from poster_jax.core.models.model import Model
from poster_jax.core.typing import Array, Float, Params, PRNGKey

__all__ = ["pool_moments", "recalibrate"]


def pool_moments(
    means: Float[Array, "groups ..."],
    variances: Float[Array, "groups ..."],
    counts: Float[Array, " groups"],
) -> tuple[Array, Array]:
    """Mean and variance of all values together, from those of groups of unequal sizes.

    Args:
      means: (groups, ...), mean of each group.
      variances: (groups, ...), biased variance of each group (divided by its count).
      counts: (groups,), number of values of each group.

    Returns:
      `(mean, variance)` of shape (...), the variance biased.

    Source: the law of total variance, Var = E[Var | group] + Var(E[. | group]).

    Example:
      >>> mean, variance = pool_moments(jnp.array([0.0, 3.0]), jnp.zeros(2), jnp.array([2.0, 1.0]))
      >>> float(mean), float(variance)
      (1.0, 2.0)
    """
    weights = counts / counts.sum()
    mean = jnp.tensordot(weights, means, 1)
    return mean, jnp.tensordot(weights, variances + (means - mean) ** 2, 1)


def recalibrate(
    model: Model,
    params: Params,
    state: Any,
    batches: Any,
    key: PRNGKey,
    *,
    mode: str = "cumulative",
    momentum: float = 0.9,
) -> Any:
    """BatchNorm's running statistics, replaced by those of `batches`; params stay as they are.

    Every batch goes through the network in training mode, so a deep layer sees what it sees in
    training. A pure function of arrays: jit it (model, mode and momentum static) or vmap it.

    Args:
      model: a `Model` whose state names its running statistics `mean` and `var`, side by side, as
        Flax Linen does.
      params: of the model.
      state: of the model; its statistics are not used, its other leaves are kept.
      batches: inputs with two leading axes (batches, examples), all of the size to be tested.
      key: a PRNG key, for dropout and the like.
      mode: "cumulative", the averages of the batches' means and variances; "exact", the mean and
        variance of all batches pooled, which adds the variance between batches.
      momentum: of the BatchNorm layers, the weight of the old statistics in an update, below 1.

    Returns:
      A state like `state`.

    Raises:
      ValueError: no statistics in `state`, an unknown mode, or a momentum of 1.

    Source: Hoffer et al. 2019, arXiv 1908.08986, calibration for a test size. Variances are biased
    as Flax keeps them; torch's are larger by n / (n - 1), n the values of a channel in a batch.

    Example:
      >>> from flax import linen as nn
      >>> from poster_jax.core.models import from_linen
      >>> net = from_linen(nn.BatchNorm(momentum=0.9))
      >>> x, key = jnp.full((2, 8, 3), 5.0), jax.random.key(0)
      >>> params, state = net.init(key, x[0]), net.init_state(key, x[0])
      >>> print(recalibrate(net, params, state, x, key)["batch_stats"]["mean"].round(4))
      [5. 5. 5.]
    """
    check_key("key", key)
    check_choice("mode", mode, ("cumulative", "exact"))
    check_fraction("momentum", momentum)
    if momentum == 1:
        raise ValueError("momentum must be below 1, got 1: such statistics never change.")
    leaves, structure = jax.tree_util.tree_flatten_with_path(state)
    places = {_names(path): index for index, (path, _) in enumerate(leaves)}
    pairs = [
        (index, places[(*path[:-1], "var")])
        for path, index in places.items()
        if path and path[-1] == "mean" and (*path[:-1], "var") in places
    ]
    if not pairs:
        raise ValueError(
            "state must hold running statistics named 'mean' and 'var' side by side, got "
            f"{[jax.tree_util.keystr(path) for path, _ in leaves]}."
        )
    batches = jax.tree.map(jnp.asarray, batches)
    num_batches = num_examples(batches, "batches")
    blank = [leaf for _, leaf in leaves]
    for index in (i for pair in pairs for i in pair):
        blank[index] = jnp.zeros_like(blank[index])
    blank_state = jax.tree.unflatten(structure, blank)

    def moments(index: Array) -> list[tuple[Array, Array]]:
        # From statistics of zero one update leaves (1 - momentum) times those of the batch.
        x = jax.tree.map(lambda leaf: leaf[index], batches)
        _, new = model.apply_train(params, blank_state, x, jax.random.fold_in(key, index))
        new = jax.tree.leaves(new)
        return [(new[m] / (1 - momentum), new[v] / (1 - momentum)) for m, v in pairs]

    seen = jax.lax.map(moments, jnp.arange(num_batches))
    fresh = [leaf for _, leaf in leaves]
    for (m, v), (means, variances) in zip(pairs, seen, strict=True):
        if mode == "exact":
            # Batches stacked in one array are equally large.
            fresh[m], fresh[v] = pool_moments(
                means, variances, jnp.ones_like(means, shape=(num_batches,))
            )
        else:
            fresh[m], fresh[v] = means.mean(0), variances.mean(0)
    return jax.tree.unflatten(structure, fresh)


def _names(path: Any) -> tuple[str, ...]:
    return tuple(str(getattr(entry, "key", getattr(entry, "name", entry))) for entry in path)
