"""Writes output_figures.npz: outputs of finite networks, by neural-tangents 0.6.5 in float64.

Run like make_kernel_figures.py. Parameters are drawn from one key, so that initialisation is
compared too.
"""

import pathlib
import warnings

import jax
import numpy as np

jax.config.update("jax_enable_x64", True)
warnings.filterwarnings("ignore")

from kernel_networks import networks, outputs  # noqa: E402
from neural_tangents import stax  # noqa: E402


def main():
    """Every network that has a finite form."""
    out = {}
    for name, (net, (x1, _), kwargs) in networks(stax).items():
        try:
            arrays = outputs(net, x1, kwargs, stax.unmask_fn)
        except Exception as error:  # what it cannot do is no figure
            print(name, type(error).__name__, str(error)[:100])
            continue
        out |= {f"{name}/{i}": array for i, array in enumerate(arrays)}
    path = pathlib.Path(__file__).parent / "output_figures.npz"
    np.savez_compressed(path, **out)
    print(len(out), "arrays", path.stat().st_size // 1024, "KiB")


if __name__ == "__main__":
    main()
