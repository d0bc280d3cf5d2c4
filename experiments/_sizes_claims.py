"""The claims C1 to C4 of `mix_and_match`, each with the rule written before the measurement."""

from typing import Any

import numpy as np

from experiments._program import Run
from experiments._sizes_training import BATCH, FIXED, MIXED, ROUGH, Results
from poster_jax.core.claims import (
    Claim,
    Interval,
    format_number,
    paired_difference,
)

LOSS = 0.01  # of accuracy at the base size that C1 allows
MARGIN = 0.005  # below the baseline's accuracy that still counts as reaching it
FEWER = 0.05  # of the pixels: less is not told apart by looks that are placed by whole steps
SHARE = (160 / 224) ** 2  # of pixels, in the paper's own comparison


def claims_of(run: Run, found: list[Results]) -> list[Claim]:
    """All claims of all data sets."""
    return [
        claim
        for results in found
        for method in MIXED
        for claim in (
            _resilience(run, results, method),
            _small_images(run, results, method),
            _accuracy(run, results, method),
            _speed(run, results, method),
            _calibration(run, results, method),
        )
    ]


def area(results: Results, accuracy: Any) -> np.ndarray:
    """(seeds,): mean accuracy over the logarithm of the test size, by the trapezium rule."""
    places = np.log(results.task.case.test_sizes)
    return np.trapezoid(accuracy, places, axis=1) / (places[-1] - places[0])


def smallest_size(results: Results, method: str) -> int | None:
    """The smallest test size at which the mean reaches the baseline's at its own size."""
    means = results.accuracy[method]["calibrated"].mean(axis=0)
    reached = means >= results.at_base(FIXED).mean() - MARGIN
    sizes = [s for s, ok in zip(results.task.case.test_sizes, reached, strict=True) if ok]
    return min(sizes, default=None)


def pixels_needed(results: Results, method: str) -> np.ndarray:
    """(seeds,): processed when the accuracy at the base size first reaches the baseline's last.

    Infinite where it never does; between two looks the later one counts.
    """
    target = results.at_base(FIXED).mean() - MARGIN
    reached = results.accuracy[method]["by look"] >= target
    at = results.pixels_at_looks(method)
    return np.where(reached.any(axis=1), at[reached.argmax(axis=1)], np.inf)


def interval_text(found: Interval) -> str:
    """Estimate with its interval."""
    ends = (format_number(end, digits=2) for end in (found.low, found.high))
    return f"{format_number(found.estimate, digits=2)} [{', '.join(ends)}]"


def difference(run: Run, a: Any, b: Any) -> Interval:
    """Of the means over seeds."""
    options = {"num_resamples": run.settings.num_resamples, "seed": run.seed}
    return paired_difference(a, b, **options).interval


def _claim(results: Results, name: str, method: str, found: Interval, **words: Any) -> Claim:
    case = results.task.case
    return Claim(
        poster="mix_and_match",
        name=f"{name} ({case.dataset.removeprefix('tfds:')}, {method})",
        measured=found.estimate,
        interval=None if np.isnan(found.low) else (found.low, found.high),
        interval_of=f"95 % bootstrap over {found.num_samples} seeds, {found.method}",
        num_samples=found.num_samples,
        num_seeds=found.num_samples,
        num_nonfinite=found.num_nonfinite,
        **words,
    )


def _resilience(run: Run, results: Results, method: str) -> Claim:
    accuracy = results.accuracy
    gain = difference(
        run,
        area(results, accuracy[method]["calibrated"]),
        area(results, accuracy[FIXED]["calibrated"]),
    )
    at_base = difference(run, results.at_base(method), results.at_base(FIXED))
    control = f"at the base size {interval_text(at_base)}"
    if method == BATCH:
        rough = difference(
            run,
            area(results, accuracy[method]["calibrated"]),
            area(results, accuracy[ROUGH]["calibrated"]),
        )
        control += f"; with smoothing of gradients minus without {interval_text(rough)}"
    return _claim(
        results,
        "C1",
        method,
        gain,
        claim="Networks trained at several sizes are more accurate over all test sizes, and not "
        "worse at the size of the others.",
        paper="more resilient to the test size",
        unit="mean accuracy over log size, mixed minus fixed",
        rule="the interval lies above 0, and the accuracy at the base size is lower by at most "
        f"{LOSS:g}",
        holds=bool(gain.low > 0 and at_base.estimate >= -LOSS),
        control=control,
    )


