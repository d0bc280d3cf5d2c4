"""How do correlators of networks fall with width, and does training follow its expansion?

Poster: "Asymptotics of Wide Networks from Feynman Diagrams", Dyer, Gur-Ari, NeurIPS 2019 workshop
(arXiv 1909.11304). Correlators are measured over populations of random networks of many widths,
their exponents compared with the conjectured bound, and gradient flow with the expansion in 1/n.

    python -m experiments.feynman_diagrams --preset=smoke     # a minute, to see that it runs
    python -m experiments.feynman_diagrams                    # laptop: 14 networks, 5 widths each
    python -m experiments.feynman_diagrams --preset=paper     # widths to 2^11, a GPU
"""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

from experiments import _program
from experiments import _wide_correlators as wide
from experiments._feynman_report import findings
from poster_jax.core import checks


@dataclasses.dataclass(frozen=True)
class Settings:
    """One instance a preset; every number and text is a flag."""

    activations: tuple = _program.setting(
        ("linear", "relu", "tanh", "softplus"), "of fully connected networks"
    )
    depths: tuple = _program.setting((1, 2, 3), "hidden layers")
    widths: tuple = _program.setting((16, 32, 64, 128, 256), "of hidden layers")
    num_networks: tuple = _program.setting((40000, 20000, 8000, 3000, 1000), "for each width")
    convolutions: tuple = _program.setting(("flatten", "pooling"), "kinds of convolutional network")
    channels: tuple = _program.setting((8, 16, 32, 64), "of convolutions")
    num_convolutional: tuple = _program.setting((4000, 2000, 1000, 500), "for each of channels")
    training_widths: tuple = _program.setting((32, 64, 128, 256), "of trained networks")
    num_trained: int = _program.setting(100, "networks trained at each width")
    theorem_depth: int = _program.setting(3, "hidden layers up to which the bound is proved")

    def __post_init__(self) -> None:
        for name in self.activations:
            checks.check_choice("activations", name, wide.ACTIVATIONS)


PRESETS = {
    "smoke": Settings(
        activations=("linear", "tanh"),
        depths=(1,),
        widths=(4, 8, 16, 32),
        num_networks=(500, 500, 500, 500),
        convolutions=(),
        training_widths=(8, 16, 32),
        num_trained=4,
        theorem_depth=1,
    ),
    "laptop": Settings(),
    "paper": Settings(
        activations=("linear", "relu", "tanh", "erf", "softplus"),
        widths=(32, 64, 128, 256, 512, 1024, 2048),
        num_networks=(200000, 100000, 50000, 20000, 10000, 5000, 2000),
        channels=(16, 32, 64, 128, 256),
        num_convolutional=(50000, 20000, 10000, 5000, 2000),
        training_widths=(64, 128, 256, 512, 1024, 2048),
        num_trained=200,
    ),
}


def experiment(run: _program.Run) -> _program.Findings:
    """Measures, fits, trains; words and pictures are in the report."""
    with ThreadPoolExecutor(1) as pool:  # beside the populations, which wait for the compiler
        training = pool.submit(wide.training, run)
        return findings(run, wide.populations(run), training.result())


if __name__ == "__main__":
    _program.launch("feynman_diagrams", PRESETS, experiment)
