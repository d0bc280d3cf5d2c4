"""Does it help a deep network that its layers' Jacobians are orthogonal?

Poster: "On Orthogonal Jacobian Regularization in Deep Neural Networks", Choe, Jeong, Carbonell,
NeurIPS 2019 workshop SEDL. Networks whose gradients vanish are trained with ||J J' - I||^2 of each
hidden layer, with the norm-preserving form, as stacked autoencoders, with two other regularisers
and with none. The poster's networks are not known: its abstract alone could be read.

    python -m experiments.orthogonal_jacobian --preset=smoke   # half a minute, to see that it runs
    python -m experiments.orthogonal_jacobian                  # laptop: MLPs of 20 layers, digits
    python -m experiments.orthogonal_jacobian --preset=paper   # MNIST and CIFAR-100; a GPU, days
"""

import dataclasses

from experiments import _jacobian_identities as identities
from experiments import _jacobian_training as training
from experiments import _program
from experiments._jacobian_claims import cells_of
from experiments._jacobian_networks import ACTIVATIONS, NETWORKS, Case, Recipe
from experiments._jacobian_report import findings
from poster_jax.core import checks

# Gains at which signals and gradients shrink from layer to layer.
ALL = (("tanh", 0.7), ("leaky ReLU", 0.8), ("ReLU", 1.0))


@dataclasses.dataclass(frozen=True)
class Settings:
    """One instance a preset; every number and text is a flag."""

    cases: tuple = _program.setting(
        (Case("digits", "dense network", 20, 64, ALL, Recipe(0.02, 64, steps=600, clip=5.0)),),
        "data sets with their networks",
    )
    methods: tuple = _program.setting(training.METHODS, "penalties, none the first")
    strengths: tuple = _program.setting((0.1, 0.3, 1.0, 3.0, 10.0), "that every method tries")
    num_seeds: int = _program.setting(10, "networks of each method that are compared")
    num_choosing_seeds: int = _program.setting(2, "others, of each strength, to choose it by")
    num_train: int = _program.setting(1200, "training examples of an embedded set")
    num_choose: int = _program.setting(200, "training examples held out to choose the strengths")
    num_marks: int = _program.setting(10, "looks at the gradients after the first")
    probe_examples: int = _program.setting(64, "training examples that gradients are looked at on")
    spectrum_examples: int = _program.setting(16, "examples whose Jacobian is decomposed")
    num_resamples: int = _program.setting(5000, "bootstrap resamples")
    group_size: int = _program.setting(5, "networks trained side by side on a device")
    microbatch: int = _program.setting(2500, "examples evaluated at once")

    def __post_init__(self) -> None:
        for case in self.cases:
            checks.check_choice("network", case.network, list(NETWORKS))
            for name, gain in case.activations:
                checks.check_choice("activation", name, list(ACTIVATIONS))
                checks.check_positive("gain", gain)
        for method in self.methods:
            checks.check_choice("methods", method, training.METHODS)
        if self.methods[: len(training.NEEDED)] != training.NEEDED:
            raise ValueError(f"methods must begin with {training.NEEDED}, got {self.methods}.")
        for strength in self.strengths:
            checks.check_positive("strengths", strength)


def _paper() -> tuple[Case, ...]:
    """What the abstract names, MNIST and CIFAR-100; networks and schedules are this project's."""
    mnist = Recipe(0.02, 128, epochs=20, clip=5.0)
    cifar = Recipe(0.1, 128, epochs=200, cosine=True, clip=5.0, weight_decay=5e-4, augment=True)
    dense = [
        Case("tfds:mnist", "dense network", depth, 256, (("tanh", 0.7), ("ReLU", 1.0)), mnist)
        for depth in (10, 20, 50)
    ]
    he = (("ReLU", 2**0.5),)
    plain = Case("tfds:cifar100", "plain CNN", 20, 16, he, cifar)
    return (*dense, plain, Case("tfds:cifar100", "ResNet", 18, 64, he, cifar))


PRESETS = {
    "smoke": Settings(
        cases=(Case("digits", "dense network", 6, 16, ALL, Recipe(0.02, 64, steps=100, clip=5.0)),),
        methods=training.NEEDED,
        strengths=(0.3, 3.0),
        num_seeds=4,
        num_train=600,
        spectrum_examples=4,
        num_resamples=200,
    ),
    "laptop": Settings(),
    "paper": Settings(
        cases=_paper(),
        num_choose=5000,
        num_marks=20,
        probe_examples=128,
        num_resamples=9999,
        group_size=1,
    ),
}


def experiment(run: _program.Run) -> _program.Findings:
    """Trains, looks, compares; words and pictures are in the report."""
    cases, cells = run.settings.cases, []
    for case in cases:
        run.load(case.dataset)  # a set that is not there is told before anything is trained
    # Each method but none has a population to choose its strength by, and one to compare.
    stages = 2 * len(run.settings.methods) * len(cases)  # and the identities
    with run.progress("orthogonal Jacobians", stages) as update:
        done = iter(range(stages))
        for case in cases:
            task, examples = training.prepare(run, case)
            say = lambda what: update(next(done), what)  # noqa: E731
            found = training.train(run, task, examples, say)
            say("identities")
            exact = identities.measure(run, task, found) if case.network == "dense network" else {}
            cells += cells_of(case, task.marks, found, exact, alone=len(cases) == 1)
        update(stages)
    return findings(run, cells)


if __name__ == "__main__":
    _program.spread_over_cores()
    _program.launch("orthogonal_jacobian", PRESETS, experiment)
