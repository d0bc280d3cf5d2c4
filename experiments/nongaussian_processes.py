"""How far is a random network of finite width from a Gaussian process, and does it learn better?

Poster: "Non-Gaussian processes and neural networks at finite widths", Yaida, NeurIPS 2019 workshop
(arXiv 1910.00019). The predicted flow of kernel and four-point vertex over depth is laid beside
drawn networks; posteriors to first order in 1 / width beside exact ones, on real digits.

    python -m experiments.nongaussian_processes --preset=smoke   # to see that it runs
    python -m experiments.nongaussian_processes                  # laptop: 3 to 4 minutes
    python -m experiments.nongaussian_processes --preset=paper   # MNIST, more points, a GPU
"""

import dataclasses

import jax

from experiments import _finite_priors as priors
from experiments import _program
from experiments._nongaussian_report import Results, findings
from poster_jax.core import checks


@dataclasses.dataclass(frozen=True)
class Settings:
    """One instance a preset; every number and text is a flag."""

    depth: int = _program.setting(10, "hidden layers of the flow")
    flow_widths: tuple = _program.setting((16, 64, 256), "widths of the drawn networks")
    flow_budget: int = _program.setting(1_280_000, "drawn networks times their width")
    order_widths: tuple = _program.setting((4, 8, 16, 32), "widths for the order of K + G1 / n")
    order_budget: int = _program.setting(5_120_000, "drawn networks times their width there")
    dataset: str = _program.setting("digits", "name for core.data.load")
    classes: tuple = _program.setting((4, 9), "the two classes told apart, as labels 1 and -1")
    components: int = _program.setting(10, "leading principal components that are the inputs")
    num_train: int = _program.setting(30, "training points of a subset")
    num_test: int = _program.setting(10, "test points of a subset")
    num_subsets: int = _program.setting(5, "subsets of the data")
    num_controls: int = _program.setting(2, "of them also with labels in random order")
    activation: str = _program.setting("tanh", "of the network that infers")
    prior_depth: int = _program.setting(2, "its hidden layers")
    C_W: float = _program.setting(1.5, "its variance of weights times their number of inputs")
    C_b: float = _program.setting(0.1, "its variance of biases")
    noise: float = _program.setting(
        0.3, "variance of the labels' noise; with 0.1 too few sampled networks have weight"
    )
    widths: tuple = _program.setting((2, 4, 8, 16, 32, 64, 128), "its widths")
    num_samples: int = _program.setting(20_000, "networks behind an exact posterior")
    num_neurons: int = _program.setting(8192, "quasi-random neurons behind the vertex, even")
    form: str = _program.setting("dense", "of the vertex: dense or factored")
    rank: int = _program.setting(512, "factors kept")
    num_resamples: int = _program.setting(1000, "bootstrap resamples")

    def __post_init__(self) -> None:
        checks.check_choice("form", self.form, ["dense", "factored"])
        checks.check_positive("C_W", self.C_W)
        checks.check_positive("noise", self.noise)


PRESETS = {
    "smoke": Settings(
        depth=4,
        flow_widths=(16, 64),
        flow_budget=128_000,
        order_widths=(4, 8, 16),
        order_budget=640_000,
        num_train=10,
        num_test=5,
        num_subsets=3,
        widths=(8, 16, 32),
        num_samples=1000,
        num_neurons=2048,
        num_resamples=200,
    ),
    "laptop": Settings(),
    "paper": Settings(
        flow_widths=(16, 32, 64, 128, 256, 512),
        flow_budget=100_000_000,
        order_widths=(4, 8, 16, 32, 64),
        order_budget=500_000_000,
        dataset="tfds:mnist",
        components=50,
        num_train=100,
        num_test=100,
        num_subsets=20,
        widths=(2, 4, 8, 16, 32, 64, 128, 256),
        num_samples=200_000,
        num_neurons=16_384,
        form="factored",
        rank=2048,
        num_resamples=9999,
    ),
}


def experiment(run: _program.Run) -> _program.Findings:
    """The flow over depth, then inference; words, claims and pictures are in the report."""
    with jax.enable_x64(True):  # a correction is a small difference
        flows = priors.flows(run)
        real, control = priors.inference(run)
        outputs, line = priors.preactivations(run), priors.line_predictions(run)
        results = Results(flows, priors.orders(run), outputs, real, control, line)
    return findings(run, results)


if __name__ == "__main__":
    _program.launch("nongaussian_processes", PRESETS, experiment)
