"""Populations of networks of which a part trains, and what training made of their features."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments import _batchnorm_training as batchnorm
from experiments._batchnorm_training import Condition, Network
from experiments._program import Run
from poster_jax import batchnorm_only as room
from poster_jax.core import batching, models, training
from poster_jax.core.models.imagenet_resnet import STAGES
from poster_jax.core.paths import leaf_paths

# The thresholds of "nearly zero", the paper's first.
THRESHOLDS = (0.01, 0.03, 0.1, 0.2, 0.4)
ONLY = Condition(batchnorm.BATCHNORM, ("batchnorm",))


class Row(NamedTuple):
    """One condition of a population, a network a seed.

    Attributes:
      condition: what trains.
      ones: whether scales begin at 1 instead of U(0, 1).
      same: whether all networks have the weights of the first.
    """

    condition: Condition
    ones: bool = False
    same: bool = False


def train_rows(
    run: Run,
    shared: Any,
    network: Network,
    groups: tuple[str, ...],
    rows: list[Row],
    *,
    keep: bool = False,
) -> list[dict[str, Any]]:
    """Results of each row, (seeds,) each, from one program: gradients of `groups`, then masks."""
    seeds = jnp.arange(run.settings.num_seeds)
    orders, lots = keys_of(run, seeds, 1), keys_of(run, seeds, 2)
    members = [
        (
            keys_of(run, jnp.zeros_like(seeds) if row.same else seeds),
            orders,
            _masks(run, shared, network, groups, row.condition, lots),
            jnp.full(len(seeds), row.ones),
        )
        for row in rows
    ]
    members = jax.tree.map(lambda *parts: jnp.concatenate(parts), *members)
    one = partial(batchnorm.train_one, run.settings, network, groups, keep)
    words = "_".join(row.condition.name for row in rows) if len(rows) == 1 else "parts"
    found = run.population(f"{network.name}_{words.replace(' ', '_')}", one, shared, *members)
    split = jax.tree.map(lambda leaf: leaf.reshape(len(rows), -1, *leaf.shape[1:]), found)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], split) for i in range(len(rows))]


def _masks(
    run: Run,
    shared: Any,
    network: Network,
    groups: tuple[str, ...],
    condition: Condition,
    keys: Any,
) -> Any:
    """The mask of each network, of the leaves of `groups`."""
    zeros = shapes_of(run, network, shared[0])
    chosen = room.trains(zeros, *groups)

    def draw(key: Any) -> Any:
        return training.partition(condition.mask(zeros, key), chosen)[0]

    if condition.drawn:
        return jax.jit(jax.vmap(draw))(keys)
    # The same for all networks: nothing to draw, nothing to compile.
    return jax.tree.map(lambda leaf: np.broadcast_to(leaf, (len(keys), *leaf.shape)), draw(None))


def shapes_of(run: Run, network: Network, x: Any) -> Any:
    """Zeros like the network's parameters."""
    return batchnorm.shapes_of(batchnorm.module_of(run.settings, network), x)


def counts_of(run: Run, x: Any) -> dict[Network, dict[str, int]]:
    """Numbers of parameters of every network of the run, from shapes alone."""
    networks = batchnorm.networks(run.settings)
    return {network: room.count_parameters(shapes_of(run, network, x)) for network in networks}


def places_of(run: Run, network: Network, x: Any) -> list[int]:
    """`layer_places` of one network."""
    return layer_places(
        shapes_of(run, network, x),
        STAGES[network.num_blocks] if run.settings.network == "ImageNet" else network.num_blocks,
    )


def keys_of(run: Run, seeds: Any, stream: int = 0) -> Any:
    """One key a seed: of weights (0), of the order of examples (1), of masks (2)."""
    return jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(run.key, stream)))(seeds)


