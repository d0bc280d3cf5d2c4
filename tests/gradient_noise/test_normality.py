"""The tests of normality against scipy in float64, on samples of every kind (oracle 1)."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from poster_jax import gradient_noise as gn
from poster_jax.gradient_noise.normality import _normal_tails, _sorting
from poster_jax.gradient_noise.normality.epps_pulley import _pvalue, limit_eigenvalues

SIZES = (*range(3, 13), 50, 1000, 5000)
NAMES = ("shapiro_wilk", "anderson_darling", "dagostino_k2", "jarque_bera", "epps_pulley")
# One with a sort and one without runs quickly, the others with the slow tests.
FIRST = [
    name if name in ("shapiro_wilk", "epps_pulley") else pytest.param(name, marks=pytest.mark.slow)
    for name in NAMES
]
OLD = "stephens1974"


def kinds(size, seed=0):
    """(4, size): normal, heavy tails, none, and ties."""
    rng = np.random.default_rng(seed)
    ties = np.round(2 * rng.normal(size=size))
    ties[0] = 5.5  # in three numbers, rounded, all may be equal; and scipy takes skewness 0 for 1
    return np.stack([rng.normal(size=size), rng.standard_t(3, size), rng.uniform(size=size), ties])


def scipy_says(name, x):
    """(statistics, p-values) of the rows of x; scipy's Anderson-Darling has p-values by a table."""
    x = np.asarray(x, np.float64)
    if name == "epps_pulley":
        return double_sums(x), np.full(len(x), np.nan)  # scipy has no such test
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "shapiro_wilk":
            found = [stats.shapiro(row) for row in x]
        elif name == "anderson_darling":
            found = [stats.anderson(row, "norm", method="interpolate") for row in x]
        else:
            test = stats.normaltest if name == "dagostino_k2" else stats.jarque_bera
            found = [test(row) for row in x]
    return np.array([f.statistic for f in found]), np.array([f.pvalue for f in found])


def double_sums(x):
    """Epps and Pulley's statistic of each row, by its second form."""
    found = []
    for row in x:
        z, size = (row - row.mean()) / row.std(), row.size
        pairs = np.exp(-((z[:, None] - z) ** 2) / 2).sum() / size
        found.append(pairs - 2**0.5 * np.exp(-(z**2) / 4).sum() + size / 3**0.5)
    return np.array(found)


def ours(name, x, **options):
    return jax.tree.map(np.asarray, getattr(gn, name)(jnp.asarray(x), **options))


@pytest.mark.parametrize("size", SIZES)
def test_shapiro_wilk_is_scipys(x64, size):
    x = kinds(size)
    statistic, pvalue = scipy_says("shapiro_wilk", x)
    found = ours("shapiro_wilk", x)
    np.testing.assert_allclose(found.statistic, statistic, rtol=0, atol=1e-8)
    np.testing.assert_allclose(found.pvalue, pvalue, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [3, 12, 50, 1000, 5001])
def test_anderson_darling_is_scipys(x64, size):
    x = kinds(size)
    statistic, _ = scipy_says("anderson_darling", x)
    # scipy's own form takes M from a sum of the size of M^2 / M
    np.testing.assert_allclose(
        ours("anderson_darling", x).statistic, statistic, rtol=1e-10, atol=1e-10 * size / 1000
    )


