"""What the penalties did: sections and pictures of `orthogonal_jacobian`."""

from typing import Any

import numpy as np

from experiments import _program
from experiments._jacobian_claims import Cell, claims_of, difference, difference_text
from experiments._jacobian_training import NONE
from poster_jax.core import report
from poster_jax.core.claims import format_number

FLOOR = 1e-10  # of singular values in pictures: those of a rank below full are rounding
WHEN = ("at the start", "half-way", "in the end")  # in this order by letters, as legends are


def findings(run: _program.Run, cells: list[Cell]) -> _program.Findings:
    """Claims and sections."""
    for cell in cells:
        for method, of in cell.found.items():
            run.log(
                setting=cell.title,
                method=method,
                strength=cell.strengths[method],
                marks=cell.marks,
                **{name: of[name] for name in ("test accuracy", "training accuracy", "loss")},
                rho=of["rho"],
            )
        for method, curves in cell.curves.items():
            run.log(setting=cell.title, method=method, strengths=run.settings.strengths, **curves)
    lead = (
        "A layer's Jacobian J contains its nonlinearity; J J' = I would keep the norm of every "
        "gradient that passes back through it. Deep networks were trained with that penalty, with "
        "others and with none: the same starts, the same batches. Of the poster the abstract "
        "alone is known, so that its networks, strengths and figures are not: these are this "
        "project's, and each penalty is compared with its own baseline."
    )
    sections = [
        _accuracies(run, cells),
        _gradients(run, cells),
        _spectra(cells),
        _autoencoders(cells),
    ]
    return _program.Findings("Orthogonal Jacobians", lead, claims_of(run, cells), sections)


def _accuracies(run: _program.Run, cells: list[Cell]) -> report.Section:
    numbers = [
        report.Number(
            f"{cell.title}, without penalty",
            format_number(np.mean(cell.accuracy(NONE))),
            "Mean test accuracy over the seeds.",
        )
        for cell in cells
    ]
    numbers += [
        report.Number(
            f"{cell.title}, {method}",
            f"{format_number(np.mean(cell.accuracy(method)))} at {cell.strengths[method]:g}",
            "Mean test accuracy at the chosen strength; minus that without: "
            f"{difference_text(difference(run, cell.accuracy(method), cell.accuracy(NONE)))}.",
        )
        for cell in cells
        for method in cell.curves
    ]
    strengths = run.settings.strengths
    panels = [
        report.LinePanel(
            cell.title,
            {NONE: (strengths, np.full(len(strengths), cell.accuracy(NONE).mean()))}
            | {
                method: (strengths, curves["test accuracy"].mean(axis=1))
                for method, curves in cell.curves.items()
            },
        )
        for cell in cells
    ]
    intervals = {
        cell.title: {
            method: _triple(difference(run, cell.accuracy(method), cell.accuracy(NONE)))
            for method in cell.curves
        }
        for cell in cells
    }
    few, seeds = run.settings.num_choosing_seeds, run.settings.num_seeds
    pictures = [
        report.picture(
            report.line_panels(panels, xlabel="strength λ", ylabel="test accuracy", log_x=True),
            name="accuracy_by_strength",
            alt="Test accuracy against the strength of each penalty, a panel for each activation; "
            "the accuracy without penalty is a level line.",
            caption=f"Means over the {few} networks of each strength by whose held-out accuracy "
            f"the strengths were chosen: all that were tried. Without penalty: the {seeds} others.",
            wide=True,
        ),
        report.picture(
            report.interval_plot(intervals, xlabel="test accuracy, with minus without"),
            name="accuracy_gained",
            alt="Differences of test accuracy with and without each penalty, with intervals; the "
            "numbers are those above.",
            caption=f"At the chosen strengths, over {seeds} other networks. Intervals: 95 %, "
            "bootstrap over paired seeds.",
        ),
    ]
    text = (
        "Strengths were chosen on training images that were held out, for each method and "
        f"activation by itself, with {few} networks each; {seeds} others, of other seeds, are "
        "compared on the test images. Nothing else was tuned. Seeds differ in where they start; "
        "all see the same batches."
    )
    return report.Section("Do networks learn better?", text, numbers, pictures)


