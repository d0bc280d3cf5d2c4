"""The numbers of a run of `gradient_noise`, and what follows from them: verdicts cell by cell."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments._program import Run

SMALL = 32  # the batch size that is rejected late
LARGE = (256, 1024)  # those that the poster calls Gaussian
TEST = "shapiro_wilk"  # whose verdict counts; the other is shown beside it


class Results(NamedTuple):
    """The numbers of a run.

    Attributes:
      cases: in the order of the preset.
      found: case -> what was measured, leaves (seeds, checkpoints, ...).
    """

    cases: list[Any]
    found: dict[Any, dict[str, Any]]


class Share(NamedTuple):
    """How many cells of a kind there are, and in how many something is so.

    Attributes:
      count: of the cells where it is so.
      total: of all cells.
    """

    count: int
    total: int

    @property
    def value(self) -> float:
        """The share; NaN without cells."""
        return self.count / self.total if self.total else float("nan")

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 %, Clopper and Pearson: exact for independent cells."""
        if not self.total:
            return None
        low, high = stats.binomtest(self.count, self.total).proportion_ci(method="exact")
        return float(low), float(high)


def share(values: Any) -> Share:
    """Of an array of bools."""
    values = np.asarray(values, bool)
    return Share(int(values.sum()), values.size)


def together(shares: Iterable[Share]) -> Share:
    """The share over all their cells."""
    shares = list(shares)
    return Share(sum(s.count for s in shares), sum(s.total for s in shares))


def inside(run: Run, found: dict[str, Any], batch_size: int, test: str = TEST) -> np.ndarray:
    """(seeds, checkpoints): whether the rejected fraction is inside the surrogates' band."""
    at = run.settings.batch_sizes.index(batch_size)
    return np.asarray(found["verdicts"]["tests"][test].inside_band[:, :, at], bool)


def early(run: Run, found: dict[str, Any]) -> np.ndarray:
    """(seeds, checkpoints): whether training accuracy is still below the limit."""
    return found["accuracy"] < run.settings.early_below


def gaussian_early(run: Run, results: Results) -> dict[Any, dict[int, Share]]:
    """Case -> batch size -> share of early cells whose noise passes as Gaussian."""
    return {
        case: {size: share(inside(run, of, size)[early(run, of)]) for size in LARGE}
        for case, of in results.found.items()
    }


def rejected_late(run: Run, results: Results, batch_size: int) -> Share:
    """Share of networks whose noise at the last checkpoint is outside of the band."""
    return share(
        np.concatenate([~inside(run, of, batch_size)[:, -1] for of in results.found.values()])
    )


def foretold(
    run: Run, found: dict[str, Any], *, with_skewness: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(seeds, checkpoints, sizes): whether b > b*, and whether the verdict is Gaussian.

    `with_skewness` takes for b* the larger one of both that single examples foretell. Cases without
    a gradient of single examples have no b*: their arrays are empty.
    """
    critical = found["critical"]
    if with_skewness:
        critical = np.maximum(critical, found["critical_by_skewness"])
    if not np.isfinite(critical).all():
        return np.zeros((0, 0, 0), bool), np.zeros((0, 0, 0), bool)
    above = np.asarray(run.settings.batch_sizes) > critical[..., None]
    return above, np.asarray(found["verdicts"]["tests"][TEST].inside_band, bool)


def tails(run: Run, found: dict[str, Any]) -> dict[str, np.ndarray]:
    """Tail indices (cells,) of those cells that pass C1 at the batch size of the vectors."""
    cells = early(run, found) & inside(run, found, run.settings.vector_batch)
    values = {name: found[name][cells] for name in ("pooled", "by_coordinate", "zeros")}
    for name in ("same_covariance", "same_variances"):
        values[name] = found[name][cells].mean(axis=-1)
    return values
