"""The portrait of two networks trained on real digits, on one page.

    python -m experiments.demo --workdir=out/demo

takes about two minutes on two cores and writes `out/demo/index.html`. Its sections stand in
`experiments/portrait`; a new room adds its own there.
"""

import dataclasses

from experiments import _program
from experiments.portrait import SECTIONS, train_subjects


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much to measure."""

    mlp_steps: int = _program.setting(1000, "training steps of the MLP")
    cnn_steps: int = _program.setting(600, "training steps of the CNN")
    eigenvalues: int = _program.setting(14, "eigenvalues of each Hessian, half from each end")
    trace_products: int = _program.setting(64, "products behind each trace")
    lanczos_steps: int = _program.setting(60, "Lanczos steps a probe of the density")
    density_probes: int = _program.setting(4, "probes of the density")
    flatness_probes: int = _program.setting(64, "products behind each layer's relative flatness")
    rescalings: int = _program.setting(100, "random rescalings")
    rescaling_probes: int = _program.setting(
        8, "products behind each measure of a rescaled network"
    )
    kernel_digits: int = _program.setting(200, "digits that the kernels are computed on")
    noise_directions: int = _program.setting(64, "directions along which noise is tested")
    noise_vectors: int = _program.setting(500, "mini-batches of each size, at most 5000")
    jacobian_digits: int = _program.setting(200, "test digits that Jacobians are taken at")
    width_networks: int = _program.setting(1000, "random networks of each width")


PRESETS = {
    "laptop": Settings(),
    "smoke": Settings(
        mlp_steps=40,
        cnn_steps=20,
        eigenvalues=4,
        trace_products=16,
        lanczos_steps=15,
        density_probes=2,
        flatness_probes=16,
        rescalings=10,
        rescaling_probes=2,
        kernel_digits=48,
        noise_directions=16,
        noise_vectors=100,
        jacobian_digits=20,
        width_networks=40,
    ),
}


def experiment(run: _program.Run) -> _program.Findings:
    """Trains the networks and asks every section about them."""
    subjects = train_subjects(run)
    return _program.Findings(
        title="Portrait of two networks",
        lead="What poster_jax says about a multilayer perceptron and a convolutional network that "
        "were trained on real handwritten digits a moment ago: every number with its error, and "
        "what it means.",
        claims=(),
        sections=[section(run, subjects) for section in SECTIONS],
    )


if __name__ == "__main__":
    _program.launch("demo", PRESETS, experiment)
