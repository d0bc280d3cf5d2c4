"""Solves with kernels on disk against numpy in memory."""

import numpy as np
import pytest

from poster_jax.kernels import predict

RNG = np.random.default_rng(0)
N = 57


def kernel(dtype=np.float32):
    half = RNG.normal(size=(N, N + 10))
    return (half @ half.T / N + np.eye(N)).astype(dtype)


@pytest.fixture
def stored(tmp_path):
    np.save(tmp_path / "kernel.npy", kernel())
    return np.load(tmp_path / "kernel.npy", mmap_mode="r")


@pytest.mark.parametrize("device_count", [0, 3])
def test_products_are_those_in_memory(stored, monkeypatch, device_count):
    monkeypatch.setattr(predict.streamed, "_BLOCK_BYTES", 5 * N * 4)  # many short blocks
    vectors = RNG.normal(size=(N, 3)).astype(np.float32)
    product = predict.streamed_product(stored, vectors, device_count=device_count)
    np.testing.assert_allclose(product, np.asarray(stored, float) @ vectors, atol=1e-4)


@pytest.mark.parametrize("absolute", [True, False])
def test_conjugate_gradients_solve_and_say_how_well(stored, absolute):
    b = RNG.normal(size=(N, 3))
    solution = predict.conjugate_gradient_solve(
        stored, b, diag_reg=0.1, diag_reg_absolute_scale=absolute, tol=1e-6, device_count=0
    )
    full = np.asarray(stored, float)
    full += 0.1 * np.eye(N) * (1 if absolute else np.trace(full) / N)
    residual = np.linalg.norm(full @ solution.weights - b, axis=0) / np.linalg.norm(b, axis=0)
    np.testing.assert_allclose(solution.residuals, residual, atol=2e-7)  # float32 products
    assert solution.converged.all()
    assert solution.num_iterations < N
    short = predict.conjugate_gradient_solve(stored, b, max_iters=2, device_count=0)
    assert not short.converged.any()


@pytest.mark.parametrize("device_count", [0, 3])
@pytest.mark.parametrize("block_size", [10, 57, 100])
def test_factor_is_that_of_numpy_and_solves(tmp_path, stored, device_count, block_size):
    factor = predict.cholesky_to_disk(
        tmp_path / "factor.npy", stored, diag_reg=0.2, block_size=block_size,
        device_count=device_count,
    )  # fmt: skip
    full = np.asarray(stored, float)
    full += 0.2 * np.trace(full) / N * np.eye(N)
    np.testing.assert_allclose(factor, np.linalg.cholesky(full), atol=1e-5)
    b = RNG.normal(size=(N, 2))
    x = predict.cholesky_solve_from_disk(factor, b, block_size=block_size)
    np.testing.assert_allclose(x, np.linalg.solve(full, b), atol=1e-5)


def test_an_interrupted_factor_goes_on(tmp_path, stored):
    class StopHereError(Exception):
        pass

    class Progress:
        def __init__(self, name, total, completed):
            self.completed = completed

        def __enter__(self):
            def update(done):
                if done == 3:
                    raise StopHereError

            return update

        def __exit__(self, *unused):
            pass

    path = tmp_path / "factor.npy"
    whole = predict.cholesky_to_disk(tmp_path / "whole.npy", stored, block_size=10)
    with pytest.raises(StopHereError):
        predict.cholesky_to_disk(path, stored, block_size=10, progress=Progress)
    assert not path.exists()
    resumed = predict.cholesky_to_disk(path, stored, block_size=10)
    np.testing.assert_array_equal(resumed, whole)
    np.testing.assert_array_equal(predict.cholesky_to_disk(path, stored, block_size=10), whole)


def test_mean_on_disk_is_the_mean_of_inference(tmp_path):
    full = kernel(np.float64)
    k_dd, k_td, y = full[:40, :40], full[40:, :40], RNG.normal(size=(40, 2))
    factor = predict.cholesky_to_disk(tmp_path / "f.npy", k_dd.astype(np.float32), diag_reg=0.1)
    weights = predict.cholesky_solve_from_disk(factor, y)
    mean = predict.streamed_product(k_td.astype(np.float32), weights)
    expected = predict.gp_inference(k_dd, y, diag_reg=0.1)("nngp", k_td)
    np.testing.assert_allclose(mean, expected, atol=1e-4)


@pytest.mark.bad_input
def test_bad_input_is_refused_in_one_sentence(tmp_path, stored):
    flat = np.ones((4, 4), np.float32) - 2 * np.eye(4, dtype=np.float32) + 2 * np.eye(4)
    negative = (flat + 3 * (1 - np.eye(4))).astype(np.float32)
    for call, message in (
        (lambda: predict.streamed_product(stored, np.ones(N)), "vectors must be"),
        (lambda: predict.streamed_product(stored, np.ones((3, 1))), "vectors must be"),
        (
            lambda: predict.conjugate_gradient_solve(stored[:3], np.ones((3, 1))),
            r"must be \(n, n\)",
        ),
        (
            lambda: predict.conjugate_gradient_solve(negative, np.arange(4.0)[:, None]),
            "must be positive definite",
        ),
        (
            lambda: predict.cholesky_to_disk(tmp_path / "f.npy", negative, block_size=2),
            "must be positive definite: it showed otherwise in the rows 0 to 2",
        ),
        (
            lambda: predict.cholesky_to_disk(tmp_path / "g.npy", np.zeros((3, 3), np.float32)),
            "finite and positive diagonal",
        ),
        (lambda: predict.cholesky_solve_from_disk(stored, np.ones((3, 1))), r"b must be \(n, col"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    predict.cholesky_to_disk(tmp_path / "h.npy", stored)
    with pytest.raises(ValueError, match="factor of another kernel"):
        predict.cholesky_to_disk(tmp_path / "h.npy", stored, diag_reg=1.0)
