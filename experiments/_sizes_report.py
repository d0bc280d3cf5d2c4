"""What training at several sizes did: sections and pictures of `mix_and_match`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import style

from experiments import _program
from experiments._sizes_claims import area, claims_of, difference, interval_text, norms_by_size
from experiments._sizes_networks import resized, view_of
from experiments._sizes_training import BATCH, COPIES, FIXED, METHODS, ROUGH, Examples, Results
from poster_jax.core import report
from poster_jax.core.claims import format_number

POINTS = 40  # of a curve over training, at most: each is a mean over steps


def findings(run: _program.Run, found: list[tuple[Results, Examples]]) -> _program.Findings:
    """Claims and sections."""
    for results, _ in found:
        for method in METHODS:
            run.log(
                dataset=results.task.case.dataset,
                method=method,
                steps=results.task.num_steps(method),
                pixels=results.pixels(method)[-1],
                test_sizes=results.task.case.test_sizes,
                flops=results.flops,
                **results.accuracy[method],
            )
    lead = (
        "Convolutional networks with global pooling take images of any size. Some were trained at "
        "one size, others at several: B+ enlarges the batch where images are small, D+ repeats "
        "each image with other random views, so that a step costs about as much at every size. All "
        "processed as many pixels and started from the same weights. Before each test BatchNorm's "
        "statistics were calibrated with training images of the test size."
    )
    results = [each for each, _ in found]
    sections = [
        section
        for number, (each, examples) in enumerate(found)
        for section in (
            _sizes(run, each, _end(number)),
            _training(run, each, _end(number)),
            _images(each, examples, _end(number)),
        )
    ]
    return _program.Findings("Mixed image sizes", lead, claims_of(run, results), sections)


def _sizes(run: _program.Run, results: Results, end: str) -> report.Section:
    case = results.task.case
    sizes, shown = case.test_sizes, METHODS[:3]
    panels = [
        report.LinePanel(
            title, {method: (sizes, *_spread(results.accuracy[method][kind])) for method in shown}
        )
        for title, kind in (
            ("calibrated for the size", "calibrated"),
            ("statistics of training", "uncalibrated"),
        )
    ]
    costs = {
        method: (results.flops / 1e6, results.accuracy[method]["calibrated"].mean(axis=0))
        for method in shown
    }
    base = case.mixture.base_size
    pictures = [
        report.picture(
            report.line_panels(
                panels,
                xlabel="side of the test images, pixels",
                ylabel="test accuracy",
                log_x=True,
                panel_size=(3.6, 3.0),
            ),
            name=f"accuracy_by_size{end}",
            alt="Test accuracy against the size of the test images for networks trained at one "
            "size and at several; two panels, with and without calibration of BatchNorm.",
            caption=f"Means and smallest to largest of {run.settings.num_seeds} seeds. The fixed "
            f"networks were trained at {base} pixels, the others at "
            f"{', '.join(str(size) for size in sorted(case.mixture.sizes))}.",
            wide=True,
        ),
        report.picture(
            report.curves(
                costs,
                xlabel="floating point operations of one image, millions",
                ylabel="test accuracy",
                guides={f"fixed at {base}": float(results.at_base(FIXED).mean())},
            ),
            name=f"accuracy_by_flops{end}",
            alt="Test accuracy against the floating point operations that one test image costs.",
            caption="Calibrated networks; the points are the test sizes. Means over seeds.",
        ),
    ]
    numbers = [
        report.Number(
            f"{method}, at {base} pixels",
            format_number(results.at_base(method).mean()),
            "Mean test accuracy over seeds; over the logarithm of the test size "
            f"{format_number(area(results, results.accuracy[method]['calibrated']).mean())}.",
        )
        for method in METHODS
    ]
    text = (
        f"{case.dataset}: networks were tested on all {len(sizes)} sizes. Images are resized "
        "bilinearly from what is stored; at sizes that are no multiple of it that alone loses "
        "something."
    )
    return report.Section(f"Accuracy by size, {case.dataset}", text, numbers, pictures)


def _training(run: _program.Run, results: Results, end: str) -> report.Section:
    losses = {
        method: _binned(results.pixels(method) / 1e6, results.seen[method]["loss"].mean(axis=0))
        for method in METHODS
    }
    looks = {
        method: (
            results.pixels_at_looks(method) / 1e6,
            results.accuracy[method]["by look"].mean(axis=0),
        )
        for method in METHODS
    }
    norms = [
        _norm_panel(results, BATCH, "raw", "B+, before smoothing"),
        _norm_panel(results, BATCH, "smoothed", "B+, after smoothing"),
        _norm_panel(results, COPIES, "raw", "D+, before smoothing"),
    ]
    pictures = [
        report.picture(
            report.curves(
                losses,
                xlabel="pixels processed, millions",
                ylabel="training loss",
                log_y=True,
            ),
            name=f"loss_by_pixels{end}",
            alt="Training loss against the pixels processed, for every method.",
            caption="Loss of the batches of all sizes, means over seeds and some steps.",
        ),
        report.picture(
            report.curves(looks, xlabel="pixels processed, millions", ylabel="test accuracy"),
            name=f"accuracy_by_pixels{end}",
            alt="Test accuracy at the base size against the pixels processed in training.",
            caption=f"At {results.task.case.mixture.base_size} pixels, calibrated for them at "
            "every look. Means over seeds.",
        ),
        report.picture(
            report.line_panels(norms, xlabel="step", ylabel="norm of the gradient", log_y=True),
            name=f"gradient_norms{end}",
            alt="Norm of the gradient over training, one line for each image size, before and "
            "after smoothing.",
            caption="Means over seeds and some steps, by the size of the step's images.",
            wide=True,
        ),
    ]
    smooth = norms_by_size(results, BATCH)
    ratio = smooth.max(axis=1) / smooth.min(axis=1)
    gain = difference(
        run,
        area(results, results.accuracy[BATCH]["calibrated"]),
        area(results, results.accuracy[ROUGH]["calibrated"]),
    )
    numbers = [
        report.Number(
            "gradient norms of B+, largest over smallest size",
            f"{np.mean(ratio):.2f}",
            "Ratio of the mean norms at the size where they are largest and smallest, before "
            "smoothing; mean over seeds.",
        ),
        report.Number(
            "what smoothing adds",
            interval_text(gain),
            "Accuracy over the logarithm of the test size, B+ with smoothing minus without.",
        ),
    ]
    text = (
        "Methods are compared on as many pixels: the numbers of steps were chosen so. Smoothing "
        "scales every gradient to a running average of the norms of all."
    )
    return report.Section(f"Training, {results.task.case.dataset}", text, numbers, pictures)


def _images(results: Results, examples: Examples, end: str) -> report.Section:
    case = results.task.case
    image, sides = examples.train[0][0], sorted(case.mixture.sizes)

    @jax.jit
    def draw(image: Any, keys: Any) -> dict[str, list[Any]]:
        view, rows = view_of(case), {"resized": [resized(case, image[None], s)[0] for s in sides]}
        for number in range(3):
            rows[f"view {number + 1}"] = [view(keys[number], image, side) for side in sides]
        return rows

    rows = draw(image, jax.random.split(jax.random.key(0), 3))
    low, high = float(jnp.min(rows["resized"][-1])), float(jnp.max(rows["resized"][-1]))
    with style.context(report.STYLE):
        figure = report.new_figure(1.4 * len(sides) + 0.6, 1.4 * len(rows) + 0.3)
        grid = figure.subplots(len(rows), len(sides), squeeze=False)
        for axes_row, (name, images) in zip(grid, sorted(rows.items()), strict=True):
            for axes, side, shown in zip(axes_row, sides, images, strict=True):
                pixels = np.clip((np.asarray(shown) - low) / (high - low), 0, 1)
                grey = pixels.shape[-1] == 1
                axes.imshow(pixels[..., 0] if grey else pixels, cmap="gray" if grey else None)
                axes.set_xticks([])
                axes.set_yticks([])
                axes.grid(visible=False)
                if name == "resized":
                    axes.set_title(f"{side} x {side}")
            axes_row[0].set_ylabel(name)
    drawn = report.picture(
        figure,
        name=f"one_image{end}",
        alt="One training image at every training size, resized and as random views.",
        caption="The first training image as it is resized, and three random views of it.",
    )
    text = "Images are stored once and resized on the device; D+ repeats them with other views."
    return report.Section(f"What networks see, {case.dataset}", text, pictures=[drawn])


def _norm_panel(results: Results, method: str, kind: str, title: str) -> report.LinePanel:
    seen = results.seen[method]
    values, order = seen[kind].mean(axis=0), seen["size"][0]
    regime = results.task.regime(method)
    lines = {
        f"{config.size} pixels": _binned(np.flatnonzero(order == index), values[order == index])
        for index, config in sorted(enumerate(regime), key=lambda pair: pair[1].size)
        if (order == index).any()  # some may be missing from a few steps
    }
    return report.LinePanel(title, lines)


def _binned(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbours, at most POINTS of them."""
    parts = min(POINTS, len(x))
    mean = lambda a: np.array([part.mean() for part in np.array_split(a, parts)])  # noqa: E731
    return mean(x), mean(y)


def _spread(values: Any) -> tuple[Any, Any, Any]:
    return values.mean(axis=0), values.min(axis=0), values.max(axis=0)


def _end(number: int) -> str:
    """What the names of a case's pictures end in."""
    return f"_{number + 1}" if number else ""
