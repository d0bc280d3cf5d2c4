"""The claims of `nongaussian_processes`, each with the rule written before the measurement."""

from typing import Any, NamedTuple

import numpy as np

from experiments._finite_priors import ORDER_DEPTH, Flow, Subset
from poster_jax.core.claims import Claim, Interval, bootstrap_interval, format_number

POSTER = "nongaussian_processes"

# Widths from which the expansion is measured; narrower ones are for the search of the best.
EXPANDED = 8
# Effective sample size from which an exact posterior is trusted.
TRUSTED = 100


class Slope(NamedTuple):
    """An exponent with a bootstrap interval."""

    estimate: float
    low: float
    high: float


def fitted_slope(errors: Any, stderrs: Any, widths: Any) -> float:
    """s of error_p(n) = c_p n^s, by least squares weighted with the errors of sampling.

    The signed errors are fitted, so that noise around 0 does not flatten the line as it does in
    logarithms; for every s the best c_p are known.

    Args:
      errors: (widths, quantities).
      stderrs: the same.
      widths: (widths,).
    """
    s = np.linspace(-5, 1, 1201)
    basis = (np.asarray(widths, float) / widths[0])[:, None] ** s
    weight = 1 / np.maximum(stderrs, 1e-300) ** 2
    cross = np.einsum("ws,wp,wp->sp", basis, weight, errors)
    norm = np.einsum("ws,ws,wp->sp", basis, basis, weight)
    return float(s[np.argmax((cross**2 / norm).sum(1))])


def slope_interval(
    errors: Any, stderrs: Any, widths: Any, *, num_resamples: int, seed: int
) -> Slope:
    """The slope over units (first axis) of (units, widths, quantities), units drawn again."""
    rng, num = np.random.default_rng(seed), len(errors)

    def of(picked):
        flat = [np.concatenate(list(a[picked]), -1) for a in (errors, stderrs)]
        return fitted_slope(*flat, widths)

    drawn = [of(rng.integers(num, size=num)) for _ in range(min(num_resamples, 500))]
    low, high = np.quantile(drawn, [0.025, 0.975]) if num > 1 else (np.nan, np.nan)
    return Slope(of(np.arange(num)), float(low), float(high))


def claims_of(
    flows: dict[tuple[str, int], Flow], orders: dict[str, tuple[Any, Any]], real: list[Subset],
    control: list[Subset], settings: Any, seed: int,
) -> list[Claim]:  # fmt: skip
    """All claims, in the order of the card."""
    return [
        _entries_claim(flows),
        _kernel_claim(orders, settings, seed),
        *_posterior_claims(real, settings, seed),
        *_width_claims(real, control, settings, seed),
    ]


