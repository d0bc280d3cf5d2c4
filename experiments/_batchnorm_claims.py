"""The claims C1 to C6 of `batchnorm_only`, each with the rule written before the measurement."""

from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments import _batchnorm_training as batchnorm
from poster_jax.core.claims import (
    Claim,
    PairedDifference,
    bootstrap_interval,
    format_number,
    paired_difference,
)

POSTER = "batchnorm_only"


class Results(NamedTuple):
    """The numbers of a run; every value has one entry a seed.

    Attributes:
      found: condition -> accuracy, loss, diverged, at the base network.
      by_size: name of network -> the same, BatchNorm (or the affine layers) alone trained.
      features: condition -> what `features_of` returns.
      counts: network -> what `count_parameters` returns.
      base: the network of all conditions.
      places: where each layer of "by layer" of the features stands, 0 nearest to the input.
    """

    found: dict[str, Any]
    by_size: dict[str, Any]
    features: dict[str, Any]
    counts: dict[batchnorm.Network, Any]
    base: batchnorm.Network
    places: list[int]

    def accuracy(self, condition: str) -> Any:
        """(seeds,) of a condition at the base."""
        return self.found[condition]["accuracy"]

    def along(self, networks: list[batchnorm.Network]) -> tuple[Any, Any]:
        """Numbers of BatchNorm parameters (sizes,), and accuracies (sizes, seeds)."""
        counts = np.array([self.counts[network]["batchnorm"] for network in networks])
        return counts, np.stack([self.by_size[n.name]["accuracy"] for n in networks])


def deep(settings: Any, norm: str) -> list[batchnorm.Network]:
    """The networks whose depth is varied."""
    return [batchnorm.Network(norm, n, settings.width) for n in settings.depths]


def wide(settings: Any) -> list[batchnorm.Network]:
    """The networks whose width is varied."""
    return [batchnorm.Network("batch", settings.width_blocks, width) for width in settings.widths]


def claims_of(results: Results, settings: Any, *, seed: int) -> list[Claim]:
    """All claims; C4 where networks train long enough for it to be decided."""
    claims = [
        _above_chance(results, settings, seed),
        _against_random(results, seed),
        _affine(results, settings, seed),
        _batchnorm_matters(results, seed),
        _depth_or_width(results, settings, seed),
    ]
    if settings.full_length:
        claims.insert(3, _sparsity(results, seed))
    return claims


def detectable(difference: Any) -> float:
    """The true mean difference that 4 of 5 experiments of this size would find."""
    n = len(difference)
    if n < 2:
        return float("nan")
    t = stats.t(n - 1)
    return float((t.ppf(0.975) + t.ppf(0.8)) * np.std(difference, ddof=1) / n**0.5)


def _above_chance(results: Results, settings: Any, seed: int) -> Claim:
    accuracy, chance = results.accuracy(batchnorm.BATCHNORM), 1 / settings.num_classes
    found = bootstrap_interval(accuracy, seed=seed)
    counts = results.counts[results.base]
    output = results.accuracy(batchnorm.OUTPUT).mean()
    return Claim(
        **_shared(found.num_samples),
        name="C1",
        claim="With random frozen weights, training BatchNorm alone takes a ResNet far above "
        "chance.",
        paper="82 % on CIFAR-10 with ResNet-866",
        measured=found.estimate,
        unit="test accuracy",
        interval=_ends(found),
        interval_of=f"95 % bootstrap over {found.num_samples} networks",
        rule="the mean less 0.1 is above 0.4, and the interval lies above chance",
        holds=bool(found.estimate - 0.1 > 0.4 and found.low > chance),
        control=f"{counts['batchnorm']:,} of {counts['total']:,} parameters train; chance is "
        f"{format_number(chance)}, the output layer alone reaches {format_number(output)}",
        num_nonfinite=found.num_nonfinite,
    )


def _against_random(results: Results, seed: int) -> Claim:
    two = batchnorm.of_k(2)
    found = _paired(results, batchnorm.BATCHNORM, two, seed)
    anywhere = results.accuracy(batchnorm.ANYWHERE).mean()
    return Claim(
        **_shared(found.interval.num_samples),
        name="C2",
        claim="That is far more than training two randomly chosen weights of each channel.",
        paper="far higher",
        measured=found.interval.estimate,
        unit="test accuracy, BatchNorm less random",
        interval=_ends(found.interval),
        interval_of=_pairs(found),
        rule="the interval lies above 0",
        holds=bool(found.interval.low > 0),
        control=f"two random weights a channel reach "
        f"{format_number(results.accuracy(two).mean())}, as many anywhere "
        f"{format_number(anywhere)}; "
        + _power(results.accuracy(batchnorm.BATCHNORM) - results.accuracy(two)),
        num_nonfinite=found.interval.num_nonfinite,
    )


