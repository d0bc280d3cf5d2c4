"""Writes kernel_figures.npz: kernels of many networks, by neural-tangents 0.6.5 in float64.

Run in an environment of its own, which holds neural-tangents==0.6.5 jax==0.5.3 jaxlib==0.5.3 scipy:
    python tests/oracles/make_kernel_figures.py
"""

import pathlib
import sys
import warnings

import jax
import numpy as np

jax.config.update("jax_enable_x64", True)
warnings.filterwarnings("ignore")

from kernel_networks import networks, summary  # noqa: E402
from neural_tangents import stax  # noqa: E402

FIELDS = ("nngp", "ntk", "cov1", "cov2")
HERE = pathlib.Path(__file__).parent


def figures(net, x1, x2, kwargs):
    """The covariances of one kernel, spatial axes in their order, as one dict of arrays."""
    kernels = net[2](x1, x2, **kwargs)
    out = {}
    for i, k in enumerate(kernels if isinstance(kernels, list | tuple) else [kernels]):
        k = k.reverse() if k.is_reversed and not k.diagonal_spatial else k
        for field in FIELDS:
            if getattr(k, field) is not None:
                out[f"{i}/{field}"] = summary(np.asarray(getattr(k, field)))
    return out


def main():
    """All networks, or those whose names hold one of the arguments (printed, not written)."""
    out = {}
    for name, (net, (x1, x2), kwargs) in networks(stax).items():
        if len(sys.argv) > 1 and not any(part in name for part in sys.argv[1:]):
            continue
        for case, second in (("cross", x2), ("self", None)):
            given = {
                key: (value[0], value[0]) if case == "self" and key == "pattern" else value
                for key, value in kwargs.items()
            }
            try:
                result = figures(net, x1, second, given)
            except Exception as error:  # what it cannot do is no figure
                print(name, case, type(error).__name__, str(error)[:100])
                continue
            bad = [k for k, v in result.items() if not np.isfinite(v).all()]
            if bad:
                print(name, case, "not finite:", bad)
            out |= {f"{name}/{case}/{key}": value for key, value in result.items()}
    path = HERE / "kernel_figures.npz"
    if len(sys.argv) > 1:
        path = pathlib.Path("/tmp/kernel_figures_part.npz")
    np.savez_compressed(path, **out)
    print(len(out), "arrays", path.stat().st_size // 1024, "KiB")


if __name__ == "__main__":
    main()