@pytest.mark.parametrize("size", [20, 1000])
@pytest.mark.parametrize("name", ["dagostino_k2", "jarque_bera"])
def test_tests_of_moments_are_scipys(x64, name, size):
    x = kinds(size)
    found, expected = ours(name, x), scipy_says(name, x)
    np.testing.assert_allclose(found.statistic, expected[0], rtol=1e-10)
    np.testing.assert_allclose(found.pvalue, expected[1], rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("size", [3, 20, 1000])
def test_epps_pulley_is_its_double_sum(size, x64):
    """Also where two numbers are as far apart as they can be, so that the integrand oscillates."""
    far = np.zeros((1, size))
    far[0, :2] = 1, -1
    x = np.concatenate([kinds(size), far])
    exact = double_sums(x)
    # the double sum takes M from numbers of the size of M
    np.testing.assert_allclose(ours("epps_pulley", x).statistic, exact, atol=1e-13 * max(size, 100))
    single = ours("epps_pulley", x.astype(np.float32)).statistic
    np.testing.assert_allclose(single, exact, rtol=1e-4, atol=1e-6)


def test_the_limit_of_epps_pulley_has_its_mean_and_variance():
    """1 - sqrt(3)/2, and Henze and Zirkler's variance for one dimension and beta = 1."""
    weights = limit_eigenvalues()
    np.testing.assert_allclose(weights.sum(), 1 - 3**0.5 / 2, rtol=1e-10)
    variance = 2 / 5**0.5 + 2 / 3 * (1 + 2 / 9 + 9 / (4 * 81)) - 4 / 8**0.5 * (1 + 3 / 16 + 3 / 128)
    np.testing.assert_allclose(2 * (weights**2).sum(), variance, rtol=1e-10)
    # p-values against a million draws of the limit itself, standard error sqrt(p / 1e6)
    rng, total = np.random.default_rng(0), np.zeros(10**6)
    for weight in weights[:12]:
        total += weight * rng.normal(size=total.size) ** 2
    total += weights[12:].sum()
    for statistic in (0.05, 0.13, 0.378, 0.8):
        pvalue = float(jax.jit(_pvalue)(jnp.float32(statistic)))
        assert abs(pvalue - (total > statistic).mean()) < 4 * (pvalue / total.size) ** 0.5


def test_skewness_and_kurtosis_are_scipys(x64):
    x = kinds(50)
    np.testing.assert_allclose(gn.skewness(x), stats.skew(x, axis=1), rtol=1e-12)
    np.testing.assert_allclose(gn.excess_kurtosis(x), stats.kurtosis(x, axis=1), rtol=1e-12)


def test_shapiro_wilk_in_float32_keeps_three_digits_of_the_pvalue():
    x = kinds(1000, seed=3).astype(np.float32)
    found = ours("shapiro_wilk", x)
    assert found.pvalue.dtype == np.float32
    statistic, pvalue = scipy_says("shapiro_wilk", x)
    np.testing.assert_allclose(found.statistic, statistic, rtol=0, atol=2e-7)
    np.testing.assert_allclose(found.pvalue, pvalue, rtol=1e-3, atol=1e-37)
    # ... which the subtraction would not: 1 - W has 4e-4 of float32's rounding
    assert pvalue[0] > 0.01


def test_anderson_darling_in_float32_keeps_four_digits():
    x = kinds(1000, seed=3).astype(np.float32)
    found = ours("anderson_darling", x)
    np.testing.assert_allclose(found.statistic, scipy_says("anderson_darling", x)[0], rtol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_small_numbers_far_from_zero(dtype):
    """Projections are 1e-8 late in training: their fourth powers do not exist in float32."""
    x = np.random.default_rng(0).normal(size=(2, 200)).astype(np.float32)
    if dtype == np.float16:
        small = x = x.astype(dtype)
    else:
        small = (x * np.float32(1e-30)).astype(dtype)
    for name in NAMES:
        found, expected = ours(name, small), scipy_says(name, x)
        assert found.statistic.dtype == np.float32
        np.testing.assert_allclose(found.statistic, expected[0], rtol=2e-4)
    shifted = np.float32(1024) + np.round(x.astype(np.float32) * 64) / 64  # exact in float32
    found = ours("shapiro_wilk", shifted)
    np.testing.assert_allclose(found.pvalue, scipy_says("shapiro_wilk", shifted)[1], rtol=1e-3)


@pytest.mark.parametrize("name", FIRST)
def test_scale_shift_and_sign_do_not_matter(x64, name):
    """Oracle 9, first half."""
    x = kinds(40)
    found = ours(name, x)
    for changed in (3e-9 * x, x + 7, -x, x[:, ::-1]):
        again = ours(name, changed)
        np.testing.assert_allclose(again.statistic, found.statistic, rtol=1e-8)
        np.testing.assert_allclose(again.pvalue, found.pvalue, rtol=1e-7)


@pytest.mark.parametrize("name", FIRST)
def test_axes_jit_and_vmap(name):
    x = np.random.default_rng(0).normal(size=(2, 20, 3)).astype(np.float32)
    test = getattr(gn, name)
    found = ours(name, x, axis=1)
    assert found.statistic.shape == found.pvalue.shape == (2, 3)
    one = ours(name, x[1, :, 2])
    np.testing.assert_allclose(found.pvalue[1, 2], one.pvalue, rtol=1e-4)
    together = jax.jit(jax.vmap(lambda a: test(a, axis=0)))(x)
    np.testing.assert_allclose(together.pvalue, found.pvalue, rtol=1e-4)


@pytest.mark.parametrize("name", FIRST)
def test_a_population_of_one(name):
    """A `vmap` over one member is what `map_population` makes of a single network."""
    x = jnp.asarray(np.random.default_rng(6).normal(size=(70, 200)), jnp.float32)
    alone = getattr(gn, name)(x)
    of_one = jax.jit(jax.vmap(getattr(gn, name)))(x[None])
    np.testing.assert_allclose(of_one.statistic[0], alone.statistic, rtol=1e-5)
    np.testing.assert_allclose(of_one.pvalue[0], alone.pvalue, rtol=1e-3, atol=1e-6)


def test_several_tests_are_the_single_ones(x64):
    x = kinds(30)
    old = f"anderson_darling_{OLD}"
    found = gn.normality_tests(x, tests=(*NAMES, old))
    assert set(found) == {*NAMES, old}
    for name in found:
        options = {"critical_values": OLD} if name == old else {}
        single = ours("anderson_darling" if name == old else name, x, **options)
        np.testing.assert_allclose(found[name].statistic, single.statistic, rtol=1e-12)
        np.testing.assert_allclose(found[name].pvalue, single.pvalue, rtol=1e-10, atol=1e-30)


@pytest.mark.parametrize("name", FIRST)
def test_equal_numbers_and_numbers_that_are_not_finite_give_nan(name):
    x = np.random.default_rng(0).normal(size=(100, 20)).astype(np.float32)
    bad = {0: np.float32(0.0), 1: np.float32(0.1), 2: np.nan, 3: np.inf}
    good = ours(name, x)
    x[0], x[1], x[2, 5], x[3, 7] = bad.values()
    found = ours(name, x)
    nan = np.isnan(found.statistic)
    np.testing.assert_array_equal(nan, np.isnan(found.pvalue))
    np.testing.assert_array_equal(np.flatnonzero(nan), list(bad))
    np.testing.assert_array_equal(found.pvalue[4:], good.pvalue[4:])


def test_null_calibration():
    """Oracle 2: of 4,000 normal samples a test at 5 % rejects 5 %; p-values have mean 1/2."""
    x = jax.random.normal(jax.random.key(0), (4000, 200))
    for found in gn.normality_tests(x, tests=(*NAMES[:3], NAMES[4])).values():
        assert abs(float(jnp.mean(found.pvalue < 0.05)) - 0.05) < 3 * (0.05 * 0.95 / 4000) ** 0.5
        assert abs(float(found.pvalue.mean()) - 0.5) < 4 * (1 / 12 / 4000) ** 0.5


def test_coefficients_are_antisymmetric_and_of_norm_one():
    for size in SIZES:
        a = gn.royston_coefficients(size)
        np.testing.assert_array_equal(a, -a[::-1])
        np.testing.assert_allclose(a @ a, 1, rtol=1e-12)
        assert (np.diff(a) > 0).all()


def test_both_tables_of_critical_values():
    levels, new = gn.anderson_darling_critical_values(10**9)
    np.testing.assert_array_equal(levels, [0.15, 0.10, 0.05, 0.025, 0.01])
    np.testing.assert_allclose(new, [0.561, 0.631, 0.752, 0.873, 1.035], rtol=1e-7)
    _, old = gn.anderson_darling_critical_values(50, table="stephens1974")
    # as scipy up to 1.16 gives them for 50 numbers, rounded to three decimals
    np.testing.assert_allclose(old, [0.538, 0.613, 0.736, 0.858, 1.021], atol=6e-4)


def test_the_table_of_1974_rejects_what_exceeds_it(x64):
    x = np.random.default_rng(0).normal(size=(3000, 30))
    x[0] = 1.0
    new, old = (ours("anderson_darling", x, critical_values=t) for t in ("dagostino", OLD))
    np.testing.assert_array_equal(old.statistic, new.statistic)
    assert np.isnan(old.pvalue[0])
    found = []
    for value in (0.576, 0.656, 0.787, 0.918, 1.092):
        found.append(old.statistic > value / (1 + 4 / 30 - 25 / 30**2))
    for level, exceeds in zip((0.15, 0.1, 0.05, 0.025, 0.01), found, strict=True):
        np.testing.assert_array_equal(old.pvalue < level, exceeds)
        assert 0 < exceeds.sum() < 600
    in_order = old.pvalue[np.argsort(old.statistic)][:-1]
    assert (np.diff(in_order) <= 0).all()
    assert in_order[0] == 1


def test_pvalue_of_anderson_darling_is_that_of_its_critical_values(x64):
    """The formula and the table are two fits of one law; they agree to the last digit printed."""
    from poster_jax.gradient_noise.normality.anderson_darling import _PIECES, _pvalue

    levels, values = gn.anderson_darling_critical_values(10**9)
    ends = np.array([end for end, *_ in _PIECES[:3]])
    found = np.asarray(jax.jit(_pvalue)(np.concatenate([values, ends - 1e-9, ends])))
    pvalues, below, above = np.split(found, [len(values), len(values) + len(ends)])
    np.testing.assert_allclose(pvalues, levels, rtol=0.025)
    np.testing.assert_allclose(below, above, atol=5e-3)


def test_normal_tails_are_scipys():
    t = np.concatenate([np.linspace(0, 75, 20001), np.logspace(-8, 1, 500)]).astype(np.float32)
    found = jax.jit(_normal_tails.log_normal_tails)(t)
    lower, upper = (np.asarray(v, np.float64) for v in found)
    exact = t.astype(np.float64)
    np.testing.assert_allclose(lower, special.log_ndtr(-exact), rtol=1e-6)
    np.testing.assert_allclose(upper, special.log_ndtr(exact), rtol=5e-6, atol=1e-30)


@pytest.mark.parametrize("size", [1, 2, 5, 16, pytest.param(33, marks=pytest.mark.slow)])
def test_the_network_sorts(size):
    """By the 0-1 principle a network that sorts zeros and ones sorts; random numbers beside."""
    rng = np.random.default_rng(0)
    columns = 2 ** min(size, 7)
    bits = (np.arange(columns) >> np.arange(size)[:, None] % 7) & 1
    x = np.concatenate([bits, rng.normal(size=(size, 100))], axis=1).astype(np.float32)
    ours = jax.jit(_sorting.sort_columns)(x)
    np.testing.assert_array_equal(ours, np.sort(x, axis=0))


def test_a_last_short_tile():
    x = np.random.default_rng(0).normal(size=(9000, 40)).astype(np.float32)
    assert len(x) % _sorting.columns_at_once(40)
    whole = ours("shapiro_wilk", x).pvalue
    np.testing.assert_allclose(whole[-3:], ours("shapiro_wilk", x[-3:]).pvalue, rtol=1e-4)


@pytest.mark.slow
def test_eight_devices_say_what_one_says():
    x = np.random.default_rng(0).normal(size=(64, 50)).astype(np.float32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
    found = ours("shapiro_wilk", spread)
    np.testing.assert_allclose(found.pvalue, ours("shapiro_wilk", x).pvalue, rtol=1e-4)
