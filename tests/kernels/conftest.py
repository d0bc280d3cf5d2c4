"""Figures of neural-tangents 0.6.5, made by tests/oracles/make_*.py in their own environment."""

import json
import pathlib

import numpy as np
import pytest

ORACLES = pathlib.Path(__file__).parents[1] / "oracles"


@pytest.fixture(scope="session")
def figures():
    """`figures("predict")`: the arrays of tests/oracles/predict_figures.npz by name."""

    def load(name):
        with np.load(ORACLES / f"{name}_figures.npz") as file:
            values, shapes = file["values"], json.loads(str(file["index"]))
        stops = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
        parts = np.split(values, stops[:-1])
        return {n: p.reshape(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}

    return load
