"""Kernels on disk: the same figures, nothing computed twice, nothing unfinished ever read."""

import os
import pathlib
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from poster_jax.kernels import stax
from poster_jax.kernels.disk import kernel_to_disk, open_kernel

PROGRAM = pathlib.Path(__file__).with_name("disk_program.py")
_, _, KERNEL_FN = stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))
X1, X2 = (np.random.default_rng(0).normal(size=(n, 5)).astype(np.float32) for n in (33, 20))


def in_process(folder, tiles):
    root = PROGRAM.parents[2]
    env = {**os.environ, "PYTHONPATH": str(root), "XLA_FLAGS": ""}
    command = [sys.executable, PROGRAM, folder, str(tiles)]
    return subprocess.run(command, env=env, cwd=root).returncode


@pytest.mark.slow
def test_two_processes_share_the_tiles(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    root = PROGRAM.parents[2]
    env = {**os.environ, "PYTHONPATH": str(root), "XLA_FLAGS": ""}
    command = [sys.executable, PROGRAM.with_name("disk_hosts.py"), tmp_path / "k"]
    hosts = [subprocess.Popen([*command, str(i), str(port)], env=env, cwd=root) for i in (0, 1)]
    assert [host.wait(120) for host in hosts] == [0, 0]
    assert in_process(tmp_path / "alone", 10**6) == 0
    together, alone = ((tmp_path / n / "ntk.npy").read_bytes() for n in ("k", "alone"))
    assert together == alone
    # 21 tiles, dealt out as cards, and a corner each.
    tiles = [len((tmp_path / f"k.log{i}").read_bytes()) - 1 for i in (0, 1)]
    assert sorted(tiles) == [10, 11]


@pytest.mark.parametrize("device_count", [0, 3])
@pytest.mark.parametrize("x2", [None, X2], ids=["own", "other"])
def test_files_hold_the_whole_kernel(tmp_path, x2, device_count):
    stored = kernel_to_disk(
        tmp_path / "k", KERNEL_FN, X1, x2, ("ntk", "nngp"), batch_size=8, device_count=device_count
    )
    whole = KERNEL_FN(X1, x2, ("ntk", "nngp"))
    assert isinstance(stored.ntk, np.memmap)
    assert not stored.ntk.flags.writeable
    assert stored._fields == ("ntk", "nngp")
    # float32: a matrix product of tiles rounds in another order
    np.testing.assert_allclose(stored.ntk, whole.ntk, atol=2e-6)
    np.testing.assert_allclose(stored.nngp, whole.nngp, atol=2e-6)
    np.testing.assert_array_equal(np.load(tmp_path / "k" / "ntk.npy"), stored.ntk)


def test_positions_of_images_are_kept(tmp_path):
    _, _, kernel_fn = stax.serial(stax.Conv(1, (2,), padding="SAME"), stax.Relu())
    x = np.random.default_rng(0).normal(size=(5, 4, 2)).astype(np.float32)
    stored = kernel_to_disk(tmp_path, kernel_fn, x, get="nngp", batch_size=2, device_count=0)
    np.testing.assert_allclose(stored, kernel_fn(x, None, "nngp"), atol=1e-6)


def test_inputs_may_lie_on_disk(tmp_path):
    np.save(tmp_path / "x.npy", X1)
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    stored = kernel_to_disk(tmp_path / "k", KERNEL_FN, x, batch_size=16, device_count=0)
    np.testing.assert_allclose(stored, KERNEL_FN(X1, None, "ntk"), atol=2e-6)


@pytest.mark.slow
def test_a_kill_costs_no_finished_tile_and_ends_in_the_same_bytes(tmp_path):
    assert in_process(tmp_path / "unbroken", 10**6) == 0
    for tiles in (1, 7):
        assert in_process(tmp_path / "killed", tiles) == -signal.SIGKILL
        with pytest.raises(ValueError, match=f"not finished: {tiles if tiles == 1 else 8} of 21"):
            open_kernel(tmp_path / "killed")
    assert in_process(tmp_path / "killed", 10**6) == 0
    unbroken, killed = (
        (tmp_path / name / "ntk.npy").read_bytes() for name in ("unbroken", "killed")
    )
    assert unbroken == killed
    seen = len((tmp_path / "killed.log").read_bytes())
    # Three corners beside the 21 tiles, and at most the tiles in flight at each of the two kills.
    assert seen <= 21 + 3 + 2 * 4


def test_a_finished_kernel_is_not_touched_again(tmp_path):
    kernel_to_disk(tmp_path, KERNEL_FN, X1, batch_size=8)
    before = (tmp_path / "ntk.npy").stat().st_mtime_ns
    kernel_to_disk(tmp_path, KERNEL_FN, X1, batch_size=8)
    assert (tmp_path / "ntk.npy").stat().st_mtime_ns == before


def test_progress_counts_what_was_done_before(tmp_path):
    seen = []

    class Progress:
        def __init__(self, description, total, completed):
            seen.append((description, total, completed))

        def __enter__(self):
            return lambda completed: seen.append(completed)

        def __exit__(self, *unused):
            pass

    for _ in range(2):
        kernel_to_disk(tmp_path, KERNEL_FN, X1, batch_size=11, device_count=0, progress=Progress)
    assert seen[0] == ("tiles", 6, 0)
    assert seen[-2] == ("tiles", 6, 6)
    assert 6 in seen


@pytest.mark.bad_input
def test_bad_input_is_refused_in_one_sentence(tmp_path):
    kernel_to_disk(tmp_path, KERNEL_FN, X1, batch_size=16)
    _, _, other = stax.serial(stax.Dense(1), stax.Erf(), stax.Dense(1))
    for args, kwargs in (
        ((KERNEL_FN, X1 + 1), {}),
        ((other, X1), {}),
        ((KERNEL_FN, X1, X1), {}),
        ((KERNEL_FN, X1), {"batch_size": 8}),
        ((KERNEL_FN, X1), {"get": "nngp"}),
    ):
        with pytest.raises(ValueError, match="holds a kernel of other inputs"):
            kernel_to_disk(tmp_path, *args, **{"batch_size": 16, **kwargs})
    with pytest.raises(ValueError, match="path must be a folder written by kernel_to_disk"):
        open_kernel(tmp_path / "nothing")
    with pytest.raises(ValueError, match="get must name kernels"):
        kernel_to_disk(tmp_path / "new", lambda a, b, get: a @ b.T, X1, get=("ntk", "nngp"))
    bad = np.where(np.arange(33)[:, None] == 20, np.nan, X1)
    with pytest.raises(
        ValueError, match=r"must answer finite kernels.* 11 to 22 of x1 with 0 to 11 of x2"
    ):
        kernel_to_disk(
            tmp_path / "nan", lambda a, b, get: a @ b.T, bad, X1, batch_size=16, device_count=0
        )
    with pytest.raises(ValueError, match="is not finished: 0 of"):
        open_kernel(tmp_path / "nan")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        kernel_to_disk(tmp_path / "new", KERNEL_FN, X1, batch_size=0)


def test_other_parameters_are_another_kernel(tmp_path):
    """Even where the first entry is the same: the corner does not tell them apart."""

    def kernel_fn(x1, x2, get, scales):
        del get
        return (x1 * scales[0]) @ (x1 if x2 is None else x2).T

    scales = np.ones(2, np.float32)
    first = kernel_to_disk(tmp_path / "k", kernel_fn, X1, X2, "nngp", scales, batch_size=8)
    np.testing.assert_allclose(first, X1 @ X2.T, atol=2e-6)
    again = kernel_to_disk(tmp_path / "k", kernel_fn, X1, X2, "nngp", scales, batch_size=8)
    np.testing.assert_array_equal(again, first)
    other = np.array([1, 2], np.float32)
    with pytest.raises(ValueError, match="of other inputs"):
        kernel_to_disk(tmp_path / "k", kernel_fn, X1, X2, "nngp", other, batch_size=8)
