"""A correlator means what its text says: tensors, contractions, clusters, bound."""

from fractions import Fraction

import pytest

from poster_jax.finite_width.feynman import Correlator, correlator

# Text, inputs, contractions and the bound of Dyer and Gur-Ari's conjecture, by hand.
CASES = [
    ("f(x1) f(x2)", "x1 x2", [], 0),
    ("f(a)^2 * f(b)**2", "a a b b", [], 0),
    ("df(x1).df(x2)", "x1 x2", [(0, 1)], 0),
    ("df[i](x1) df[i](x2)", "x1 x2", [(0, 1)], 0),
    ("(df(x).df(y))^2", "x y x y", [(0, 1), (2, 3)], 0),
    ("f(x1) f(x2) df(x1).df(x2)", "x1 x2 x1 x2", [(2, 3)], 0),
    ("f df.ddf.df", "x x x x", [(1, 2), (2, 3)], -1),
    ("df.ddf.ddf.df", "x x x x", [(0, 1), (1, 2), (2, 3)], -1),
    ("dddf(df, df, df)", "x x x x", [(0, 1), (0, 2), (0, 3)], -1),
    ("dddf(a; df(b), df(c), df(d))", "a b c d", [(0, 1), (0, 2), (0, 3)], -1),
    ("dddf[i,j,k] df[i] df[j] df[k]", "x x x x", [(0, 1), (0, 2), (0, 3)], -1),
    ("ddf.ddf", "x x", [(0, 1), (0, 1)], 0),
    ("ddf(a):ddf(b)", "a b", [(0, 1), (0, 1)], 0),
    ("ddf[i j](a) ddf[j i](b)", "a b", [(0, 1), (0, 1)], 0),
    ("dddf(a; df(b), df(c), df.ddf)", "a b c x x", [(0, 1), (0, 2), (0, 4), (3, 4)], -2),
    ("ddf.ddf.ddf", "x x x", [(0, 1), (0, 2), (1, 2)], -1),
    ("f(x)(df.df) (f)^2", "x x x x x", [(1, 2)], 0),
    ("df.dddf(x; df).df", "x x x x", [(0, 1), (1, 2), (1, 3)], -1),
]


@pytest.mark.parametrize(("spec", "inputs", "contractions", "bound"), CASES)
def test_text_gives_tensors_contractions_and_bound(spec, inputs, contractions, bound):
    found = correlator(spec)
    assert found.inputs == tuple(inputs.split())
    assert list(found.contractions) == sorted(contractions)
    assert found.exponent_bound() == bound


@pytest.mark.parametrize("spec", [case[0] for case in CASES])
def test_what_is_printed_reads_back_as_the_same_correlator(spec):
    assert correlator(str(correlator(spec))) == correlator(spec)


def test_cluster_graph_of_two_clusters_and_an_odd_one():
    graph = correlator("f df(a).df(b) df.ddf.ddf.df").cluster_graph()
    assert graph.clusters == ((0,), (1, 2), (3, 4, 5, 6))
    assert (graph.num_even, graph.num_odd) == (2, 1)


def test_pairs_are_another_way_to_declare_and_their_order_does_not_matter():
    assert Correlator(("a", "b", "c"), ((2, 1), (1, 0))) == correlator("df(a).ddf(b).df(c)")
    assert Correlator(("a", "b", "c"), ((2, 1), (1, 0))).orders == (1, 2, 1)


def test_an_odd_number_of_odd_clusters_has_a_half_integer_bound():
    assert correlator("df.ddf.df").exponent_bound() == Fraction(-1)
    assert correlator("f").exponent_bound() == 0
    assert correlator("f df.ddf.ddf.df").exponent_bound() == -1


@pytest.mark.parametrize(
    ("spec", "bound"), [("f^4", -1), ("(df.df)^2", -1), ("f^2 df.df", -1), ("f^6", -2)]
)
def test_a_connected_part_counts_as_one_cluster(spec, bound):
    assert correlator(spec, connected=True).exponent_bound() == bound


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("df f", "df(x) has 1 index contracted with nothing"),
        ("ddf.df", "ddf(x) has 1 index contracted with nothing"),
        ("df.dddf.df", "dddf(x) has 1 index contracted with nothing"),
        ("ddf", "ddf(x) has 2 indices contracted with nothing"),
        ("df.f", "f(x) has 0 indices, and none is left"),
        ("df.df.df", "df(x) has 1 index, and none is left"),
        ("ddf(df, df, df)", "ddf has 2 indices, and none is left"),
        ("df[i] df[j]", "the index 'i' must occur exactly twice"),
        ("df[i] df[i] df[i]", "the index 'i' must occur exactly twice"),
        ("ddf[i,i]", "on two different tensors"),
        ("ddf(ddf, df)", "each with one index left"),
        ("f(x", "must have ')'"),
        ("(f", "must have ')'"),
        ("f)", "must have a tensor"),
        ("g(x)", "must have a tensor"),
        ("f^0", "power of at least 1"),
        ("f$", "got '$'"),
        (" ", "at least one tensor"),
        ("()", "must hold a tensor"),
        ("ddf[1]", "names of indices"),
    ],
)
def test_text_that_is_no_correlator_is_refused_in_one_sentence(spec, words):
    with pytest.raises(ValueError) as error:
        correlator(spec)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("inputs", "contractions", "kind", "words"),
    [
        ((), (), ValueError, "at least one tensor"),
        ("xy", (), TypeError, "sequence of names"),
        (("x", "y"), ((0, 2),), ValueError, "two different tensors of 0..1"),
        (("x", "y"), ((1, 1),), ValueError, "two different tensors"),
        (("x", "y"), ((0, 1, 1),), TypeError, "contracted exactly once"),
        (("x", "y"), ((0, 0.5),), TypeError, "must be an integer"),
    ],
)
def test_pairs_that_are_no_correlator_are_refused(inputs, contractions, kind, words):
    with pytest.raises(kind) as error:
        Correlator(inputs, contractions)
    assert words in str(error.value)


@pytest.mark.bad_input
def test_what_is_no_text_is_refused():
    with pytest.raises(TypeError, match="spec must be a text"):
        correlator(3)


def test_part_of_whole_clusters():
    whole = correlator("f(a) df(b).df(c) f(d)")
    assert whole.part([1, 2]) == correlator("df(b).df(c)")
    with pytest.raises(ValueError, match="whole clusters"):
        whole.part([0, 1])
