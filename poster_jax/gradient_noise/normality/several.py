"""Several tests of the same samples, which are sorted once."""

from collections.abc import Sequence
from typing import Any

from poster_jax.core.checks import check_choice
from poster_jax.core.typing import Array
from poster_jax.gradient_noise.normality._samples import (
    Measured,
    NormalityTest,
    check_samples,
    measure_samples,
    measure_sorted,
)
from poster_jax.gradient_noise.normality.anderson_darling import (
    ANDERSON_SIZES,
    STEPHENS_SIZES,
    anderson_darling_of_sorted,
    stephens_1974_of_sorted,
)
from poster_jax.gradient_noise.normality.epps_pulley import (
    EPPS_PULLEY_SIZES,
    epps_pulley_of_centred,
)
from poster_jax.gradient_noise.normality.moments import (
    DAGOSTINO_SIZES,
    JARQUE_BERA_SIZES,
    dagostino_k2_of_centred,
    jarque_bera_of_centred,
)
from poster_jax.gradient_noise.normality.shapiro_wilk import SHAPIRO_SIZES, shapiro_wilk_of_sorted

__all__ = ["TESTS", "check_tests", "departures", "normality_tests", "statistic_of"]

TESTS = {
    "shapiro_wilk": (shapiro_wilk_of_sorted, SHAPIRO_SIZES),
    "anderson_darling": (anderson_darling_of_sorted, ANDERSON_SIZES),
    "anderson_darling_stephens1974": (stephens_1974_of_sorted, STEPHENS_SIZES),
    "dagostino_k2": (dagostino_k2_of_centred, DAGOSTINO_SIZES),
    "jarque_bera": (jarque_bera_of_centred, JARQUE_BERA_SIZES),
    "epps_pulley": (epps_pulley_of_centred, EPPS_PULLEY_SIZES),
}


def normality_tests(
    samples: Any,
    *,
    axis: int = -1,
    tests: Sequence[str] = ("shapiro_wilk", "anderson_darling"),
) -> dict[str, NormalityTest]:
    """Several tests of the same samples for the price of one sort.

    Args:
      samples: real, any shape, float16 to float64.
      axis: along which one sample lies; M numbers.
      tests: names, of "shapiro_wilk", "anderson_darling", "dagostino_k2", "jarque_bera",
        "epps_pulley" and "anderson_darling_stephens1974", which rejects by the older table.

    Returns:
      A NormalityTest for each name, as the function of that name gives it.

    Raises:
      ValueError: an unknown name, or none; M that one of the tests does not take.
      TypeError: samples are no real numbers; axis is no integer.

    Source: as the single tests.

    Example:
      >>> found = normality_tests(range(9), tests=["shapiro_wilk", "jarque_bera"])
      >>> sorted(found), round(float(found["shapiro_wilk"].statistic), 3)
      (['jarque_bera', 'shapiro_wilk'], 0.972)
    """
    samples = check_tests(samples, axis, tests)
    measured = departures(samples, tuple(tests))
    return {
        name: NormalityTest(statistic_of(name, found.departure), found.pvalue)
        for name, found in measured.items()
    }


def check_tests(samples: Any, axis: Any, tests: Any) -> Array:
    """The samples with their axis last, when every test takes them."""
    if isinstance(tests, str) or not len(tests):
        raise ValueError(f"tests must be names of one or more of {sorted(TESTS)}, got {tests!r}.")
    for name in tests:
        check_choice("tests", name, TESTS)
        check_samples(samples, axis, name, *TESTS[name][1])
    return check_samples(samples, axis, "a test of normality", 3, None)


def departures(samples: Array, tests: tuple[str, ...]) -> dict[str, Measured]:
    """What the named tests find in (..., M)."""
    in_order = any("sorted" in TESTS[name][0].__name__ for name in tests)
    measure = measure_sorted if in_order else measure_samples
    return dict(zip(tests, measure(tuple(TESTS[name][0] for name in tests), samples), strict=True))


def statistic_of(name: str, departure: Array) -> Array:
    """The statistic as the literature has it; W of Shapiro and Wilk falls with the departure."""
    return 1 - departure if name == "shapiro_wilk" else departure
