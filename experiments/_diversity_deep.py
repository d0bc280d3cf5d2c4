"""ConstNet with several sources of noise, its exact reduction, and LeakyNet by pattern."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments._augment import crop_and_flip
from experiments._diversity import Examples, accuracy_of
from poster_jax import feature_diversity as diversity
from poster_jax.core import checks, losses, models, training

ENDS = {"inputs": "Conv_0", "outputs": "Dense_0"}
NUM_PROBES = 64
SOURCES = ("none", "weights", "rounding", "random")
"""Starts and noises that share one program; dropout has one of its own, the reduction too."""


def const_net(settings: Any, num_classes: int, **attributes: Any) -> diversity.ConstNet:
    """The network of the settings."""
    return diversity.const_net(settings.depth, settings.widen, num_classes, **attributes)


def leaky_net(settings: Any, num_classes: int, pattern: str) -> diversity.LeakyNet:
    """As many layers as the pattern has letters; the widths of ConstNet."""
    return diversity.LeakyNet(
        pattern, const_net(settings, num_classes).widths, num_classes, slope=settings.slope
    )


def rate_schedule(settings: Any, epoch_steps: int, epochs: int) -> Any:
    """The learning rate, multiplied by 0.2 after given shares of the epochs."""
    drops = {int(share * epochs) * epoch_steps: 0.2 for share in settings.drops}
    return optax.piecewise_constant_schedule(settings.deep_rate, drops)


def kernels(params: Any) -> list[Any]:
    """The 3x3 kernels behind the stem."""
    blocks = [params[name]["Conv_0"]["kernel"] for name in sorted(params) if "Block" in name]
    others = [params[name]["kernel"] for name in sorted(params) if name.startswith("Conv_")]
    return blocks or others[1:]


def train_one(
    settings: Any,
    module: Any,
    epochs: int,
    examples: Examples,
    params: Any,
    rounding: Any,
    key: Any,
    multipliers: Any = None,
) -> dict[str, Any]:
    """A trained network; how diverse its layers and how correlated its weights were on the way."""
    model = models.from_linen(module)
    still = module.clone(dropout=0.0)
    x = examples.train[0]
    batch_size = min(settings.deep_batch, len(x))
    epoch_steps = training.steps_per_epoch(len(x), batch_size)
    noise_key = jax.random.fold_in(key, 1)
    first = [] if multipliers is None else [diversity.scale_gradients(multipliers)]
    optimizer = optax.chain(
        *first,
        diversity.rounding_noise(noise_key, scale=rounding),
        optax.add_decayed_weights(settings.weight_decay),
        optax.sgd(rate_schedule(settings, epoch_steps, epochs), momentum=0.9),
    )

    def loss_fn(params: Any, state: Any, batch: Any, key: Any) -> Any:
        x, y = batch
        drop_key, crop_key = jax.random.split(key)
        x = crop_and_flip(x, crop_key, mode="reflect") if settings.augmentation == "crop" else x
        logits, state = model.apply_train(params, state, x, drop_key)
        return losses.softmax_cross_entropy(logits, y), state

    def look(state: training.TrainState) -> dict[str, Any]:
        variables = {"params": state.params, **dict(state.model_state)}
        (_, layers), _ = still.apply(
            variables, x[:NUM_PROBES], train=True, with_layers=True, mutable=["batch_stats"]
        )
        rows = [
            jnp.stack([diversity.weight_correlation(k, axis=axis) for k in kernels(state.params)])
            for axis in ("out", "in")
        ]
        return {
            "diversity": jnp.stack([diversity.feature_diversity(layer) for layer in layers]),
            "forward": rows[0].mean(),
            "backward": rows[1].mean(),
        }

    fit = training.fit(
        training.stateful(loss_fn),
        params,
        examples.train,
        key,
        optimizer=optimizer,
        num_steps=epochs * epoch_steps,
        batch_size=batch_size,
        model_state=model.init_state(key, x[:1]),
        metrics_fn=look,
        metrics_steps=tuple(range(0, epochs * epoch_steps + 1, epoch_steps)),
    )
    apply_fn = model.freeze(fit.state.model_state)
    return {
        "accuracy": accuracy_of(apply_fn, fit.params, examples.test, settings.microbatch),
        "loss": fit.losses[-epoch_steps:].mean(),
        "leak": diversity.symmetry_leak(fit.params, **ENDS),
        "diverged": fit.diverged,
        **fit.metrics,
    }


def train_reduced(
    settings: Any, module: Any, epochs: int, examples: Examples, params: Any, key: Any
) -> dict[str, Any]:
    """ConstNet without any noise: the network of one channel, with the rates that this gives it."""
    found = diversity.symmetric_reduction(params, **ENDS)
    return train_one(
        settings, module.reduced(), epochs, examples, found.params, 0.0, key, found.multipliers
    )


def start_of(module: Any, x: Any, key: Any) -> Any:
    """The parameters of a network at its start."""
    return models.from_linen(module).init(key, x)


def train_const(run: Any, examples: Examples, num_classes: int) -> dict[str, Any]:
    """ConstNet under every source of noise, name -> results with a leading axis of seeds."""
    chosen, seeds = run.settings, range(run.settings.deep_seeds)
    start_key, run_key = jax.random.split(jax.random.fold_in(run.key, 2))
    keys = jnp.stack([jax.random.fold_in(run_key, seed) for seed in seeds])
    x, net = examples.train[0][:1], partial(const_net, chosen, num_classes)
    noise = {"none": 0.0, "weights": chosen.conv_noise, "rounding": 0.0, "random": 1.0}

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None))
    @partial(jax.vmap, in_axes=(None, 0))
    def starts(noise: Any, seed: Any) -> Any:
        return start_of(net(noise=noise), x, jax.random.fold_in(start_key, seed))

    by_source = starts(jnp.array([noise[name] for name in SOURCES]), jnp.arange(len(seeds)))
    plain = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), by_source)
    calm = jax.tree.map(lambda a: a[SOURCES.index("none")], by_source)
    rounding = [chosen.rounding * (name == "rounding") for name in SOURCES for _ in seeds]
    options = (chosen, net())
    with run.progress("ConstNet", 3) as update:
        one = partial(train_one, *options, chosen.epochs)
        many = jnp.concatenate([keys] * len(SOURCES))
        found = run.population("const", one, examples, plain, jnp.array(rounding), many)
        update(1, f"{', '.join(SOURCES)}; {len(seeds)} seeds each")
        wet = partial(train_one, chosen, net(dropout=chosen.dropout), chosen.epochs)
        dropped = run.population("dropout", wet, examples, calm, jnp.zeros(len(seeds)), keys)
        update(2, "dropout")
        exact = partial(train_reduced, *options, chosen.epochs)
        reduced = run.population("const_exact", exact, examples, calm, keys)
        update(3)
    by_source = {
        name: jax.tree.map(
            lambda a, i=i: np.asarray(a[i * len(seeds) : (i + 1) * len(seeds)]), found
        )
        for i, name in enumerate(SOURCES)
    }
    rest = {"dropout": dropped, "exact": reduced}
    return {**by_source, **jax.tree.map(np.asarray, rest)}


def train_leaky(run: Any, examples: Examples, num_classes: int) -> dict[str, Any]:
    """LeakyNet by pattern, with the noise of rounding: results (patterns, seeds, ...)."""
    chosen, seeds = run.settings, range(run.settings.leaky_seeds)
    start_key, run_key = jax.random.split(jax.random.fold_in(run.key, 3))
    x = examples.train[0][:1]
    start_keys = jax.vmap(partial(jax.random.fold_in, start_key))(jnp.arange(len(seeds)))
    starts = jax.jit(
        lambda keys: [
            jax.vmap(partial(start_of, leaky_net(chosen, num_classes, pattern), x))(keys)
            for pattern in chosen.patterns
        ]
    )(start_keys)
    keys = [jax.random.fold_in(run_key, seed) for _ in chosen.patterns for seed in seeds]
    one = partial(train_one, chosen, leaky_net(chosen, num_classes, chosen.patterns[0]),
                  chosen.leaky_epochs)  # fmt: skip
    rounding = jnp.full(len(keys), chosen.rounding)
    params = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *starts)
    with run.progress("LeakyNet", 1) as update:
        found = run.population("leaky", one, examples, params, rounding, jnp.stack(keys))
        update(1, f"{len(chosen.patterns)} patterns, {len(seeds)} seeds")
    shape = (len(chosen.patterns), len(seeds))
    return jax.tree.map(lambda a: np.asarray(a).reshape(*shape, *a.shape[1:]), found)


def check_patterns(patterns: Any) -> None:
    """ValueError unless all have the same number of letters."""
    checks.check_count("number of patterns", len(patterns))
    if len({len(pattern.replace("_", "")) for pattern in patterns}) > 1:
        raise ValueError(f"patterns must have the same number of letters, got {patterns}.")
