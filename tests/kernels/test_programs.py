"""Programs of neural-tangents run with one import changed, and answer the same figures."""

import importlib.util
import pathlib

import numpy as np
import pytest

from poster_jax import kernels

PROGRAM = pathlib.Path(__file__).parents[1] / "oracles" / "make_program_figures.py"


@pytest.mark.usefixtures("x64")
@pytest.mark.slow
def test_programs_of_the_original_answer_its_figures(figures):
    spec = importlib.util.spec_from_file_location("programs", PROGRAM)
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    theirs, ours = figures("program"), program.flatten(program.programs(kernels))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        # The solver of "state" has the tolerance 1.4e-8, and roundings may change its steps.
        tolerance = 1e-7 if name.startswith("state") else 1e-9
        scale = np.abs(value).max()
        np.testing.assert_allclose(ours[name], value, atol=tolerance * scale, err_msg=name)
