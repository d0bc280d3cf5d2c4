"""What wide networks and their kernels say: sections and pictures of `neural_tangents`."""

from typing import Any

import numpy as np

from experiments import _tangents_statistics as tangents
from experiments import _wide_networks as wide
from experiments._program import Findings, Run
from experiments._tangents_claims import claims_of
from experiments._tangents_statistics import AT_TIMES, Results
from poster_jax.core import report
from poster_jax.core.claims import format_number

OF = {"nngp": "NNGP", "ntk": "NTK"}


def findings(run: Run, results: Results) -> Findings:
    """Claims and sections."""
    chosen = run.settings
    for width, share in tangents.shares(results).items():
        run.log(width=width, mean_in_interval=share[0], variance_in_interval=share[1])
    for (kind, width), draws in results.kernels.items():
        run.log(kernel=kind, width=width, **{what: draws[what].mean() for what in draws})
    for (kind, width), distances in results.departures.items():
        run.log(scaling=kind, width=width, distance=distances)
    for (name, kind), curve in results.curves.items():
        run.log(network=name, kernel=kind, sizes=chosen.sizes, **curve)
    lead = (
        f"Ensembles of {chosen.num_networks} finite networks a function were trained beside the "
        f"closed form of infinitely wide ones; kernels of {', '.join(chosen.networks)} learned "
        f"{chosen.dataset} from {chosen.sizes[0]} to {chosen.sizes[-1]} images."
    )
    sections = [
        _ensembles(run, results),
        _images(run, results),
        _five_lines(results),
        _finite(run, results),
    ]
    return Findings("Neural tangents", lead, claims_of(run, results), sections)


def _ensembles(run: Run, results: Results) -> report.Section:
    data, theory, shares = wide.line(), results.theory, tangents.shares(results)
    chosen, output, panels = run.settings, wide.SINE, []
    x, points = data.test[:, 0], (data.x[:, 0], data.y[:, output])
    for width in (min(results.ensembles), max(results.ensembles)):
        outputs = results.ensembles[width]["outputs"][:, -1, :, output]
        predictions = {
            "infinite width": (theory.mean[-1, :, output], np.sqrt(theory.variance[-1])),
            f"{len(outputs)} networks": (outputs.mean(0), outputs.std(0, ddof=1)),
        }
        panels.append(report.BandPanel(f"width {width}", x, predictions, points))
    bands = report.picture(
        report.bands(panels, xlabel="input", ylabel="output"),
        name="ensemble_bands",
        alt="Mean and two deviations of the trained ensembles over those of theory, for a narrow "
        "and a wide network.",
        caption=f"After {chosen.num_steps} steps: mean and two deviations to either side over "
        "initialisations. Filled: the closed form. Dashed: trained networks.",
        wide=True,
    )
    step = chosen.num_steps // wide.SNAPSHOTS
    steps = step * np.arange(1, wide.SNAPSHOTS + 1)
    losses = {"infinite width": (steps, theory.train_loss)}
    for width, found in results.ensembles.items():
        losses[f"width {width}"] = (steps, found["train_loss"].mean((0, 2)))
    loss = report.picture(
        report.curves(losses, xlabel="step", ylabel="mean squared error", log_x=True, log_y=True),
        name="ensemble_loss",
        alt="Mean training error over the steps, of theory and of each width.",
        caption="Error on the training points, averaged over the ensemble.",
    )
    within = {}
    for row, what in enumerate(("mean", "variance")):
        for width in (min(shares), max(shares)):
            within[f"{what}, width {width}"] = (steps[AT_TIMES], shares[width][row])
    share = report.picture(
        report.curves(
            within,
            xlabel="step",
            ylabel="share of intervals with the theory",
            log_x=True,
            guides={"rule of C1": 0.9},
        ),
        name="ensemble_share",
        alt="Share of 95 % intervals that contain the theory, at five times, narrow and wide.",
        caption="At five times, for which share of the points and functions the 95 % interval of "
        "the ensemble contains the theory; about 0.95 is all that can be had.",
    )
    numbers = [
        report.number(
            f"width {width}: intervals with the theory",
            100 * values.mean(),
            "Share of the intervals of means and variances, over all points, functions and times.",
            unit="%",
        )
        for width, values in shares.items()
    ]
    text = (
        "Regressions of eight functions on the line, each by networks of its own with two hidden "
        "layers of erf units. In the limit of infinite width the ensemble over initialisations is "
        "Gaussian at "
        "every time of gradient descent, with a mean and a covariance in closed form. A step is "
        f"{wide.SMOOTHNESS} of the fastest decay time, so that descent is close to the gradient "
        "flow of the theory."
    )
    return report.Section("Trained ensembles and theory", text, numbers, [bands, loss, share])