def train_all(
    run: Run, shared: Any, base: Network, table: list[Condition]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Results by condition at the base, by network for BatchNorm (affine) only, and features.

    Networks without normalisation begin with gamma = 1; at the base also as the others do.
    """
    rows = [Row(condition) for condition in table] + [Row(ONLY, same=True)]
    names = [*(condition.name for condition in table), batchnorm.SAME]
    rest = [network for network in batchnorm.networks(run.settings) if network != base]
    found, by_size = {}, {}
    with run.progress("training", len(rows) + len(rest)) as update:
        # One program for all conditions, whose every step is a full one, or one for each.
        if run.settings.one_program:
            update(0, f"{len(rows)} choices of what trains")
            trained = train_rows(run, shared, base, room.GROUPS, rows, keep=True)
            found = dict(zip(names, trained, strict=True))
        else:
            for done, (name, row) in enumerate(zip(names, rows, strict=True)):
                update(done, name)
                row = row._replace(condition=row.condition._replace(name=name))
                groups = row.condition.groups
                (found[name],) = train_rows(run, shared, base, groups, [row], keep=True)
        by_size[base.name] = {name: found[batchnorm.BATCHNORM][name] for name in batchnorm.MEASURED}
        for done, network in enumerate(rest):
            update(len(rows) + done, network.name)
            affine = network.norm == "affine"
            again = [Row(ONLY)] if affine and network[1:] == base[1:] else []
            own = train_rows(run, shared, network, ONLY.groups, [Row(ONLY, ones=affine), *again])
            by_size[network.name] = own[0]
            if again:
                found[batchnorm.AFFINE], found[batchnorm.AFFINE_UNIFORM] = own
        update(len(rows) + len(rest))
    kept = {name: found[name] for name in (batchnorm.BATCHNORM, batchnorm.ALL)}
    found = {name: {k: of[k] for k in batchnorm.MEASURED} for name, of in found.items()}
    return found, by_size, features(run, shared, base, kept)


def features(
    run: Run, shared: Any, base: Network, trained: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Condition -> `features_of` of its networks."""
    keys = jnp.concatenate([keys_of(run, jnp.arange(run.settings.num_seeds))] * len(trained))
    stacked = [
        jax.tree.map(lambda *parts: jnp.concatenate(parts), *(of[part] for of in trained.values()))
        for part in ("params", "state")
    ]
    one = partial(features_of, run.settings, base)
    found = run.population("features", one, shared, keys, *stacked)
    rows = jax.tree.map(lambda leaf: leaf.reshape(len(trained), -1, *leaf.shape[1:]), found)
    return {
        name: jax.tree.map(lambda leaf, place=place: leaf[place], rows)
        for place, name in enumerate(trained)
    }


def features_of(
    settings: Any, network: Network, shared: Any, key: Any, params: Any, state: Any
) -> dict[str, Any]:
    """What training made of the features of one network."""
    x, test = shared[0], shared[2:]
    module = batchnorm.module_of(settings, network)
    model = models.from_linen(module)
    before = batchnorm.initial(module, x, key)
    levels = jnp.asarray(THRESHOLDS)
    large = {"microbatch": settings.microbatch}

    def right(pruned: Any) -> Any:
        return batchnorm.accuracy(settings, model, pruned, state, test)

    def pruned(level: Any) -> tuple[Any, Any]:
        own = jax.random.fold_in(key, 2)
        return (
            room.prune_features(params, threshold=level),
            room.prune_features(params, own, threshold=level, at_random=True),
        )

    def active(p: Any) -> Any:
        """With the statistics of the test examples: there are no others before training."""

        def fractions(chunk: Any) -> dict[str, Any]:
            seen = batchnorm.tested(settings, chunk)
            units = activations(module, {"params": p, **state}, seen, train=True)
            return {name: (u > 0).mean(range(u.ndim - 1)) for name, u in units.items()}

        return _joined(batching.mean_over_batch(fractions, test[0], **large)).mean()

    def each(fn: Any, *stacks: Any) -> Any:
        """`fn` of one network after another, compiled once."""
        return jax.lax.map(fn, jax.tree.map(lambda *parts: jnp.concatenate(parts), *stacks))

    small, others = each(right, *jax.vmap(pruned)(levels)).reshape(2, -1)
    lone = (jax.tree.map(lambda leaf: leaf[None], tree) for tree in (before, params))
    active_before, active_after = each(active, *lone)
    sparsity = room.batchnorm_sparsity(params, threshold=levels)
    dead = room.dead_features(
        lambda p, chunk: activations(
            module, {"params": p, **state}, batchnorm.tested(settings, chunk), train=False
        ),
        params,
        test[0],
        **large,
    )
    return {
        "scales before": _joined(room.gammas(before)),
        "scales": _joined(room.gammas(params)),
        "shifts": _joined(shifts(params)),
        "sparsity": sparsity.fraction,
        "by layer": sparsity.per_layer[0],
        "pruned": small,
        "pruned at random": others,
        "active before": active_before,
        "active": active_after,
        "dead": _joined(dead).mean(),
    }


def activations(module: Any, variables: Any, x: Any, *, train: bool) -> dict[str, Any]:
    """What leaves every rectifier of a ResNet, each (B, height, width, channels)."""

    def norm_or_block(inner: Any, method: str) -> bool:
        chosen = type(inner).__name__ == "Block" or isinstance(inner, nn.BatchNorm)
        return chosen and method == "__call__"

    _, found = module.apply(
        variables,
        x,
        train=train,
        capture_intermediates=norm_or_block,
        mutable=["batch_stats", "intermediates"] if train else ["intermediates"],
    )
    bottleneck = getattr(module, "depth", 0) >= 50
    before = ("BatchNorm_0/", "BatchNorm_1/") if bottleneck else ("BatchNorm_0/",)
    units = {}
    sown = found["intermediates"]
    for path, leaf in zip(leaf_paths(sown), jax.tree.leaves(sown), strict=True):
        norm = "BatchNorm_" in path
        if norm and not any(name in path for name in before):
            continue  # the last norm of a block meets its rectifier behind the sum
        of = jax.nn.relu(leaf) if norm else leaf
        layers = {f"{path}/{i}": u for i, u in enumerate(of)} if of.ndim == 5 else {path: of}
        units |= layers
    return units


def shifts(params: Any) -> dict[str, Any]:
    """BatchNorm's biases by path."""
    groups = jax.tree.leaves(room.parameter_groups(params))
    rows = zip(leaf_paths(params), groups, jax.tree.leaves(params), strict=True)
    return {p: leaf for p, group, leaf in rows if group == "batchnorm" and p.endswith("bias")}


def layer_places(params: Any, num_blocks: int | tuple[int, ...]) -> list[int]:
    """Where each entry of `Sparsity.per_layer` stands from the input on, 0 for the stem.

    Args:
      params: of the network, or their shapes.
      num_blocks: n, or the blocks of each stage; names are those of the networks of `core.models`.
    """
    stages = (num_blocks,) * 3 if isinstance(num_blocks, int) else num_blocks
    firsts = np.cumsum((0, *stages)).tolist()
    # Unrolled blocks count through; scanned, the first of a stage stands apart where it differs.
    tops = {path.split("/")[0] for path in leaf_paths(params)}
    stacked = any(top.startswith("Stage") for top in tops)
    alike = len(stages) - sum(top.startswith("Block") for top in tops)  # stages with no such block
    keys = []
    for path, scale in room.gammas(params).items():
        names, place = path.split("/"), int(path.split("/")[-2].split("_")[1])
        index = int(names[0].split("_")[1])
        if names[0].startswith("Stage"):
            first = firsts[index] + (index >= alike)
            keys += [(first + row, place) for row in range(len(scale))]
        elif names[0].startswith("Block"):
            keys.append((firsts[index + alike] if stacked else index, place))
        else:
            keys.append((-1, 0))
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return [order.index(entry) for entry in range(len(keys))]


def _joined(arrays: dict[str, Any]) -> Any:
    return jnp.concatenate([array.ravel() for array in arrays.values()])
