"""What the networks of copies say: sections and pictures of `feature_diversity`."""

from typing import Any

import numpy as np

from experiments import _diversity as shallow
from experiments import _program
from experiments._diversity_claims import (
    Law,
    Results,
    claims_of,
    column,
    law_of,
    noise_column,
)
from poster_jax.core import report
from poster_jax.core.claims import bootstrap_interval, format_number
from poster_jax.feature_diversity import num_averaging

__all__ = ["Results", "findings"]

READERS = {"zero": "zero", "duplicated": "same for copies", "independent": "independent"}
WORDS = {
    "none": "none but the program's rounding",
    "weights": "weights",
    "rounding": "rounding of gradients",
    "dropout": "dropout",
    "random": "random start",
    "exact": "exactly symmetric (one channel)",
}
ACCURACY = "test accuracy (%)"


def findings(run: _program.Run, results: Results) -> _program.Findings:
    """Claims and sections."""
    chosen = run.settings
    _log(run, results)
    law = law_of(chosen, results)
    grid = results.shallow["grid"]["accuracy"].shape
    num_deep = sum(len(found["accuracy"]) for found in results.const.values())
    lead = (
        f"{np.prod(grid)} shallow networks of {chosen.width} features, {num_deep} ConstNets and "
        f"{results.leaky['accuracy'].size} LeakyNets on {chosen.dataset}: what identical features "
        "cost, and how little noise it takes to part them."
    )
    sections = [
        _shallow(chosen, results),
        _times(chosen, results, law),
        _const(chosen, results),
        _leaky(chosen, results),
    ]
    claims = claims_of(chosen, results, seed=run.seed)
    return _program.Findings("Feature diversity at initialisation", lead, claims, sections)


def _log(run: _program.Run, results: Results) -> None:
    single = ("accuracy", "loss", "correlation", "width", "leak", "diverged")
    for index, row in enumerate(shallow.conditions(run.settings)):
        values = {name: results.shallow["grid"][name][:, index] for name in single}
        run.log(network="shallow", **row._asdict(), **values)
    for name, found in results.const.items():
        run.log(network="ConstNet", source=name, **found)
    for pattern, *_ in zip(run.settings.patterns, strict=True):
        index = run.settings.patterns.index(pattern)
        found = {name: values[index] for name, values in results.leaky.items()}
        run.log(network="LeakyNet", pattern=pattern, **found)


def _shallow(chosen: Any, results: Results) -> report.Section:
    lines = {
        f"readers: {words}": (
            chosen.num_unique,
            [100 * column(chosen, results, "accuracy", mode, u, 0.0).mean()
             for u in chosen.num_unique],
        )
        for mode, words in READERS.items()
    }  # fmt: skip
    picture = report.picture(
        report.curves(lines, xlabel="kinds of features u", ylabel=ACCURACY, log_x=True),
        name="accuracy_by_kinds",
        alt="Test accuracy against the number of different features, a line for each way in which "
        "the output weights are tied: low at one kind unless the output weights are independent.",
        caption=f"Networks of {chosen.width} features of u kinds, without noise. Means over "
        f"{chosen.shallow_seeds} seeds.",
    )
    exact, noisy = results.shallow["exact"]["accuracy"], results.shallow["rounded"]["accuracy"]
    leaks = column(chosen, results, "leak", shallow.TIED[0], 1, 0.0)
    small = noise_column(chosen, results, "correlation")[:, 0]
    numbers = [
        _number("one kind, exact", exact, "Test accuracy of the network of width 1 that a network "
                "of copies is: no noise at all."),
        _number("one kind, rounding noise", noisy, "The same with gradients changed by up to "
                f"{format_number(chosen.rounding)} of their size."),
        report.number("leak of the compiled program", leaks.max(), "By how much copies differ at "
                      "the end in the wide network without noise, the largest over seeds, relative "
                      "to their size; 0 means that the compiled sums kept the symmetry."),
        report.number("correlation of features", small.mean(), "Mean Pearson correlation of the "
                      "weights of different features after training from one kind with noise "
                      f"{chosen.noises[0]:g}."),
    ]  # fmt: skip
    text = (
        "Copies of a feature that are read with equal weights get equal gradients and stay copies: "
        "the network is as wide as it has kinds of features. Where the readers are independent, "
        "copies part at the first step."
    )
    return report.Section("A shallow network of copies", text, numbers, [picture])


