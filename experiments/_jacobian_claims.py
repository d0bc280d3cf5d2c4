"""The claims C1 to C5 of `orthogonal_jacobian`, each with the rule written before the measurement.

Methods are compared seed by seed: the same start, the same batches.
"""

from typing import Any, NamedTuple

import numpy as np

from experiments._jacobian_networks import Case
from experiments._jacobian_training import AUTOENCODER, NONE, NORM, ORTHOGONAL
from experiments._program import Run
from poster_jax.core.claims import (
    Claim,
    Interval,
    bootstrap_interval,
    format_number,
    paired_difference,
    spread_interval,
)

# Rounding of float64, summed over a layer's few thousand products.
EXACT = 1e-12


class Cell(NamedTuple):
    """What was found with one activation of one case.

    Attributes:
      title: as pictures and claims name it.
      activation: its name.
      case: data set, network and recipe.
      marks: (marks,) the steps at which gradients were looked at.
      found: method -> name -> (seeds, ...), at the chosen strengths.
      strengths: method -> the chosen strength; 0 for none.
      curves: method -> name -> (strengths, seeds), of the networks that it was chosen by.
      identities: name -> (networks, layers, examples); empty where layers are not dense.
    """

    title: str
    activation: str
    case: Case
    marks: Any
    found: dict[str, dict[str, Any]]
    strengths: dict[str, float]
    curves: dict[str, dict[str, Any]]
    identities: dict[str, Any]

    def accuracy(self, method: str) -> Any:
        """(seeds,) test accuracies."""
        return self.found[method]["test accuracy"]

    def distance(self, method: str) -> Any:
        """(seeds,) |rho| averaged over the marks: how far from constant gradient norms were."""
        return np.abs(self.found[method]["rho"]).mean(axis=1)

    def ratio(self, method: str) -> Any:
        """(seeds,) rho averaged over the marks: below 0 gradients vanished."""
        return self.found[method]["rho"].mean(axis=1)

    @property
    def num_diverged(self) -> int:
        """Networks whose loss was not finite at some step."""
        return int(sum(of["diverged"].sum() for of in self.found.values()))


def claims_of(run: Run, cells: list[Cell]) -> list[Claim]:
    """All claims, in the order of the poster."""
    accuracies = [_accuracy_claim(run, cell) for cell in cells]
    return [
        *accuracies,
        _consistency_claim(run, cells),
        *(_gradient_claim(run, cell, "C2", ORTHOGONAL) for cell in cells),
        *(_gradient_claim(run, cell, "C3", AUTOENCODER) for cell in cells),
        *_identity_claims(run, cells),
        *(_rectifier_claim(run, cell) for cell in cells if cell.activation == "ReLU"),
    ]


def difference(run: Run, a: Any, b: Any) -> Interval:
    """The mean of a - b over seeds, with its 95 % interval."""
    options = {"num_resamples": run.settings.num_resamples, "seed": run.seed}
    return paired_difference(a, b, **options).interval


def difference_text(found: Interval) -> str:
    """The difference with its interval."""
    ends = (format_number(end, digits=2) for end in (found.low, found.high))
    return f"{format_number(found.estimate, digits=2)} [{', '.join(ends)}]"


def _verdict(found: Interval) -> str:
    if found.low > 0:
        return "above 0"
    if found.high < 0:
        return "below 0"
    return "undecided, the interval includes 0"


def _power(a: Any, b: Any) -> str:
    """The smallest true difference that such an interval would tell from 0 in 4 of 5 runs."""
    if len(a) < 2:
        return "one seed has no power"
    # 1.96 + 0.84: the normal quantiles of 5 % two-sided and of 80 %.
    size = 2.8 * np.std(np.asarray(a) - np.asarray(b), ddof=1) / np.sqrt(len(a))
    return f"a true difference of {format_number(size, digits=2)} would be told in 4 of 5 runs"


def _shared(cell: Cell, found: Interval) -> dict[str, Any]:
    return {
        "poster": "orthogonal_jacobian",
        "measured": found.estimate,
        "interval": None if np.isnan(found.low) else (found.low, found.high),
        "interval_of": f"95 % bootstrap over {found.num_samples} seeds, paired",
        "num_samples": 2 * found.num_samples,
        "num_seeds": found.num_samples,
        "num_nonfinite": found.num_nonfinite + cell.num_diverged,
    }


