"""What all tests of normality start from: samples along the leading axis, centred and scaled."""

from typing import Any, NamedTuple

__all__ = ["NormalityTest"]


class NormalityTest(NamedTuple):
    """A test of normality of each sample, mean and variance unknown.

    Attributes:
      statistic: of the samples' leading axes; NaN where all of a sample is one number, or where it
        holds a number that is not finite.
      pvalue: likewise; uniform on [0, 1] for normal samples.
    """

    statistic: Any
    pvalue: Any
