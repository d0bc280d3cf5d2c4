"""One of two processes that write a kernel to the folder argv[1]; argv[2] is its number."""

import pathlib
import sys

import jax
import numpy as np

if __name__ == "__main__":
    index, port = int(sys.argv[2]), sys.argv[3]
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=index)

    from disk_program import X, counted

    from poster_jax.kernels import disk

    folder = pathlib.Path(sys.argv[1])
    kernel_fn = counted(folder.with_suffix(f".log{index}"))
    ntk = disk.kernel_to_disk(folder, kernel_fn, X, batch_size=10, device_count=0)
    assert ntk.shape == (60, 60)
    assert np.isfinite(ntk).all()