def _gradients(run: _program.Run, cells: list[Cell]) -> report.Section:
    numbers, pictures = [], []
    for cell in cells:
        base = format_number(np.mean(cell.distance(NONE)))
        added = {
            method: difference(run, cell.distance(method), cell.distance(NONE))
            for method in cell.curves
        }
        rows = ", ".join(f"{method} {difference_text(found)}" for method, found in added.items())
        numbers.append(
            report.Number(f"{cell.title}, |log10 g_1/g_L|", base, "Without penalty, mean over "
                          f"training and seeds; what each penalty adds to it: {rows}.")
        )  # fmt: skip
    for number, group in enumerate(_by_case(cells)):
        marks = group[0].marks
        # The start, a tenth of training, and its end.
        some = [0, int(np.argmin(np.abs(np.asarray(marks) - marks[-1] / 10))), len(marks) - 1]
        panels = [
            report.LinePanel(
                f"{cell.title}, step {marks[at]:,}",
                {
                    method: (
                        np.arange(1, of["profile"].shape[2] + 1),
                        _middle(of["profile"][:, at]),
                    )
                    for method, of in cell.found.items()
                },
            )
            for cell in group
            for at in some
        ]
        steps = [
            report.LinePanel(
                cell.title,
                {method: (marks, *_middle_half(of["rho"])) for method, of in cell.found.items()},
                {"constant norm": 0.0},
            )
            for cell in group
        ]
        pictures += [
            report.picture(
                report.line_panels(panels, xlabel="layer", ylabel="|dLoss/dh|", log_y=True),
                name=f"gradient_by_layer{_end(number)}",
                alt="Norm of the gradient at each layer's outputs, one line a method: at the "
                "start, after a tenth and at the end of training; a row for each activation.",
                caption="Median over seeds, at the chosen strengths. Backpropagation runs from the "
                "right to the left: a line that falls towards the left is a vanishing gradient.",
                wide=True,
            ),
            report.picture(
                report.line_panels(steps, xlabel="step", ylabel="log10 g_1/g_L"),
                name=f"gradient_ratio{_end(number)}",
                alt="Ratio of the gradients at the first and last layer against the step, one line "
                "a method, a panel for each activation.",
                caption="Median and middle half of the seeds. 0 is a constant norm. Networks that "
                "have learned drift to a small ratio whatever the method, so that the claims take "
                "the mean over training.",
                wide=True,
            ),
        ]
    text = (
        "g_l is the norm of the loss's gradient by the outputs of layer l, over a batch. Where it "
        "is 0 in float32 it counts as the smallest normal number."
    )
    return report.Section("Do gradients keep their norm?", text, numbers, pictures)


def _spectra(cells: list[Cell]) -> report.Section:
    shares = np.linspace(0, 1, 61)
    panels = []
    for cell in cells:
        before = {"before training, all": cell.found[NONE]["spectra"][:, 0]}
        after = {f"after, {method}": of["spectra"][:, 1] for method, of in cell.found.items()}
        series = {
            name: (np.quantile(np.maximum(values, FLOOR), shares), shares)
            for name, values in (after | before).items()
            if np.isfinite(values).all()
        }
        panels.append(report.LinePanel(cell.title, series))
    picture = report.picture(
        report.line_panels(
            panels,
            xlabel="singular value",
            ylabel="share of values below",
            log_x=True,
            panel_size=(3.3, 3.0),
        ),
        name="singular_values",
        alt="Cumulative histograms of the singular values of the outputs' Jacobian by the inputs, "
        "before and after training, a panel for each activation.",
        caption="All singular values of the Jacobian of the outputs by the inputs, at some "
        f"examples and of all seeds: which share lies below. Values below {FLOOR:g} stand there. "
        "A network with dynamical isometry is a step at 1.",
        wide=True,
    )
    numbers = [
        report.number(
            f"{cell.title}, {method}, largest",
            np.median(cell.found[method]["spectra"][:, -1, :, 0]),
            "The largest singular value after training, median over examples and seeds.",
        )
        for cell in cells
        for method in cell.found
    ]
    text = "How far the whole network stretches small changes of its input, in each direction."
    return report.Section("From the input to the output", text, numbers, [picture])


def _autoencoders(cells: list[Cell]) -> report.Section:
    pictures = []
    for number, group in enumerate(_by_case(cells)):
        marks = group[0].marks
        some = [0, len(marks) // 2, len(marks) - 1]
        panels, labels = [], np.array([])
        for cell in group:
            # Seeds are averaged: a point is a layer of a method at a step.
            x, y = (
                np.stack([of[name][:, some].mean(axis=0) for of in cell.found.values()], axis=1)
                for name in ("isometry", "reconstruction")
            )
            labels = np.repeat(WHEN, x[0].size)
            title = f"{cell.title}: to the right ||J'J − I||²"
            panels.append(report.Panel(title, x.ravel(), np.log10(y.ravel()), log_x=True))
        pictures.append(
            report.picture(
                report.scatter_panels(
                    panels,
                    ylabel="log10 of the autoencoder's loss",
                    groups=labels,
                    columns=3,
                    panel_size=(3.2, 2.8),
                ),
                name=f"autoencoder_and_penalty{_end(number)}",
                alt="Each layer's loss as an autoencoder against ||J'J - I||² of the same layer, a "
                "panel for each activation, a colour for each step.",
                caption="A point is a layer of one method at one step, averaged over seeds; both "
                "are divided by the layer's units. The loss sees the Jacobian along the data only, "
                "and is as small as the data are.",
                wide=True,
            )
        )
    text = (
        "For ReLU the loss of a layer as an autoencoder with tied weights is ||(I - J'J)x - "
        "J'b||²: Hutchinson's estimate of ||J'J - I||² with the data, not random signs, as its "
        "probe. Claim C4 holds that, and what noise adds, against explicit Jacobians of trained "
        "layers in float64."
    )
    return report.Section("The autoencoder and the penalty", text, pictures=pictures)


def _end(number: int) -> str:
    """What the names of a case's pictures end in."""
    return f"_{number + 1}" if number else ""


def _by_case(cells: list[Cell]) -> list[list[Cell]]:
    found: dict[Any, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.case, []).append(cell)
    return list(found.values())


def _middle(values: Any) -> Any:
    return np.median(values, axis=0)


def _middle_half(values: Any) -> tuple[Any, Any, Any]:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
    return middle, low, high


def _triple(found: Any) -> tuple[float, float, float]:
    return found.estimate, found.low, found.high