def _small_images(run: Run, results: Results, method: str) -> Claim:
    case = results.task.case
    sizes, base = np.array(case.test_sizes), case.mixture.base_size
    few = np.flatnonzero((sizes / base) ** 2 <= SHARE + 1e-9)
    calibrated = results.accuracy[method]["calibrated"]
    best = few[calibrated[:, few].mean(axis=0).argmax()]
    found = difference(run, calibrated[:, best], results.at_base(FIXED))
    theirs = difference(run, results.accuracy[FIXED]["calibrated"][:, best], results.at_base(FIXED))
    smallest = smallest_size(results, method)
    return _claim(
        results,
        "C2",
        method,
        found,
        claim="Networks trained at several sizes reach, on images of half the pixels, what the "
        "others reach at their own size.",
        paper="ResNet-50, ImageNet: 76.43 % at 160 pixels, that of 224; half the computations",
        unit=f"accuracy, mixed at {sizes[best]} pixels minus fixed at {base}",
        rule=f"at the best test size of at most {SHARE:.2f} of the pixels (the paper's 160 to "
        f"224) the lower end of the interval is above -{MARGIN:g}",
        holds=bool(found.low > -MARGIN),
        control=f"fixed at {sizes[best]} pixels {interval_text(theirs)}; smallest test size that "
        f"reaches it within {MARGIN:g}: {smallest or 'none'}",
    )


def _accuracy(run: Run, results: Results, method: str) -> Claim:
    best = {
        name: results.accuracy[name]["calibrated"].mean(axis=0).argmax() for name in (method, FIXED)
    }
    a, b = (results.accuracy[name]["calibrated"][:, at] for name, at in best.items())
    found = difference(run, a, b)
    sizes = results.task.case.test_sizes
    relative = found.estimate / (1 - b.mean()) if b.mean() < 1 else float("nan")
    return _claim(
        results,
        "C3 accuracy",
        method,
        found,
        claim="On as many pixels, networks trained at several sizes end more accurate, each at its "
        "best test size.",
        paper="79.27 % at 288 pixels, 14 % better than the baseline; this or C3 speed",
        unit="accuracy, mixed minus fixed",
        rule="the interval lies above 0",
        holds=bool(found.low > 0),
        control=f"{format_number(a.mean())} at {sizes[best[method]]} pixels, fixed "
        f"{format_number(b.mean())} at {sizes[best[FIXED]]}; {format_number(relative, digits=2)} "
        "of the fixed networks' error",
    )


def _speed(run: Run, results: Results, method: str) -> Claim:
    ours, theirs = pixels_needed(results, method), pixels_needed(results, FIXED)
    never = {name: np.isinf(needed) for name, needed in ((method, ours), (FIXED, theirs))}
    # Who never does would have needed more: the end of training is a lower bound.
    ends = {name: results.pixels(name)[-1] for name in never}
    ours, theirs = np.minimum(ours, ends[method]), np.minimum(theirs, ends[FIXED])
    found = difference(run, np.log(ours), np.log(theirs))._replace(
        num_nonfinite=int(never[method].sum() + never[FIXED].sum())
    )
    medians = [format_number(np.median(needed) / ends[FIXED]) for needed in (ours, theirs)]
    return _claim(
        results,
        "C3 speed",
        method,
        found,
        claim="Networks trained at several sizes reach what the others end with on fewer pixels.",
        paper="speeds training up, or is more accurate; this or C3 accuracy",
        unit="log of the pixels needed, mixed over fixed",
        rule="the accuracy at the base size reaches that of the fixed networks' end within "
        f"{MARGIN:g}, in every seed, and the interval lies below log(1 - {FEWER:g})",
        holds=bool(found.high < np.log(1 - FEWER) and not never[method].any()),
        control=f"of the fixed networks' pixels: {medians[0]} in the median, fixed {medians[1]}; "
        f"never, and counted with all: {never[method].sum()} and {never[FIXED].sum()} of "
        f"{len(ours)}",
    )


def _calibration(run: Run, results: Results, method: str) -> Claim:
    case = results.task.case
    other = np.array(case.test_sizes) != case.mixture.base_size
    gain = {
        name: difference(
            run,
            results.accuracy[name]["calibrated"][:, other].mean(axis=1),
            results.accuracy[name]["uncalibrated"][:, other].mean(axis=1),
        )
        for name in (method, FIXED)
    }
    raw = norms_by_size(results, method).mean(axis=0)
    norms = ", ".join(
        f"{c.size}: {format_number(norm)}"
        for c, norm in zip(results.task.regime(method), raw, strict=True)
    )
    return _claim(
        results,
        "C4",
        method,
        gain[method],
        claim="BatchNorm's statistics must be those of the test size.",
        paper="part of the method",
        unit="mean accuracy at sizes other than the base, calibrated minus as trained",
        rule="the interval lies above 0",
        holds=bool(gain[method].low > 0),
        control=f"fixed networks {interval_text(gain[FIXED])}; gradient norms by training size, "
        f"before smoothing: {norms}",
    )


def norms_by_size(results: Results, method: str) -> np.ndarray:
    """(seeds, sizes), mean norm of the gradients at each size, before smoothing."""
    seen = results.seen[method]
    sizes = np.arange(len(results.task.regime(method)))
    mine = seen["size"][..., None] == sizes
    return (mine * seen["raw"][..., None]).sum(axis=1) / mine.sum(axis=1)
