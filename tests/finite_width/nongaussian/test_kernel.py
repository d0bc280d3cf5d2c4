"""K, G1 and V of whole networks: closed cases, symmetries, and the forms agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.finite_width import nongaussian as ng
from poster_jax.kernels import stax


def one_input(name, widths, C_W):
    found = ng.finite_width_kernel(name, np.ones((1, 3)), widths, depth=len(widths), C_W=C_W)
    return [np.asarray(part).item() for part in (*found.corrections(), found.K)]


@pytest.mark.parametrize(("name", "C_W", "each"), [("linear", 1.0, 2), ("relu", 2.0, 5)])
@pytest.mark.parametrize("widths", [(30,), (40, 40, 40), (20, 50, 35, 80)])
def test_one_input_gives_the_first_order_of_the_exact_product(name, C_W, each, widths, x64):
    """E f^4 / 3 = K^2 prod_l (1 + c / n_l): to first order V / n = K^2 sum_l c / n_l."""
    K, shift, vertex, _ = one_input(name, widths, C_W)
    assert pytest.approx(1.0, rel=1e-12) == (K if name == "linear" else K / 2)
    assert vertex / K**2 == pytest.approx(sum(each / n for n in widths), rel=1e-12)
    assert shift == pytest.approx(0, abs=1e-15)


def test_a_linear_network_has_the_isserlis_vertex(inputs):
    found = ng.finite_width_kernel("linear", inputs, 64, depth=3)
    K = np.asarray(found.K)
    exact = 3 * (np.einsum("ac,bd->abcd", K, K) + np.einsum("ad,bc->abcd", K, K))
    np.testing.assert_allclose(ng.expand_vertex(found), exact, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.G1, 0, atol=1e-14)


@pytest.mark.slow
def test_the_kernel_is_that_of_stax(inputs):
    layers = [
        stax.Dense(64, 1.3, 0.2), stax.Erf(), stax.Dense(32, 1.1, 0.3), stax.Relu(),
        stax.Dense(16, 0.9), stax.Gelu(), stax.Dense(1, 1.2, 0.1),
    ]  # fmt: skip
    net = ng.from_stax(*layers)
    assert net.widths == (64, 32, 16)
    assert [phi.name for phi in net.activations] == ["Erf", "relu", "Gelu"]
    np.testing.assert_allclose(net.C_W, np.square([1.3, 1.1, 0.9, 1.2]), rtol=1e-12)
    np.testing.assert_allclose(net.C_b, np.square([0.2, 0.3, 0, 0.1]), atol=1e-12)
    K0, shift, vertex = ng.finite_width_kernel(net, inputs, 100).corrections()
    of_stax = jax.jit(lambda x: stax.serial(*layers)[2](x, None, "nngp"))(inputs)
    np.testing.assert_allclose(K0, of_stax, rtol=1e-10)
    assert np.abs(shift).max() < 0.1
    assert np.linalg.eigvalsh(vertex).min() > -1e-12


@pytest.mark.parametrize("form", ["dense", "factored"])
def test_permuting_the_inputs_permutes_everything(inputs, form):
    order = np.array([2, 0, 1])

    def at(x):
        found = ng.finite_width_kernel("gelu", x, 50, depth=2, C_W=1.8, C_b=0.1, form=form, rank=60)
        return [np.asarray(part) for part in (found.K, found.G1, ng.expand_vertex(found))]

    K, G1, V = at(inputs)
    other = at(inputs[order])
    # Quasi-random neurons differ by the order of the inputs; quadrature does not notice.
    error = 1e-9 if form == "dense" else 5e-3 * np.abs(V).max()
    np.testing.assert_allclose(other[0], K[np.ix_(order, order)], rtol=1e-10)
    np.testing.assert_allclose(other[1], G1[np.ix_(order, order)], atol=error)
    np.testing.assert_allclose(other[2], V[np.ix_(order, order, order, order)], atol=error)


@pytest.mark.parametrize("name", ["tanh", "relu", "erf", "gelu", "quadratic", "sin"])
def test_the_vertex_is_a_covariance(inputs, name):
    widths = (30, 40, 50)
    found = ng.finite_width_kernel(name, inputs, widths, depth=3, C_W=0.8, C_b=0.1)
    V = np.asarray(ng.expand_vertex(found))
    for axes in ((1, 0, 2, 3), (0, 1, 3, 2), (2, 3, 0, 1)):
        np.testing.assert_allclose(V, V.transpose(axes), rtol=1e-12, atol=1e-14)
    values = np.linalg.eigvalsh(V.reshape(9, 9))
    assert values.min() > -1e-7 * values.max()
    G1 = np.asarray(found.G1)
    np.testing.assert_allclose(G1, G1.T, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["tanh", pytest.param("relu", marks=pytest.mark.slow)])
def test_factors_give_the_dense_vertex_within_the_error_of_sampling(name, inputs):
    options = {"depth": 3, "C_W": 1.6, "C_b": 0.1, "num_samples": 2**13}
    widths = (40, 30, 50)
    dense, other = (
        ng.finite_width_kernel(name, inputs, widths, fourth="sampling", seed=s, **options)
        for s in (0, 1)
    )
    found = ng.finite_width_kernel(name, inputs, widths, form="factored", rank=6, **options)
    size = np.abs(np.asarray(dense.V)).max()
    # Rank 6 is all that pairs of three inputs have: the same neurons, so the same vertex.
    np.testing.assert_allclose(ng.expand_vertex(found), ng.expand_vertex(dense), atol=1e-9 * size)
    np.testing.assert_allclose(found.G1, dense.G1, atol=1e-9)
    assert float(found.lost) < 1e-9
    np.testing.assert_allclose(other.V, dense.V, atol=4e-3 * size)


def test_compression_leaves_out_what_it_says(x64):
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(200, 55)) * 0.7 ** np.arange(55)
    weight = np.where(np.equal(*np.triu_indices(10)), 1, 2)
    place = np.zeros((10, 10), int)
    place[np.triu_indices(10)] = np.arange(55)
    place = np.maximum(place, place.T).ravel()
    kept, lost = map(np.asarray, ng.compress(jnp.asarray(factors), rank=12))
    full, part = (f[:, place].T @ f[:, place] for f in (factors, kept))
    assert np.trace(full - part) == pytest.approx(lost * np.trace(full), rel=1e-6)
    assert np.linalg.eigvalsh(full - part).min() > -1e-9 * np.trace(full)
    exact = np.linalg.svd(factors * np.sqrt(weight), compute_uv=False) ** 2
    assert lost == pytest.approx(exact[12:].sum() / exact.sum(), rel=0.02)


def test_unequal_widths_follow_the_recursion_by_hand(inputs):
    widths = (20, 60, 35)
    found = ng.finite_width_kernel("erf", inputs, widths, depth=3, C_W=1.4, C_b=0.2)
    state = ng.first_layer(inputs, C_W=1.4, C_b=0.2)
    following = jax.jit(
        lambda state, ratio: ng.layer_recursion(state, "erf", C_W=1.4, C_b=0.2, ratio=ratio)
    )
    for ratio in (7.0, 60 / 20, 35 / 60):  # the first meets no vertex yet
        state = following(state, ratio)
    for a, b in zip((found.K, found.G1, found.V), state[:3], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    flow = ng.layer_flow("erf", inputs, widths, depth=3, C_W=1.4, C_b=0.2)
    np.testing.assert_allclose(np.asarray(flow.V)[-1], found.V, rtol=1e-12)


@pytest.mark.slow
def test_it_runs_under_jit_and_vmap_and_float32_is_close(inputs):
    def of(x, C_W):
        found = ng.finite_width_kernel("tanh", x, (64, 64), depth=2, C_W=C_W, C_b=0.1)
        return found.K, found.G1, found.V

    stack = np.stack([inputs, inputs[::-1], 2 * inputs])
    many = [np.asarray(part) for part in jax.jit(jax.vmap(of, in_axes=(0, None)))(stack, 1.3)]
    for index in range(3):
        for a, b in zip(of(stack[index], 1.3), many, strict=True):
            np.testing.assert_allclose(a, b[index], rtol=1e-9, atol=1e-12)
    exact = of(inputs, 1.3)
    for a, b in zip(of(inputs.astype(np.float32), 1.3), exact, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(np.asarray(exact[0])).max())
    slope = jax.jit(jax.grad(lambda C_W: of(inputs, C_W)[2].sum()))(1.3)
    h = 1e-4
    up, down = (np.asarray(of(inputs, 1.3 + step)[2]).sum() for step in (h, -h))
    assert slope == pytest.approx((up - down) / (2 * h), rel=1e-6)


def test_one_process_may_use_both_precisions():
    x = np.random.default_rng(0).normal(size=(3, 2))

    def mean(x):
        kernel = ng.finite_width_kernel("tanh", x, 64, depth=2, C_W=1.5)
        return ng.posterior(kernel, jnp.array([1.0, -1.0]), noise=0.1).mean

    with jax.enable_x64(True):
        exact = np.asarray(mean(jnp.asarray(x)))
    found = mean(jnp.asarray(x, jnp.float32))
    assert (exact.dtype, found.dtype) == (np.float64, np.float32)
    np.testing.assert_allclose(found, exact, rtol=1e-4)


def test_the_quadratic_network_explodes_with_depth(x64):
    """V / K^2 of z^2 grows by a factor a layer, not by a term: moments of products."""
    flow = ng.layer_flow("quadratic", np.ones((1, 3)), 10**6, depth=4, C_W=1 / 3)
    ratio = np.asarray(flow.V)[:, 0, 0] / np.asarray(flow.K)[:, 0, 0] ** 2
    assert (ratio[1:] / ratio[:-1] > 3.5).all()
