"""Networks trained with each penalty, and what their gradients and layers did meanwhile.

`train_one` is of one network and pure; `core.training.map_population` makes a population of it, in
which activation, strength and seed differ. All see the same batches: what differs between seeds is
where they start.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments._augment import crop_and_flip
from experiments._jacobian_networks import ACTIVATIONS, Case, Network, build, derivative
from experiments._program import RefusedError, Run
from poster_jax import jacobian
from poster_jax.core import batching, losses, training

# What is added to the loss; "none" has no strength.
METHODS = (
    "none",
    "orthogonal Jacobian",
    "norm preservation",
    "autoencoder",
    "orthogonal weights",
    "small Jacobian",
)
NONE, ORTHOGONAL, NORM, AUTOENCODER, WEIGHTS, SMALL = METHODS
NEEDED = METHODS[:4]  # by the claims
KEPT = 4  # hidden layers, and inputs of each, that are kept of a trained dense network
# A gradient that is 0 in float32 counts as the smallest normal number.
TINY = float(np.finfo(np.float32).tiny)


class Examples(NamedTuple):
    """The data that all networks of a case share, each part `(x, y)`, and the order of batches.

    Attributes:
      train: what the networks learn from.
      choose: held out of the training part; the strengths are chosen on it.
      test: what accuracies are reported on.
      order: the key of the order of batches.
    """

    train: Any
    choose: Any
    test: Any
    order: Any


class Task(NamedTuple):
    """What all networks of a case share, arrays aside.

    Attributes:
      case: data set, network and recipe.
      settings: of the run.
      segment_steps: steps between two marks, at which gradients are looked at.
      num_classes: outputs.
    """

    case: Case
    settings: Any
    segment_steps: int
    num_classes: int

    @property
    def num_steps(self) -> int:
        """Of training."""
        return self.settings.num_marks * self.segment_steps

    @property
    def marks(self) -> list[int]:
        """Steps: 0, the last one, and equally many between them."""
        return list(range(0, self.num_steps + 1, self.segment_steps))


def prepare(run: Run, case: Case) -> tuple[Task, Examples]:
    """The task of a case and its examples; some training examples are kept for the choice."""
    chosen = run.settings
    dataset = run.load(case.dataset, flat=case.network == "dense network")
    if case.dataset.startswith("tfds:"):
        (x, y), test = dataset.train, dataset.test
    else:
        # The embedded sets are small: more of their examples are learned from.
        x, y = (jnp.concatenate(part) for part in zip(dataset.train, dataset.test, strict=True))
        cut = min(chosen.num_train, len(y) - 1)
        (x, test_x), (y, test_y) = ((part[:cut], part[cut:]) for part in (x, y))
        test = (test_x, test_y)
    held = chosen.num_choose
    if len(y) - held < case.recipe.batch_size:
        raise RefusedError(
            f"{case.dataset} has {len(y)} training examples: {held} to choose the strengths on "
            f"(--num_choose) leave less than one batch of {case.recipe.batch_size}."
        )
    order = jax.random.permutation(jax.random.fold_in(run.key, 2**31), len(y))
    held_out, used = order[:held], order[held:]
    examples = Examples(
        (x[used], y[used]), (x[held_out], y[held_out]), test, jax.random.fold_in(run.key, 2**30)
    )
    per_epoch = training.steps_per_epoch(len(used), case.recipe.batch_size)
    num_steps = case.recipe.steps or case.recipe.epochs * per_epoch
    # All segments are equally long: fewer steps than there are marks are left out at the end.
    segment_steps = max(1, num_steps // chosen.num_marks)
    return Task(case, chosen, segment_steps, dataset.num_classes), examples


def penalty_of(method: str, network: Network) -> dict[str, Any]:
    """The penalty of each layer and its options, for `network_penalty`."""
    if method == AUTOENCODER:
        return {"penalty": jacobian.tied_autoencoder_loss}
    if network.dense:
        of = {
            ORTHOGONAL: jacobian.dense_orthogonality_penalty,
            NORM: jacobian.dense_norm_preservation_penalty,
        }[method]
        return {"penalty": partial(_of_dense_layer, of, network.shape)}
    return {
        ORTHOGONAL: {"penalty": jacobian.orthogonality_penalty, "coupled": network.coupled},
        NORM: {"penalty": jacobian.norm_preservation_penalty, "coupled": network.coupled},
    }[method]


def _of_dense_layer(
    of: Any, shape: Any, layer_fn: Any, params: Any, x: Any, key: Any, **options: Any
) -> Any:
    """The closed form `of` at a dense layer, from W (m, n) and phi' (B, m); it draws nothing."""
    return of(params["kernel"].T, derivative(shape, layer_fn(params, x)), **options)