def _accuracy_claim(run: Run, cell: Cell) -> Claim:
    ours, base = cell.accuracy(ORTHOGONAL), cell.accuracy(NONE)
    found = difference(run, ours, base)
    norm = difference(run, cell.accuracy(NORM), base)
    return Claim(
        **_shared(cell, found),
        name=f"C1 ({cell.title})",
        claim="The penalty ||JJ' - I||² of the layers improves the final accuracy.",
        paper="consistently, on MNIST and CIFAR-100; no figures are known",
        unit="test accuracy, with the penalty minus without",
        rule="the interval lies above 0; below 0 it does not hold, else it is undecided",
        holds=bool(found.low > 0),
        control=f"{_verdict(found)}; without {format_number(base.mean())}, with "
        f"{format_number(ours.mean())} at strength {cell.strengths[ORTHOGONAL]:g}; the "
        f"norm-preserving form {difference_text(norm)}; {_power(ours, base)}",
    )


def _consistency_claim(run: Run, cells: list[Cell]) -> Claim:
    each = {c.title: difference(run, c.accuracy(ORTHOGONAL), c.accuracy(NONE)) for c in cells}
    worst = min(each.values(), key=lambda found: np.nan_to_num(found.estimate, nan=-np.inf))
    finite = all(np.isfinite(found.low) for found in each.values())
    better = [title for title, found in each.items() if found.low > 0]
    worse = [title for title, found in each.items() if found.high < 0]
    return Claim(
        **_shared(cells[0], worst) | {"num_nonfinite": sum(cell.num_diverged for cell in cells)},
        name="C1 (consistently)",
        claim="It does so consistently.",
        paper="consistently (abstract)",
        unit=f"test accuracy, with minus without, the smallest of {len(cells)} settings",
        rule="C1 holds in at least one setting and is below 0 in none",
        holds=bool(finite and better and not worse),
        control="; ".join(
            f"{verdict}: {', '.join(titles) or 'none'}"
            for verdict, titles in (
                ("above 0", better),
                ("below 0", worse),
                ("undecided", [title for title in each if title not in better + worse]),
            )
        ),
    )


def _gradient_claim(run: Run, cell: Cell, name: str, method: str) -> Claim:
    ours, base = cell.distance(method), cell.distance(NONE)
    found = difference(run, ours, base)
    norm = difference(run, cell.distance(NORM), base)
    what = {
        ORTHOGONAL: "The penalty ||JJ' - I||² keeps the norm of gradients steadier through depth.",
        AUTOENCODER: "So does the loss of each layer as an autoencoder with tied weights.",
    }[method]
    return Claim(
        **_shared(cell, found),
        name=f"{name} ({cell.title})",
        claim=what,
        paper="stabilises the norm of gradients; alleviates vanishing and exploding gradients",
        unit="decades of |log10 g_1/g_L|, mean over training, with minus without",
        rule="the interval lies below 0; above 0 it does not hold, else it is undecided",
        holds=bool(found.high < 0),
        control=f"{_verdict(found)}; without {format_number(base.mean())}, with "
        f"{format_number(ours.mean())} at strength {cell.strengths[method]:g}; the "
        f"norm-preserving form {difference_text(norm)}; {_power(ours, base)}",
    )


def _identity_claims(run: Run, cells: list[Cell]) -> list[Claim]:
    errors = {cell.title: cell.identities for cell in cells if cell.identities}
    relu = [c.identities for c in cells if c.activation == "ReLU" and c.identities]
    if not errors:
        return []
    claims = []
    shared = {
        "poster": "orthogonal_jacobian",
        "paper": "a relation between the two losses is announced (abstract); the form is derived",
        "num_seeds": run.settings.num_seeds,
    }
    if relu:
        names = ("reconstruction", "reconstruction without bias", "decoded by the weights")
        found = _largest([of[name] for of in relu for name in names])
        others = {
            c.title: np.median(c.identities["decoded by the weights"])
            for c in cells
            if c.identities and c.activation != "ReLU"
        }
        claims.append(
            Claim(
                **shared,
                **_of_spread(found),
                name="C4 (reconstruction)",
                claim="For ReLU the autoencoder's loss is ||(I - J'J)x - J'b||², and "
                "||(I - J'J)x||² without bias: Hutchinson's estimate with the data as its probe.",
                unit="difference over |x|², the largest found",
                rule=f"the largest difference is below {EXACT:g}",
                holds=bool(found.estimate < EXACT),
                control="decoded by the weights, which is right for ReLU alone, the two differ by "
                + (
                    "; ".join(f"{format_number(v)} ({title})" for title, v in others.items())
                    or "nothing here, other activations were not trained"
                ),
            )
        )
    names = ("offset", "offset of the last layer")
    found = _largest([of[name] for of in errors.values() for name in names])
    claims.append(
        Claim(
            **shared,
            **_of_spread(found),
            name="C4 (sides)",
            claim="||J'J - I||² and ||JJ' - I||² differ by inputs minus outputs, whatever J.",
            unit="difference over the penalty plus inputs, the largest found",
            rule=f"the largest difference is below {EXACT:g}, in every setting",
            holds=bool(found.estimate < EXACT),
        )
    )
    if relu:
        claims.append(_noise_claim(run, relu, shared))
    return claims


