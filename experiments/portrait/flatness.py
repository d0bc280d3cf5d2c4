"""Relative flatness layer by layer, and what a rescaling of the weights does to it and others."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments._program import Run
from experiments.portrait.subject import Subject
from poster_jax import curvature, flatness
from poster_jax.core import report


def flatness_section(run: Run, subjects: Sequence[Subject]) -> report.Section:
    """Each layer's relative flatness with its error; 100 rescalings that keep the function."""
    numbers, pictures, changes = [], [], {}
    with run.progress("relative flatness", 2 * len(subjects)) as update:
        for index, subject in enumerate(subjects):
            update(2 * index, subject.name)
            layers = jax.device_get(_all_layers(run, subject))
            numbers += _numbers(subject, layers)
            pictures.append(_picture(subject.name, layers))
            run.log(
                network=subject.name,
                relative_flatness={p: e.mean for p, e in layers.per_layer.items()},
            )
            update(2 * index + 1, f"{subject.name}, rescaled")
            found = jax.device_get(_rescaled(run, subject))
            changes |= _changes(subject.name, found)
            numbers += _rescaling_numbers(subject.name, found)
    pictures.append(
        report.picture(
            report.strips(changes, ylabel="measure after / before rescaling", log=True),
            name="flatness_rescaling",
            alt="Change of relative flatness and of the plain trace under random rescalings",
            caption=f"{run.settings.rescalings} random rescalings of the layers, none of which "
            "changes the function: relative flatness stays where it was, the plain trace of the "
            "same layer's Hessian goes wherever one likes.",
        )
    )
    text = (
        "A flat minimum is said to generalise. But divide the weights of one layer of a ReLU "
        "network by ten and multiply those of the next by ten: the function is the same, and the "
        "Hessian is a hundred times larger here and smaller there. Relative flatness (Petzka et "
        "al., arXiv 1912.00058) weighs the Hessian's blocks with the weights themselves, "
        "kappa = sum over neurons s, s' of <w_s, w_s'> Tr(H_ss'), and does not move."
    )
    return report.Section("Relative flatness", text, numbers=numbers, pictures=pictures)


def _picture(name: str, found: flatness.LayerFlatness) -> report.Picture:
    return report.picture(
        report.interval_plot(
            {name: {layer: _with_error(e) for layer, e in found.per_layer.items()}},
            xlabel=f"relative flatness of the {name}'s layers (small is flat)",
            zero=0.0,
        ),
        name=f"flatness_layers_{name.lower()}",
        alt=f"Relative flatness of every layer of the {name} with its standard error",
        caption=f"{name}: relative flatness of each layer, two standard errors to either side.",
    )


def _all_layers(run: Run, subject: Subject) -> flatness.LayerFlatness:
    measure = jax.jit(
        lambda params, batch, key: flatness.relative_flatness_all_layers(
            subject.loss_fn,
            params,
            batch,
            key,
            layers=subject.layers,
            num_probes=run.settings.flatness_probes,
            mesh=run.mesh,
            estimator=curvature.xtrace,
        )
    )
    return measure(subject.params, subject.train, jax.random.fold_in(run.key, 2))


def _rescaled(run: Run, subject: Subject) -> flatness.Rescaled:
    """Both measures of the last layer, with the same probes before and after."""
    layer = subject.layers[-1]
    measure_key, rescale_key = jax.random.split(jax.random.fold_in(run.key, 3))

    @jax.jit
    def rescale(params: Any, batch: Any) -> flatness.Rescaled:
        def measure(params: Any) -> dict[str, jax.Array]:
            hessian = flatness.hessian_of_layer(subject.loss_fn, params, batch, layer=layer)
            probes = {"num_probes": run.settings.rescaling_probes}
            return {
                "relative flatness": flatness.neuronwise_trace(hessian, measure_key, **probes).mean,
                "plain trace": curvature.trace(hessian.operator, measure_key, **probes).mean,
                "loss": subject.loss_fn(params, batch),
            }

        return flatness.measure_under_rescaling(
            measure,
            params,
            rescale_key,
            layers=subject.layers,
            biases=subject.biases,
            num_rescalings=run.settings.rescalings,
        )

    return rescale(subject.params, subject.train)


def _numbers(subject: Subject, found: flatness.LayerFlatness) -> list[report.Number]:
    rows = [
        report.number(
            f"{subject.name}: {layer}",
            estimate.mean,
            "A random turn of the layer's m inputs by a relative size d raises the loss by "
            "d^2/(2m) times this, at a minimum and to second order.",
            stderr=estimate.stderr,
        )
        for layer, estimate in found.per_layer.items()
    ]
    total = report.number(
        f"{subject.name}: sum over layers",
        found.sum.mean,
        "One number for the network, with the layers' errors added in squares.",
        stderr=found.sum.stderr,
    )
    return [*rows, total]


def _changes(name: str, found: flatness.Rescaled) -> dict[str, np.ndarray]:
    return {
        f"{name}\n{measure}": np.abs(found.after[measure] / found.before[measure])
        for measure in ("relative flatness", "plain trace")
    }


def _rescaling_numbers(name: str, found: flatness.Rescaled) -> list[report.Number]:
    largest = {
        measure: float(jnp.max(jnp.abs(found.after[measure] / found.before[measure] - 1)))
        for measure in found.after
    }
    return [
        report.number(
            f"{name}: largest change of the loss",
            largest["loss"],
            "Relative change of the training loss under all rescalings: rounding, since the "
            "function is the same.",
        ),
        report.number(
            f"{name}: largest change of relative flatness",
            largest["relative flatness"],
            "Relative change of the last layer's relative flatness: rounding too.",
        ),
        report.number(
            f"{name}: largest change of the plain trace",
            largest["plain trace"],
            "Relative change of the trace of the same layer's Hessian: as large as one likes.",
        ),
    ]


def _with_error(estimate: Any) -> tuple[float, float, float]:
    mean, spread = float(estimate.mean), 2 * float(estimate.stderr)
    return mean, mean - spread, mean + spread
