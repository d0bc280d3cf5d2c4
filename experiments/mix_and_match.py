"""Do networks trained on images of several sizes do better, faster, and at more sizes?

Poster: "Mix & Match: training convnets with mixed image sizes for improved accuracy, speed and
scale resiliency", Hoffer, Weinstein, Hubara, Ben-Nun, Hoefler, Soudry, NeurIPS 2019 workshop SEDL.
Networks are trained at one size, and at four with batches (B+) or with copies of each image (D+)
adapted to the size, on as many pixels, and tested at all sizes.

    python -m experiments.mix_and_match --preset=smoke   # to see that it runs
    python -m experiments.mix_and_match                  # laptop: digits at 8 to 24 pixels
    python -m experiments.mix_and_match --preset=paper   # CIFAR-10 and 100, ResNet-44; a GPU, days
    python -m experiments.mix_and_match --preset=imagenet144  # mean size 144, ResNet-50; or 224
"""

import dataclasses

from experiments import _program
from experiments._sizes_networks import NETWORKS, Case, storage
from experiments._sizes_report import findings
from experiments._sizes_training import measure
from poster_jax.core import checks
from poster_jax.mixed_sizes import CIFAR, IMAGENET_144, IMAGENET_224, SizeMixture

DIGITS = Case(
    "digits",
    "convolutional",
    3,
    SizeMixture((16, 24, 12, 8), CIFAR.fractions, 16, 64),  # CIFAR's sizes, halved
    (6, 8, 10, 12, 16, 20, 24, 32),
    0.05,
    steps=500,
    passes=8,
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """One instance a preset; every number and text is a flag."""

    cases: tuple = _program.setting((DIGITS,), "data sets with their networks")
    side: int = _program.setting(256, "pixels of the stored squares of photographs")
    num_seeds: int = _program.setting(5, "networks of each method")
    num_looks: int = _program.setting(10, "looks at the accuracy during training")
    calibration_batches: int = _program.setting(8, "batches that give BatchNorm's statistics")
    calibration_size: int = _program.setting(128, "images of each of them")
    num_resamples: int = _program.setting(5000, "bootstrap resamples")
    group_size: int = _program.setting(1, "networks trained side by side on a device")
    microbatch: int = _program.setting(1000, "test images evaluated at once")

    def __post_init__(self) -> None:
        for case in self.cases:
            checks.check_choice("network", case.network, list(NETWORKS))
            if case.mixture.base_size not in case.test_sizes:
                raise ValueError(
                    f"test_sizes must hold the base size {case.mixture.base_size}, got "
                    f"{case.test_sizes}."
                )


def _paper(dataset: str) -> Case:
    """ResNet-44 and the schedule of the authors' code."""
    return Case(
        dataset,
        "ResNet",
        44,
        CIFAR,
        (16, 20, 24, 28, 32, 40, 48, 56, 64),
        0.1,
        epochs=200,
        drops=(81 / 200, 122 / 200, 164 / 200),
        padding=4,
        pad_mode="constant",
        flip=True,
    )


def _photographs(mixture: SizeMixture) -> Settings:
    """ResNet-50 and the usual schedule; `--side` is put in when it runs."""
    case = Case(
        "tfds:imagenet2012",
        "ImageNet ResNet",
        50,
        mixture,
        (96, 128, 160, 192, 224, 256, 288, 320, 384, 448),
        0.1,
        epochs=90,
        drops=(30 / 90, 60 / 90, 80 / 90),
        side=256,
    )
    return Settings(
        cases=(case,),
        num_seeds=3,
        num_looks=9,
        calibration_batches=32,
        calibration_size=64,
        num_resamples=9999,
        microbatch=250,
    )


PRESETS = {
    "smoke": Settings(
        cases=(
            DIGITS._replace(
                mixture=SizeMixture((16, 8), (0.5, 0.5), 16, 64), test_sizes=(8, 16), steps=20
            ),
        ),
        num_seeds=2,
        num_looks=2,
        calibration_batches=2,
        num_resamples=200,
    ),
    "laptop": Settings(),
    "paper": Settings(
        cases=(_paper("tfds:cifar10"), _paper("tfds:cifar100")),
        num_looks=20,
        calibration_batches=201,
        calibration_size=64,
        num_resamples=9999,
    ),
    "imagenet144": _photographs(IMAGENET_144),
    "imagenet224": _photographs(IMAGENET_224),
}


def experiment(run: _program.Run) -> _program.Findings:
    """Trains, tests, compares; words and pictures are in the report."""
    side, found = run.settings.side, []
    cases = [case if case.side is None else case._replace(side=side) for case in run.settings.cases]
    # A set that is not there is told before anything is trained; the first is read at once anyway.
    for case in cases[1:]:
        run.load(case.dataset, **storage(case))
    stages = 4 * len(cases)
    with run.progress("mixed sizes", stages) as update:
        done = iter(range(stages))
        for case in cases:
            found.append(measure(run, case, lambda what: update(next(done), what)))
        update(stages)
    return findings(run, found)


if __name__ == "__main__":
    _program.spread_over_cores()
    _program.launch("mix_and_match", PRESETS, experiment)
