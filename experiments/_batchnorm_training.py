"""Networks of which a part trains: which networks, which parts, and the training of one.

Every function here is of one network and pure; `_batchnorm_population` makes populations of them.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import _photographs as photographs
from experiments._augment import augmented, crop_and_flip
from poster_jax import batchnorm_only as room
from poster_jax.core import batching, losses, models, training
from poster_jax.core.paths import leaf_paths

# The size below which the paper calls a scale zero.
PAPERS_THRESHOLD = 0.01
# Affine networks grow with their depth; the norm of their gradients is clipped, and no other's.
AFFINE_CLIP = 5.0
ALL = "everything"
BATCHNORM = "BatchNorm only"
ALL_BUT = "all but BatchNorm"
OUTPUT = "output only"
ANYWHERE = "as many anywhere"
AFFINE = "affine only, γ = 1"
AFFINE_UNIFORM = "affine only, γ in (0, 1)"
SAME = "BatchNorm only, the same weights"
MEASURED = ("accuracy", "loss", "diverged")  # of every network
WEIGHTS = ("shortcut", "other")
FAMILIES = ("CIFAR", "ImageNet")


class Network(NamedTuple):
    """Which network.

    Attributes:
      norm: as in `core.models.ResNet`.
      num_blocks: n of CIFAR's, whose depth is 6 n + 2; the depth of ImageNet's.
      width: channels of the first stage.
    """

    norm: str
    num_blocks: int
    width: int

    @property
    def name(self) -> str:
        """For files."""
        return f"{self.norm}_n{self.num_blocks}_w{self.width}"


class Condition(NamedTuple):
    """Which parameters train.

    Attributes:
      name: on pictures.
      groups: of `batchnorm_only.GROUPS`; their leaves train.
      drawn: arguments of `random_parameter_mask` where single entries of those leaves train.
    """

    name: str
    groups: tuple[str, ...]
    drawn: dict[str, int] | None = None

    def mask(self, params: Any, key: Any) -> Any:
        """Like `params`, 1 where an entry trains."""
        if self.drawn:
            return room.random_parameter_mask(params, key, **self.drawn)
        chosen = room.trains(params, *self.groups)
        return jax.tree.map(lambda leaf, yes: np.full_like(leaf, yes), params, chosen)


def conditions(per_channel: tuple[int, ...], num_batchnorm: int) -> list[Condition]:
    """Those of the paper, in the order of the pictures."""
    return [
        Condition(ALL, room.GROUPS),
        Condition(ALL_BUT, (*WEIGHTS, "output")),
        Condition("BatchNorm and output", ("batchnorm", "output")),
        Condition(BATCHNORM, ("batchnorm",)),
        Condition(OUTPUT, ("output",)),
        Condition("shortcuts only", ("shortcut",)),
        *(Condition(of_k(k), WEIGHTS, {"per_channel": k}) for k in per_channel),
        Condition(ANYWHERE, WEIGHTS, {"total": num_batchnorm}),
    ]


def of_k(k: int) -> str:
    """The name of the condition of k random weights a channel."""
    return f"{k} random a channel"


def networks(settings: Any) -> list[Network]:
    """All networks of a run, each once: the base, then by depth, by width, and without norm."""
    base = (settings.num_blocks, settings.width)
    deep = [(n, settings.width) for n in settings.depths]
    wide = [(settings.width_blocks, width) for width in settings.widths]
    batch = [Network("batch", *size) for size in (base, *deep, *wide)]
    return list(dict.fromkeys([*batch, *(Network("affine", *size) for size in (base, *deep))]))


def layers(settings: Any, num_blocks: int) -> int:
    """The depth of a network as it is named."""
    return num_blocks if settings.network == "ImageNet" else 6 * num_blocks + 2


def module_of(settings: Any, network: Network) -> Any:
    """The authors' network: shortcuts of 1x1 convolutions with their norm; drawn by `initial`."""
    if settings.network == "ImageNet":
        return models.ImageNetResNet(
            network.num_blocks,
            norm=network.norm,
            width=network.width,
            num_classes=settings.num_classes,
            scan=network.num_blocks >= settings.scan_from,
        )
    return models.ResNet(
        num_blocks=network.num_blocks,
        norm=network.norm,
        projection=True,
        width=network.width,
        num_classes=settings.num_classes,
        scan=network.num_blocks >= settings.scan_from,
    )


def storage(settings: Any) -> dict[str, Any]:
    """How `core.data.load` keeps the images."""
    if settings.network == "ImageNet":
        return {"side": settings.side, "scaling": "bytes"}
    return {}


def tested(settings: Any, x: Any) -> Any:
    """Stored images as networks are tested on them."""
    return photographs.centres(x, _seen(settings)) if settings.network == "ImageNet" else x


def moved(settings: Any, x: Any, key: Any) -> Any:
    """Stored images as networks are trained on them."""
    if settings.network == "ImageNet":
        return photographs.random_views(x, key, _seen(settings))
    return crop_and_flip(x, key)


def _seen(settings: Any) -> int:
    return round(photographs.CENTRE * settings.side)


