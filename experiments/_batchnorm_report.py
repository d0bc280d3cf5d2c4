"""What training a part made of a ResNet: sections and pictures of `batchnorm_only`."""

from typing import Any

import numpy as np

from experiments import _batchnorm_training as batchnorm
from experiments import _program
from experiments._batchnorm_claims import Results, claims_of, deep, wide
from experiments._batchnorm_population import THRESHOLDS
from poster_jax.core import report
from poster_jax.core.claims import bootstrap_interval, format_number

TEST = "test accuracy"


def findings(run: _program.Run, results: Results) -> _program.Findings:
    """Claims and sections."""
    for name, of in results.found.items():
        run.log(condition=name, **of)
    for name, of in results.by_size.items():
        run.log(network=name, **of)
    for name, of in results.features.items():
        run.log(features=name, sparsity=of["sparsity"], pruned=of["pruned"], active=of["active"])
    chosen, base = run.settings, results.base
    counts = results.counts[base]
    lead = (
        f"A ResNet-{batchnorm.layers(chosen, base.num_blocks)} of width {base.width} on "
        f"{chosen.dataset} was trained in parts, {chosen.num_seeds} networks a condition, "
        f"{chosen.num_epochs} epochs each; of its {counts['total']:,} parameters "
        f"{counts['batchnorm']:,} are BatchNorm's."
    )
    sections = [
        _conditions(run, results),
        _sizes(run, results),
        _random(run, results),
        _features(run, results),
    ]
    claims = claims_of(results, chosen, seed=run.seed)
    return _program.Findings("Training BatchNorm and only BatchNorm", lead, claims, sections)


def _conditions(run: _program.Run, results: Results) -> report.Section:
    rows, spread = {}, {}
    for name, of in results.found.items():
        interval = bootstrap_interval(of["accuracy"], seed=run.seed)
        rows[name] = (interval.estimate, interval.low, interval.high)
        spread[name] = np.std(of["accuracy"], ddof=1) if run.settings.num_seeds > 1 else np.nan
    counts = results.counts[results.base]
    numbers = [
        report.number("spread, other weights", spread[batchnorm.BATCHNORM], "Standard deviation of "
                      "the accuracy of BatchNorm-only networks that differ in their frozen weights "
                      "and in the order of the examples."),
        report.number("spread, the same weights", spread[batchnorm.SAME], "The same where all have "
                      "the frozen weights of the first and differ in the order alone."),
        report.number("diverged", sum(of["diverged"].sum() for of in results.found.values()),
                      f"Networks whose loss was no longer finite, of "
                      f"{len(results.found) * run.settings.num_seeds}."),
        *(
            report.Number(f"{group} parameters", f"{count:,}", words)
            for group, count, words in (
                ("BatchNorm", counts["batchnorm"], "Scales and shifts, two a channel."),
                ("output", counts["output"], "Of the dense layer."),
                ("shortcut", counts["shortcut"], "Of the 1x1 convolutions of shortcuts."),
                ("other", counts["other"], "Of all other convolutions."),
            )
        ),
    ]  # fmt: skip
    picture = report.picture(
        report.interval_plot({"mean and interval": rows}, xlabel=TEST, zero=None),
        name="conditions",
        alt="Test accuracy of each condition with its interval: "
        + "; ".join(f"{name} {format_number(row[0])}" for name, row in rows.items()),
        caption="Mean accuracy of the networks of each condition, 95 % bootstrap over seeds. All "
        "else stays as it was drawn. Without normalisation gradients are clipped.",
    )
    text = (
        "What trains is named; everything else keeps its random values. Learning rate, weight "
        "decay and schedule are the same for all, those of full training.\n\n"
        "Random weights are drawn once, before training; BatchNorm then normalises with the scales "
        "and shifts that it was given."
    )
    return report.Section("What trains", text, numbers, [picture])


def _sizes(run: _program.Run, results: Results) -> report.Section:
    chosen = run.settings
    lines = {}
    for name, networks in (
        ("BatchNorm only, deeper", deep(chosen, "batch")),
        ("BatchNorm only, wider", wide(chosen)),
        ("affine only, deeper", deep(chosen, "affine")),
    ):
        counts, accuracy = results.along(networks)
        lines[name] = (counts, accuracy.mean(1))
    depths = ", ".join(str(batchnorm.layers(chosen, n)) for n in chosen.depths)
    widths = ", ".join(map(str, chosen.widths))
    figure = report.curves(
        lines,
        xlabel="BatchNorm parameters",
        ylabel=TEST,
        log_x=True,
        guides={"everything, base": float(results.accuracy(batchnorm.ALL).mean())},
    )
    picture = report.picture(
        figure,
        name="depth_and_width",
        alt="Accuracy against the number of BatchNorm parameters: "
        + "; ".join(f"{k} {', '.join(map(format_number, y))}" for k, (_, y) in lines.items()),
        caption=f"Means over {chosen.num_seeds} seeds. Deeper: layers {depths} at width "
        f"{chosen.width}; wider: first stages of {widths} channels at "
        f"{batchnorm.layers(chosen, chosen.width_blocks)} layers. The dashed line is the base "
        "network.",
    )
    text = (
        "The number of BatchNorm parameters grows with depth and with width alike. Affine networks "
        "have the same parameters and no statistics; they begin with γ = 1."
    )
    return report.Section("Deeper or wider", text, pictures=[picture])