def loss_of(method: str, network: Network, strength: Any, augment: bool) -> Any:
    """Mean cross-entropy and `strength` times the penalty, as `fit` takes it."""

    def layerwise(params: Any, state: Any, batch: Any, key: Any) -> tuple[Any, Any]:
        x, y = batch
        # One forward pass gives the outputs and every layer's penalty.
        found = jacobian.network_penalty(
            *network.layers(params, state, x),
            x,
            None if network.dense else key,  # closed forms draw nothing
            select=network.select,
            **penalty_of(method, network),
        )
        new_state = network.train(params, state, x)[1]
        return losses.softmax_cross_entropy(found.outputs, y) + strength * found.total, new_state

    def other(params: Any, state: Any, batch: Any, key: Any) -> tuple[Any, Any]:
        x, y = batch
        logits, new_state = network.train(params, state, x)
        loss = losses.softmax_cross_entropy(logits, y)
        if method == WEIGHTS:
            loss += strength * _soft_orthogonality(network.kernels(params))
        elif method == SMALL:
            evaluate = lambda params, x: network.evaluate(params, state, x)  # noqa: E731
            loss += strength * jacobian.jacobian_norm_penalty(evaluate, params, x, key).value
        return loss, new_state

    chosen = layerwise if method in (ORTHOGONAL, NORM, AUTOENCODER) else other

    def loss(params: Any, state: Any, batch: Any, key: Any) -> tuple[Any, Any]:
        image_key, probe_key = jax.random.split(key)
        x, y = batch
        return chosen(params, state, (crop_and_flip(x, image_key) if augment else x, y), probe_key)

    return training.stateful(loss)


def _soft_orthogonality(kernels: Any) -> Any:
    """Its mean over layers, each divided by its units: the convention of `network_penalty`."""
    of_one = lambda w: jacobian.soft_orthogonality(w) / w.shape[-1]  # noqa: E731
    rows = [jax.vmap(of_one)(w) if w.ndim == 3 else of_one(w)[None] for w in kernels]
    return jnp.concatenate(rows).mean()


def optimiser(recipe: Any, num_steps: int) -> optax.GradientTransformation:
    """SGD with momentum 0.9, after what the recipe does to a gradient."""
    rate = optax.cosine_decay_schedule(recipe.rate, num_steps) if recipe.cosine else recipe.rate
    steps = [] if recipe.clip is None else [optax.clip_by_global_norm(recipe.clip)]
    steps += [optax.add_decayed_weights(recipe.weight_decay)] if recipe.weight_decay else []
    return optax.chain(*steps, optax.sgd(rate, momentum=0.9))


def train_one(
    task: Task,
    method: str,
    examples: Examples,
    key: Any,
    strength: Any,
    shape: Any,
    gain: Any,
) -> dict[str, Any]:
    """One network, trained; what was seen at the marks, and what it became."""
    recipe, network = task.case.recipe, build(task.case, shape, gain, task.num_classes)
    probe = tuple(part[: task.settings.probe_examples] for part in examples.train)
    init_key, run_key, look_key = jax.random.split(key, 3)
    params, state = network.init(init_key, probe[0])
    optimizer = optimiser(recipe, task.num_steps)
    loss_fn = loss_of(method, network, strength, recipe.augment)

    def segment(state: training.TrainState, start: Any) -> tuple[Any, Any]:
        run = training.continue_fit(
            loss_fn,
            state,
            examples.train,
            optimizer=optimizer,
            num_steps=task.segment_steps,
            batch_size=recipe.batch_size,
            start=start,
            batch_key=examples.order,
        )
        return run.state, ((state.params, state.model_state), run.diverged)

    start = training.init_state(params, run_key, optimizer=optimizer, model_state=state)
    end, (before, diverged) = jax.lax.scan(segment, start, jnp.asarray(task.marks[:-1]))
    trained = (end.params, end.model_state)
    # Networks are looked at afterwards, one mark after another: the step's program stays small.
    at_marks = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), before, trained)
    seen = jax.lax.map(lambda at: look(network, *at, probe, look_key), at_marks)
    few = probe[0][: task.settings.spectrum_examples]
    ends = jax.tree.map(lambda a: a[jnp.array([0, -1])], at_marks)
    spectra = jax.lax.map(
        lambda at: (
            jacobian.singular_values(
                lambda params, x: network.evaluate(params, at[1], x), at[0], few
            ).values
        ),
        ends,
    )
    return {
        **seen,
        "spectra": spectra,
        "diverged": diverged.any(),
        **quality(task, network, *trained, examples),
        "kept": _kept(network, trained[0], probe[0]) if network.dense else (),
    }


def quality(
    task: Task, network: Network, params: Any, state: Any, examples: Examples
) -> dict[str, Any]:
    """Accuracies of each part, and the loss of what was learned from, from one pass over all."""
    parts = {"training": examples.train, "held-out": examples.choose, "test": examples.test}
    logits = batching.map_over_batch(
        lambda x: network.evaluate(params, state, x),
        jnp.concatenate([x for x, _ in parts.values()]),
        microbatch=task.settings.microbatch,
    )
    cuts = np.cumsum([len(y) for _, y in parts.values()])[:-1]
    of_part = dict(zip(parts, jnp.split(logits, cuts), strict=True))
    found = {f"{part} accuracy": losses.top_1(of_part[part], y) for part, (_, y) in parts.items()}
    return {**found, "loss": losses.softmax_cross_entropy(of_part["training"], examples.train[1])}


