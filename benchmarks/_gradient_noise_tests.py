"""Tests of normality over many projections at once against scipy, one projection after another."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from benchmarks._harness import compile_seconds, in_turn, row, timed
from poster_jax.gradient_noise import anderson_darling, normality_tests, shapiro_wilk

PROJECTIONS, SAMPLES = 10_000, 1_000


def tests_rows(repeats: int) -> list[dict]:
    """scipy's loop takes seconds, and its time grows with the projections: a tenth is timed."""
    samples = np.random.default_rng(0).normal(size=(PROJECTIONS, SAMPLES)).astype(np.float32)
    device = jax.block_until_ready(jnp.asarray(samples))
    some = samples[:: PROJECTIONS // 1000]
    scale = PROJECTIONS / len(some)
    found = {}

    def scipys(name: str) -> float:
        seconds, found[name] = timed(_LOOPS[name], some)
        return seconds * scale

    sides = {
        "both": lambda: timed(normality_tests, device)[0],
        "shapiro": lambda: timed(shapiro_wilk, device)[0],
        "anderson": lambda: timed(anderson_darling, device)[0],
        "scipy shapiro": lambda: scipys("shapiro"),
        "scipy anderson": lambda: scipys("anderson"),
    }
    compile_s = compile_seconds(normality_tests, device)
    seconds = in_turn(sides, repeats)
    ours = normality_tests(device)
    thinned = slice(None, None, PROJECTIONS // 1000)
    errors = {
        "shapiro_w_error": _largest(ours["shapiro_wilk"].statistic[thinned], found["shapiro"][0]),
        "shapiro_p_error": _largest(ours["shapiro_wilk"].pvalue[thinned], found["shapiro"][1]),
        "anderson_error": _largest(
            ours["anderson_darling"].statistic[thinned], found["anderson"][0]
        ),
    }
    size = f"of {PROJECTIONS:,} projections of {SAMPLES:,}, float32"
    peer = f"a scipy loop, {len(some)} of 10,000 timed"
    loops = seconds["scipy shapiro"] + seconds["scipy anderson"]
    return [
        row(
            f"Shapiro-Wilk and Anderson-Darling {size}",
            seconds["both"],
            peer,
            loops,
            50,
            compile_s=compile_s,
            **errors,
        ),
        row(f"Shapiro-Wilk {size}", seconds["shapiro"], peer, seconds["scipy shapiro"], 50),
        row(f"Anderson-Darling {size}", seconds["anderson"], peer, seconds["scipy anderson"], 50),
    ]


def _shapiro_loop(rows: np.ndarray) -> np.ndarray:
    found = [stats.shapiro(one) for one in rows]
    return np.array([(f.statistic, f.pvalue) for f in found]).T


def _anderson_loop(rows: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():  # the p-value of its table is capped, which it says each time
        warnings.simplefilter("ignore")
        found = [stats.anderson(one, "norm", method="interpolate") for one in rows]
    return np.array([(f.statistic, f.pvalue) for f in found]).T


_LOOPS = {"shapiro": _shapiro_loop, "anderson": _anderson_loop}


def _largest(ours: jax.Array, theirs: np.ndarray) -> float:
    return float(np.max(np.abs(np.asarray(ours, np.float64) - theirs)))
