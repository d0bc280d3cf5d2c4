"""The claims C1 to C4 of `dynamic_learning_rate`, each with the rule written beforehand."""

from typing import Any, NamedTuple

import numpy as np

from experiments import _rates as rates
from poster_jax.core.claims import Claim, format_number, paired_difference

MARGIN = -0.5  # points
START = 0.1  # AALR's initial rate in C1 and C2


class Results(NamedTuple):
    """The numbers of a run.

    Attributes:
      arms: kind of training ("plain", "FGSM", "PGD") -> arm -> its initial rates.
      found: kind -> arm -> name -> (rates, seeds, ...).
      seconds: name -> (repeats,), an epoch's.
      edge: of `rates.edge`, with a leading axis of initial rates.
      quadratics: of `rates.quadratic`, likewise.
      chance: accuracy of a guess, which a diverged network gets.
    """

    arms: dict[str, dict[str, tuple[float, ...]]]
    found: dict[str, dict[str, Any]]
    seconds: dict[str, Any]
    edge: dict[str, Any]
    quadratics: dict[str, Any]
    chance: float

    def score(self, kind: str, arm: str, name: str) -> Any:
        """Accuracies in percent, (rates, seeds); chance where a network is not finite."""
        values = np.asarray(self.found[kind][arm][name], float)
        return 100 * np.where(np.isfinite(values), values, self.chance)

    def num_lost(self, kind: str) -> int:
        """Networks of a kind whose outputs are no longer finite."""
        arms = self.found[kind].values()
        return int(sum((~np.isfinite(arm["test accuracy"])).sum() for arm in arms))

    def best(self, kind: str, measure: str) -> tuple[str, int]:
        """The baseline arm and the index of its rate with the highest validation accuracy."""
        table = {
            (arm, i): value
            for arm in self.found[kind]
            if arm not in rates.READINGS
            for i, value in enumerate(self.score(kind, arm, f"valid {measure}").mean(1))
        }
        return max(table, key=lambda place: table[place])


def claims_of(results: Results, *, seed: int) -> list[Claim]:
    """All claims, in the order of the paper."""
    return [
        _not_below(results, "plain", "C1", "accuracy", seed),
        *(
            _not_below(results, kind, f"C2 ({kind})", "robust", seed)
            for kind in results.found
            if kind != "plain"
        ),
        _no_overhead(results, seed),
        _no_tuning(results, seed),
    ]


def _not_below(results: Results, kind: str, name: str, measure: str, seed: int) -> Claim:
    arm, index = results.best(kind, measure)
    start = int(np.argmin(np.abs(np.log(np.array(results.arms[kind][rates.AALR]) / START))))
    ours = results.score(kind, rates.AALR, f"test {measure}")[start]
    theirs = results.score(kind, arm, f"test {measure}")[index]
    found = paired_difference(ours, theirs, seed=seed).interval
    words = {
        "accuracy": ("without tuning AALR is not below the best hand-tuned schedule", "test"),
        "robust": ("the same holds for adversarial training", "robust test"),
    }
    statement, what = words[measure]
    rate = results.arms[kind][arm][index]
    deviation = format_number(theirs.std(ddof=1)) if len(theirs) > 1 else "unknown"
    other = ""
    if rates.ALWAYS in results.found[kind]:
        always = results.score(kind, rates.ALWAYS, f"test {measure}")[start].mean()
        other = f" (restoring after every failure {format_number(always)} %)"
    return Claim(
        poster="dynamic_learning_rate",
        name=name,
        claim=f"{statement[0].upper()}{statement[1:]}.",
        paper="consistently top-level accuracy compared to the baselines",
        measured=found.estimate,
        unit=f"points of {what} accuracy",
        interval=None if np.isnan(found.low) else (found.low, found.high),
        interval_of=f"95 % bootstrap of the mean over {found.num_samples} paired seeds",
        rule=f"the interval's lower end lies above {MARGIN} points",
        holds=bool(found.low > MARGIN),
        control=f"AALR {format_number(ours.mean())} %{other}, the baseline best on validation "
        f"({arm}, rate {rate:g}) {format_number(theirs.mean())} % with a standard deviation over "
        f"seeds of {deviation}; the interval reaches "
        f"{format_number((found.high - found.low) / 2)} points to either side",
        num_samples=found.num_samples,
        num_seeds=found.num_samples,
        num_nonfinite=results.num_lost(kind),
    )


def _no_overhead(results: Results, seed: int) -> Claim:
    ours, theirs = (results.seconds[name] for name in (rates.AALR, "plain SGD"))
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(ours), size=(2000, len(ours)))
    ratios = np.median(ours[rows], axis=1) / np.median(theirs[rows], axis=1)
    ratio = rates.median_ratio(results.seconds)
    return Claim(
        poster="dynamic_learning_rate",
        name="C3",
        claim="The controller costs nothing: an epoch takes the time of one of plain SGD.",
        paper="no computational overhead",
        measured=ratio,
        unit="ratio of the median epoch times",
        interval=tuple(np.quantile(ratios, [0.025, 0.975])),
        interval_of=f"95 % bootstrap over {len(ours)} repeats in turn",
        rule="the ratio is at most 1.03; rejected epochs are part of every budget",
        holds=bool(ratio <= 1.03),
        control=f"an epoch of one network takes {format_number(1e3 * np.median(theirs))} ms",
        num_samples=len(ours),
    )


def _no_tuning(results: Results, seed: int) -> Claim:
    ours, constant = (
        results.score("plain", arm, "test accuracy") for arm in (rates.AALR, "constant")
    )
    spread = lambda values: values.max(-1) - values.min(-1)  # noqa: E731
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, ours.shape[1], size=(2000, ours.shape[1]))
    drawn = spread(ours[:, rows].mean(-1).T)
    grid = results.arms["plain"][rates.AALR]
    other = ""
    if rates.ALWAYS in results.found["plain"]:
        always = results.score("plain", rates.ALWAYS, "test accuracy").mean(1)
        other = f"; AALR restoring after every failure: {format_number(spread(always))} points"
    mine, theirs = float(spread(ours.mean(1))), float(spread(constant.mean(1)))
    return Claim(
        poster="dynamic_learning_rate",
        name="C4",
        claim=f"Accuracy hardly depends on the initial rate, from {min(grid):g} to {max(grid):g}.",
        paper="parameterless; what that must mean (not a figure of the paper)",
        measured=mine,
        unit="points between the best and the worst initial rate, means over seeds",
        interval=tuple(np.quantile(drawn, [0.025, 0.975])),
        interval_of=f"95 % bootstrap over {ours.shape[1]} seeds",
        rule="below 2 points, while the same range of constant rates is above 20",
        holds=bool(mine < 2 and theirs > 20),
        control=f"constant rates: {format_number(theirs)} points{other}",
        num_samples=ours.size,
        num_seeds=ours.shape[1],
        num_nonfinite=results.num_lost("plain"),
    )