def _random(run: _program.Run, results: Results) -> report.Section:
    ks = sorted(run.settings.per_channel)
    level = float(results.accuracy(batchnorm.BATCHNORM).mean())
    accuracy = [results.accuracy(batchnorm.of_k(k)).mean() for k in ks]
    enough = next((k for k, a in zip(ks, accuracy, strict=True) if a >= level), None)
    figure = report.curves(
        {"random weights": (ks, accuracy)},
        xlabel="trained weights of each channel",
        ylabel=TEST,
        log_x=True,
        guides={"BatchNorm only (2)": level},
    )
    picture = report.picture(
        figure,
        name="random_weights",
        alt=f"Accuracy rises with the number of random weights of each channel: "
        f"{', '.join(map(format_number, accuracy))} for {', '.join(map(str, ks))}.",
        caption="The same number of weights of each channel, drawn at random, of all convolutions. "
        "A channel that has fewer trains all of its weights.",
    )
    found = (
        f"The smallest number tried that is as accurate is {enough} a channel."
        if enough
        else f"None of the numbers tried, up to {ks[-1]} a channel, is as accurate."
    )
    text = f"How many random weights do what BatchNorm's two numbers a channel do? {found}"
    return report.Section("How many random weights it takes", text, pictures=[picture])


def _features(run: _program.Run, results: Results) -> report.Section:
    only, full = (results.features[name] for name in (batchnorm.BATCHNORM, batchnorm.ALL))
    sparsity = bootstrap_interval(only["sparsity"][:, 0], seed=run.seed)
    undecided = (
        ""
        if run.settings.full_length
        else " The claim of the paper, about a third, is of 160 epochs on CIFAR-10, with as much "
        "weight decay; networks trained for less do not decide it."
    )
    level = batchnorm.PAPERS_THRESHOLD
    numbers = [
        report.Number(f"|γ| below {level}", f"{format_number(sparsity.estimate)} "
                      f"[{format_number(sparsity.low)}, {format_number(sparsity.high)}]",
                      "Share of the scales that is nearly zero after BatchNorm alone was trained; "
                      f"0.01 is expected before.{undecided}"),
        report.number("the same, everything trained", full["sparsity"][:, 0].mean(), "For "
                      "contrast."),
        report.number("active before", only["active before"].mean(), "Share of the units "
                      "behind rectifiers that is positive on test examples before training."),
        report.number("active after", only["active"].mean(), "The same after BatchNorm alone was "
                      "trained, with the statistics of the test examples as before."),
        report.number("active after, everything trained", full["active"].mean(), "For contrast."),
        report.number("dead", only["dead"].mean(), "Share of the features that is zero on every "
                      "test example and position."),
    ]  # fmt: skip
    pictures = [_histogram(only, full), _layers(only, full, results.places), _pruning(only)]
    text = (
        "A scale of zero switches a random feature off; the shift says where the rectifier cuts, "
        "and so how often a feature is on.\n\nFeatures are switched off by setting scale and shift "
        "to zero; the comparison switches off as many in each layer, drawn at random."
    )
    return report.Section("What BatchNorm does to random features", text, numbers, pictures)


def _histogram(only: Any, full: Any) -> report.Picture:
    panels = []
    for title, part in (("scales γ", "scales"), ("shifts β", "shifts")):
        values = {batchnorm.BATCHNORM: only[part], batchnorm.ALL: full[part]}
        if part == "scales":
            values = {"before training": only["scales before"], **values}
        flat = {name: np.asarray(v, np.float64).ravel() for name, v in values.items()}
        finite = {name: v[np.isfinite(v)] for name, v in flat.items()}
        every = np.concatenate(list(finite.values()))
        edges = np.linspace(min(every.min(), 0.0), max(every.max(), 1.0), 25)
        middles = (edges[1:] + edges[:-1]) / 2
        lines = {
            name: (middles, np.histogram(v, edges, density=True)[0]) for name, v in finite.items()
        }
        panels.append(report.LinePanel(title, lines))
    return report.picture(
        report.line_panels(panels, xlabel="value", ylabel="density", panel_size=(3.6, 2.8)),
        name="scales_and_shifts",
        alt="Densities of BatchNorm's scales, uniform on (0, 1) before training, and of its "
        "shifts, 0 before training, after training BatchNorm alone and everything.",
        caption="Scales and shifts of all layers and seeds; 24 bins. Shifts begin at 0.",
        wide=True,
    )


def _layers(only: Any, full: Any, places: list[int]) -> report.Picture:
    lines = {}
    for name, of in ((batchnorm.BATCHNORM, only), (batchnorm.ALL, full)):
        means = np.zeros(len(places))
        means[places] = of["by layer"].mean(0)
        lines[name] = (1 + np.arange(len(means)), means)
    return report.picture(
        report.curves(
            lines,
            xlabel="BatchNorm layer, from the input on",
            ylabel=f"share of |γ| below {batchnorm.PAPERS_THRESHOLD}",
        ),
        name="sparsity_by_layer",
        alt="Share of scales that are nearly zero, layer by layer, for both conditions.",
        caption="Means over seeds; the BatchNorm of a shortcut follows the two of its block.",
    )


def _pruning(only: Any) -> report.Picture:
    lines = {
        "features of |γ| < t off": (THRESHOLDS, only["pruned"].mean(0)),
        "as many others off": (THRESHOLDS, only["pruned at random"].mean(0)),
    }
    return report.picture(
        report.curves(lines, xlabel="threshold t", ylabel=TEST, log_x=True),
        name="accuracy_after_zeroing",
        alt="Accuracy of BatchNorm-only networks after features of small scales are switched off, "
        "and after as many others are; "
        + "; ".join(f"{k} {', '.join(map(format_number, y))}" for k, (_, y) in lines.items()),
        caption="Means over seeds. At each threshold both switch off the same number of features "
        "in every layer.",
    )
