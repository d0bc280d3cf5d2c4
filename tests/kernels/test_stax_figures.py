"""Kernels of some 700 networks against neural-tangents 0.6.5 in float64, from a figure file.

Tolerance 1e-9 of the largest entry of an array. Where the original takes the angle of equal outputs
(the NTK of rectifiers, and Sign) from `sqrt(v1 v2 - k^2)`, it is itself off by up to the root of
the rounding error, 1.5e-8 a layer, so there 5e-8. Entries that it makes NaN are left out.
"""

import functools
import pathlib
import sys

import jax
import numpy as np
import pytest

from poster_jax.kernels import stax

ORACLES = pathlib.Path(__file__).parents[1] / "oracles"
sys.path.insert(0, str(ORACLES))

from kernel_networks import networks, summary  # noqa: E402

FIGURES = np.load(ORACLES / "kernel_figures.npz")
with jax.enable_x64(True):
    NETWORKS = networks(stax)
# Few run at once, all of them in the slow run. Each is compiled whole, which is faster.
EVERY = 25


def _cases():
    wanted: dict[tuple[str, str], dict[str, str]] = {}
    for key in FIGURES.files:
        name, case, index, field = key.rsplit("/", 3)
        wanted.setdefault((name, case), {})[f"{index}/{field}"] = key
    for i, ((name, case), fields) in enumerate(sorted(wanted.items())):
        marks = () if i % EVERY == 0 else pytest.mark.slow
        yield pytest.param(name, case, fields, id=f"{name}/{case}", marks=marks)


@pytest.mark.parametrize(("name", "case", "fields"), _cases())
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_kernel_equals_the_original(name, case, fields):
    net, (x1, x2), kwargs = NETWORKS[name]
    if case == "self":
        x2 = None
        kwargs = {k: (v[0], v[0]) if k == "pattern" else v for k, v in kwargs.items()}
    with jax.enable_x64(True):
        kernels = jax.jit(functools.partial(net[2], **kwargs))(x1, x2)
        kernels = kernels if isinstance(kernels, list | tuple) else [kernels]
        for place, key in fields.items():
            index, field = place.split("/")
            got, want = summary(np.asarray(getattr(kernels[int(index)], field))), FIGURES[key]
            assert got.shape == want.shape
            known = np.isfinite(want)
            assert np.isfinite(got).all()
            angles_of_equals = case == "self" and (field == "ntk" or "sign" in name)
            tolerance = 5e-8 if angles_of_equals else 1e-9
            error = np.abs(got - want)[known].max(initial=0)
            assert error <= tolerance * np.abs(want[known]).max(initial=0), (field, error)


def test_every_network_has_a_figure():
    """A network that the original could not compute would otherwise go missing in silence."""
    assert {key.rsplit("/", 3)[0] for key in FIGURES.files} == set(NETWORKS)