def _times(chosen: Any, results: Results, law: Law) -> report.Section:
    steps, noises = np.array(shallow.recorded(chosen)), np.array(chosen.noises)
    curves = noise_column(chosen, results, "diversity")
    shown = steps <= chosen.record_until
    growth = {
        f"s² = {noise:g}": (steps[shown], _positive(np.exp(_mean_log(curves[:, i]))[shown]))
        for i, noise in enumerate(noises)
        if noise < 1
    }
    pictures = [
        report.picture(
            report.curves(growth, xlabel="step", ylabel="diversity q of the hidden layer",
                          log_y=True, guides={"broken: q = 0.01": 0.01}),
            name="growth",
            alt="Diversity of the hidden layer against the step on a logarithmic axis, a line for "
            "each noise: parallel lines that rise together to a common plateau.",
            caption="One kind of features, readers that start at zero. Straight and parallel "
            "lines are exponential growth. Geometric means over seeds.",
        ),
        report.picture(
            report.curves({f"readers: {READERS[mode]}": (noises, 100 * noise_column(
                chosen, results, "accuracy", mode).mean(0)) for mode in shallow.TIED},
                xlabel="noise s²", ylabel=ACCURACY,
                log_x=True, guides={f"u = {max(chosen.num_unique)}": float(100 * column(
                    chosen, results, "accuracy", shallow.TIED[0], max(chosen.num_unique), 0.0
                ).mean())}),
            name="accuracy_by_noise",
            alt="Test accuracy of the network of one kind of features against its noise, beside "
            "that of a network of different features.",
            caption="How much noise one kind of features needs. Means over seeds; where copies "
            "have the same readers, some seeds' one feature dies in the first steps.",
        ),
    ]  # fmt: skip
    if len(law.noises) > 1:
        lines = {"measured": law.measured.mean(0), "predicted, nothing fitted":
                 law.predicted.mean(0)}  # fmt: skip
        pictures.append(
            report.picture(
                report.curves(
                    {name: (law.noises, times) for name, times in lines.items()},
                    xlabel="noise s²",
                    ylabel="steps until q = 0.01",
                    log_x=True,
                ),
                name="times",
                alt="Steps until the symmetry is broken against the noise, measured and predicted: "
                "two falling straight lines.",
                caption="The prediction adds up the growth rates ln(1 + ησ) along the path of the "
                "network of width 1, σ the largest singular value of M. Means over seeds.",
            )
        )
    numbers = [
        _number("steps a decade, measured", law.per_decade, "How much longer a network takes to "
                "break the symmetry with ten times less noise.", scale=1, unit="steps"),
        _number("steps a decade, predicted", law.predicted_per_decade, "The same from the "
                "noiseless path.", scale=1, unit="steps"),
        report.number("R²", law.r_squared, "Of the straight line through the mean times over the "
                      "logarithm of the noise."),
    ]  # fmt: skip
    text = (
        "A small difference between copies grows exponentially, so the time until they are apart "
        "is linear in the logarithm of the noise."
    )
    return report.Section("How long copies stay together", text, numbers, pictures)


