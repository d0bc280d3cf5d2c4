"""Factorisations are LAPACK's, and a population of them never becomes one batched call."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.core import linalg

FACTORISATIONS = {
    "qr": (linalg.qr, lambda q, r: q @ r),
    "eigh": (linalg.eigh, lambda w, v: (v * w) @ v.T),
    "svd": (linalg.svd, lambda u, s, v: (u * s) @ v),
}


def _matrices(name, dtype):
    matrices = np.random.default_rng(0).normal(size=(4, 5, 5)).astype(dtype)
    return matrices if name != "eigh" else matrices + matrices.swapaxes(1, 2)


@pytest.mark.parametrize("name", FACTORISATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_factors_give_the_matrix_back_under_vmap(name, dtype):
    factorise, multiply = FACTORISATIONS[name]
    with jax.enable_x64(dtype == np.float64):
        matrices = _matrices(name, dtype)
        for matrix, *factors in zip(matrices, *jax.vmap(factorise)(matrices), strict=True):
            back = multiply(*(np.asarray(factor, np.float64) for factor in factors))
            # A backward stable factorisation of 5 x 5 numbers of size 1.
            assert np.abs(back - matrix).max() < 50 * np.finfo(dtype).eps


@pytest.mark.parametrize("name", FACTORISATIONS)
def test_each_lapack_call_of_a_population_takes_one_matrix(name):
    """A batched call waits for threads that may wait for it: see `core.linalg`."""
    nested = jax.jit(jax.vmap(jax.vmap(FACTORISATIONS[name][0])))
    text = nested.lower(jnp.zeros((2, 3, 5, 5))).as_text()
    calls = [line for line in text.splitlines() if "lapack_" in line]
    assert calls
    for line in calls:
        for shape in re.findall(r"tensor<([0-9x]*)x?f32>", line):
            sizes = [int(n) for n in shape.split("x") if n]
            assert np.prod(sizes[:-2]) <= 1


@pytest.mark.parametrize("name", FACTORISATIONS)
def test_many_at_once_end(name):
    """Two chains of factorisations side by side, as two layers of a population are."""
    factorise, _ = FACTORISATIONS[name]

    @jax.jit
    def run(a, b):
        step = lambda pair, _: (tuple(jax.vmap(factorise)(m)[-1] + m for m in pair), None)  # noqa: E731
        return jax.lax.scan(step, (a, b), None, length=200)[0]

    a, b = run(*2 * [jnp.asarray(_matrices(name, np.float32))])
    assert a.shape == b.shape == (4, 5, 5)
