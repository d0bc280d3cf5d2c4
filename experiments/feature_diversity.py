"""Must the features of a network differ when training begins, and how do copies part?

Poster: "Is Feature Diversity Necessary in Neural Networks Initialization?", Blumenfeld, Gilboa,
Soudry, NeurIPS 2019 workshop (arXiv 1912.05137), then ICML 2020 (arXiv 2007.01038). A shallow
network starts with u kinds of features and some noise; ConstNet with one kind and several sources
of noise, and in its exact reduction, where there is none; LeakyNet with layers that erase
diversity.

    python -m experiments.feature_diversity --preset=smoke     # a minute, to see that it runs
    python -m experiments.feature_diversity                    # laptop: digits, under 5 minutes
    python -m experiments.feature_diversity --preset=paper     # CIFAR-10, widen 10, a GPU, days
"""

import dataclasses

from experiments import _diversity as shallow
from experiments import _diversity_deep as deep
from experiments import _program
from experiments._diversity_report import Results, findings
from poster_jax import feature_diversity as diversity
from poster_jax.core import checks


@dataclasses.dataclass(frozen=True)
class Settings:
    """One instance a preset; every number and text is a flag."""

    dataset: str = _program.setting("digits", "name for core.data.load")
    width: int = _program.setting(256, "features of the shallow network")
    num_unique: tuple = _program.setting((1, 2, 4, 8, 16, 64, 256), "kinds of features")
    noises: tuple = _program.setting(
        (1e-14, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 1.0), "shares of the variance that are noise"
    )
    shallow_rate: float = _program.setting(0.1, "its learning rate")
    shallow_batch: int = _program.setting(64, "its examples a step")
    shallow_steps: int = _program.setting(2000, "its steps")
    shallow_seeds: int = _program.setting(6, "its seeds, at least 2")
    record_every: int = _program.setting(5, "steps between two looks at its diversity, at first")
    record_until: int = _program.setting(1000, "step after which it is looked at 10 times less")
    depth: int = _program.setting(10, "of ConstNet: 7, 10, 13, 16, ...")
    widen: int = _program.setting(1, "its channels are 16, and 16, 32, 64 times this")
    conv_noise: float = _program.setting(1e-6, "noise of its weights where they have some")
    dropout: float = _program.setting(0.01, "its rate of dropout where there is some")
    rounding: float = _program.setting(2.0**-23, "relative noise of gradients where there is some")
    deep_rate: float = _program.setting(0.03, "learning rate of the deep networks, momentum 0.9")
    drops: tuple = _program.setting((), "shares of the epochs after which the rate is divided by 5")
    weight_decay: float = _program.setting(5e-4, "of the deep networks")
    deep_batch: int = _program.setting(64, "their examples a step")
    augmentation: str = _program.setting("none", "of their inputs: none, or crop (with mirroring)")
    epochs: int = _program.setting(30, "of ConstNet")
    deep_seeds: int = _program.setting(4, "its seeds, at least 2")
    patterns: tuple = _program.setting(
        ("h_hh_hh_hh", "i_ii_ii_ii", "1_ii_11_ii", "1_ii_11_11", "1_11_11_11"),
        "LeakyNet's, a letter a layer",
    )
    slope: float = _program.setting(0.01, "of LeakyNet's ReLUs")
    leaky_epochs: int = _program.setting(12, "of LeakyNet")
    leaky_seeds: int = _program.setting(4, "its seeds, at least 2")
    group_size: int = _program.setting(4, "deep networks, or seeds, trained side by side")
    side_by_side: int = _program.setting(8, "shallow networks of a seed trained side by side")
    microbatch: int = _program.setting(1000, "examples measured at once")

    def __post_init__(self) -> None:
        checks.check_choice("augmentation", self.augmentation, ["none", "crop"])
        checks.check_fraction("conv_noise", self.conv_noise)
        checks.check_fraction("dropout", self.dropout)
        for name in ("shallow_seeds", "deep_seeds", "leaky_seeds"):
            checks.check_count(name, getattr(self, name), minimum=2, hint="An interval needs two.")
        deep.check_patterns(self.patterns)


PRESETS = {
    "smoke": Settings(
        width=16,
        num_unique=(1, 4, 16),
        noises=(1e-8, 1e-6, 1e-4, 1.0),
        shallow_steps=400,
        shallow_seeds=2,
        depth=7,
        epochs=1,
        deep_seeds=2,
        patterns=("i_i_i_i", "1_i_1_i", "1_1_1_1"),
        leaky_epochs=1,
        leaky_seeds=2,
        group_size=1,
    ),
    "laptop": Settings(),
    # Depth, width, rate, batch, weight decay, dropout, epochs and the places where the rate drops
    # are the authors'; the shallow network of their first paper is not described there.
    "paper": Settings(
        dataset="tfds:cifar10",
        width=1024,
        num_unique=(1, 2, 4, 16, 64, 256, 1024),
        shallow_batch=128,
        shallow_steps=40_000,
        shallow_seeds=5,
        record_every=50,
        record_until=10_000,
        depth=16,
        widen=10,
        drops=(0.3, 0.6, 0.8),
        deep_batch=128,
        augmentation="crop",
        patterns=diversity.PATTERNS,
        epochs=200,
        deep_seeds=5,
        leaky_epochs=200,
        leaky_seeds=5,
        group_size=1,
    ),
}


def experiment(run: _program.Run) -> _program.Findings:
    """Trains all networks; claims, words and pictures are in the report."""
    dataset = run.load(run.settings.dataset)
    examples = shallow.Examples(dataset.train, dataset.test)
    results = Results(
        shallow.train(run, examples, dataset.num_classes),
        deep.train_const(run, examples, dataset.num_classes),
        deep.train_leaky(run, examples, dataset.num_classes),
    )
    return findings(run, results)


if __name__ == "__main__":
    _program.spread_over_cores()
    _program.launch("feature_diversity", PRESETS, experiment)