def _const(chosen: Any, results: Results) -> report.Section:
    numbers = [
        _number(WORDS[name], found["accuracy"], f"Test accuracy, ConstNet of depth {chosen.depth}, "
                f"widen {chosen.widen}, {len(found['accuracy'])} seeds.")
        for name, found in results.const.items()
    ]  # fmt: skip
    leak = results.const["none"]["leak"]
    numbers.append(
        report.number("leak without noise", leak.max(), "By how much channels differ at the end in "
                      "the full network to which no noise was given, relative to their size: what "
                      "rounding in the compiled program did by itself.")
    )  # fmt: skip
    epochs = np.arange(results.const["none"]["diversity"].shape[1])
    wet = np.exp(_mean_log(results.const["dropout"]["diversity"]))
    layers = {
        f"{'stem' if layer == 0 else f'block {layer}'}": (epochs, _positive(wet[:, layer]))
        for layer in range(wet.shape[1])
    }
    last = {
        WORDS[name]: (epochs, _positive(np.exp(_mean_log(found["diversity"]))[:, -1]))
        for name, found in results.const.items()
        if name != "exact" and found["diversity"].any()
    }
    correlations = {
        f"{WORDS[name]}, {way}": (epochs, results.const[name][way].mean(0))
        for name in ("dropout", "random")
        for way in ("forward", "backward")
    }
    pictures = [
        report.picture(
            report.curves(layers, xlabel="epoch", ylabel="diversity q of the layer", log_y=True),
            name="diversity_by_layer",
            alt="Diversity of each layer of ConstNet with dropout against the epoch, on a "
            "logarithmic axis.",
            caption=f"ConstNet with dropout {chosen.dropout:g}: the share of each layer's square "
            "that channels do not have in common, without dropout at the time of measurement. "
            "Geometric means over seeds; zeros are not shown.",
        ),
        report.picture(
            report.curves(last, xlabel="epoch", ylabel="diversity q of the last block", log_y=True),
            name="diversity_by_noise",
            alt="Diversity of the last block of ConstNet against the epoch, a line for each source "
            "of noise.",
            caption="How each source of noise breaks the symmetry of ConstNet. Geometric means "
            "over seeds; a source under which all channels stayed equal to the bit has no line.",
        ),
        report.picture(
            report.curves(correlations, xlabel="epoch", ylabel="mean correlation of the weights"),
            name="correlations",
            alt="Forward and backward weight correlation of ConstNet with dropout and of its "
            "random counterpart against the epoch.",
            caption="Mean Pearson correlation of output channels (forward) and input channels "
            "(backward), averaged over the 3x3 convolutions and seeds. Constant rows count as 1.",
        ),
    ]
    text = (
        "Every channel of ConstNet starts as the mean of the colours. Without noise it is a "
        "network of one channel, which is trained here as such, with the learning rates that the "
        "symmetry gives it."
    )
    return report.Section("ConstNet", text, numbers, pictures)


def _leaky(chosen: Any, results: Results) -> report.Section:
    order = sorted(range(len(chosen.patterns)), key=lambda i: num_averaging(chosen.patterns[i]))
    bars = {
        f"{chosen.patterns[i]} ({num_averaging(chosen.patterns[i])} averaging)":
        _triple(results.leaky["accuracy"][i]) for i in order
    }  # fmt: skip
    epochs = np.arange(results.leaky["diversity"].shape[2])
    last = {
        chosen.patterns[i]: (
            epochs, _positive(np.exp(_mean_log(results.leaky["diversity"][i]))[:, -1])
        )
        for i in order
    }  # fmt: skip
    pictures = [
        report.picture(
            report.interval_plot({"mean and 95 % interval": bars}, xlabel=ACCURACY, zero=None),
            name="leaky_accuracy",
            alt="Test accuracy of LeakyNet for each pattern of layers, ordered by the number of "
            "averaging layers.",
            caption=f"Letters: i identity, 1 average, h random; the first is the stem's. "
            f"{results.leaky['accuracy'].shape[1]} seeds a pattern, rounding noise.",
        ),
        report.picture(
            report.curves(last, xlabel="epoch", ylabel="diversity q of the last layer", log_y=True),
            name="leaky_diversity",
            alt="Diversity of the last layer of LeakyNet against the epoch, a line a pattern.",
            caption="Averaging layers erase what differs before them. Geometric means over seeds; "
            "zeros are not shown.",
        ),
    ]
    text = (
        "LeakyNet has no shortcuts, and pairs of its layers start as linear maps: signals pass "
        "unchanged, and only the letters decide how much diversity survives. The noise is that of "
        "rounding alone. On pictures of one colour even the identity starts with identical "
        "features."
    )
    return report.Section("LeakyNet: layers that erase diversity", text, (), pictures)


def _number(
    name: str, values: Any, meaning: str, *, scale: float = 100, unit: str = "%"
) -> report.Number:
    values = scale * np.asarray(values, np.float64)
    stderr = values.std(ddof=1) / len(values) ** 0.5
    return report.number(name, values.mean(), meaning, stderr=stderr, unit=unit)


def _triple(accuracy: Any) -> tuple[float, float, float]:
    found = bootstrap_interval(100 * accuracy)
    return found.estimate, found.low, found.high


def _mean_log(values: Any) -> Any:
    """Mean over the first axis of the logarithm; zeros stay out."""
    values = np.where(values > 0, values, np.nan)
    known = np.isfinite(values).any(0)
    safe = np.where(known, values, 1.0)
    return np.where(known, np.nanmean(np.log(safe), 0), np.nan)


def _positive(values: Any) -> Any:
    return np.where(values > 0, values, np.nan)
