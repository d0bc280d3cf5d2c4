"""Singular values and moments against numpy's SVD of `jax.jacrev`."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.jacobian.spectrum import singular_values, spectral_moments


def linear(w, x):
    return x @ w


def network(ws, x):
    for w in ws:
        x = jnp.tanh(x @ w)
    return x


def picture(w, x):
    """(B, 4, 4, 2) to (B, 4, 4, 3), circular."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def make_network(widths, num=2, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    ws = [
        (rng.normal(size=pair) * 1.5 / np.sqrt(pair[0])).astype(dtype)
        for pair in itertools.pairwise(widths)
    ]
    return ws, rng.normal(size=(num, widths[0])).astype(dtype)


def numpy_values(fn, params, x):
    explicit = jax.jit(jax.vmap(jax.jacrev(lambda x: fn(params, x[None])[0].reshape(-1))))(x)
    return np.linalg.svd(np.asarray(explicit).reshape(len(x), explicit.shape[1], -1))


def with_values(values, size, seed=0):
    """A square matrix of these singular values, the rest 0 to 1."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(size, size)))[0] for _ in range(2))
    rest = np.linspace(0, 1, size - len(values)) ** 2
    return (left * np.concatenate([values, rest])) @ right


@pytest.mark.parametrize("widths", [(7, 9, 5), (5, 9, 7)], ids=["wide", "tall"])
def test_all_values_are_those_of_the_explicit_jacobian(widths, x64):
    ws, x = make_network(widths, num=3)
    found = singular_values(network, ws, x)
    _, expected, _ = numpy_values(network, ws, x)
    assert found.values.shape == (3, 5)
    np.testing.assert_allclose(found.values, expected, atol=1e-14)
    assert float(found.residuals.max()) < 1e-14
    assert bool(found.converged.all())
    some = singular_values(network, ws, x, num=2)
    np.testing.assert_allclose(some.values, expected[:, :2], atol=1e-14)


def test_pictures_and_layers_without_params(x64):
    rng = np.random.default_rng(0)
    kernel, x = rng.normal(size=(3, 3, 2, 3)), rng.normal(size=(2, 4, 4, 2))
    found = singular_values(picture, kernel, x)
    _, expected, _ = numpy_values(picture, kernel, x)
    np.testing.assert_allclose(found.values, expected, atol=1e-12)
    inside = (np.abs(x) < 1).sum(axis=(1, 2, 3))
    clipped = singular_values(lambda _, x: jnp.clip(x, -1, 1), (), x)
    np.testing.assert_allclose(clipped.values.sum(axis=1), inside, atol=1e-12)


@pytest.mark.parametrize(
    ("widths", "block_size"),
    [((260, 270, 280), None), pytest.param((280, 270, 260), 1, marks=pytest.mark.slow)],
    ids=["tall, block", "wide, one vector"],
)
def test_lanczos_finds_the_largest(widths, block_size, key, x64):
    ws, x = make_network(widths)
    found = singular_values(network, ws, x, num=4, key=key, block_size=block_size)
    _, expected, _ = numpy_values(network, ws, x)
    np.testing.assert_allclose(found.values, expected[:, :4], rtol=1e-10)
    assert bool(found.converged.all())
    assert float(found.residuals.min()) > 0
    assert float((found.residuals / found.values[:, :1]).max()) <= 1.5e-8
    assert int(found.num_products.max()) < 260  # what the explicit Jacobian costs


@pytest.mark.slow
def test_a_repeated_value_is_found_as_often_as_it_is_there(key, x64):
    """A Krylov space of one vector holds one copy; a block of as many vectors holds them all."""
    w = with_values([3.0, 3.0, 3.0, 2.5], 300)
    found = singular_values(linear, w, np.ones((1, 300)), num=4, key=key)
    np.testing.assert_allclose(found.values[0], [3, 3, 3, 2.5], rtol=1e-12)
    assert bool(found.converged.all())


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, pytest.param(1e-12, marks=pytest.mark.slow), 0.0])
def test_a_closed_krylov_space_goes_on_with_random_vectors(scale, key, x64):
    """Of an isometry every vector is singular; of rank 1 all but one value are 0."""
    rng = np.random.default_rng(3)
    isometry = scale * np.linalg.qr(rng.normal(size=(300, 300)))[0]
    rank_one = scale * np.outer(rng.normal(size=300), rng.normal(size=300))
    find = lambda w: singular_values(linear, w, np.ones((1, 300)), num=3, key=key, block_size=1)  # noqa: E731
    found = find(isometry)
    np.testing.assert_allclose(found.values[0], np.full(3, scale), rtol=1e-13)
    assert bool(found.converged.all())
    found = find(rank_one)
    expected = [np.linalg.norm(rank_one, 2), 0, 0]
    np.testing.assert_allclose(found.values[0], expected, rtol=1e-12, atol=1e-13 * expected[0])
    assert bool(found.converged.all())


@pytest.mark.slow
def test_what_has_not_converged_says_so(key, x64):
    w = with_values([], 300)
    find = lambda w, c: singular_values(  # noqa: E731
        lambda p, x: x @ p[0] / p[1], (w, c), np.ones((1, 300)), num=3, key=key, max_steps=8
    )
    found = find(w, np.float64(1))
    assert not bool(found.converged.any())
    assert int(found.num_products[0]) == 2 * 8 + 2 * 3
    exact = np.linspace(0, 1, 300)[::-1][:3] ** 2
    gaps = np.abs(np.asarray(found.values[0])[:, None] - np.linspace(0, 1, 300) ** 2).min(axis=1)
    assert (gaps <= np.asarray(found.residuals[0])).all()  # some value lies within the residual
    assert (np.asarray(found.values[0]) < exact).all()  # from below, as Ritz values are
    lost = find(w, np.float64(0))
    assert not bool(lost.converged.any())


@pytest.mark.slow
def test_a_population_is_a_vmap_and_float32_is_known_to_its_rounding(key):
    ws, x = make_network((260, 300), num=1, dtype=np.float32)
    of_scale = lambda c: singular_values(network, [c * ws[0]], x, num=3, key=key)  # noqa: E731
    found = jax.jit(jax.vmap(of_scale))(jnp.array([1.0, 0.5]))
    assert found.values.dtype == jnp.float32
    for i, c in enumerate((1.0, 0.5)):
        _, expected, _ = numpy_values(network, [c * ws[0]], x)
        np.testing.assert_allclose(found.values[i], expected[:, :3], rtol=2e-6)
    assert bool(found.converged.all())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_moments_are_unbiased_with_the_standard_error_they_state(dtype, key):
    with jax.enable_x64(dtype == np.float64):
        ws, x = make_network((12, 9, 10), num=3, dtype=dtype)
        _, values, _ = numpy_values(network, ws, x)
        exact = np.stack([(values ** (2 * k)).sum(axis=1) / 10 for k in (1, 2, 3)], axis=1)
        found = spectral_moments(network, ws, x, key, order=3, num_probes=20_000)
        assert found.mean.shape == found.stderr.shape == (3, 3)
        assert found.mean.dtype == dtype
        assert (np.abs(found.mean - exact) < 4 * np.asarray(found.stderr)).all()
        assert (np.asarray(found.stderr) < 0.01 * exact).all()
        # The variance of v' A v is 2 sum of the squared off-diagonal entries, here of A = J J'.
        explicit = jax.vmap(jax.jacrev(lambda x: network(ws, x[None])[0]))(x)
        gram = np.asarray(explicit @ explicit.swapaxes(1, 2), np.float64)
        off = (gram**2).sum(axis=(1, 2)) - (np.diagonal(gram, axis1=1, axis2=2) ** 2).sum(axis=1)
        stated = np.asarray(found.stderr[:, 0], np.float64) ** 2 * 20_000
        np.testing.assert_allclose(stated, 2 * off / 10**2, rtol=0.05)


def test_moments_of_an_isometry_are_exact_and_one_probe_states_no_error(key, x64):
    rng = np.random.default_rng(4)
    isometry = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    found = jax.jit(lambda w: spectral_moments(linear, w, np.ones((2, 5)), key, num_probes=3))(
        2 * isometry
    )
    np.testing.assert_allclose(found.mean, [[4, 16]] * 2, rtol=1e-13)
    assert float(found.stderr.max()) < 1e-13
    one = spectral_moments(linear, isometry, np.ones((2, 5)), key, order=1, num_probes=1)
    np.testing.assert_allclose(one.mean, np.ones((2, 1)), rtol=1e-13)
    assert bool(jnp.isnan(one.stderr).all())
    assert int(one.num_samples) == 1


W = jnp.eye(300)
X = jnp.ones((2, 300))
KEY = jax.random.key(0)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: singular_values(linear, W, X, num=0), ValueError, "num must be at least 1, got 0"),
        (lambda: singular_values(linear, W, X, num=301), ValueError, "num must be at most .*300"),
        (lambda: singular_values(linear, W, X, num=3), TypeError, "key must be a PRNG key.*None"),
        (
            lambda: singular_values(linear, W, X, num=3, key=KEY, max_steps=2),
            ValueError,
            "max_steps must be at least 3, got 2",
        ),
        (
            lambda: singular_values(linear, W, X, num=3, key=KEY, block_size=301),
            ValueError,
            "block_size must be at most .*300, got 301",
        ),
        (
            lambda: singular_values(linear, W, X, num=3, key=KEY, tol=0.0),
            ValueError,
            "tol must be finite and above 0",
        ),
        (lambda: singular_values(3, W, X), TypeError, "apply_fn must be a function, got 3"),
        (lambda: singular_values(linear, W, X.astype(int)), TypeError, "x must be a floating"),
        (lambda: singular_values(linear, W[:2], X), ValueError, "params and data do not fit"),
        (lambda: singular_values(lambda w, x: x.sum(), W, X), ValueError, "leading axis is that"),
        (lambda: spectral_moments(linear, W, X, 3, num_probes=2), TypeError, "key must be a PRNG"),
        (
            lambda: spectral_moments(linear, W, X, KEY, num_probes=0),
            ValueError,
            "num_probes must be at least 1, got 0. The standard error needs at least 2",
        ),
        (
            lambda: spectral_moments(linear, W, X, KEY, order=0, num_probes=2),
            ValueError,
            "order must be at least 1",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, error, message):
    with pytest.raises(error, match=message):
        call()