def shapes_of(module: Any, x: Any) -> Any:
    """Parameters of the network's shapes without memory: broadcast zeros."""
    like = jax.ShapeDtypeStruct((1, *x.shape[1:]), jnp.float32)
    shapes = jax.eval_shape(models.from_linen(module).init, jax.random.key(0), like)
    return jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)


def initial(module: Any, x: Any, key: Any, ones: Any = False) -> Any:
    """Parameters before training, by the authors' laws.

    Kernels are He's normal, scales from U(0, 1), or 1; the output's bias as torch draws it, other
    biases 0. All numbers of a law are one draw, cut into leaves: a draw for every leaf took four
    times as long to compile as the training step.
    """
    like = shapes_of(module, x)
    leaves, structure = jax.tree.flatten(like)
    paths, groups = leaf_paths(like), jax.tree.leaves(room.parameter_groups(like))
    of_law = [_law(path, group) for path, group in zip(paths, groups, strict=True)]
    size = dict.fromkeys(("normal", "uniform", "zeros"), 0)
    for leaf, law in zip(leaves, of_law, strict=True):
        size[law] += leaf.size
    keys = jax.random.split(key)
    numbers = {
        "normal": jax.random.normal(keys[0], (size["normal"],)),
        "uniform": jax.random.uniform(keys[1], (size["uniform"],)),
    }
    used = dict.fromkeys(numbers, 0)
    (bound,) = (
        leaf.shape[0] ** -0.5
        for leaf, path, group in zip(leaves, paths, groups, strict=True)
        if group == "output" and path.endswith("kernel")
    )
    params = []
    for leaf, path, law in zip(leaves, paths, of_law, strict=True):
        if law == "zeros":
            params.append(jnp.zeros(leaf.shape))
            continue
        drawn = numbers[law][used[law] : used[law] + leaf.size].reshape(leaf.shape)
        used[law] += leaf.size
        if law == "normal":
            inputs = leaf.shape[-4:-1]  # of stacked layers each by itself
            params.append(drawn * (2 / np.prod(inputs)) ** 0.5)
        else:
            scale = path.endswith("scale")
            params.append(jnp.where(ones, 1, drawn) if scale else bound * (2 * drawn - 1))
    return structure.unflatten(params)


def _law(path: str, group: str) -> str:
    if path.endswith("kernel"):
        return "normal"
    return "uniform" if path.endswith("scale") or group == "output" else "zeros"


def train_one(
    settings: Any,
    network: Network,
    groups: tuple[str, ...],
    keep: bool,
    shared: Any,
    key: Any,
    order_key: Any,
    mask: Any,
    ones: Any,
) -> dict[str, Any]:
    """Trains the masked entries of the leaves of `groups`; accuracy on the test part.

    `key` is of the weights, `order_key` of the order of the examples and of how they are moved.
    """
    x, y, x_test, y_test = shared
    module = module_of(settings, network)
    model = models.from_linen(module)
    params = initial(module, x, key, ones)
    trainable, frozen = training.partition(params, room.trains(params, *groups))
    loss_fn = training.model_loss(model, losses.softmax_cross_entropy)
    if settings.augment:
        loss_fn = augmented(loss_fn, partial(moved, settings))
    epoch_steps = training.steps_per_epoch(len(y), settings.batch_size)
    found = training.fit(
        training.freeze(loss_fn, frozen),
        trainable,
        (x, y),
        order_key,
        optimizer=optimizer_of(settings, network, epoch_steps, mask),
        num_steps=epoch_steps * settings.num_epochs,
        batch_size=settings.batch_size,
        model_state=model.init_state(key, x[:1].astype(jnp.float32)),
    )
    params, state = training.merge(found.params, frozen), found.state.model_state
    right = accuracy(settings, model, params, state, (x_test, y_test))
    result: dict[str, Any] = {
        "accuracy": right,
        "loss": found.losses[-epoch_steps:].mean(),
        "diverged": found.diverged,
    }
    return {**result, "params": params, "state": state} if keep else result


def optimizer_of(settings: Any, network: Network, epoch_steps: int, mask: Any) -> Any:
    """The authors': SGD with momentum, weight decay on all that trains, drops of the rate."""
    num_steps = epoch_steps * settings.num_epochs
    # As floats cut off, 30 of 90 epochs may become a step less.
    drops = {int(share * num_steps + 1e-6): 0.1 for share in settings.drops}
    rate = optax.piecewise_constant_schedule(settings.rate, drops)
    if warmup := round(settings.warmup_epochs * epoch_steps):
        rising = lambda step: rate(step) * jnp.minimum(1.0, (step + 1) / warmup)  # noqa: E731
    parts = [
        optax.add_decayed_weights(settings.weight_decay),
        optax.sgd(rising if warmup else rate, momentum=0.9),
    ]
    if network.norm == "affine":
        parts.insert(0, optax.clip_by_global_norm(AFFINE_CLIP))
    return training.mask_updates(optax.chain(*parts), mask)


def accuracy(settings: Any, model: models.Model, params: Any, state: Any, batch: Any) -> Any:
    """With the running statistics."""
    right = losses.accuracy(model.freeze(state))
    return batching.mean_over_batch(
        lambda chunk: right(params, (tested(settings, chunk[0]), chunk[1])),
        batch,
        microbatch=settings.microbatch,
    )
