"""Networks stopped at checkpoints, and what their gradient noise is there.

Every function here is of one network and pure; `core.training.map_population` makes populations of
them, over the devices where there are several. At a checkpoint theta stands still: mini-batches are
drawn anew, none of them moves it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments._program import Run
from poster_jax import curvature
from poster_jax import gradient_noise as noise
from poster_jax.core import batching, losses, models, training

OPTIMISERS = {
    "SGD": optax.sgd,
    "momentum": partial(optax.sgd, momentum=0.9),
    "Adam": optax.adam,
}
EXAMPLES_SHOWN = 4  # projections that are kept for the quantile plots
FAMILIES = ("noise's top eigenvectors", "Hessian's top eigenvectors", "mean gradient")


class Case(NamedTuple):
    """A data set, a network and an optimiser of the preset.

    Attributes:
      dataset: name for core.data.load.
      network: one of `NETWORKS`.
      optimiser: one of `OPTIMISERS`.
      rate: its learning rate.
    """

    dataset: str
    network: str
    optimiser: str
    rate: float

    @property
    def title(self) -> str:
        """As pictures and claims name it."""
        return f"{self.dataset.removeprefix('tfds:')}, {self.network}, {self.optimiser}"

    @property
    def stage(self) -> str:
        """As files name it."""
        return f"{self.dataset}_{self.network}_{self.optimiser}".replace(":", "_")


NETWORKS: dict[str, Callable[[int], Any]] = {
    "MLP": lambda classes: models.MLP((64, 64, classes), kernel_init=nn.initializers.he_normal()),
    "LeNet5": models.LeNet5,
    "VGG16": models.VGG16,
    "VGG16 with BatchNorm": lambda classes: models.VGG16(classes, norm="batch"),
    "ResNet20": lambda classes: models.ResNet(norm=None, num_classes=classes),
    "ResNet20 with BatchNorm": lambda classes: models.ResNet(num_classes=classes),
}


class Task(NamedTuple):
    """What all networks of a case share, arrays aside.

    Attributes:
      model: the network.
      loss_fn: mean cross-entropy in training mode: of single examples where the network has no
        BatchNorm, of whole mini-batches where it has.
      layers: paths of the parts whose noise is looked at by itself, from input to output.
      settings: of the run.
    """

    model: models.Model
    loss_fn: Any
    layers: tuple[str, ...]
    settings: Any

    @property
    def separable(self) -> bool:
        """Whether a single example has a gradient."""
        return not isinstance(self.loss_fn, training.StatefulLoss)


def prepare(run: Run, case: Case) -> tuple[Task, Any]:
    """The task of a case, and its examples (x, y): all there are, up to `num_examples`."""
    dataset = run.load(case.dataset, scaling="standardise")
    parts = [dataset.train] if case.dataset.startswith("tfds:") else [dataset.train, dataset.test]
    x, y = (np.concatenate(part)[: run.settings.num_examples] for part in zip(*parts, strict=True))
    model = models.from_linen(NETWORKS[case.network](dataset.num_classes))
    stateful = jax.eval_shape(model.init_state, run.key, x[:1])
    loss_fn = (
        training.model_loss(model, losses.softmax_cross_entropy)
        if jax.tree.leaves(stateful)
        else losses.cross_entropy(model.apply_fn)
    )
    names = jax.eval_shape(model.init, run.key, x[:1])
    layers = sorted((n for n in names if not n.startswith("BatchNorm")), key=_place)
    return Task(model, loss_fn, tuple(layers), run.settings), (x, y)


def train_one(task: Task, case: Case, examples: Any, key: Any) -> dict[str, Any]:
    """Parameters and state at each checkpoint: leaves (checkpoints, ...)."""
    chosen = task.settings
    init_key, run_key = jax.random.split(key)
    found = training.fit(
        task.loss_fn,
        task.model.init(init_key, examples[0][:2]),
        examples,
        run_key,
        optimizer=OPTIMISERS[case.optimiser](case.rate),
        num_steps=chosen.checkpoints[-1],
        batch_size=chosen.train_batch,
        model_state=task.model.init_state(init_key, examples[0][:2]),
        metrics_fn=lambda state: {"params": state.params, "state": state.model_state},
        metrics_steps=chosen.checkpoints,
    )
    return {**found.metrics, "diverged": found.diverged}


def measure_one(task: Task, examples: Any, params: Any, state: Any, key: Any) -> dict[str, Any]:
    """All that is said of the noise at one theta."""
    keys = jax.random.split(key, 5)
    return {
        **_quality(task, examples, params, state),
        **_along_directions(task, examples, params, state, keys[0]),
        "layers": _by_layer(task, examples, params, state, keys[1]),
        **_by_coordinate(task, examples, params, state, keys[2], keys[3]),
        "families": _along_families(task, examples, params, keys[4]),
    }


def _quality(task: Task, examples: Any, params: Any, state: Any) -> dict[str, Any]:
    apply_fn = task.model.freeze(state)
    return {
        name: batching.mean_over_batch(
            lambda chunk, fn=fn: fn(params, chunk), examples, microbatch=task.settings.microbatch
        )
        for name, fn in (
            ("loss", losses.cross_entropy(apply_fn)),
            ("accuracy", losses.accuracy(apply_fn)),
        )
    }


def _along_directions(
    task: Task, examples: Any, params: Any, state: Any, key: Any
) -> dict[str, Any]:
    """The verdict for each batch size, and what single examples foretell of it."""
    chosen = task.settings
    directions_key, batches_key, test_key = jax.random.split(key, 3)
    directions = noise.random_directions(params, directions_key, num=chosen.num_directions)
    draws = {"num_batches": chosen.num_vectors}
    keys = [jax.random.fold_in(batches_key, size) for size in chosen.batch_sizes]
    if task.separable:
        single = noise.per_example_projections(task.loss_fn, params, examples, directions)
        samples = [
            noise.resample_projections(single, k, batch_size=size, **draws)
            for k, size in zip(keys, chosen.batch_sizes, strict=True)
        ]
        foretold = noise.critical_batch_size(single, num_samples=chosen.num_vectors)
        critical = {
            "critical": foretold.batch_size,
            "critical_by_skewness": foretold.batch_size_by_skewness,
            "kurtosis": foretold.kurtosis,
            "skewness": foretold.skewness,
        }
    else:
        samples = [
            noise.minibatch_projections(
                task.loss_fn,
                params,
                examples,
                directions,
                k,
                batch_size=size,
                model_state=state,
                **draws,
            )
            for k, size in zip(keys, chosen.batch_sizes, strict=True)
        ]
        unknown = jnp.full((), jnp.nan, samples[0].dtype)
        names = ("critical", "critical_by_skewness", "kurtosis", "skewness")
        critical = dict.fromkeys(names, unknown)
    samples = jnp.stack(samples)
    # One shape for all sizes: the tests are compiled once.
    verdicts = jax.lax.map(
        lambda of: noise.gaussianity(*of, num_surrogates=chosen.num_surrogates),
        (samples, jax.random.split(test_key, len(chosen.batch_sizes))),
    )
    return {
        "verdicts": verdicts._asdict(),
        **critical,
        "shown": samples[:, :EXAMPLES_SHOWN],
    }


def _along_families(task: Task, examples: Any, params: Any, key: Any) -> dict[str, Any]:
    """Rejected fraction along directions that are no sums of many coordinates, at the batch of C1.

    They are top eigenvectors of the noise covariance and of the Hessian, and the mean gradient.
    Where a single example has no gradient there is neither covariance nor Hessian: NaN.
    """
    chosen = task.settings
    if not task.separable:
        return dict.fromkeys(FAMILIES, jnp.full((), jnp.nan))
    at = (task.loss_fn, params, examples)
    cut = {"microbatch": chosen.microbatch}
    covariance = noise.noise_covariance_operator(*at, **cut)
    search = {"k": chosen.num_eigenvectors, "tol": 1e-2, "max_iters": 100}
    vectors = (
        curvature.top_eigenpairs(covariance, key, **search).vectors,
        curvature.top_eigenpairs(curvature.hessian_operator(*at, **cut), key, **search).vectors,
        jax.tree.map(lambda g: g[None], covariance.mean),
    )
    single = noise.per_example_projections(
        *at, noise.directions_along(jax.tree.map(lambda *of: jnp.concatenate(of), *vectors))
    )
    samples = noise.resample_projections(
        single, key, batch_size=chosen.vector_batch, num_batches=chosen.num_vectors
    )
    ends = (chosen.num_eigenvectors, 2 * chosen.num_eigenvectors)
    parts = zip(FAMILIES, jnp.split(samples, ends), strict=True)
    return {name: _rejected(part) for name, part in parts}


def _by_layer(task: Task, examples: Any, params: Any, state: Any, key: Any) -> Any:
    """(layers,): rejected fraction along directions of one layer alone, at the batch of C1."""
    chosen, samples = task.settings, []
    for layer, layer_key in zip(task.layers, jax.random.split(key, len(task.layers)), strict=True):
        directions_key, batches_key = jax.random.split(layer_key)
        directions = noise.random_directions(
            params, directions_key, num=chosen.num_directions, layer=layer
        )
        found = noise.noise_projections(
            task.loss_fn,
            params,
            examples,
            directions,
            batches_key,
            batch_sizes=(chosen.vector_batch,),
            num_batches=chosen.num_vectors,
            model_state=state,
        )
        samples.append(found[0])
    return _rejected(jnp.stack(samples))


def _by_coordinate(
    task: Task, examples: Any, params: Any, state: Any, key: Any, surrogate_key: Any
) -> dict[str, Any]:
    """Tail indices, spectrum and tests of whole noise vectors, coordinate by coordinate."""
    chosen = task.settings
    coordinates = noise.random_directions(params, key, num=1, kind="coordinates")
    # In the order of the flattened parameters; evenly spaced where there are too many.
    rows = np.linspace(0, coordinates.dim, min(coordinates.dim, chosen.num_coordinates), False)
    vectors = noise.minibatch_projections(
        task.loss_fn,
        params,
        examples,
        coordinates.at_rows(jnp.asarray(rows, jnp.int32)),
        key,
        batch_size=chosen.vector_batch,
        num_batches=chosen.num_tail_vectors,
        model_state=state,
    ).T
    vectors = vectors - vectors.mean(axis=0)
    by_coordinate = noise.coordinate_tail_index(vectors)
    alive = jnp.any(vectors != 0, axis=0)

    def of_surrogate(key: Any) -> dict[str, Any]:
        return {
            name: noise.pooled_tail_index(draw(vectors, key))
            for name, draw in (
                ("same_covariance", noise.gaussian_of_same_covariance),
                ("same_variances", noise.gaussian_of_same_variances),
            )
        }

    step = max(1, len(rows) // chosen.num_directions)
    return {
        "pooled": noise.pooled_tail_index(vectors),
        **jax.lax.map(of_surrogate, jax.random.split(surrogate_key, chosen.num_tail_surrogates)),
        "by_coordinate": jnp.nanmedian(by_coordinate),
        "zeros": 1 - alive.mean(),
        "spectrum": chosen.vector_batch * noise.stored_spectrum(vectors),
        "coordinates": _rejected(vectors.T[::step]),
    }


def _rejected(samples: Any) -> Any:
    """(...,): the fraction of (..., R, M) that Shapiro-Wilk rejects; without noise is no sample."""
    pvalues = noise.shapiro_wilk(samples).pvalue
    tested = jnp.isfinite(pvalues)
    return jnp.mean(pvalues < 0.05, axis=-1, where=tested)


def _place(name: str) -> tuple[str, int]:
    kind, _, number = name.rpartition("_")
    return kind, int(number) if number.isdigit() else 0
