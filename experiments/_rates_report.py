"""Sections and pictures of `dynamic_learning_rate`."""

from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure

from experiments import _program
from experiments import _rates as rates
from experiments._rates_claims import START, Results, claims_of
from poster_jax import learning_rate as lr
from poster_jax.core import report
from poster_jax.core.claims import bootstrap_interval, format_number

# With momentum the plain limit of 2 moves: heavy ball on a quadratic is stable below it.
LIMIT = 2 * (1 + rates.MOMENTUM)
MARKS = {2: ("s", "second chance"), 3: ("v", "halving"), 4: ("x", "restore")}


def findings(run: _program.Run, results: Results) -> _program.Findings:
    """Claims and sections."""
    for kind, arms in results.found.items():
        for arm in arms:
            for i, rate in enumerate(results.arms[kind][arm]):
                row = {name: v[i] for name, v in arms[arm].items()}
                run.log(training=kind, arm=arm, initial_rate=rate, **row)
    run.log(epoch_seconds=results.seconds)
    chosen = run.settings
    lead = (
        f"{chosen.network} on {chosen.dataset}, batch {chosen.batch_size}, SGD with momentum "
        f"{rates.MOMENTUM}: AALR and {len(chosen.baselines)} baselines from "
        f"{len(chosen.initial_rates)} initial rates with {chosen.num_seeds} seeds each, "
        f"{chosen.num_epochs} epochs for every run. The algorithm is a faithful reading of the "
        "paper's description, not a transcript of its program."
    )
    sections = [
        _accuracies(results),
        _traces(results),
        *([_attacked(results)] if len(results.found) > 1 else []),
        _edge(results),
    ]
    return _program.Findings(
        "A learning rate that tunes itself", lead, claims_of(results, seed=run.seed), sections
    )


def _mean_interval(values: Any) -> tuple[float, float, float]:
    found = bootstrap_interval(values)
    return found.estimate, found.low, found.high


def _best_rows(results: Results, kind: str, measure: str) -> dict[str, Any]:
    """Every arm at the rate that is best on validation; AALR at its one initial rate."""
    rows = {}
    for arm, grid in results.arms[kind].items():
        index = int(results.score(kind, arm, f"valid {measure}").mean(1).argmax())
        if arm in rates.READINGS:
            index = int(np.argmin(np.abs(np.log(np.array(grid) / START))))
        values = results.score(kind, arm, f"test {measure}")[index]
        rows[f"{arm} ({grid[index]:g})"] = _mean_interval(values)
    return rows


def _accuracies(results: Results) -> report.Section:
    grid = results.arms["plain"][rates.AALR]
    score = lambda arm: results.score("plain", arm, "test accuracy").mean(1)  # noqa: E731
    shown = (rates.AALR, rates.ALWAYS, "constant", "step decay", "one-cycle", "schedule-free")
    shown = [arm for arm in shown if arm in results.arms["plain"]]
    lost = results.num_lost("plain")
    numbers = [
        report.number("networks that diverged", lost, "Networks whose outputs are no longer "
                      "finite; they count with the accuracy of a guess.")
    ]  # fmt: skip
    for arm in (arm for arm in (*rates.READINGS, "constant") if arm in results.arms["plain"]):
        values = score(arm)
        numbers.append(
            report.number(f"{arm}, range", values.max() - values.min(), "Between the best and "
                          "the worst initial rate, means over seeds.", unit="points")
        )  # fmt: skip
    text = (
        "Every arm starts from the same rates, networks and orders of examples. Hand tuning is the "
        "choice of arm and rate on the validation examples; AALR starts from "
        f"{START:g} without a choice."
    )
    pictures = [
        report.picture(
            report.curves(
                {arm: (grid, score(arm)) for arm in shown},
                xlabel="initial rate (of schedules: largest rate)",
                ylabel="test accuracy (%)",
                log_x=True,
            ),
            name="accuracy_by_initial_rate",
            alt="Test accuracy against the initial rate: "
            + "; ".join(f"{a}: {', '.join(map(format_number, score(a)))}" for a in shown),
            caption="Mean test accuracy over seeds. A method that needs no tuning is a flat line.",
        ),
        report.picture(
            report.interval_plot(
                {"test": _best_rows(results, "plain", "accuracy")},
                xlabel="test accuracy (%)",
                zero=None,
            ),
            name="accuracy_by_arm",
            alt="Mean test accuracy of each arm with its interval.",
            caption="Each arm at the initial rate (in brackets) that is best on validation, AALR "
            "at its default; 95 % intervals over seeds.",
        ),
    ]
    return report.Section("Accuracy", text, numbers, pictures)


def _events(axes: Any, record: Any, values: Any, legend: bool) -> None:
    epochs = np.arange(1, len(values) + 1)
    axes.plot(epochs, values, marker="")
    for event, (marker, name) in MARKS.items():
        here = record["event"] == event
        label = name if legend else None
        axes.plot(epochs[here], values[here], linestyle="", marker=marker, ms=4, label=label)


