"""The claims C1 to C4 of `gradient_noise`, each with the rule written before the measurement."""

import numpy as np
from scipy import stats

from experiments._noise_statistics import (
    LARGE,
    SMALL,
    TEST,
    Results,
    Share,
    early,
    foretold,
    gaussian_early,
    inside,
    rejected_late,
    share,
    tails,
    together,
)
from experiments._program import Run
from poster_jax.core.claims import Claim, bootstrap_interval, format_number

_EXACT = "95 % Clopper-Pearson, cells taken as independent"


def claims_of(run: Run, results: Results) -> list[Claim]:
    """All of them, in the order of the card."""
    return [
        _early_claim(run, results),
        _everywhere_claim(run, results),
        _late_claim(run, results, SMALL),
        _late_claim(run, results, LARGE[0]),
        _tail_claim(run, results),
        _critical_claim(run, results),
    ]


def _early_claim(run: Run, results: Results) -> Claim:
    found = gaussian_early(run, results)
    pooled = {size: together(of[size] for of in found.values()) for size in LARGE}
    worst = min(pooled.values(), key=lambda s: s.value if s.total else -1)
    needed = int(np.ceil(0.9 * worst.total))
    chance = stats.binom.sf(needed - 1, worst.total, 0.95) if worst.total else float("nan")
    small = together(share(inside(run, of, SMALL)[early(run, of)]) for of in results.found.values())
    return Claim(
        poster="gradient_noise",
        name="C1",
        claim="At batch sizes of 256 and above the noise is Gaussian early in training.",
        paper="best described as Gaussian for batch sizes 256 and above, at least in the early "
        "phases (abstract)",
        measured=worst.value,
        unit=f"share of early cells inside the surrogates' band, the smaller of b = {LARGE}",
        interval=worst.interval,
        interval_of=_EXACT,
        rule="at checkpoints with training accuracy below "
        f"{run.settings.early_below:g}, rejected fraction inside the 95 % band of Gaussian "
        "surrogates in at least 90 % of the (seed, checkpoint) cells, for each of both sizes",
        holds=bool(all(s.total and s.value >= 0.9 for s in pooled.values())),
        control=f"{_counts(pooled)}; Gaussian noise meets the rule with probability "
        f"{format_number(chance)} a size; b = {SMALL}: {small.count} of {small.total} inside; "
        f"{_bands(run, results, LARGE[0], early_cells=True)}",
        num_samples=worst.total,
        num_seeds=run.settings.num_seeds,
        num_nonfinite=_diverged(results),
    )


def _everywhere_claim(run: Run, results: Results) -> Claim:
    found = gaussian_early(run, results)
    shares = {case: min(of.values(), key=lambda s: s.value) for case, of in found.items()}
    worst = min(shares.values(), key=lambda s: s.value if s.total else -1)
    held = sum(all(s.total and s.value >= 0.9 for s in of.values()) for of in found.values())
    return Claim(
        poster="gradient_noise",
        name="C2",
        claim="So it is for every data set, network and optimiser.",
        paper="across data-sets, architectures, and other choices (abstract)",
        measured=worst.value,
        unit=f"share of early cells inside the band, the smallest of {len(found)} case(s)",
        interval=worst.interval,
        interval_of=_EXACT,
        rule="the rule of C1 is met in every case of the preset",
        holds=held == len(found),
        control=f"met in {held} of {len(found)}: "
        + "; ".join(f"{case.title}: {_counts(of)}" for case, of in found.items()),
        num_samples=worst.total,
        num_seeds=run.settings.num_seeds,
        num_nonfinite=_diverged(results),
    )


def _late_claim(run: Run, results: Results, size: int) -> Claim:
    found = rejected_late(run, results, size)
    small = size == SMALL
    rule = "in all networks" if small else "in most networks"
    first = [~inside(run, of, size)[:, 0] for of in results.found.values()]
    return Claim(
        poster="gradient_noise",
        name=f"C3 (b = {size})",
        claim=f"Late in training the noise of batches of {size} is not Gaussian.",
        paper="implied by the title and by 'at least in the early phases'",
        measured=found.value,
        unit="share of networks outside the surrogates' band at the last checkpoint",
        interval=found.interval,
        interval_of=_EXACT,
        rule=f"rejected fraction outside the 95 % band {rule}",
        holds=found.count == found.total if small else 2 * found.count > found.total,
        control=f"at the first checkpoint {int(np.sum(first))} of {np.size(first)} outside; "
        f"{_bands(run, results, size, early_cells=False)}",
        num_samples=found.total,
        num_seeds=run.settings.num_seeds,
        num_nonfinite=_diverged(results),
    )


