"""Does what a paper says hold here, and how sure can one be?

A `Claim` puts the paper's figure beside the measured one with its interval, the rule that decides
and the control that shows that the rule can fail. The intervals come from scipy's bootstrap and
permutation tests. A number that is not finite is counted and makes the result NaN: whoever wants it
dropped says so with `keep_finite`, and reports how many went.
"""

from poster_jax.core.claims.correlation import (
    Correlation,
    kendall_correlation,
    pearson_correlation,
)
from poster_jax.core.claims.intervals import (
    Interval,
    PairedDifference,
    bootstrap_interval,
    keep_finite,
    paired_difference,
    spread_interval,
)
from poster_jax.core.claims.record import Claim, from_json, load_claims, save_claims, to_json
from poster_jax.core.claims.table import format_number, table

__all__ = [
    "Claim",
    "Correlation",
    "Interval",
    "PairedDifference",
    "bootstrap_interval",
    "format_number",
    "from_json",
    "keep_finite",
    "kendall_correlation",
    "load_claims",
    "paired_difference",
    "pearson_correlation",
    "save_claims",
    "spread_interval",
    "table",
    "to_json",
]