def look(network: Network, params: Any, state: Any, probe: Any, key: Any) -> dict[str, Any]:
    """Gradients by layer, and each penalised layer's ||J'J - I||² and autoencoder loss."""
    x, y = probe
    layers, own = network.layers(params, state, x)
    profile = jacobian.gradient_norm_profile(
        layers, own, lambda logits: losses.softmax_cross_entropy(logits, y), x
    )
    penalties = {
        name: jacobian.network_penalty(
            layers, own, x, key, select=network.select, **options
        ).per_layer
        for name, options in (
            ("isometry", penalty_of(ORTHOGONAL, network) | {"side": "columns"}),
            ("reconstruction", penalty_of(AUTOENCODER, network)),
        )
    }
    floored = jnp.maximum(profile, TINY)
    return {"profile": profile, "rho": jacobian.gradient_ratio(floored), **penalties}


def _kept(network: Network, params: Any, x: Any) -> dict[str, Any]:
    """Some hidden layers and the last, with their inputs, for the identities."""
    (first, stack, _), (of_first, hidden, of_last) = network.layers(params, (), x)
    inputs = first(of_first, x)
    end, before = jax.lax.scan(lambda h, p: (stack.layer_fn(p, h), h), inputs, hidden)
    some = np.unique(np.linspace(0, stack.num_layers - 1, KEPT).round().astype(int))
    return {
        "hidden": jax.tree.map(lambda a: a[some], hidden),
        "inputs": before[some, :KEPT],
        "last": of_last,
        "end": end[:KEPT],
    }


def members(task: Task, strengths: Any, seeds: Any, key: Any) -> tuple[Any, ...]:
    """(keys, strengths, shapes, gains) of (activations, strengths, seeds), flattened.

    `strengths` is (activations, strengths). Networks of one seed start from the same draws.
    """
    activations = task.case.activations
    strengths = np.asarray(strengths, np.float32).reshape(len(activations), -1)
    size = (*strengths.shape, len(seeds))
    kind, at, seed = (index.ravel() for index in np.indices(size))
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.asarray(np.asarray(seeds)[seed]))
    shapes = np.array([ACTIVATIONS[name] for name, _ in activations], np.float32)[kind]
    gains = np.array([gain for _, gain in activations], np.float32)[kind]
    return keys, jnp.asarray(strengths[kind, at]), (shapes[:, 0], shapes[:, 1]), gains


def choose(strengths: Any, held_out: Any) -> Any:
    """The strength of the largest mean over seeds of `held_out` (activations, strengths, seeds).

    One at which a network diverged has no accuracy, and is not chosen.
    """
    means = np.mean(held_out, axis=2)
    return np.asarray(strengths)[np.where(np.isnan(means), -1, means).argmax(axis=1)]


def train(run: Run, task: Task, examples: Examples, update: Callable[[str], None]) -> Any:
    """Method -> (curves over the strengths, chosen strengths, the networks that are compared).

    Strengths are chosen by the mean held-out accuracy of `num_choosing_seeds` networks; others, of
    `num_seeds` seeds, are then trained with the chosen ones, and measured.
    """
    chosen, case = run.settings, task.case
    key = jax.random.fold_in(run.key, 1)
    kinds, few, found = len(case.activations), chosen.num_choosing_seeds, {}
    for method in chosen.methods:
        # One function for both, so that one program serves where the populations are equally large.
        population = partial(
            training.map_population,
            partial(train_one, task, method),
            in_axes=(None, 0, 0, 0, 0),
            group_size=chosen.group_size,
            mesh=run.mesh,
        )

        def stage(name: str, strengths: Any, seeds: Any, population=population, method=method):
            update(f"{name}, {method}")
            who = members(task, strengths, seeds, key)
            result = run.stage(
                f"{name}_{case.stage}_{method.replace(' ', '_')}", population, examples, *who
            )
            size = (kinds, -1, len(seeds))
            return jax.tree.map(lambda a: np.asarray(a).reshape(*size, *np.shape(a)[1:]), result)

        best, curves = np.zeros(kinds), None
        if method != NONE:
            grid = np.tile(chosen.strengths, (kinds, 1))
            curves = stage("choosing", grid, np.arange(few))
            best = choose(chosen.strengths, curves["held-out accuracy"])
            curves = {name: curves[name] for name in ("test accuracy", "held-out accuracy")}
        measured = stage("measuring", best, few + np.arange(chosen.num_seeds))
        found[method] = (curves, best, jax.tree.map(lambda a: a[:, 0], measured))
    return found
