"""Exponents from synthetic data with a known answer, and the rules of the verdict."""

import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.finite_width import feynman
from poster_jax.finite_width.feynman import (
    correlator,
    fit_exponent,
    measure,
    measurement_from_samples,
)

WIDTHS = (16, 32, 64, 128, 256, 512)


def synthetic(rng, *, s, a=1.0, b=0.0, noise=0.5, networks=400, widths=WIDTHS, floor=0.0):
    """Gamma distributed values (skewed, as products are) of mean a n^s (1 + b/n)."""
    samples = []
    for n in widths:
        mean = a * n**s * (1 + b / n)
        shape = noise**-2
        values = mean * rng.gamma(shape, 1 / shape, size=networks)
        samples.append(values + floor * rng.normal(size=networks))
    return measurement_from_samples(samples, widths=widths)


@pytest.mark.parametrize(
    ("s", "b"),
    [(-1, 1.5), *(pytest.param(*c, marks=pytest.mark.slow) for c in [(0, 0), (-2, -2), (-1, 4)])],
)
def test_the_interval_covers_the_true_exponent(s, b):
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        found = fit_exponent(synthetic(rng, s=s, b=b), bound=s, num_resamples=400)
        covered.append(found.interval[0] <= s <= found.interval[1])
    # Nominal 95 %; 400 trials know it to 1.1 %.
    assert 0.90 <= np.mean(covered) <= 0.98


def test_without_the_next_order_the_slope_would_be_off():
    rng = np.random.default_rng(0)
    found = fit_exponent(synthetic(rng, s=-1, b=4, networks=40_000), bound=-1)
    assert found.plain_interval[1] < -1
    assert found.interval[0] < -1 < found.interval[1]
    assert found.correction == pytest.approx(4, abs=1)
    assert found.amplitude == pytest.approx(1, abs=0.05)


def test_a_misfit_is_seen():
    rng = np.random.default_rng(0)
    good = fit_exponent(synthetic(rng, s=-1, networks=4000), bound=-1)
    samples = [(1 / n + 0.2 * (n == 64) / n) * (1 + 0.01 * rng.normal(size=400)) for n in WIDTHS]
    bad = fit_exponent(measurement_from_samples(samples, widths=WIDTHS), bound=-1)
    assert good.misfit < 5 < bad.misfit


@pytest.mark.parametrize(
    ("s", "bound", "verdict"),
    [(-1, -1, "tight"), (-2, -1, "loose"), (-0.5, -1, "violated"), (0, 0, "tight")],
)
def test_verdicts(s, bound, verdict):
    rng = np.random.default_rng(1)
    found = fit_exponent(synthetic(rng, s=s, networks=10_000, noise=0.2), bound=bound)
    assert found.verdict == verdict


def test_an_interval_that_is_too_wide_decides_nothing():
    rng = np.random.default_rng(0)
    found = fit_exponent(synthetic(rng, s=-1, networks=20), bound=-1)
    assert found.interval[1] > -0.9
    assert found.verdict == "undecided"


def test_widths_lost_in_noise_are_left_out():
    rng = np.random.default_rng(0)
    # At width n the signal is n^-1 and the noise of the mean 0.3 / 20: lost beyond width 20.
    found = fit_exponent(synthetic(rng, s=-1, floor=0.3), bound=-1)
    assert not found.used[-3:].any()
    assert found.verdict == "undecided"
    assert np.isnan(found.value)


def test_negative_correlators_keep_their_sign_and_a_change_of_sign_ends_the_fit():
    rng = np.random.default_rng(0)
    down = fit_exponent(synthetic(rng, s=-1, a=-3, networks=4000), bound=-1)
    assert down.amplitude == pytest.approx(-3, rel=0.1)
    samples = [np.sign(n - 50) / n + 1e-4 * rng.normal(size=400) for n in WIDTHS]
    changed = fit_exponent(measurement_from_samples(samples, widths=WIDTHS), bound=-1)
    assert changed.verdict == "undecided"
    assert changed.used.all()


def test_what_is_zero_in_every_network_is_zero(x64, key):
    linear = feynman.deep_network(lambda z: z, depth=1, input_dim=1)
    star = correlator("dddf(df, df, df)")
    found = measure(star, *linear, {"x": np.ones(1)}, key, widths=[2, 4, 8], num_networks=10)
    assert fit_exponent(found).verdict == "zero"


def test_a_constant_is_tight_though_nothing_varies():
    found = fit_exponent(measurement_from_samples([np.ones(5)] * 4, widths=[1, 2, 4, 8]), bound=0)
    assert found.verdict == "tight"
    assert found.value == pytest.approx(0, abs=1e-9)


def test_the_chain_of_a_network_has_exponent_minus_one(x64, key):
    network = feynman.deep_network(jnp.tanh, depth=1, input_dim=1)
    chain = correlator("df.ddf.ddf.df")
    found = measure(
        chain, *network, {"x": np.ones(1)}, key, widths=[8, 16, 32, 64], num_networks=20_000
    )
    fit = fit_exponent(found)
    assert fit.verdict == "tight"
    assert fit.interval[0] < -1 < fit.interval[1]
    # 0.6306 / n exactly, from the one-layer formula.
    exact = feynman.one_layer_polynomial(chain, jnp.tanh).terms[1,]
    assert fit.amplitude == pytest.approx(exact, rel=0.2)


def test_the_same_seed_gives_the_same_interval():
    found = synthetic(np.random.default_rng(0), s=-1)
    assert fit_exponent(found, bound=-1)[:4] == fit_exponent(found, bound=-1)[:4]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("widths", "options", "words"),
    [
        ((1, 2), {"bound": 0}, "three different widths or more"),
        ((1, 2, 2), {"bound": 0}, "three different widths or more"),
        ((1, 2, 4), {}, "bound must be given"),
        ((1, 2, 4), {"bound": 0, "confidence": 2}, "confidence must lie"),
        ((1, 2, 4), {"bound": 0, "min_significance": 0}, "min_significance must be finite"),
        ((1, 2, 4), {"bound": 0, "num_resamples": 10}, "num_resamples must be at least 100"),
    ],
)
def test_bad_input_is_refused(widths, options, words):
    samples = [np.arange(4.0) + 1 for _ in widths]
    with pytest.raises(ValueError, match=words):
        fit_exponent(measurement_from_samples(samples, widths=widths), **options)


@pytest.mark.bad_input
def test_what_is_no_measurement_is_refused():
    with pytest.raises(TypeError, match="must be a Measurement"):
        fit_exponent(jnp.ones(3))
