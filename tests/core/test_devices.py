"""Placement on a mesh, and two real processes that compute what one computes."""

import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.core import devices

WORKER = r"""
import sys
import jax, jax.numpy as jnp, numpy as np
from poster_jax.core import batching, devices
port, rank = sys.argv[1], int(sys.argv[2])
devices.initialize_distributed(f"127.0.0.1:{port}", num_processes=2, process_id=rank)
mesh = devices.data_mesh()
assert jax.process_count() == 2 and mesh.shape["data"] == 4, mesh
rng = np.random.default_rng(0)
x, y = rng.normal(size=(27, 5)).astype(np.float32), rng.normal(size=(27, 3)).astype(np.float32)
w = rng.normal(size=(5, 3)).astype(np.float32)
loss = lambda w, b: jnp.mean(jnp.sum((jnp.tanh(b[0] @ w) - b[1]) ** 2, -1))
hvp = lambda w, b: jax.jvp(lambda p: jax.grad(loss)(p, b), (w,), (w,))[1]
product = lambda w, batch: batching.mean_over_batch(
    lambda b: hvp(w, b), batch, microbatch=2, mesh=mesh)
ours = np.asarray(jax.jit(product)(w, (x, y)).addressable_data(0))
placed = devices.shard_batch(x[:24], mesh)
assert placed.addressable_shards[0].data.shape == (6, 5)
np.save(sys.argv[3], ours)
"""


def test_shards_replicas_and_results_on_eight_devices():
    mesh = devices.data_mesh()
    assert mesh.shape == {"data": 8}
    x = np.arange(48.0, dtype=np.float32).reshape(16, 3)
    sharded = devices.shard_batch({"x": x}, mesh)["x"]
    assert {s.data.shape for s in sharded.addressable_shards} == {(2, 3)}
    np.testing.assert_array_equal(sharded, x)
    assert devices.replicate(x, mesh).sharding.is_fully_replicated
    population = devices.shard_population({"w": x}, mesh)
    np.testing.assert_allclose(jax.jit(jax.vmap(jnp.sum))(population["w"]), x.sum(1))


def test_arrays_that_were_put_on_one_device_enter_a_program_of_eight():
    from poster_jax import curvature
    from poster_jax.core.batching import mean_over_batch

    mesh, first = devices.data_mesh(), jax.devices()[0]
    x, w = (jax.device_put(jnp.ones(shape), first) for shape in [(20, 3), (3,)])
    np.testing.assert_allclose(mean_over_batch(lambda b: b.mean(0), x, mesh=mesh), np.ones(3))
    loss_fn = lambda w, x: jnp.mean((x @ w) ** 2)  # noqa: E731
    product = curvature.hessian_operator(loss_fn, w, x, mesh=mesh)(jnp.ones(3))
    np.testing.assert_allclose(product, 6.0 * np.ones(3), rtol=1e-6)


def test_two_processes_equal_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    env_args = ["-c", WORKER, port]
    environment = {
        "PATH": "/usr/bin:/bin",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    workers = [
        subprocess.Popen(
            [sys.executable, *env_args, str(rank), str(tmp_path / f"{rank}.npy")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [worker.communicate(timeout=240)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors

    rng = np.random.default_rng(0)
    x, y, w = (rng.normal(size=shape).astype(np.float32) for shape in [(27, 5), (27, 3), (5, 3)])
    x, y, w64 = x.astype(float), y.astype(float), w.astype(float)

    def gradient(w):  # by hand, in numpy
        f = np.tanh(x @ w)
        return x.T @ (2 * (f - y) * (1 - f**2)) / len(x)

    step = 1e-5
    expected = (gradient(w64 + step * w64) - gradient(w64 - step * w64)) / (2 * step)
    for rank in range(2):
        np.testing.assert_allclose(
            np.load(tmp_path / f"{rank}.npy"), expected, rtol=2e-5, atol=2e-6
        )


@pytest.mark.bad_input
def test_bad_input():
    mesh = devices.data_mesh(8)
    with pytest.raises(ValueError, match="num_devices must be at most 8, got 9"):
        devices.data_mesh(9)
    with pytest.raises(ValueError, match="num_devices"):
        devices.data_mesh(0)
    with pytest.raises(ValueError, match="batch must hold a multiple of 8 examples"):
        devices.shard_batch(np.ones((9, 2)), mesh)
    with pytest.raises(ValueError, match="population must hold a multiple of 8 networks"):
        devices.shard_population(np.ones((9, 2)), mesh)
    with pytest.raises(TypeError, match="mesh"):
        devices.replicate(np.ones(2), None)
    with pytest.raises(ValueError, match=r"missing: \['process_id'\]"):
        devices.initialize_distributed("127.0.0.1:1", num_processes=2)
    with pytest.raises(ValueError, match="process_id must be below"):
        devices.initialize_distributed("127.0.0.1:1", num_processes=2, process_id=2)
