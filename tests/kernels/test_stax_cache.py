"""Kernels in tiles that stay in the cache equal those of whole arrays."""

import jax
import numpy as np
import pytest

from poster_jax.kernels import stax
from poster_jax.kernels.stax import _cache

NETWORKS = {
    "dense": (stax.serial(stax.Dense(1, 1.2, 0.1), stax.Relu(), stax.Dense(1)), (5,)),
    "conv": (
        stax.serial(stax.Conv(1, (3,), padding="SAME", b_std=0.1), stax.Relu(), stax.Flatten()),
        (4, 2),
    ),
    "dropout": (stax.serial(stax.Dense(1), stax.Relu(), stax.Dropout(0.7), stax.Dense(1)), (5,)),
    "positions": (stax.serial(stax.Conv(1, (3,), padding="SAME"), stax.Relu()), (4, 2)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("own", [True, False])
def test_tiles_equal_the_whole(name, own, monkeypatch):
    (_, _, kernel_fn), shape = NETWORKS[name]
    rng = np.random.default_rng(0)
    x1, x2 = (rng.normal(size=(n, *shape)) for n in (11, 7))
    x2 = None if own else x2
    with jax.enable_x64(True):
        whole = jax.jit(kernel_fn)(x1, x2)
        monkeypatch.setitem(_cache.TILE_ENTRIES, "cpu", 16)
        tiled = kernel_fn(x1, x2, ("nngp", "ntk"))
    for got, want in zip(tiled, (whole.nngp, whole.ntk), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@stax.layer
@stax.supports_masking(remask_kernel=False)
def Cubes():  # noqa: N802
    """A user's layer in numpy, which no traced program can call."""

    def kernel_fn(k, **kwargs):
        return k.replace(nngp=np.asarray(k.nngp) ** 3)

    return (lambda rng, shape: (shape, ())), (lambda params, x, **kwargs: x), kernel_fn


def test_a_layer_that_reads_numbers_answers_without_being_compiled(x64):
    x = np.random.default_rng(0).normal(size=(3, 4))
    got = stax.serial(stax.Dense(1), Cubes())[2](x, None, "nngp")
    np.testing.assert_allclose(got, (x @ x.T / 4) ** 3, rtol=1e-14)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("num_examples", [1, 5, 64, 1000])
@pytest.mark.parametrize("positions", [1, 16, 64, 1024])
def test_a_tile_fits_where_whole_arrays_would_not(positions, num_examples, own):
    """16 times the wanted size at most, but for 4 examples a side where these are too many."""
    x = np.empty((num_examples, positions, 3), np.float32)
    asked = {"batch_axis": 0, "channel_axis": 2, "diagonal_batch": True, "diagonal_spatial": False}
    size = _cache.tile_sizes(x, None if own else x, asked)
    wanted = _cache.TILE_ENTRIES["cpu"]
    if size is None:
        assert num_examples == 1 or (num_examples * positions) ** 2 < 2 * wanted
        return
    assert max(size) <= num_examples
    assert size[0] * size[1] * positions**2 <= max(16 * wanted, 16 * positions**2)
