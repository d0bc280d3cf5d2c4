"""Is a wide network the kernel that its limit says, and what do such kernels learn?

Poster: "Neural Tangents: Fast and Easy Infinite Neural Networks in Python", Novak, Xiao, Hron, Lee,
Alemi, Sohl-Dickstein, Schoenholz, NeurIPS 2019 workshop (arXiv 1912.02803). Ensembles of finite
networks are trained beside their limit; kernels of images are computed and learn from few examples.

    python -m experiments.neural_tangents --preset=smoke     # a minute, to see that it runs
    python -m experiments.neural_tangents                    # laptop: networks and the digits
    python -m experiments.neural_tangents --preset=paper     # CIFAR-10, kernels on disk, GPUs
"""

import dataclasses

from experiments import _image_kernels as image_kernels
from experiments import _program, _wide_networks
from experiments._tangents_report import findings
from experiments._tangents_statistics import Results
from poster_jax.core import checks


@dataclasses.dataclass(frozen=True)
class Settings:
    """One instance a preset; every number and text is a flag."""

    ensemble_widths: tuple = _program.setting((16, 64, 256), "widths of the trained ensembles")
    num_networks: int = _program.setting(100, "networks an ensemble, one for each function")
    num_steps: int = _program.setting(512, "steps of gradient descent, a multiple of 16")
    kernel_widths: tuple = _program.setting((32, 64, 128, 256), "widths of the random kernels")
    num_draws: int = _program.setting(10_000, "random kernels a width, a multiple of 50")
    linear_widths: tuple = _program.setting((32, 64, 128, 256), "widths of the linearised networks")
    num_linearised: int = _program.setting(100, "networks a width that are linearised")
    num_resamples: int = _program.setting(2000, "bootstrap resamples")
    group_size: int = _program.setting(10, "networks computed side by side")
    dataset: str = _program.setting("digits", "name for core.data.load")
    scaling: str = _program.setting("unit", "of the pixels, as in core.data.load; each image is "
                                    "then brought to mean square 1")  # fmt: skip
    networks: tuple = _program.setting(("FC", "CNN-Flatten", "CNN-GAP"), "from plain to pooled")
    strides: tuple = _program.setting((2, 1, 1), "of the convolutions of the CNNs")
    blocks: int = _program.setting(1, "residual blocks in each of the WideResNet's three groups")
    pool_size: int = _program.setting(1280, "images that training sets are drawn from")
    test_size: int = _program.setting(517, "images to test on")
    sizes: tuple = _program.setting(tuple(2**k for k in range(4, 11)), "of the training sets")
    num_draws_of_x: int = _program.setting(5, "training sets drawn of each size")
    tiles: tuple = _program.setting(
        (("FC", 256), ("CNN-Flatten", 64), ("CNN-GAP", 16)), "images of each side of a tile"
    )
    in_memory: int = _program.setting(8192, "larger training sets are solved on disk")
    diag_reg: float = _program.setting(
        1e-3, "added to the diagonal, in units of its mean; chosen before any data were seen"
    )

    def __post_init__(self) -> None:
        if self.num_steps % _wide_networks.SNAPSHOTS:
            raise ValueError(f"num_steps must be a multiple of 16, got {self.num_steps}.")
        if self.num_draws % 50:
            raise ValueError(f"num_draws must be a multiple of 50, got {self.num_draws}.")
        checks.check_positive("diag_reg", self.diag_reg)


PRESETS = {
    "smoke": Settings(
        ensemble_widths=(16, 128),
        num_networks=30,
        num_steps=128,
        kernel_widths=(32, 128),
        num_draws=1000,
        linear_widths=(32, 128),
        num_linearised=20,
        num_resamples=200,
        strides=(2, 1),
        pool_size=80,
        test_size=60,
        sizes=(16, 32, 64),
        num_draws_of_x=3,
    ),
    "laptop": Settings(),
    # 45,000 of the 50,000 training images are the poster's largest set.
    "paper": Settings(
        ensemble_widths=(16, 256, 2048),
        num_steps=2048,
        kernel_widths=(128, 256, 512, 1024),
        linear_widths=(128, 256, 512, 1024, 2048),
        num_linearised=200,
        num_resamples=9999,
        dataset="tfds:cifar10",
        scaling="symmetric",
        networks=("FC", "CNN-Flatten", "WideResNet"),
        strides=(1,) * 8,
        blocks=4,
        pool_size=50_000,
        test_size=10_000,
        sizes=(100, 300, 1000, 3000, 10_000, 20_000, 45_000),
        tiles=(("FC", 2048), ("CNN-Flatten", 512), ("WideResNet", 16)),
    ),
}


def experiment(run: _program.Run) -> _program.Findings:
    """Finite networks beside their limit, then kernels of images; words are in the report."""
    task = image_kernels.images(run)  # first: a set that is not there is told at once
    finish_devices = image_kernels.on_devices(run, task)
    found = _wide_networks.measure(run)
    line, steps = _wide_networks.line(), run.settings.num_steps
    networks = run.settings.num_networks
    results = Results(
        **found,
        theory=_wide_networks.theory(line, steps),
        of_theory=_wide_networks.ensembles_of_theory(line, steps, networks, 100, run.seed),
        curves=image_kernels.learning_curves(run, task, image_kernels.compute_kernels(run, task)),
        five_lines=image_kernels.five_lines(),
        devices=finish_devices(),
    )
    return findings(run, results)


if __name__ == "__main__":
    _program.launch("neural_tangents", PRESETS, experiment)