def _images(run: Run, results: Results) -> report.Section:
    sizes, chosen = np.array(run.settings.sizes), run.settings
    accuracy = {
        f"{name}, {OF[kind]}": (sizes, 100 * found["accuracy"].mean(0))
        for (name, kind), found in results.curves.items()
    }
    error = {
        f"{name}, {OF[kind]}": (sizes, found["error"].mean(0))
        for (name, kind), found in results.curves.items()
    }
    pictures = [
        report.picture(
            report.curves(
                series, xlabel="training images", ylabel=label, log_x=True, log_y=what == "error"
            ),
            name=f"images_{what}",
            alt=f"{label} over the size of the training set, for every network and both kernels.",
            caption=f"Mean over {chosen.num_draws_of_x} draws of the training set; "
            f"{chosen.test_size} images to test on.",
        )
        for what, label, series in (
            ("accuracy", "test accuracy (%)", accuracy),
            ("error", "squared error, summed over classes", error),
        )
    ]
    ahead = {
        name.replace("nngp", "NNGP").replace("ntk", "NTK"): tuple(
            100 * v for v in found.interval[:3]
        )
        for name, found in tangents.order(run, results).items()
    }
    pictures.append(
        report.picture(
            report.interval_plot(
                {f"{sizes[-1]} images": ahead}, xlabel="ahead in accuracy (percentage points)"
            ),
            name="images_order",
            alt="By how much one network's kernel is ahead of another's, with 95 % intervals.",
            caption="The order of the networks at the largest size: right of the line the later "
            "one in the poster's order is ahead. Intervals: 95 %, bootstrap over draws.",
        )
    )
    numbers = [
        report.number(
            f"{name}, {OF[kind]}: accuracy at {sizes[-1]}",
            100 * found["accuracy"][:, -1].mean(),
            "Share of the test images named rightly, mean over draws with its standard error.",
            stderr=100 * found["accuracy"][:, -1].std(ddof=1) / np.sqrt(len(found["accuracy"])),
            unit="%",
        )
        for (name, kind), found in results.curves.items()
    ]
    text = (
        "Kernel regression on labels as centred vectors: the limit of infinitely wide networks "
        "trained for ever, all layers (NTK) or the last alone (NNGP). Each image is brought to "
        f"mean square 1; {chosen.diag_reg:g} of its mean is added to the kernel's diagonal, a "
        "number chosen before any data were seen. Draws of one size share images, as the pool has "
        f"{chosen.pool_size}."
    )
    return report.Section("What such kernels learn", text, numbers, pictures)


def _five_lines(results: Results) -> report.Section:
    found = results.five_lines
    panel = report.BandPanel(
        "",
        found["x"],
        {"mean of the ensemble": (found["mean"], found["deviation"])},
        found["train"],
    )
    picture = report.picture(
        report.bands([panel], xlabel="input", ylabel="output", panel_size=(5.2, 3.2)),
        name="five_lines",
        alt="Mean and band of the prediction from six points of a sine.",
        caption="What the five lines predict from six points, two deviations to either side.",
    )
    numbers = [
        report.number(
            "difference from numpy",
            found["difference"],
            "The largest distance of the predicted mean from the same closed form written out in "
            "numpy in float64.",
        )
    ]
    text = "The README's example, of which the experiment runs the very lines."
    return report.Section("Five lines", text, numbers, [picture])


def _finite(run: Run, results: Results) -> report.Section:
    errors: dict[str, Any] = {}
    for kind in dict.fromkeys(kind for kind, _ in results.kernels):
        widths = [width for of, width in results.kernels if of == kind]
        draws = [results.kernels[kind, width] for width in widths]
        errors[f"{kind}: scatter"] = (widths, [np.sqrt(d["distance"].mean()) for d in draws])
        errors[f"{kind}: mean"] = (widths, [abs(d["bias"].mean()) for d in draws])
    apart: dict[str, Any] = {}
    words = {"plain": "NTK scaling", "rich": "scaling that moves features"}
    for kind, label in words.items():
        widths = [width for of, width in results.departures if of == kind]
        means = [np.sqrt(np.mean(results.departures[kind, w] ** 2)) for w in widths]
        apart[label] = (widths, means)
    pictures = [
        report.picture(
            report.curves(series, xlabel="width", ylabel=label, log_x=True, log_y=True),
            name=name,
            alt=alt,
            caption=caption,
        )
        for name, series, label, alt, caption in (
            (
                "kernel_errors",
                errors,
                "relative error of the NTK",
                "Relative errors of single kernels and of their mean over the width, for three "
                "kinds of networks.",
                "How far random networks' kernels are from the limit: one kernel (scatter) and the "
                f"mean of {run.settings.num_draws} (mean). With one layer the mean is exact, and "
                "what is seen is the error of sampling.",
            ),
            (
                "linearised",
                apart,
                "distance of outputs",
                "Distance between true and linearised training over the width, in two scalings.",
                f"After {run.settings.num_steps} steps: root mean square distance of the outputs "
                "of a network and of its linearisation, trained alike.",
            ),
        )
    ]
    slopes = tangents.kernel_slopes(run, results) | {
        f"true and linearised, {words[kind]}": found
        for kind, found in tangents.linear_slopes(run, results).items()
    }
    numbers = [
        report.Number(
            f"exponent: {name}",
            f"{format_number(s.estimate)} ({format_number(s.low)} to {format_number(s.high)})",
            "Fitted power of the width, with its 95 % bootstrap interval.",
        )
        for name, s in slopes.items()
        if not name.startswith("one layer, bias")  # zero, and no power of anything
    ]
    text = (
        "A layer of n units averages n terms, so that the kernel of one network scatters as 1/√n. "
        "The next layer's kernel is a curved function of that of the layer before; the mean of a "
        "curved function of something that scatters as 1/√n is off by 1/n. With one hidden layer "
        "nothing is curved, and the mean is exact."
    )
    return report.Section("How wide is wide?", text, numbers, pictures)
