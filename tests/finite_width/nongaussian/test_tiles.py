"""A vertex in tiles on disk: the entries of the dense one, and the folders of `kernels`."""

import jax
import numpy as np
import pytest

from poster_jax.finite_width import nongaussian as ng

WIDTHS = (40, 30, 50)
MIXED = ng.network("erf", depth=3, C_W=(1.3, 1.1, 0.9, 1.4), C_b=(0.1, 0.2, 0, 0.3))
MIXED = MIXED._replace(activations=(*MIXED.activations[:2], ng.activation("relu")))


@pytest.fixture(scope="module")
def six():
    """Six inputs, more than a rule over all of them can take."""
    return np.random.default_rng(3).normal(size=(6, 4))


@pytest.mark.slow
@pytest.mark.parametrize(
    "phi", ["tanh", "relu", "quadratic", "linear", pytest.param(MIXED, id="mixed")]
)
def test_tiles_hold_the_dense_vertex(phi, six, x64, tmp_path):
    """Sampled, polynomial, closed; of one activation and of several."""
    options = {"num_samples": 2**9}
    options |= {} if isinstance(phi, ng.Network) else {"depth": 3, "C_W": 0.9, "C_b": 0.1}
    dense = ng.finite_width_kernel(phi, six, WIDTHS, **options)
    tiled = ng.vertex_to_disk(tmp_path / "v", phi, six, WIDTHS, batch_size=8, **options)
    assert isinstance(tiled.V, np.memmap)
    np.testing.assert_array_equal(tiled.widths, WIDTHS)
    for name in ("K", "G1", "V"):
        exact = np.asarray(getattr(dense, name))
        size = np.abs(exact).max()
        np.testing.assert_allclose(getattr(tiled, name), exact, rtol=0, atol=1e-12 * size)


@pytest.mark.slow
def test_a_rule_over_few_inputs_is_taken_here_too(inputs, tmp_path):
    options = {"depth": 2, "C_W": 1.4, "degree_of_four": 8}
    dense = ng.finite_width_kernel("sin", inputs, 30, **options)
    tiled = ng.vertex_to_disk(tmp_path, "sin", inputs, 30, batch_size=4, **options)
    np.testing.assert_allclose(tiled.V, dense.V, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(tiled.G1, dense.G1, rtol=1e-11, atol=1e-13)


def test_a_posterior_reads_the_rows_of_a_vertex_on_disk(six, x64, tmp_path):
    options = {"depth": 2, "C_W": 1.5, "C_b": 0.1, "num_samples": 2**9}
    dense = ng.finite_width_kernel("tanh", six, 60, **options)
    tiled = ng.vertex_to_disk(tmp_path, "tanh", six, 60, batch_size=8, **options)
    y = np.random.default_rng(0).normal(size=(4, 2))
    expected = ng.posterior(dense, y, noise=0.2)
    found = ng.posterior(tiled, y, noise=0.2)
    # As factors the same vertex goes through other formulae.
    values, vectors = np.linalg.eigh(np.asarray(ng.expand_vertex(dense)).reshape(36, 36))
    factors = (vectors * np.sqrt(np.maximum(values, 0))).T.reshape(36, 6, 6)
    other = ng.posterior(dense._replace(V=factors), y, noise=0.2)
    for a, b, c in zip(expected, found, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(a, c, rtol=1e-9, atol=1e-11)


def test_a_folder_is_of_one_prior(six, x64, tmp_path):
    options = {"depth": 2, "num_samples": 2**8, "batch_size": 8}
    first = ng.vertex_to_disk(tmp_path, "tanh", six, 60, **options)
    counts = []

    class Progress:
        def __init__(self, description, total, completed):
            counts.append((total, completed))

        def __enter__(self):
            return lambda completed: None

        def __exit__(self, *args):
            pass

    again = ng.vertex_to_disk(tmp_path, "tanh", six, 60, progress=Progress, **options)
    np.testing.assert_array_equal(again.V, first.V)
    assert counts == [(6, 6)]
    other = six.copy()
    other[5] += 1  # the first entries are as before
    with pytest.raises(ValueError, match="choose a new folder"):
        ng.vertex_to_disk(tmp_path, "tanh", other, 60, **options)
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda x: ng.vertex_to_disk(tmp_path, "tanh", x, 60, **options).K)(six)