def _noise_claim(run: Run, relu: list[dict[str, Any]], shared: dict[str, Any]) -> Claim:
    ratios = np.concatenate([of["noise"].reshape(len(of["noise"]), -1) for of in relu])
    kept = np.isfinite(ratios)
    # One number a network: its layers and examples share their weights.
    some = kept.any(axis=1)
    means = [row[use].mean() for row, use in zip(ratios[some], kept[some], strict=True)] or [np.nan]
    found = bootstrap_interval(
        np.asarray(means) - 1, num_resamples=run.settings.num_resamples, seed=run.seed
    )
    half = (found.high - found.low) / 2
    return Claim(
        **shared,
        name="C4 (noise)",
        claim="Noise of variance s² on x adds s² ||J'J - I||² to the loss of a ReLU layer.",
        measured=found.estimate,
        interval=None if np.isnan(found.low) else (found.low, found.high),
        interval_of=f"95 % bootstrap over {found.num_samples} networks",
        unit="estimate over ||J'J - I||², minus 1, mean of all layers",
        rule="the interval contains 0 and is narrower than ±0.01, or the mean is within ±0.001",
        holds=bool((found.low <= 0 <= found.high and half < 0.01) or abs(found.estimate) < 1e-3),
        control=f"{int((~kept).sum())} of {kept.size} layers and examples are left out: a unit is "
        "so near 0 that the noise could switch it",
        num_samples=found.num_samples,
        num_nonfinite=found.num_nonfinite,
    )


def _largest(parts: list[Any]) -> Interval:
    """Over networks, of the largest error of each."""
    rows = [part.reshape(len(part), -1).max(axis=1) for part in parts]
    return spread_interval(np.concatenate(rows))


def _of_spread(found: Interval) -> dict[str, Any]:
    return {
        "measured": found.estimate,
        "interval": None if np.isnan(found.low) else (found.low, found.high),
        "interval_of": "central 95 % of the networks' largest differences",
        "num_samples": found.num_samples,
        "num_nonfinite": found.num_nonfinite,
    }


def _rectifier_claim(run: Run, cell: Cell) -> Claim:
    found = difference(run, cell.accuracy(NORM), cell.accuracy(ORTHOGONAL))
    smaller = difference(run, cell.ratio(ORTHOGONAL), cell.ratio(NORM))
    means = {name: cell.ratio(name).mean() for name in (NONE, ORTHOGONAL, NORM)}
    same = {
        strength: curves
        for strength, *curves in zip(
            run.settings.strengths,
            *(cell.curves[m]["test accuracy"].mean(axis=1) for m in (ORTHOGONAL, NORM)),
            strict=True,
        )
    }
    return Claim(
        **_shared(cell, found),
        name="C5" if cell.title == cell.activation else f"C5 ({cell.title})",
        claim="With ReLU exact orthogonality of the Jacobian shrinks gradients and costs accuracy; "
        "the norm-preserving form does not.",
        paper="not in the poster: derived by this project",
        unit="test accuracy, norm-preserving minus orthogonal",
        rule="the interval lies above 0, and that of the difference of mean log10 g_1/g_L, "
        "orthogonal minus norm-preserving, below 0",
        holds=bool(found.low > 0 and smaller.high < 0),
        control=f"log10 g_1/g_L, orthogonal minus norm-preserving: {difference_text(smaller)}; "
        + ", ".join(f"{name} {format_number(v, digits=2)}" for name, v in means.items())
        + "; test accuracy at equal strength, orthogonal and norm-preserving: "
        + ", ".join(
            f"{strength:g}: {format_number(a, digits=2)} and {format_number(b, digits=2)}"
            for strength, (a, b) in same.items()
        ),
    )


def cells_of(case: Case, marks: Any, found: Any, identities: Any, *, alone: bool) -> list[Cell]:
    """One cell an activation, from what `_jacobian_training.train` and the identities gave."""
    cells = []
    for index, (activation, _) in enumerate(case.activations):
        pick = lambda tree: {name: leaf[index] for name, leaf in tree.items()}  # noqa: B023, E731
        measured = {
            method: pick({k: v for k, v in of.items() if k != "kept"})
            for method, (_, _, of) in found.items()
        }
        cells.append(
            Cell(
                title=activation if alone else f"{case.title}, {activation}",
                activation=activation,
                case=case,
                marks=marks,
                found=measured,
                strengths={m: float(best[index]) for m, (_, best, _) in found.items()},
                curves={m: pick(curves) for m, (curves, _, _) in found.items() if curves},
                identities=identities.get(activation, {}),
            )
        )
    return cells
