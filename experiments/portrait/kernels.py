"""The kernels of each network: what it found easy before training, after it, and at any width."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments._program import Run
from experiments.portrait.subject import Subject
from poster_jax import kernels
from poster_jax.core import report
from poster_jax.kernels import spectrum, stax

RIDGE = 0.1  # in units of the kernel's mean diagonal: what counts as a direction of its own
KINDS = ("NTK at the start", "NTK at the end", "NNGP at infinite width")


def kernels_section(run: Run, subjects: Sequence[Subject]) -> report.Section:
    """Eigenvalues, effective dimension and alignment with the labels of three kernels of each."""
    numbers, pictures = [], []
    with run.progress("kernel spectra", len(subjects)) as update:
        for index, subject in enumerate(subjects):
            update(index, subject.name)
            measured = jax.device_get(_measure(run, subject))
            found = {kind: measured[kind] for kind in KINDS}  # device_get sorts them
            numbers += _numbers(subject.name, found)
            pictures.append(_picture(subject.name, run.settings.kernel_digits, found))
            run.log(
                network=subject.name,
                kernel_alignment={kind: m["alignment"] for kind, m in found.items()},
                kernel_dimension={kind: m["dimension"] for kind, m in found.items()},
            )
    text = (
        f"A network's kernels on {run.settings.kernel_digits} training digits. The neural tangent "
        "kernel (NTK) says how a step of gradient descent on one digit changes the output on "
        "another; it holds still in networks of infinite width and learns the data in these. Its "
        "eigenvectors are the functions that the network learns, the eigenvalues say how fast. The "
        "NNGP kernel is the covariance of outputs of infinitely wide networks of the same layers "
        "before training. Alignment is the cosine between a kernel and that of the labels, both "
        "centred."
    )
    return report.Section("Kernels", text, numbers=numbers, pictures=pictures)


def _measure(run: Run, subject: Subject) -> dict[str, dict[str, Any]]:
    x, labels = (part[: run.settings.kernel_digits] for part in subject.train)
    targets = jax.nn.one_hot(labels, 10)
    ntk_fn = jax.jit(
        kernels.empirical_ntk_fn(
            subject.apply_fn,
            vmap_axes=0,
            implementation=kernels.NtkImplementation.STRUCTURED_DERIVATIVES,
        )
    )
    found = (
        ntk_fn(x, None, jax.device_get(subject.initial)),
        ntk_fn(x, None, jax.device_get(subject.params)),
        _network_of_infinite_width(subject.name)(x, None, "nngp"),
    )
    return {kind: _facts(kernel, targets) for kind, kernel in zip(KINDS, found, strict=True)}


@jax.jit
def _facts(kernel: Any, targets: Any) -> dict[str, Any]:
    kernel = kernel / jnp.mean(jnp.diagonal(kernel))
    values = spectrum.kernel_spectrum(kernel).values
    return {
        "values": values,
        "dimension": spectrum.effective_dimension(values, RIDGE),
        "alignment": spectrum.label_alignment(kernel, targets),
    }


def _network_of_infinite_width(name: str) -> Any:
    """The kernel of the subject's layers, each as wide as can be, as `lecun_normal` draws them."""

    def conv(stride: int) -> Any:
        return stax.serial(stax.Conv(1, (3, 3), (stride, stride), padding="SAME"), stax.Relu())

    dense = stax.serial(stax.Dense(1), stax.Relu())
    networks = {
        "MLP": (stax.Flatten(), dense, dense, stax.Dense(1)),
        "CNN": (conv(1), conv(2), conv(1), stax.GlobalAvgPool(), stax.Dense(1)),
    }
    # In tiles: the pairs of all pixels of two images are 4,096 numbers.
    return kernels.batch(stax.serial(*networks[name])[2], batch_size=16)


def _picture(name: str, num_digits: int, found: dict[str, dict[str, Any]]) -> report.Picture:
    rank = np.arange(1, num_digits + 1)
    floor = np.finfo(np.float32).eps * num_digits  # below it a float32 eigenvalue is rounding
    curves = {
        kind: (rank, np.where(m["values"] > floor, m["values"], np.nan))
        for kind, m in found.items()
    }
    return report.picture(
        report.curves(
            curves,
            xlabel=f"rank among the eigenvalues of the {name}'s kernel",
            ylabel="eigenvalue / mean diagonal",
            log_x=True,
            log_y=True,
        ),
        name=f"kernel_spectrum_{name.lower()}",
        alt=f"Eigenvalues of three kernels of the {name} on {num_digits} digits, by rank",
        caption=f"{name}: eigenvalues by rank, in units of the kernel's mean diagonal. The first "
        "is the constant function; the slower the decay, the more the network can tell apart.",
    )


def _numbers(name: str, found: dict[str, dict[str, Any]]) -> list[report.Number]:
    numbers = []
    for kind, measured in found.items():
        numbers += [
            report.number(
                f"{name}, {kind}: alignment with the labels",
                measured["alignment"],
                "1 when the kernel knows nothing but the ten classes, 0 when it does not know "
                "them.",
            ),
            report.number(
                f"{name}, {kind}: effective dimension",
                measured["dimension"],
                f"How many directions stand above {RIDGE:g} of the mean diagonal, each counted by "
                "how far.",
            ),
        ]
    return numbers
