"""Writes resize_figures.npz: one batch of images at other sizes, by torch 2.13 in float64.

Run with the Python of the peers (benchmarks/peers.txt).
"""

import pathlib

import numpy as np
import torch
from torch.nn.functional import interpolate


def main():
    """Smaller and larger images, with antialiasing, without it, and the nearest pixel."""
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
    planes = torch.tensor(images).permute(0, 3, 1, 2)
    out = {"images": images}
    for size in (3, 6, 8, 12, 20):
        for name, kwargs in {
            "antialias": {"mode": "bilinear", "antialias": True},
            "plain": {"mode": "bilinear"},
            "nearest": {"mode": "nearest-exact"},
        }.items():
            result = interpolate(planes, (size, size), **kwargs)
            out[f"{name}/{size}"] = result.permute(0, 2, 3, 1).numpy()
    np.savez_compressed(pathlib.Path(__file__).parent / "resize_figures.npz", **out)


if __name__ == "__main__":
    main()
