"""Is the noise of stochastic gradients Gaussian, at which batch sizes and how long?

Poster: "Non-Gaussianity of Stochastic Gradient Noise", Panigrahi, Somani, Goyal, Netrapalli,
NeurIPS 2019 workshop SEDL (arXiv 1910.09626). Networks are stopped at checkpoints; at each theta
many mini-batches give many noise vectors, tested along random directions and against surrogates.

    python -m experiments.gradient_noise --preset=smoke     # a minute, to see that it runs
    python -m experiments.gradient_noise                    # laptop: five MLPs on the digits
    python -m experiments.gradient_noise --preset=paper     # MNIST, CIFAR-10, SVHN; a GPU
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np

from experiments import _noise_measurement as measurement
from experiments import _program
from experiments._noise_measurement import Case
from experiments._noise_report import findings
from experiments._noise_statistics import LARGE, SMALL, Results
from poster_jax.core import checks, training


@dataclasses.dataclass(frozen=True)
class Settings:
    """One instance a preset; every number and text is a flag."""

    cases: tuple = _program.setting(
        (("digits", "MLP"),), "data sets, as in core.data.load, with a network"
    )
    optimisers: tuple = _program.setting((("SGD", 0.1),), "names with their learning rates")
    num_examples: int = _program.setting(50_000, "training examples, at most")
    train_batch: int = _program.setting(64, "examples a step of training")
    checkpoints: tuple = _program.setting((0, 30, 300, 3000, 10_000), "steps, the last one ends it")
    num_seeds: int = _program.setting(5, "networks a case")
    batch_sizes: tuple = _program.setting((8, 32, 128, 256, 1024), "whose noise is tested")
    num_directions: int = _program.setting(200, "random directions")
    num_eigenvectors: int = _program.setting(3, "top eigenvectors, of noise and of Hessian")
    num_vectors: int = _program.setting(1000, "noise vectors, at most 5000")
    num_surrogates: int = _program.setting(99, "Gaussian surrogates of each test")
    early_below: float = _program.setting(0.9, "training accuracy up to which it is early")
    vector_batch: int = _program.setting(256, "batch size of the tail index and of the layers")
    num_tail_vectors: int = _program.setting(500, "noise vectors of the tail index")
    num_tail_surrogates: int = _program.setting(5, "Gaussian surrogates of the tail index")
    num_coordinates: int = _program.setting(2**18, "coordinates of a noise vector, at most")
    num_resamples: int = _program.setting(2000, "bootstrap resamples")
    group_size: int = _program.setting(5, "networks trained side by side")
    microbatch: int = _program.setting(2500, "examples evaluated at once")

    def __post_init__(self) -> None:
        checks.check_fraction("early_below", self.early_below)
        for size in (SMALL, *LARGE):
            if size not in self.batch_sizes:
                raise ValueError(f"batch_sizes must hold {size}, got {self.batch_sizes}.")
        if self.vector_batch not in LARGE:
            raise ValueError(f"vector_batch must be one of {LARGE}, got {self.vector_batch}.")


PRESETS = {
    "smoke": Settings(
        num_examples=400,
        checkpoints=(0, 30, 300),
        num_seeds=2,
        batch_sizes=(SMALL, *LARGE),
        num_directions=40,
        num_vectors=200,
        num_surrogates=39,
        num_tail_vectors=100,
        num_tail_surrogates=2,
        num_resamples=200,
    ),
    "laptop": Settings(),
    # The poster's networks, rates and checkpoints are not known beyond "data-sets, architectures,
    # and other choices"; these are the usual ones of their time.
    "paper": Settings(
        cases=(
            ("tfds:mnist", "MLP"),
            ("tfds:mnist", "LeNet5"),
            ("tfds:cifar10", "LeNet5"),
            ("tfds:cifar10", "VGG16"),
            ("tfds:cifar10", "VGG16 with BatchNorm"),
            ("tfds:cifar10", "ResNet20"),
            ("tfds:cifar10", "ResNet20 with BatchNorm"),
            ("tfds:svhn_cropped", "VGG16 with BatchNorm"),
        ),
        optimisers=(("SGD", 0.05), ("momentum", 0.01), ("Adam", 1e-3)),
        checkpoints=(0, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 50_000),
        num_seeds=3,
        batch_sizes=(32, 256, 1024, 4096),
        num_directions=1000,
        num_resamples=9999,
        group_size=1,
    ),
}


def experiment(run: _program.Run) -> _program.Findings:
    """Trains to the checkpoints, measures at each; words and pictures are in the report."""
    chosen, found = run.settings, {}
    cases = [Case(*case, *of) for case in chosen.cases for of in chosen.optimisers]
    for dataset, _ in chosen.cases:
        run.load(dataset)  # a set that is not there is told before anything is trained
    with run.progress("gradient noise", 2 * len(cases)) as update:
        for index, case in enumerate(cases):
            update(2 * index, f"training, {case.title}")
            task, examples = measurement.prepare(run, case)
            key = jax.random.fold_in(run.key, index)
            keys = jax.random.split(key, chosen.num_seeds)
            train = partial(measurement.train_one, task, case)
            trained = run.population(f"train_{case.stage}", train, examples, keys)
            update(2 * index + 1, f"measuring, {case.title}")
            found[case] = _measure(run, task, case, examples, trained, key)
        update(2 * len(cases))
    return findings(run, Results(cases, found))


def _measure(
    run: _program.Run, task: measurement.Task, case: Case, examples: Any, trained: Any, key: Any
) -> dict[str, Any]:
    """Everything `measure_one` gives, leaves (seeds, checkpoints, ...)."""
    shape = (run.settings.num_seeds, len(run.settings.checkpoints))
    flat = jax.tree.map(
        lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:]),
        (trained["params"], trained["state"]),
    )
    keys = jax.random.split(jax.random.fold_in(key, 1), shape[0] * shape[1])
    # One theta after another: the surrogates of one fill the cache.
    measure = partial(
        training.map_population,
        partial(measurement.measure_one, task),
        in_axes=(None, 0, 0, 0),
        group_size=1,
        mesh=run.mesh,
    )
    found = run.stage(f"noise_{case.stage}", measure, examples, *flat, keys)
    found = jax.tree.map(lambda a: np.asarray(a).reshape(*shape, *a.shape[1:]), found)
    return {**found, "diverged": np.asarray(trained["diverged"]), "layer_names": task.layers}


if __name__ == "__main__":
    _program.launch("gradient_noise", PRESETS, experiment)