def z_scores(flow: Flow, width: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Difference of prediction and networks, and what is allowed, of means and covariances of G.

    Allowed: 4 standard errors, and the next order by its natural size, (layer / width)^2 of the
    kernel for the mean and layer / width of the vertex for the covariance.
    """
    depth, pairs = flow.K.shape
    layer = np.arange(1, depth + 1) / width
    place = np.cumsum([0, 3, 2])[:3]  # of the diagonal of three inputs
    size = np.sqrt(np.abs(np.diagonal(flow.V, axis1=1, axis2=2)))
    kernel = np.sqrt(flow.K[:, place].max(1))[:, None] ** 2 * np.ones(pairs)
    mean, error = flow.shift.mean(0), flow.shift.std(0, ddof=1) / np.sqrt(len(flow.shift))
    cov = flow.covariance.mean(0)
    cov_error = flow.covariance.std(0, ddof=1) / np.sqrt(len(flow.covariance))
    return {
        "mean": (mean - flow.G1 / width, 4 * error + layer[:, None] ** 2 * kernel),
        "covariance": (
            cov - flow.V / width,
            4 * cov_error + (layer[:, None, None] * size[:, :, None] * size[:, None, :]) / width,
        ),
    }


def share_within(flow: Flow, width: int) -> float:
    """Share of different entries of mean and covariance that are within what is allowed."""
    inside = []
    for away, allowed in z_scores(flow, width).values():
        pick = np.triu_indices(away.shape[-1]) if away.ndim == 3 else (slice(None),)
        inside.append((np.abs(away) <= allowed)[(slice(None), *pick)].ravel())
    return float(np.mean(np.concatenate(inside)))


def without_vertex(flow: Flow, width: int) -> float:
    """The control: the share that a Gaussian process, V = 0 and G1 = 0, would reach."""
    none = flow._replace(V=0 * flow.V, G1=0 * flow.G1)
    return share_within(none, width)


def _entries_claim(flows: dict[tuple[str, int], Flow]) -> Claim:
    wide = {key: flow for key, flow in flows.items() if key[1] >= 64}
    shares = [share_within(flow, key[1]) for key, flow in wide.items()]
    found = bootstrap_interval(shares)
    controls = [without_vertex(flow, key[1]) for key, flow in wide.items()]
    return Claim(
        poster=POSTER,
        name="C1 (entries)",
        claim="Kernel and four-point vertex flow from layer to layer by closed recursions.",
        paper="recursions, to first order in 1 / width (abstract)",
        measured=found.estimate,
        unit="share of entries predicted",
        interval=_ends(found),
        interval_of=f"95 % bootstrap over {len(shares)} pairs of activation and width",
        rule="at least 95 % of entries at widths of 64 and more lie within 4 standard errors and "
        "the size of the next order, layer / width",
        holds=bool(found.estimate >= 0.95),
        control=f"a Gaussian process (no vertex, no correction) reaches {np.mean(controls):.2f}",
        num_samples=len(shares),
        num_nonfinite=_nonfinite(flows),
    )


def _kernel_claim(orders: dict[str, tuple[Any, Any]], settings: Any, seed: int) -> Claim:
    widths = np.asarray(settings.order_widths)
    fits = {}
    for order in (1, 0):
        each = [shift - order * G1 / widths[:, None] for shift, G1 in orders.values()]
        errors = np.concatenate(each, -1)
        stderr = errors.std(0, ddof=1) / np.sqrt(len(errors))
        rng = np.random.default_rng(seed)
        picks = rng.integers(len(errors), size=(min(settings.num_resamples, 500), len(errors)))
        drawn = [fitted_slope(errors[pick].mean(0), stderr, widths) for pick in picks]
        estimate = fitted_slope(errors.mean(0), stderr, widths)
        fits[order] = Slope(estimate, *np.quantile(drawn, [0.025, 0.975]))
    found = fits[1]
    return Claim(
        poster=POSTER,
        name="C1 (order)",
        claim="K + G1 / n is the mean covariance up to the second order in 1 / n.",
        paper="first order in 1 / width",
        measured=found.estimate,
        unit=f"exponent of the error in the width, {ORDER_DEPTH} layers of {', '.join(orders)}",
        interval=(found.low, found.high),
        interval_of=f"95 % bootstrap over blocks of networks, widths {widths[0]} to {widths[-1]}",
        rule="the exponent is at most -1.7",
        holds=bool(found.estimate <= -1.7),
        control=f"K alone: {_slope_text(fits[0])}",
        num_samples=len(widths),
        num_nonfinite=sum(int(np.sum(~np.isfinite(shift))) for shift, _ in orders.values()),
    )


def errors_of(subset: Subset, which: str) -> tuple[np.ndarray, np.ndarray]:
    """(all widths, 2 T + 1) differences from the exact posterior and their errors of sampling."""
    found = subset.first if which == "first" else subset.zeroth
    exact = (subset.exact.mean, subset.exact.variance, subset.exact.log_evidence)
    parts, errors = [], []
    for estimate, value in zip(exact, found, strict=True):
        num = len(estimate.mean)
        parts.append((np.asarray(value) - estimate.mean).reshape(num, -1))
        errors.append(np.broadcast_to(estimate.stderr, estimate.mean.shape).reshape(num, -1))
    return np.concatenate(parts, 1), np.concatenate(errors, 1)


def _posterior_claims(real: list[Subset], settings: Any, seed: int) -> list[Claim]:
    kept = np.asarray(settings.widths) >= EXPANDED
    widths = np.asarray(settings.widths)[kept]
    slopes, shares = {}, {}
    for which in ("first", "zeroth"):
        both = [errors_of(subset, which) for subset in real]
        errors, stderrs = (np.stack(a)[:, kept] for a in zip(*both, strict=True))
        slopes[which] = slope_interval(
            errors, stderrs, widths, num_resamples=settings.num_resamples, seed=seed
        )
        tests = settings.num_test
        per_point = [
            fitted_slope(e[:, [t, tests + t]], s[:, [t, tests + t]], widths)
            for e, s in zip(errors, stderrs, strict=True)
            for t in range(tests)
        ]
        shares[which] = np.asarray(per_point)
    first, zeroth = slopes["first"], slopes["zeroth"]
    share = float(np.mean(shares["first"] <= -1.5))
    smallest = min(float(s.exact.effective_sample_size[kept].min()) for s in real)
    lost = sum(int(subset.exact.num_nonfinite.sum()) for subset in real)
    return [
        Claim(
            poster=POSTER,
            name="C2",
            claim="Bayesian inference with the prior of finite width is possible perturbatively.",
            paper="to first order in 1 / width (abstract)",
            measured=first.estimate,
            unit="exponent of the error of mean, variance and evidence in the width",
            interval=(first.low, first.high),
            interval_of=f"95 % bootstrap over {len(real)} subsets, widths {widths[0]} to "
            f"{widths[-1]}",
            rule="the exponent is at most -1.5, that of infinite width between -1.25 and -0.75, "
            "and 90 % of the test points alone reach -1.5 too",
            holds=bool(
                first.estimate <= -1.5 and -1.25 <= zeroth.estimate <= -0.75 and share >= 0.9
            ),
            control=f"infinite width: {_slope_text(zeroth)}; {share:.0%} of {len(per_point)} test "
            f"points reach -1.5; smallest effective sample size {format_number(smallest)}",
            num_samples=len(real),
            num_seeds=len(real),
            num_nonfinite=lost,
        )
    ]


def gains(subsets: list[Subset]) -> dict[str, np.ndarray]:
    """Of every subset: log evidence and squared test error at the best finite width less infinite.

    The best width is that of the largest mean evidence of the other subsets, so that choosing it
    does not favour it, among those where enough sampled networks have weight in every subset. The
    error is that of the exact predictive mean.
    """
    evidence = np.stack([s.exact.log_evidence.mean - s.zeroth[2] for s in subsets])
    at_infinity = [np.mean((s.zeroth[0][0, :, 0] - s.y_test) ** 2) for s in subsets]
    error = np.stack(
        [
            np.mean((s.exact.mean.mean[:, :, 0] - s.y_test) ** 2, 1) - e
            for s, e in zip(subsets, at_infinity, strict=True)
        ]
    )
    others = (evidence.sum(0) - evidence) if len(evidence) > 1 else evidence
    enough = np.min([s.exact.effective_sample_size for s in subsets], 0) >= TRUSTED
    # From the wide end: where the networks with weight were not met at all the size looks fine.
    trusted = np.logical_and.accumulate(enough[::-1])[::-1]
    best = np.where(trusted if trusted.any() else True, others, -np.inf).argmax(1)
    rows = np.arange(len(evidence))
    return {
        "evidence": evidence[rows, best],
        "error": error[rows, best],
        "width": best,
        "trusted": trusted,
        "evidence of all": evidence,
        "error of all": error,
    }


def _width_claims(
    real: list[Subset], control: list[Subset], settings: Any, seed: int
) -> list[Claim]:
    found, shuffled = gains(real), gains(control)
    names = [str(settings.widths[w]) for w in found["width"]]
    shared = {
        "poster": POSTER,
        "interval_of": f"95 % bootstrap over {len(real)} subsets",
        "num_samples": len(real),
        "num_seeds": len(real),
        "paper": "finite width regularises, with an optimal width (memory, unverified)",
    }
    claims = []
    for name, part, unit, sign, what in (
        ("C3 (evidence)", "evidence", "nats over infinite width", 1, "log evidence"),
        ("C3 (test error)", "error", "squared error over infinite width", -1, "squared test error"),
    ):
        interval, random = (
            bootstrap_interval(g[part], num_resamples=settings.num_resamples, seed=seed)
            for g in (found, shuffled)
        )
        better = interval.low > 0 if sign > 0 else interval.high < 0
        claims.append(
            Claim(
                **shared,
                name=name,
                claim=f"A finite width has a better {what} than infinite width.",
                measured=interval.estimate,
                unit=unit,
                interval=_ends(interval),
                rule="the interval, at the width that the other subsets' evidence chooses among "
                f"those of effective sample size {TRUSTED} and more, lies "
                f"{'above' if sign > 0 else 'below'} 0",
                holds=bool(better),
                control=f"widths chosen: {', '.join(names)}; with labels in random order: "
                f"{format_number(random.estimate)}, {format_number(random.low)} to "
                f"{format_number(random.high)}",
                num_nonfinite=interval.num_nonfinite,
            )
        )
    return claims


def _ends(found: Interval) -> tuple[float, float] | None:
    return None if np.isnan(found.low) else (found.low, found.high)


def _slope_text(slope: Slope) -> str:
    return f"{slope.estimate:.2f}, {slope.low:.2f} to {slope.high:.2f}"


def _nonfinite(flows: dict[tuple[str, int], Flow]) -> int:
    return sum(int(np.sum(~np.isfinite(f.shift))) for f in flows.values())
