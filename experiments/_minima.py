"""A population of minima: trained over a grid of settings, measured, rescaled, measured again.

Every function here is of one network and pure; `core.training.map_population` makes populations of
them, over the devices where there are several.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments._program import RefusedError, Run
from poster_jax import curvature, flatness
from poster_jax.core import batching, losses, models, paths, training
from poster_jax.flatness.random_rescaling import measure_under_rescaling

OPTIMISERS = {"SGD": optax.sgd, "Adam": optax.adam, "RMSprop": optax.rmsprop}
# How each measure is called, in the order of the pictures.
MEASURES = (
    "relative flatness",
    "relative flatness, features normalised",
    "trace of H",
    "largest eigenvalue of H",
    "squared weight norm",
    "Fisher-Rao norm",
    "PAC-Bayes 1/σ²",
)

# And those that are followed through rescalings of every layer: three invariant, two not.
FOLLOWED = ("relative flatness", "column-wise", "|W|² Tr H (2019)", "Tr H", "|W|²")


class Task(NamedTuple):
    """What all networks of a population share, arrays aside.

    Attributes:
      model: the network.
      loss_fn: mean cross-entropy; one object, so that a program of it is compiled once.
      layers: paths of the kernels, from input to output.
      microbatch: examples taken at once.
    """

    model: models.Model
    loss_fn: Any
    layers: tuple[str, ...]
    microbatch: int

    @property
    def biases(self) -> tuple[str, ...]:
        """Paths of the biases, one a layer."""
        return tuple(layer.replace("kernel", "bias") for layer in self.layers)


class Examples(NamedTuple):
    """The data that all networks of a population share.

    Attributes:
      x: training inputs (N, ...).
      labels: (2, N); the true ones, and those with noise.
      test: (x, y).
    """

    x: Any
    labels: Any
    test: Any

    def train(self, noisy: Any) -> tuple[Any, Any]:
        """The training part with true (0) or noisy (1) labels."""
        return self.x, self.labels[noisy]


def grid(settings: Any) -> list[dict[str, Any]]:
    """One row a network: every setting with every seed, label noise in every second network.

    Noise goes by the parity of all indices together, so that every level of every factor has it in
    half of its networks.
    """
    rates = [(name, rate) for name, many in settings.rates for rate in many]
    factors = (settings.batch_sizes, rates, settings.weight_decays)
    names = ("batch_size", "optimiser", "rate", "weight_decay")
    rows = []
    for setting, places in enumerate(np.ndindex(*map(len, factors))):
        batch_size, (optimiser, rate), decay = (
            levels[place] for levels, place in zip(factors, places, strict=True)
        )
        for seed in range(settings.num_seeds):
            noisy = (sum(places) + seed) % 2 if settings.label_noise > 0 else 0
            values = (batch_size, optimiser, rate, decay)
            row = dict(zip(names, values, strict=True))
            rows.append({**row, "seed": seed, "noisy": noisy, "setting": setting})
    return sorted(rows, key=lambda row: (row["batch_size"], row["optimiser"]))


def groups_of(rows: list[dict[str, Any]]) -> list[tuple[tuple[int, str], list[dict[str, Any]]]]:
    """The rows that one program trains: those of one batch size and optimiser."""
    by = itertools.groupby(rows, key=lambda row: (row["batch_size"], row["optimiser"]))
    return [(program, list(members)) for program, members in by]


def train_one(
    task: Task, batch_size: int, optimiser: str, loss_below: float, max_epochs: int
) -> Callable[..., dict[str, Any]]:
    """The function (examples, key, rate, weight decay, noisy) -> a network at the criterion."""

    def one(examples: Examples, key: Any, rate: Any, decay: Any, noisy: Any) -> dict[str, Any]:
        init_key, run_key = jax.random.split(key)
        # Weight decay as in torch, which the authors used: added to the gradient.
        optimizer = optax.chain(optax.add_decayed_weights(decay), OPTIMISERS[optimiser](rate))
        found = training.fit_until(
            task.loss_fn,
            task.model.init(init_key, examples.x[:1]),
            examples.train(noisy),
            run_key,
            optimizer=optimizer,
            loss_below=loss_below,
            max_epochs=max_epochs,
            batch_size=batch_size,
        )
        return {
            "params": found.params,
            "reached": found.reached,
            "diverged": found.diverged,
            "epochs": found.num_epochs,
        }

    return one


def train(run: Run, task: Task, examples: Examples, rows: Any) -> Any:
    """All networks, one program for each batch size and optimiser."""
    chosen, trained = run.settings, []
    with run.progress(f"training {len(rows)} networks", len(rows)) as update:
        for (batch_size, optimiser), members in groups_of(rows):
            one = train_one(task, batch_size, optimiser, chosen.loss_below, chosen.max_epochs)
            rate, decay, noisy, seed = (
                jnp.asarray([row[name] for row in members])
                for name in ("rate", "weight_decay", "noisy", "seed")
            )
            keys = jax.vmap(partial(jax.random.fold_in, run.key))(seed)
            stage = f"train_{batch_size}_{optimiser}"
            trained.append(run.population(stage, one, examples, keys, rate, decay, noisy))
            update(sum(len(found["epochs"]) for found in trained), stage)
    found = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trained)
    if (reached := int(found["reached"].sum())) < 3:
        raise RefusedError(
            f"{reached} of {len(rows)} networks reached a training loss below {chosen.loss_below}; "
            "a correlation needs 3. Give more --max_epochs."
        )
    return found


def losses_of(task: Task, examples: Examples, params: Any, noisy: Any) -> dict[str, Any]:
    """Loss and accuracy on both parts; the training part with the labels that were trained on."""
    accuracy = losses.accuracy(task.model.apply_fn)
    parts = {"train": examples.train(noisy), "test": examples.test}
    return {
        f"{part} {name}": batching.mean_over_batch(
            lambda chunk, fn=fn: fn(params, chunk), batch, microbatch=task.microbatch
        )
        for part, batch in parts.items()
        for name, fn in (("loss", task.loss_fn), ("accuracy", accuracy))
    }


def measures_of(
    task: Task, examples: Examples, params: Any, noisy: Any, key: Any
) -> dict[str, Any]:
    """Every measure of one network; those of a layer at the last one, by its closed form."""
    apply_fn, last = task.model.apply_fn, task.layers[-1]
    kernel = paths.get_path(params, last)
    features, logits = batching.map_over_batch(
        lambda x: (flatness.layer_features(apply_fn, params, x, layer=last), apply_fn(params, x)),
        examples.x,
        microbatch=task.microbatch,
    )
    scales = flatness.feature_scales(features)
    normalised = jnp.where(scales > 0, features / jnp.where(scales > 0, scales, 1), 0)
    hessian = flatness.hessian_of_last_layer(features, logits, kernel)
    accuracy = losses.accuracy(apply_fn)
    sigma = flatness.pac_bayes_sigma(
        lambda p, batch: batching.mean_over_batch(
            lambda chunk: accuracy(p, chunk), batch, microbatch=task.microbatch
        ),
        params,
        examples.train(noisy),
        key,
        num_draws=3,
    ).sigma
    values = (
        flatness.last_layer_relative_flatness(features, logits, kernel),
        flatness.last_layer_relative_flatness(normalised, logits, kernel * scales[:, None]),
        flatness.last_layer_trace(features, logits),
        curvature.top_eigenpairs(hessian.operator, key, k=1, tol=1e-3).values[0],
        flatness.squared_norm([paths.get_path(params, layer) for layer in task.layers]),
        flatness.fisher_rao_norm(logits, examples.labels[noisy], num_layers=len(task.layers)),
        1 / sigma**2,
    )
    return dict(zip(MEASURES, values, strict=True))


def measures_before_and_after(
    task: Task, examples: Examples, params: Any, noisy: Any, factor: Any, key: Any
) -> dict[str, Any]:
    """Every measure of the network, and of the same function rescaled: measure -> (2,).

    As in the paper's experiment the last layer is multiplied by `factor` and the one before divided
    by it.
    """
    factors = jnp.ones(len(task.layers)).at[-2].set(1 / factor).at[-1].set(factor)
    rescaled = flatness.rescale_layers(params, factors, layers=task.layers, biases=task.biases)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), params, rescaled)
    return jax.lax.map(lambda params: measures_of(task, examples, params, noisy, key), both)


def changes_of(
    task: Task,
    num_rescalings: int,
    num_examples: int,
    examples: Examples,
    params: Any,
    noisy: Any,
    key: Any,
) -> dict[str, dict[str, Any]]:
    """By what factor (at least 1) each rescaling changes each measure of each layer.

    Layer -> measure -> (num_rescalings,). The identity holds on any data and for every probe by
    itself, so some examples and two probes show it; probes are the same before and after.
    """
    batch = jax.tree.map(lambda leaf: leaf[:num_examples], examples.train(noisy))

    def of_layer(params: Any, layer: str) -> dict[str, Any]:
        hessian = flatness.hessian_of_layer(task.loss_fn, params, batch, layer=layer)
        trace = curvature.trace(hessian.operator, key, num_probes=2).mean
        norm = flatness.squared_norm(hessian.weights)
        relative = flatness.neuronwise_trace(hessian, key, num_probes=2).mean
        by_column = flatness.columnwise_trace(hessian, key, num_probes=2).mean
        return dict(zip(FOLLOWED, (relative, by_column, norm * trace, trace, norm), strict=True))

    found = measure_under_rescaling(
        lambda params: {layer: of_layer(params, layer) for layer in task.layers},
        params,
        key,
        layers=task.layers,
        biases=task.biases,
        num_rescalings=num_rescalings,
    )
    fold = lambda before, after: jnp.exp(jnp.abs(jnp.log(jnp.abs(after / before))))  # noqa: E731
    return jax.tree.map(fold, found.before, found.after)


def cast(tree: Any, dtype: str) -> Any:
    """Every floating leaf in that precision."""
    return jax.tree.map(
        lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
    )


def ridge_difference(task: Task, examples: Examples, key: Any) -> Any:
    """How far, relatively, relative flatness of least squares is from |W|² times mean |x|².

    The measure goes the general way, through the products of the Hessian with every direction.
    """
    x = examples.x.reshape(len(examples.x), -1)
    kernel = jax.random.normal(key, (x.shape[1], 3), x.dtype)
    loss_fn = losses.squared_error(lambda w, x: x @ w["kernel"])
    found = flatness.relative_flatness(
        loss_fn,
        {"kernel": kernel},
        (x, jnp.zeros((len(x), 3), x.dtype)),
        key,
        layer="kernel",
        num_probes=kernel.size,
        estimator=curvature.xtrace,
    )
    expected = jnp.sum(kernel**2) * jnp.mean(jnp.sum(x**2, axis=1))
    return jnp.abs(found.mean / expected - 1)