def _affine(results: Results, settings: Any, seed: int) -> Claim:
    found = _paired(results, batchnorm.BATCHNORM, batchnorm.AFFINE, seed)
    _, batch = results.along(deep(settings, "batch"))
    _, affine = results.along(deep(settings, "affine"))
    gaps = (batch - affine).mean(1)
    depths = [batchnorm.layers(settings, n) for n in settings.depths]
    words = [f"{format_number(g)} at depth {d}" for g, d in zip(gaps, depths, strict=True)]
    uniform = format_number(results.accuracy(batchnorm.AFFINE_UNIFORM).mean())
    return Claim(
        **_shared(found.interval.num_samples),
        name="C3",
        claim="Scale and shift without any normalisation suffice for the effect in shallow "
        "networks.",
        paper="the affine parameters alone suffice in shallower ResNets",
        measured=found.interval.estimate,
        unit="test accuracy, BatchNorm less affine",
        interval=_ends(found.interval),
        interval_of=_pairs(found),
        rule="the mean difference is below 0.15 at the base, and larger at the largest depth than "
        "at the smallest",
        holds=bool(found.interval.estimate < 0.15 and gaps[-1] > gaps[0]),
        control=f"the gap is {', '.join(words)}; begun with γ in (0, 1) affine networks reach "
        f"{uniform}; gradients clipped at norm {batchnorm.AFFINE_CLIP:g}",
        num_nonfinite=found.interval.num_nonfinite,
    )


def _sparsity(results: Results, seed: int) -> Claim:
    values = results.features[batchnorm.BATCHNORM]["sparsity"][:, 0]
    found = bootstrap_interval(values, seed=seed)
    full = results.features[batchnorm.ALL]["sparsity"][:, 0].mean()
    return Claim(
        **_shared(found.num_samples),
        name="C4",
        claim="BatchNorm reaches this partly by switching off about a third of the random "
        "features.",
        paper="around a third; between a quarter and a third in the poster",
        measured=found.estimate,
        unit=f"of all |γ| are below {batchnorm.PAPERS_THRESHOLD}",
        interval=_ends(found),
        interval_of=f"95 % bootstrap over {found.num_samples} networks",
        rule="the mean lies between 0.25 and 0.4",
        holds=bool(0.25 <= found.estimate <= 0.4),
        control=f"{format_number(full)} where everything trains; 0.01 before training",
        num_nonfinite=found.num_nonfinite,
    )


def _batchnorm_matters(results: Results, seed: int) -> Claim:
    found = _paired(results, batchnorm.ALL, batchnorm.ALL_BUT, seed)
    difference = results.accuracy(batchnorm.ALL) - results.accuracy(batchnorm.ALL_BUT)
    return Claim(
        **_shared(found.interval.num_samples),
        name="C5",
        claim="Training scale and shift improves fully trained networks.",
        paper="by 0.5 to 2 points on CIFAR-10, 2 points on ImageNet",
        measured=found.interval.estimate,
        unit="test accuracy, with less without",
        interval=_ends(found.interval),
        interval_of=_pairs(found),
        rule="the interval lies above 0",
        holds=bool(found.interval.low > 0),
        control=f"{format_number(results.accuracy(batchnorm.ALL).mean(), digits=4)} with, "
        f"{format_number(results.accuracy(batchnorm.ALL_BUT).mean(), digits=4)} without; "
        + _power(difference),
        num_nonfinite=found.interval.num_nonfinite,
    )


def _depth_or_width(results: Results, settings: Any, seed: int) -> Claim:
    slopes = [_slopes(*results.along(of)) for of in (deep(settings, "batch"), wide(settings))]
    found = paired_difference(*slopes, seed=seed)
    words = [
        f"{format_number(slope.mean())} through {name}"
        for slope, name in zip(slopes, ("depth", "width"), strict=True)
    ]
    return Claim(
        **_shared(found.interval.num_samples),
        name="C6",
        claim="Accuracy grows with the number of BatchNorm parameters, more steeply through depth "
        "than through width.",
        paper="more steeply through depth than through width (2021)",
        measured=found.interval.estimate,
        unit="test accuracy per factor e of parameters, depth less width",
        interval=_ends(found.interval),
        interval_of=_pairs(found),
        rule="both mean slopes are above 0 and the interval of their difference too",
        holds=bool(found.interval.low > 0 and min(s.mean() for s in slopes) > 0),
        control=f"{', '.join(words)}; {_power(slopes[0] - slopes[1])}",
        num_nonfinite=found.interval.num_nonfinite,
    )


def _slopes(counts: Any, accuracy: Any) -> Any:
    """Least squares slope over log counts, (seeds,); NaN from one count."""
    x = np.log(counts) - np.log(counts).mean()
    return x @ accuracy / (x @ x) if len(counts) > 1 else np.full(accuracy.shape[1], np.nan)


def _paired(results: Results, a: str, b: str, seed: int) -> PairedDifference:
    return paired_difference(results.accuracy(a), results.accuracy(b), seed=seed)


def _power(difference: Any) -> str:
    return f"a true difference of {format_number(detectable(difference))} is found in 4 of 5 runs"


def _pairs(found: PairedDifference) -> str:
    num = found.interval.num_samples
    return f"95 % bootstrap over {num} pairs, p = {format_number(found.p_value, digits=2)}"


def _shared(num: int) -> dict[str, Any]:
    return {"poster": POSTER, "num_samples": num, "num_seeds": num}


def _ends(found: Any) -> tuple[float, float] | None:
    return None if np.isnan(found.low) else (found.low, found.high)
