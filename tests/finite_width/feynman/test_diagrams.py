"""Diagrams: their sum is the polynomial, their surfaces obey Euler."""

from collections import Counter

import pytest

from poster_jax.finite_width.feynman import (
    automorphisms,
    correlator,
    diagrams,
    linear_polynomial,
)

SPECS = ["f^4", "(df.df)^2", "f df.ddf.df", "df.ddf.ddf.df", "dddf(df, df, df)", "(ddf:ddf)^2"]


@pytest.mark.parametrize("up_to_symmetry", [False, True])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("spec", [*SPECS, "f^2 df.ddf.ddf.df"])
def test_the_sum_over_diagrams_is_the_polynomial(spec, depth, up_to_symmetry):
    total = Counter()
    for diagram in diagrams(correlator(spec), depth=depth, up_to_symmetry=up_to_symmetry):
        total[(-diagram.exponent,)] += diagram.multiplicity
    assert dict(total) == linear_polynomial(correlator(spec), depth=depth).terms


@pytest.mark.parametrize("spec", SPECS)
def test_surfaces(spec):
    for d in diagrams(correlator(spec), depth=2):
        m, layers = 4, 3
        faces = sum(map(len, d.faces)) + len(d.outer_faces)
        assert d.euler_characteristic == m - layers * m // 2 + faces
        assert d.genus >= 0
        assert len(d.outer_faces) >= d.num_components
        assert d.exponent == d.euler_characteristic - len(d.outer_faces) - m // 2
        assert d.exponent <= d.num_components - m // 2
        for loops in d.faces:
            assert sorted(v for loop in loops for v in loop) == list(range(m))


def test_two_pairs_that_agree_are_two_spheres():
    (d,) = diagrams(correlator("(ddf:ddf)(ddf:ddf)"), depth=1)
    assert (d.num_components, d.euler_characteristic, d.genus, d.exponent) == (2, 4, 0, 0)
    assert d.multiplicity == 4


def test_a_twisted_diagram_lies_on_a_projective_plane():
    # Three different matchings of four tensors: every pair of them closes one loop.
    three = (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2)))
    (d,) = (d for d in diagrams(correlator("f^4"), depth=2) if d.matchings == three)
    assert d.euler_characteristic == 4 - 6 + 3
    assert d.genus == 0.5


def test_relabellings_of_a_chain_are_its_reflection():
    assert automorphisms(correlator("df.ddf.ddf.df")) == [(0, 1, 2, 3), (3, 2, 1, 0)]
    assert len(automorphisms(correlator("f^4"))) == 24
    assert len(automorphisms(correlator("f(a) f(b)"))) == 1


@pytest.mark.bad_input
def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="must not be connected"):
        diagrams(correlator("f^2", connected=True), depth=1)
    with pytest.raises(ValueError, match="at most 6 tensors"):
        diagrams(correlator("f^8"), depth=1, up_to_symmetry=True)
    with pytest.raises(ValueError, match="depth must be at least 1"):
        diagrams(correlator("f^2"), depth=0)