def _tail_claim(run: Run, results: Results) -> Claim:
    every = [tails(run, of) for of in results.found.values()]
    found = {name: np.concatenate([of[name] for of in every]) for name in every[0]}
    pooled, iteration = found["pooled"], found["by_coordinate"]
    apart = np.abs(found["same_covariance"] - pooled)
    agreed = (pooled < 1.9) & (np.abs(iteration - 2) <= 0.1) & (apart <= 0.05)
    some = pooled.size > 0
    interval = (
        bootstrap_interval(pooled, num_resamples=run.settings.num_resamples, seed=run.seed)
        if pooled.size > 1
        else None
    )
    return Claim(
        poster="gradient_noise",
        name="C4",
        claim="On noise that passes as Gaussian the pooled tail index is well below 2 nonetheless.",
        paper="heavy tails are reported by that estimator (Simsekli et al. 2019), Gaussian noise "
        "by this poster",
        measured=pooled.mean() if some else float("nan"),
        unit="pooled tail index, mean over the cells that pass C1",
        interval=None if interval is None else (interval.low, interval.high),
        interval_of=f"95 % bootstrap over {pooled.size} cells",
        rule="in every such cell: pooled below 1.9, iteration-wise median within 2 ± 0.1, pooled "
        "of Gaussian vectors with the same covariance within 0.05 of it",
        holds=bool(some and agreed.all()),
        control=(
            f"{agreed.sum()} of {agreed.size} cells; iteration-wise {_range(iteration)}; Gaussian "
            f"of the same covariance {_range(found['same_covariance'])}, at most "
            f"{format_number(apart.max())} apart, of the same variances alone "
            f"{_range(found['same_variances'])}; coordinates without noise up to "
            f"{format_number(100 * found['zeros'].max())} %"
            if some
            else "no cell passes C1"
        ),
        num_samples=int(pooled.size),
        num_seeds=run.settings.num_seeds,
    )


def _critical_claim(run: Run, results: Results) -> Claim:
    pairs = [foretold(run, of) for of in results.found.values()]
    by_seed = np.concatenate([(above == seen).mean((1, 2)) for above, seen in pairs if above.size])
    seen = np.concatenate([s.ravel() for _, s in pairs])
    above = np.concatenate([a.ravel() for a, _ in pairs])
    interval = bootstrap_interval(by_seed, num_resamples=run.settings.num_resamples, seed=run.seed)
    constant = max(seen.mean(), 1 - seen.mean())
    late = int(np.sum(above & ~seen))
    both = [foretold(run, of, with_skewness=True) for of in results.found.values()]
    right = np.concatenate([(a == s).ravel() for a, s in both])
    return Claim(
        poster="gradient_noise",
        name="b*",
        claim="The kurtosis of single examples foretells from which batch size on noise passes.",
        paper="this library's explanation of '256 and above, early'",
        measured=by_seed.mean(),
        unit="share of cells where the sign of b - b* is the verdict",
        interval=(interval.low, interval.high),
        interval_of=f"95 % bootstrap over {by_seed.size} networks",
        rule="at least 80 % of the (seed, checkpoint, batch size) cells",
        holds=bool(by_seed.mean() >= 0.8),
        control=f"the better constant answer is right in {format_number(constant)}; of "
        f"{int(np.sum(above != seen))} wrong cells {late} are above b* and rejected; with the "
        f"batch size that skewness asks for, where larger, it is right in "
        f"{format_number(right.mean())}",
        num_samples=int(seen.size),
        num_seeds=run.settings.num_seeds,
    )


def _counts(shares: dict[int, Share]) -> str:
    return ", ".join(f"b = {size}: {s.count} of {s.total} inside" for size, s in shares.items())


def _bands(run: Run, results: Results, size: int, *, early_cells: bool) -> str:
    """Rejected fractions beside the band of their surrogates, both as ranges over the cells."""
    at, values = run.settings.batch_sizes.index(size), []
    for of in results.found.values():
        test = of["verdicts"]["tests"][TEST]
        cells = early(run, of).copy()
        if not early_cells:
            cells[:] = False
            cells[:, -1] = True
        values.append(
            [
                v[:, :, at][cells]
                for v in (test.rejected_fraction, test.rejected_low, test.rejected_high)
            ]
        )
    rejected, low, high = (np.concatenate(part) for part in zip(*values, strict=True))
    if not rejected.size:
        return "no such cell"
    return (
        f"rejected at b = {size}: {_range(rejected)}, mean band "
        f"{format_number(low.mean())} to {format_number(high.mean())}"
    )


def _range(values: np.ndarray) -> str:
    return f"{format_number(values.min())} to {format_number(values.max())}"


def _diverged(results: Results) -> int:
    return int(sum(np.sum(of["diverged"]) for of in results.found.values()))
