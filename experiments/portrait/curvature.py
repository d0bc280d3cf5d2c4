"""The Hessian's spectrum of each network."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments._program import Run
from experiments.portrait.subject import Subject
from poster_jax import curvature
from poster_jax.core import report


def curvature_section(run: Run, subjects: Sequence[Subject]) -> report.Section:
    """Density with its outliers, the largest and smallest eigenvalues, the trace."""
    numbers, pictures = [], []
    with run.progress("Hessian spectra", len(subjects)) as update:
        for index, subject in enumerate(subjects):
            update(index, subject.name)
            pairs, trace, density = jax.device_get(_measure(run, subject))
            numbers += _numbers(subject.name, pairs, trace, density)
            pictures.append(_picture(subject.name, pairs, density))
            run.log(network=subject.name, eigenvalues=pairs.values, trace=trace.mean)
    text = (
        "The Hessian of the training loss says how the loss bends around the parameters that "
        "training found. It is never written down: each number below comes from products of the "
        "Hessian with vectors. A residual |Hv - cv| says how nearly an eigenvalue c is one; a "
        "standard error says how far a sampled number may be off."
    )
    return report.Section("Curvature of the loss", text, numbers=numbers, pictures=pictures)


def _measure(run: Run, subject: Subject) -> tuple[Any, Any, Any]:
    options = run.settings
    keys = jax.random.split(jax.random.fold_in(run.key, 1), 3)
    hessian = curvature.hessian_operator(
        subject.loss_fn, subject.params, subject.train, mesh=run.mesh
    )
    pairs = curvature.top_eigenpairs(hessian, keys[0], k=options.eigenvalues, which="both")
    trace = curvature.xtrace(hessian, keys[1], num_probes=options.trace_products)
    density = curvature.spectral_density(
        hessian, keys[2], num_lanczos=options.lanczos_steps, num_probes=options.density_probes
    )
    return pairs._replace(vectors=()), trace, density


def _picture(name: str, pairs: Any, density: Any) -> report.Picture:
    return report.picture(
        report.spectra(
            {name: (density.grid, density.density)},
            outliers={name: pairs.values},
            xlabel=f"eigenvalue of the Hessian, {name}",
        ),
        name=f"hessian_spectrum_{name.lower()}",
        alt=f"Density of the Hessian's eigenvalues of the {name}, the extreme ones marked",
        caption=f"{name}: density of the eigenvalues by stochastic Lanczos quadrature, and below "
        f"it the {len(pairs.values)} largest and smallest, each found by itself. Most directions "
        "are nearly flat; about as many as there are classes are not.",
    )


def _numbers(name: str, pairs: Any, trace: Any, density: Any) -> list[report.Number]:
    top = [
        report.Number(
            f"{name}: eigenvalue {rank}",
            f"{value:.4g} (residual {residual:.1g})",
            "Curvature along the most curved direction"
            + (" orthogonal to those before." if rank > 1 else "."),
        )
        for rank, (value, residual) in enumerate(
            zip(pairs.values[:5], pairs.residuals[:5], strict=True), start=1
        )
    ]
    lowest = report.Number(
        f"{name}: smallest eigenvalue",
        f"{pairs.values[-1]:.3g} (residual {pairs.residuals[-1]:.1g})",
        "Below zero: the loss still bends down along some direction, no strict minimum.",
    )
    large = 0.1 * pairs.values[0]
    share = float(np.mean(np.sum(density.weights * (density.nodes > large), axis=1)))
    return [
        *top,
        lowest,
        report.number(
            f"{name}: trace",
            trace.mean,
            "Sum of all eigenvalues: noise of variance v in every parameter raises the loss by v/2 "
            "times this, to second order.",
            stderr=trace.stderr,
        ),
        report.number(
            f"{name}: directions above a tenth of the largest eigenvalue",
            100 * share,
            "Share of all directions that are strongly curved.",
            unit="%",
        ),
    ]
