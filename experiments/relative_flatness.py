"""Does relative flatness go with the generalisation gap, and can a rescaling fool it?

Poster: "A Reparameterization-Invariant Flatness Measure for Deep Neural Networks", Petzka, Adilova,
Kamp, Sminchisescu, NeurIPS 2019 workshop (arXiv 1912.00058, then 2001.00939). Many networks are
trained to one training loss, measured, rescaled without changing their function, measured again.

    python -m experiments.relative_flatness --preset=smoke     # 30 seconds, to see that it runs
    python -m experiments.relative_flatness                    # laptop: 180 MLPs on the digits
    python -m experiments.relative_flatness --preset=paper     # LeNet5 on CIFAR-10, a GPU, hours
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _minima as minima
from experiments import _program
from experiments._minima_report import Results, findings
from poster_jax import flatness
from poster_jax.core import checks, data, losses, models


@dataclasses.dataclass(frozen=True)
class Settings:
    """One instance a preset; every number and text is a flag."""

    dataset: str = _program.setting("digits", "name for core.data.load")
    network: str = _program.setting("MLP", "MLP (96-48-classes) or LeNet5")
    scaling: str = _program.setting("standardise", "of the inputs, as in core.data.load")
    batch_sizes: tuple = _program.setting((16, 64, 256), "examples a step")
    rates: tuple = _program.setting(
        (("SGD", (0.03, 0.1, 0.3)), ("Adam", (5e-4, 1e-3, 3e-3))), "learning rates by optimiser"
    )
    weight_decays: tuple = _program.setting((0.0, 5e-4), "strengths of weight decay")
    num_seeds: int = _program.setting(5, "seeds a setting")
    label_noise: float = _program.setting(
        0.2, "share of wrong training labels in every second network"
    )
    loss_below: float = _program.setting(0.1, "training stops when an epoch's mean loss is below")
    max_epochs: int = _program.setting(800, "networks that need more are dropped")
    num_rescalings: int = _program.setting(100, "random rescalings of each network")
    rescaling_examples: int = _program.setting(
        100, "training examples for the layers' Hessians there"
    )
    num_resamples: int = _program.setting(2000, "bootstrap resamples and permutations")
    num_lanczos: int = _program.setting(64, "Lanczos steps of the Hessian's density")
    group_size: int = _program.setting(10, "networks trained side by side")
    microbatch: int = _program.setting(1000, "examples measured at once")

    def __post_init__(self) -> None:
        checks.check_fraction("label_noise", self.label_noise)
        checks.check_positive("loss_below", self.loss_below)
        checks.check_choice("network", self.network, ["MLP", "LeNet5"])


PRESETS = {
    "smoke": Settings(
        batch_sizes=(64,),
        rates=(("SGD", (0.1, 0.2, 0.3)),),
        num_seeds=2,
        max_epochs=200,
        num_rescalings=5,
        rescaling_examples=32,
        num_resamples=200,
        num_lanczos=16,
    ),
    "laptop": Settings(),
    # Batch 64, rate 0.005, weight decay 5e-4, ten seeds and the three optimisers are the authors';
    # the other batch sizes and rates spread the minima.
    "paper": Settings(
        dataset="tfds:cifar10",
        network="LeNet5",
        scaling="symmetric",
        batch_sizes=(64, 256),
        rates=(
            ("SGD", (0.005, 0.02, 0.08)),
            ("Adam", (0.0005, 0.001, 0.005)),
            ("RMSprop", (0.0005, 0.001, 0.005)),
        ),
        weight_decays=(5e-4,),
        num_seeds=10,
        label_noise=0.0,
        max_epochs=400,
        num_resamples=9999,
        microbatch=2500,
    ),
}


def prepare(run: _program.Run) -> tuple[minima.Task, minima.Examples]:
    """The network, and the data with true and with noisy labels."""
    chosen = run.settings
    dataset = run.load(chosen.dataset, scaling=chosen.scaling)
    x, y = dataset.train
    noisy = data.noisy_labels(
        y, run.key, fraction=chosen.label_noise, num_classes=dataset.num_classes
    )
    modules = {
        "MLP": models.MLP((96, 48, dataset.num_classes)),
        "LeNet5": models.LeNet5(dataset.num_classes),
    }
    model = models.from_linen(modules[chosen.network])
    layers = flatness.kernel_paths(model.init(run.key, x[:1]))
    examples = minima.Examples(x, jnp.stack([y, noisy]), dataset.test)
    loss_fn = losses.cross_entropy(model.apply_fn)
    return minima.Task(model, loss_fn, layers, chosen.microbatch), examples


def experiment(run: _program.Run) -> _program.Findings:
    """Trains, measures, rescales, measures again; words and pictures are in the report."""
    chosen = run.settings
    task, examples = prepare(run)
    rows = minima.grid(chosen)
    trained = minima.train(run, task, examples, rows)
    params, noisy = trained.pop("params"), jnp.asarray([row["noisy"] for row in rows])
    key = jax.random.fold_in(run.key, 2**31)
    keys = jax.random.split(key, len(rows))
    with run.progress("measuring", 5) as update:
        quality = run.population("losses", partial(minima.losses_of, task), examples, params, noisy)
        update(1, "as trained, and rescaled as in the paper")
        factors = jax.random.randint(key, (len(rows),), 5, 26).astype(float)
        # One key for all: they meet the same noise in the PAC-Bayes search, and can be compared.
        one_key = jnp.broadcast_to(key, len(rows))
        measure = partial(minima.measures_before_and_after, task)
        measured = run.population("measures", measure, examples, params, noisy, factors, one_key)
        changes = {}
        for done, bits in enumerate((32, 64)):
            update(2 + done, f"{chosen.num_rescalings} rescalings of each, float{bits}")
            change = partial(
                minima.changes_of, task, chosen.num_rescalings, chosen.rescaling_examples
            )
            with jax.enable_x64(bits == 64):
                wide = minima.cast((examples, params), f"float{bits}")
                found = run.population(f"changes_{bits}", change, *wide, noisy, keys)
                changes[bits] = jax.tree.map(np.asarray, found)
        ridge = run.population("ridge", partial(minima.ridge_difference, task), examples, keys[:20])
        update(5)
    results = jax.tree.map(np.asarray, (trained, quality, measured))
    return findings(
        run, task, examples, params, Results(rows, *results, changes, np.asarray(ridge))
    )


if __name__ == "__main__":
    _program.launch("relative_flatness", PRESETS, experiment)
