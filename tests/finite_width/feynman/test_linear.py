"""The exact polynomials of deep linear networks: tables, brute force, closed forms, the theorem."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from poster_jax.finite_width.feynman import Correlator, correlator, linear_polynomial
from tests.finite_width.feynman import _isserlis

# Unit inputs, equal widths, depths 1, 2, 3; each checked by Monte Carlo when the table was made.
TABLE = {
    "f^4": [[3, 6], [3, 12, 12], [3, 18, 36, 24]],
    "f^6": [[15, 90, 120], [15, 180, 780, 1440, 960], None],
    "df.df": [[2], [3], [4]],
    "(df.df)^2": [[4, 4], [9, 20, 16], [16, 56, 92, 52]],
    "f^2 df.df": [[2, 4], [3, 12, 12], [4, 24, 48, 32]],
    "f df.ddf.df": [[0, 2], [0, 8, 10], [0, 20, 50, 38]],
    "df.ddf.ddf.df": [[0, 2], [0, 12, 12], [0, 40, 82, 58]],
    "dddf(df, df, df)": [[], [0, 0, 6], [0, 0, 36, 36]],
    "ddf.ddf": [[2], [6], [12]],
}
ROWS = [
    (spec, depth, values)
    for spec, row in TABLE.items()
    for depth, values in enumerate(row, start=1)
    if values is not None
]


@pytest.mark.parametrize(("spec", "depth", "values"), ROWS)
def test_the_table(spec, depth, values):
    assert linear_polynomial(correlator(spec), depth=depth).coefficients() == values


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_moments_of_the_output_are_a_product_of_chi_square_moments(depth, k):
    # Given the layer before, each layer's output is Gaussian: E f^2k = (2k-1)!! E[(|h|^2 / n)^k]^L.
    found = linear_polynomial(correlator(f"f^{2 * k}"), depth=depth)
    for n in (1, 2, 3, 7):
        chi = math.prod(Fraction(n + 2 * j, n) for j in range(k))
        assert found(n=n) == math.prod(range(1, 2 * k, 2)) * chi**depth


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_one_neuron_and_one_input_is_a_product_of_gaussians(depth):
    # f = u w .. v: E[f^2k] = ((2k-1)!!)^(L+1), and f df.df = sum over layers of f^2 / w^2.
    assert linear_polynomial(correlator("f^6"), depth=depth)(n=1) == 15 ** (depth + 1)
    found = linear_polynomial(correlator("f^2 df.df"), depth=depth)(n=1)
    assert found == (depth + 1) * 3**depth


BRUTE = [
    "f(a) f(b)",
    "df(a).df(b)",
    "f(a) f(b) f(a) f(c)",
    "f(a) df(b).ddf(c).df(a)",
    "f(a) f(b) df(a).df(b)",
    "df(a).df(b) df(c).df(a)",
    "ddf(a):ddf(b)",
    "dddf(a; df(b), df(c), df(a))",
    "df(a).ddf(b).ddf(c).df(a)",
    "ddf(a):ddf(b) f(a) f(c)",
]
VECTORS = {"a": (1, 2), "b": (-1, 1), "c": (0, 3)}


@pytest.mark.parametrize("spec", BRUTE)
@pytest.mark.parametrize("widths", [(2,), (1, 2), (2, 1)])
def test_equals_the_polynomial_in_all_weights_averaged_term_by_term(spec, widths):
    c = correlator(spec)
    vectors = {name: VECTORS[name] for name in c.distinct_inputs}
    wanted = _isserlis.mean_at_widths(c.inputs, c.contractions, vectors, widths)
    gram = [[int(np.dot(u, v)) for v in vectors.values()] for u in vectors.values()]
    names = tuple(f"n{h}" for h in range(len(widths)))
    found = linear_polynomial(c, depth=len(widths), widths=names, gram=gram)
    assert found(**dict(zip(names, widths, strict=True))) == wanted


@pytest.mark.parametrize(
    ("spec", "depth"),
    [
        *itertools.product(["f^4", "df.ddf.ddf.df", "f df.ddf.df", "(ddf:ddf)^2",
                            "dddf(df, df, df)"], [1, 2, 3]),
        *itertools.product(["f^2 df.ddf.ddf.df", "(df.ddf.df)^2", "ddf:ddf (df.df)^2",
                            "ddf.ddf.ddf.ddf f^2"], [1, 2]),
    ],
)  # fmt: skip
def test_equals_the_naive_sum_over_matchings_and_layers(spec, depth):
    c = correlator(spec)
    wanted = _isserlis.sum_over_matchings(c.num_tensors, c.contractions, depth)
    found = linear_polynomial(c, depth=depth).terms
    assert {powers[0]: value for powers, value in found.items()} == wanted


def test_an_odd_number_of_tensors_vanishes():
    assert linear_polynomial(correlator("df.ddf.df"), depth=2).terms == {}


def test_scaling_an_input_scales_its_tensors():
    c = correlator("f(a) f(a) df(a).df(b)")
    gram = np.array([[1, 2], [2, 5]])
    scaled = gram * np.outer([3, 1], [3, 1])
    found = linear_polynomial(c, depth=2, gram=scaled)
    assert found == linear_polynomial(c, depth=2, gram=gram) * 27


def test_rational_and_floating_grams_are_taken_exactly():
    c = correlator("f(a) f(b) df(a).df(b)")
    half = [[1, Fraction(1, 3)], [Fraction(1, 3), 1]]
    by_hand = linear_polynomial(c, depth=1, gram=half)
    # (a.b)(a.b) from the two pairings (01)(23), and (a.a)(b.b), (a.b)^2 of the others at 1/n.
    assert by_hand(n=10**9) == pytest.approx(2 / 9, rel=1e-8)
    assert linear_polynomial(c, depth=1, gram=[[1.0, 0.25], [0.25, 2.0]]) == linear_polynomial(
        c, depth=1, gram=[[1, Fraction(1, 4)], [Fraction(1, 4), 2]]
    )


def test_many_moduli_give_the_same_as_one():
    # A Gram matrix with 40-digit entries needs several; E[f f] = x . x whatever its size.
    big = 10**40 + 7
    assert linear_polynomial(correlator("f^4"), depth=2, gram=[[big]]).coefficients() == [
        3 * big**2,
        12 * big**2,
        12 * big**2,
    ]


def test_unequal_widths_become_equal():
    c = correlator("df.ddf.ddf.df")
    split, equal = (linear_polynomial(c, depth=2, widths=w) for w in (("a", "b"), "n"))
    assert split(a=5, b=5) == equal(n=5)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("spec", ["(df.df)^2", "f^4", "f^2 df.df", "f(a)^2 f(b)^2"])
def test_connected_parts_are_cumulants_and_keep_their_bound(spec, depth):
    found = linear_polynomial(correlator(spec, connected=True), depth=depth)
    assert found.exponent is not None
    assert found.exponent <= correlator(spec, connected=True).exponent_bound()
    if spec == "(df.df)^2":
        mean = linear_polynomial(correlator("df.df"), depth=depth)
        second = linear_polynomial(correlator(spec), depth=depth)
        assert found == second + mean * mean * -1


def test_the_chain_meets_its_bound_and_the_star_does_not():
    exponents = [
        linear_polynomial(correlator(spec), depth=3).exponent
        for spec in ("df.ddf.ddf.df", "dddf(df, df, df)")
    ]
    assert exponents == [-1, -2]


def multigraphs(num_vertices, max_degree):
    """All multigraphs without loops, one of each isomorphism class."""
    pairs = list(itertools.combinations(range(num_vertices), 2))
    number = {pair: k for k, pair in enumerate(pairs)}
    images = np.array(
        [
            [number[tuple(sorted((p[i], p[j])))] for i, j in pairs]
            for p in itertools.permutations(range(num_vertices))
        ]
    )

    def canonical(counts):
        return max(map(tuple, np.unique(np.asarray(counts)[images], axis=0)))

    level = {(0,) * len(pairs)}
    while level:
        yield from level
        level = {
            canonical([c + (k == edge) for k, c in enumerate(counts)])
            for counts in level
            for edge in range(len(pairs))
            if all(
                sum(c for c, pair in zip(counts, pairs, strict=True) if v in pair) < max_degree
                for v in pairs[edge]
            )
        }


def violations(num_tensors, depth):
    """A tensor differentiated more often than there are layers is zero: degrees end at L + 1."""
    pairs = list(itertools.combinations(range(num_tensors), 2))
    count = 0
    for counts in multigraphs(num_tensors, depth + 1):
        contractions = tuple(p for p, c in zip(pairs, counts, strict=True) for _ in range(c))
        c = Correlator(("x",) * num_tensors, contractions)
        exponent = linear_polynomial(c, depth=depth).exponent
        count += 1
        if exponent is not None and exponent > c.exponent_bound():
            yield c
    assert count > 1


@pytest.mark.parametrize(
    ("num_tensors", "depth"), [(2, 1), (2, 2), (2, 3), (4, 1), (4, 2), (4, 3), (6, 1)]
)
def test_the_bound_is_a_theorem_for_linear_networks(num_tensors, depth):
    assert list(violations(num_tensors, depth)) == []


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 3])
def test_the_bound_is_a_theorem_for_all_correlators_of_six_tensors(depth):
    assert list(violations(6, depth)) == []


def brute_force(num_tensors, depth):
    """Which pairs all tuples of matchings hold, and their power of 1/n: for every correlator."""
    pairs = {frozenset(p): k for k, p in enumerate(itertools.combinations(range(num_tensors), 2))}
    all_matchings = list(_isserlis.pairings(list(range(num_tensors))))
    one = np.zeros((len(all_matchings), len(pairs)), int)
    for row, matching in enumerate(all_matchings):
        one[row, [pairs[pair] for pair in matching]] = 1
    lost = np.array(
        [[num_tensors // 2 - _isserlis.components(p + q) for q in all_matchings]
         for p in all_matchings]
    )  # fmt: skip
    chosen = np.indices((len(all_matchings),) * (depth + 1)).reshape(depth + 1, -1)
    held = sum(one[layer] for layer in chosen)
    powers = sum(lost[p, q] for p, q in itertools.pairwise(chosen))
    return held, powers


@pytest.mark.parametrize(
    ("num_tensors", "depth"),
    [
        *itertools.product([2, 4], [1, 2, 3]),
        *(pytest.param(6, depth, marks=pytest.mark.slow) for depth in (1, 2, 3)),
    ],
)
def test_every_correlator_of_up_to_six_tensors_equals_brute_force(num_tensors, depth):
    held, powers = brute_force(num_tensors, depth)
    pairs = list(itertools.combinations(range(num_tensors), 2))
    for counts in multigraphs(num_tensors, depth + 1):
        weights = np.ones(len(held), int)
        for pair in np.flatnonzero(counts):
            for taken in range(counts[pair]):
                weights = weights * (held[:, pair] - taken)
        wanted = np.bincount(powers, weights)
        contractions = tuple(p for p, c in zip(pairs, counts, strict=True) for _ in range(c))
        found = linear_polynomial(Correlator(("x",) * num_tensors, contractions), depth=depth)
        assert found.terms == {(k,): v for k, v in enumerate(wanted) if v}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"depth": 0}, ValueError, "depth must be at least 1"),
        ({"depth": 1.5}, TypeError, "depth must be an integer"),
        ({"depth": 2, "widths": ("a",)}, ValueError, "one for each of the 2 hidden layers"),
        ({"depth": 1, "widths": ("3",)}, ValueError, "widths must be one name"),
        ({"depth": 1, "gram": [[1, 0]]}, ValueError, "gram must be a matrix over the inputs"),
        ({"depth": 1, "gram": [[1, 0], [1, 1]]}, ValueError, "gram must be symmetric"),
        ({"depth": 1, "gram": [[float("nan"), 0], [0, 1]]}, ValueError, "gram must be finite"),
    ],
)
def test_bad_input_is_refused(options, kind, words):
    with pytest.raises(kind) as error:
        linear_polynomial(correlator("f(a) f(b)"), **options)
    assert words in str(error.value)


@pytest.mark.bad_input
def test_more_than_twelve_tensors_and_other_kinds_are_refused():
    with pytest.raises(ValueError, match="at most 12 tensors"):
        linear_polynomial(correlator("f^14"), depth=1)
    with pytest.raises(TypeError, match="must be a Correlator"):
        linear_polynomial("f^4", depth=1)
