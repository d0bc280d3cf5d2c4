"""The recursion against networks that were drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.finite_width import nongaussian as ng

NETWORKS = {
    "tanh": {"C_W": 1.5, "C_b": 0.1},
    "erf": {"C_W": 1.4, "C_b": 0.05},
    "relu": {"C_W": 2.0, "C_b": 0.1},
    "gelu": {"C_W": 1.9, "C_b": 0.1},
    "quadratic": {"C_W": 0.3, "C_b": 0.1},
}


def moments(G, blocks=50):
    """Mean and covariance over pairs, with standard errors over blocks of networks."""
    rows, columns = np.triu_indices(G.shape[-1])
    pairs = np.asarray(G)[:, rows, columns]
    pairs = pairs[: len(pairs) // blocks * blocks].reshape(blocks, -1, len(rows))
    means = pairs.mean(1)
    centred = pairs - means.mean(0)
    covariances = centred.transpose(0, 2, 1) @ centred / pairs.shape[1]
    return [(a.mean(0), a.std(0, ddof=1) / np.sqrt(blocks)) for a in (means, covariances)]


def test_networks_by_conditional_draws_are_networks_by_weights(inputs):
    """The same law as weights drawn one by one in numpy: means and covariances agree."""
    rng, num, (n1, n2) = np.random.default_rng(0), 20_000, (3, 5)
    C_W, C_b = 1.3, 0.2
    first = rng.normal(size=(num, n1, 4)) * np.sqrt(C_W / 4)
    z = inputs @ first.transpose(0, 2, 1) + np.sqrt(C_b) * rng.normal(size=(num, 1, n1))
    second = rng.normal(size=(num, n2, n1)) * np.sqrt(C_W / n1)
    z = np.tanh(z) @ second.transpose(0, 2, 1) + np.sqrt(C_b) * rng.normal(size=(num, 1, n2))
    by_weights = C_b + C_W / n2 * np.tanh(z) @ np.tanh(z).transpose(0, 2, 1)
    drawn = ng.sample_covariances(
        "tanh", inputs, jax.random.key(1), num_samples=num, widths=(n1, n2), depth=2, C_W=C_W,
        C_b=C_b,
    )  # fmt: skip
    for (a, da), (b, db) in zip(moments(by_weights), moments(drawn), strict=True):
        assert np.abs((a - b) / np.hypot(da, db)).max() < 4.5


def test_many_inputs_take_the_weights_themselves(x64):
    """More inputs than neurons: G has the rank of bias and features, and the mean of the kernel."""
    x = np.random.default_rng(0).normal(size=(12, 3))
    options = {"widths": 4, "depth": 1, "C_W": 1.5, "C_b": 0.3}
    G = ng.sample_covariances("erf", x, jax.random.key(0), num_samples=4000, **options)
    assert (np.linalg.matrix_rank(np.asarray(G[:20]), tol=1e-9) <= 5).all()
    (mean, error), (cov, cov_error) = moments(G)
    found = ng.finite_width_kernel("erf", x, 4, depth=1, C_W=1.5, C_b=0.3, fourth="sampling")
    pairs = np.triu_indices(12)
    assert np.abs((mean - np.asarray(found.K)[pairs]) / error).max() < 4.5
    assert np.abs((cov - np.asarray(found.V) / 4) / (cov_error + 2e-3 * cov.max())).max() < 4.5


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "quadratic")) for n in NETWORKS]
)
def test_one_hidden_layer_is_exact_at_width_three(name, inputs):
    """E G = K and Cov G = V / n without higher orders: a wrong factor cannot hide."""
    options = {"widths": 3, "depth": 1, **NETWORKS[name]}
    G = ng.sample_covariances(name, inputs / 2, jax.random.key(2), num_samples=40_000, **options)
    found = ng.finite_width_kernel(name, inputs / 2, **options)
    (mean, error), (cov, cov_error) = moments(G)
    assert np.abs((mean - np.asarray(found.K)[np.triu_indices(3)]) / error).max() < 4.5
    np.testing.assert_allclose(found.G1, 0, atol=1e-12)
    assert np.abs((cov - np.asarray(found.V) / 3) / cov_error).max() < 4.5


@pytest.mark.parametrize(("name", "each", "C_W"), [("linear", 2, 1.0), ("relu", 5, 2.0)])
def test_fourth_moments_of_one_input_are_the_exact_product(name, each, C_W, x64):
    """E f^4 / 3 = E G^2 = K^2 prod (1 + c / n_l), at small unequal widths."""
    widths = (4, 7, 5)
    G = ng.sample_covariances(
        name, np.ones((1, 2)), jax.random.key(3), num_samples=100_000, widths=widths, depth=3,
        C_W=C_W,
    )  # fmt: skip
    square = np.asarray(G[:, 0, 0] / C_W) ** 2
    exact = np.prod([1 + each / n for n in widths])
    assert abs(square.mean() - exact) < 4 * square.std() / np.sqrt(len(square))


def test_the_flow_ends_in_the_last_layer_and_every_group_is_new(inputs):
    options = {"num_samples": 50, "widths": 6, "depth": 3}
    flow = ng.sample_flow("tanh", inputs, jax.random.key(0), **options)
    last = ng.sample_covariances("tanh", inputs, jax.random.key(0), **options)
    np.testing.assert_array_equal(flow[:, -1], last)
    assert len(np.unique(np.asarray(last[:, 0, 0]))) == 50


def z_scores(name, x, width, num, depth=3):
    """Kernel and vertex of `num` networks of two widths against the recursion.

    What is left after the first order falls as 1 / n^2 in E G and as 1 / n in n Cov G; a width and
    its double remove that (Richardson), and the next order is allowed for by its size at the width.
    """
    options = {"depth": depth, **NETWORKS[name]}
    found = ng.finite_width_kernel(name, x, width, **options)
    K, G1 = (np.asarray(a)[np.triu_indices(x.shape[0])] for a in (found.K, found.G1))
    drawn = [
        moments(ng.sample_covariances(name, x, jax.random.key(n), num_samples=num, widths=n,
                                      **options))
        for n in (width, 2 * width)
    ]  # fmt: skip
    shifts = [n * (mean - K) for n, ((mean, _), _) in zip((width, 2 * width), drawn, strict=True)]
    shift = 2 * shifts[1] - shifts[0]
    error = np.hypot(4 * width * drawn[1][0][1], width * drawn[0][0][1])
    vertices = [n * cov for n, (_, (cov, _)) in zip((width, 2 * width), drawn, strict=True)]
    vertex = 2 * vertices[1] - vertices[0]
    vertex_error = np.hypot(4 * width * drawn[1][1][1], width * drawn[0][1][1])
    left_G = np.abs(shifts[1] - shifts[0]).max() ** 2 / (np.abs(G1).max() + 1e-12)
    left_V = np.abs(vertices[1] - vertices[0]).max() ** 2 / np.abs(vertex).max()
    return (
        (shift - G1) / (error + 2 * left_G),
        (vertex - np.asarray(found.V)) / (vertex_error + 2 * left_V),
        np.abs(vertex_error / np.diag(vertex).max()).max(),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_three_layers_are_those_of_a_million_drawn_networks(name, inputs):
    """Half of them of width 50, half of width 100."""
    depth = 2 if name == "quadratic" else 3  # its higher moments grow with every layer
    shift, vertex, precision = z_scores(name, inputs / 2, 50, 500_000, depth)
    assert np.abs(shift).max() < 4.5
    assert np.abs(vertex).max() < 4.5
    assert precision < 0.03


def test_more_than_one_device_group_is_the_same_law_whatever_the_number(x64):
    x = jnp.ones((1, 3))
    found = ng.sample_covariances("relu", x, jax.random.key(0), num_samples=7, widths=4, depth=1)
    assert found.shape == (7, 1, 1)
    assert jnp.isfinite(found).all()