def _traces(results: Results) -> report.Section:
    found, grid = results.found["plain"][rates.AALR], results.arms["plain"][rates.AALR]
    starts = [int(np.argmin(np.abs(np.log(np.array(grid) / START)))), len(grid) - 1]
    with style.context(report.STYLE):
        figure = report.new_figure(8.0, 4.4)
        axes = figure.subplots(2, 2, sharex=True)
        for column, index in enumerate(starts):
            record = {name: found[name][index, 0] for name in lr.AalrHistory._fields}
            for row, name in enumerate(("rate", "loss")):
                _events(axes[row, column], record, record[name], legend=not row and not column)
            axes[0, column].set_yscale("log", base=2)
            axes[1, column].set(yscale="log", xlabel="epoch")
            axes[0, column].set_title(f"initial rate {grid[index]:g}")
        axes[0, 0].set_ylabel("learning rate")
        axes[1, 0].set_ylabel("training loss (nats)")
        figure.legend(loc="outside upper center", ncols=3)
    numbers = []
    for index, rate in enumerate(grid):
        epochs = (found["phase"][index] == 1).sum(-1)
        numbers.append(
            report.number(f"first phase from {rate:g}", np.median(epochs), f"Median epochs of the "
                          f"first phase ({epochs.min()} to {epochs.max()} over seeds).",
                          unit="epochs")
        )  # fmt: skip
    largest = np.max(found["rate"])
    numbers.append(
        report.number("largest rate", largest, "That any run reached: where gradients vanish every "
                      "epoch is a success, and the rate doubles without a limit.")
    )  # fmt: skip
    text = (
        "The first phase halves the rate and starts anew until the loss has not risen for ten "
        "epochs. From then on every new lowest loss doubles the rate; two failures in a row halve "
        "it and make the next block of epochs twice as long."
    )
    shown = report.picture(
        figure,
        name="rate_and_loss",
        alt="Learning rate and training loss against the epoch for two initial rates, with second "
        "chances, halvings and restores marked.",
        caption="One seed. Marks: what the controller did after that epoch.",
        wide=True,
    )
    return report.Section("What the controller does", text, numbers, [shown])


def _attacked(results: Results) -> report.Section:
    kinds = [kind for kind in results.found if kind != "plain"]
    rows = {f"{kind} training": _best_rows(results, kind, "robust") for kind in kinds}
    numbers = [
        report.number(f"{kind}: clean accuracy of AALR",
                      results.score(kind, rates.AALR, "test accuracy")[0].mean(),
                      "On inputs that are not attacked.", unit="%")
        for kind in kinds
    ]  # fmt: skip
    pictures = [
        report.picture(
            report.interval_plot(
                {kind: values}, xlabel="test accuracy under attack (%)", zero=None
            ),
            name=f"robust_accuracy_{name.lower()}",
            alt=f"Robust test accuracy of each arm under {kind}.",
            caption=f"{kind}, attacked by PGD in the test: each arm at the rate best on "
            "validation, AALR at its default; 95 % intervals over seeds.",
        )
        for name, (kind, values) in zip(kinds, rows.items(), strict=True)
    ]
    text = "The controller sees the loss on attacked inputs; nothing else changes."
    return report.Section("Adversarial training", text, numbers, pictures)


def _edge(results: Results) -> report.Section:
    found = results.edge
    products = found["rate"] * found["curvature"]
    late = products[found["phase"] == 2]
    late = late[np.isfinite(late)]
    bowls = results.quadratics
    settled = (bowls["rate"] * 1.0)[:, -20:]
    epochs = np.arange(1, products.shape[1] + 1)
    names = [f"initial rate {rate:g}" for rate in found["rate"][:, 0]]
    positive = np.where(products > 0, products, np.nan)
    with style.context(report.STYLE):
        figure: Figure = report.curves(
            {name: (epochs, row) for name, row in zip(names, positive, strict=True)},
            xlabel="epoch",
            ylabel="rate × largest Hessian eigenvalue",
            log_y=True,
            guides={"2, plain gradient descent": 2.0, f"{LIMIT:g}, with momentum": LIMIT},
        )
    middle = np.median(late) if late.size else float("nan")
    numbers = [
        report.number("phase 2, median", middle, "Rate times largest eigenvalue in the second "
                      "phase of the networks."),
        report.number("quadratics, median", np.median(settled), "The same over the last 20 epochs "
                      "of ten-dimensional quadratics of top curvature 1, by gradient descent from "
                      "every initial rate."),
    ]  # fmt: skip
    shown = report.picture(
        figure,
        name="rate_times_curvature",
        alt="Rate times largest Hessian eigenvalue after each epoch, with the limits of stability.",
        caption="One seed, two initial rates. On a quadratic, gradient descent diverges above 2, "
        f"with momentum {rates.MOMENTUM} above {LIMIT:g}.",
    )
    text = (
        "On a quadratic the controller can only fail above the limit of stability and only rises "
        "below it, so the rate walks around the limit. Networks are trained with batches and their "
        "curvature moves; the picture shows how far the comparison carries."
    )
    return report.Section("Around the edge of stability", text, numbers, [shown])
