"""What every test runs under: eight CPU devices, and array shapes checked against the signatures.

The checks of shapes would answer bad input before the library's own sentences do, so the tests of
those (`@pytest.mark.bad_input`) run in a process of their own with POSTER_JAX_TYPECHECK=0.

Most of a test's time is compilation, so XLA is told to spend less on machine code: the same
operations, unoptimised. POSTER_JAX_OPTIMISE=1 leaves XLA as users have it; `make optimised` does.
"""

import gc
import os
import pathlib

from jaxlib.version import __version_info__ as jaxlib_version

flags = [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
if os.environ.get("POSTER_JAX_OPTIMISE", "0") == "0":
    flags.append("--xla_backend_optimization_level=0")
    if jaxlib_version < (0, 11):  # halves what is left; later versions do not know it
        flags.append("--xla_cpu_use_fusion_emitters=false")
        flags.append("--xla_cpu_parallel_codegen_split_count=1")  # the cores have their workers
os.environ["XLA_FLAGS"] = " ".join(flags)
os.environ.setdefault("MPLBACKEND", "agg")
# Workers side by side: NumPy's threads would wait for each other's cores, up to ten times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

TYPECHECK = os.environ.get("POSTER_JAX_TYPECHECK", "1") != "0"
if TYPECHECK:
    from jaxtyping import install_import_hook

    install_import_hook("poster_jax", "beartype.beartype")

import jax  # noqa: E402
import pytest  # noqa: E402


def pytest_collection_modifyitems(config, items):
    if TYPECHECK:
        reason = "the library's own errors are tested with POSTER_JAX_TYPECHECK=0"
        for item in items:
            if "bad_input" in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Linux allows a process 65,530 maps; a compiled program keeps several, and the next segfaults.

    Some 1,000 tests of this suite reach it in one process.
    """
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 15_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def x64():
    """float64 for the length of a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def key():
    return jax.random.key(0)
