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
        whole = kernel_fn(x1, x2)
        monkeypatch.setitem(_cache.TILE_ENTRIES, "cpu", 16)
        tiled = kernel_fn(x1, x2, ("nngp", "ntk"))
    for got, want in zip(tiled, (whole.nngp, whole.ntk), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
