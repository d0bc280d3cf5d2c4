"""Directions against dense matrices: unit length, orthogonality, the same numbers both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from poster_jax.gradient_noise import Directions, directions_along, random_directions
from poster_jax.gradient_noise._distinct import distinct_integers
from poster_jax.gradient_noise._hadamard import random_signs, transform

KINDS = ("gaussian", "rademacher", "hadamard", "coordinates")
signs_of = jax.jit(random_signs, static_argnums=(1, 2))


def tree_of(size):
    """A pytree of `size` numbers in three leaves, one of them a scalar."""
    return {"a": jnp.zeros((size - 1) // 2), "b": (jnp.zeros(()), jnp.zeros(size // 2))}


@pytest.mark.parametrize("bits", [0, 1, 5, 10])
def test_the_transform_is_scipys_hadamard_matrix(bits, x64):
    x = np.random.default_rng(bits).normal(size=2**bits)
    ours = jax.jit(transform)(x)
    np.testing.assert_allclose(ours, scipy.linalg.hadamard(2**bits) @ x, rtol=1e-12, atol=1e-12)
    # H is n times its own inverse
    np.testing.assert_allclose(np.asarray(jax.jit(transform)(ours)) / 2**bits, x, atol=1e-12)


@pytest.mark.parametrize(
    "size", [21, 1024, *(pytest.param(size, marks=pytest.mark.slow) for size in (16, 700))]
)
def test_hadamard_directions_are_rows_of_the_dense_matrix(net, size, key, x64):
    params = jax.tree.map(lambda a: a.astype(jnp.float64), tree_of(size))
    directions = random_directions(params, key, num=12, kind="hadamard")
    padded = 2 ** int(np.ceil(np.log2(size)))
    signs = np.asarray(signs_of(directions.source, size, "float64"))
    dense = scipy.linalg.hadamard(padded)[np.asarray(directions.rows), :size] * signs / size**0.5
    np.testing.assert_allclose(net.matrix_of(directions), dense, atol=1e-15)
    vector = np.random.default_rng(0).normal(size=size)
    tree = _unflatten(params, vector)
    np.testing.assert_allclose(directions.project(tree), dense @ vector, atol=1e-12)
    gram = dense @ dense.T
    np.testing.assert_allclose(np.diag(gram), 1, atol=1e-12)
    if size == padded:
        np.testing.assert_allclose(gram, np.eye(12), atol=1e-12)
    else:
        # two rows share all digits below digit j: whole blocks of 2^(j+1) cancel
        rows = np.asarray(directions.rows, np.int64)
        different = np.bitwise_xor.outer(rows, rows)
        lowest = np.where(different > 0, different & np.negative(different), size)
        assert (np.abs(gram) <= lowest / size + 1e-12).all()


def _unflatten(like, vector):
    leaves, treedef = jax.tree.flatten(like)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    parts = np.split(vector, ends)
    return jax.tree.unflatten(
        treedef, [jnp.asarray(p.reshape(a.shape)) for p, a in zip(parts, leaves, strict=True)]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "layer",
    [None, *(pytest.param(path, marks=pytest.mark.slow) for path in ("first/kernel", "second"))],
)
def test_project_and_tangent_are_one_matrix(net, kind, layer, key, x64):
    params, _ = net.make_problem()
    params = jax.tree.map(jnp.asarray, params)
    directions = random_directions(params, key, num=7, kind=kind, layer=layer)
    W = net.matrix_of(directions)
    np.testing.assert_allclose((W**2).sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(directions.project(params), W @ net.flat(params), atol=1e-12)
    outside = np.concatenate(
        [
            np.full(a.size, layer is not None and not name.startswith(layer))
            for name, a in zip(
                ("first/bias", "first/kernel", "second/bias", "second/kernel"),
                jax.tree.leaves(params),
                strict=True,
            )
        ]
    )
    assert (W[:, outside] == 0).all()
    assert directions.dim == (~outside).sum()


@pytest.mark.parametrize("kind", ["gaussian", "rademacher", "hadamard"])
def test_projections_of_a_fixed_vector_have_the_moments_of_the_sphere(kind, key):
    # <w, v> has mean 0 and variance |v|^2 / P for each of these; 40 independent families
    size, num, families = 300, 50, 40
    params, vector = tree_of(size), np.random.default_rng(1).normal(size=size)
    vector /= np.linalg.norm(vector)
    tree = jax.tree.map(lambda a: a.astype(jnp.float32), _unflatten(params, vector))
    project = lambda k: random_directions(params, k, num=num, kind=kind).project(tree)  # noqa: E731
    found = np.asarray(jax.jit(jax.vmap(project))(jax.random.split(key, families)), np.float64)
    count = found.size
    assert abs(found.mean()) < 4 * np.sqrt(1 / size / count)
    # the fourth moment is at most 3 / P^2, so that the variance of a square is at most 2 / P^2
    assert abs((found**2).mean() - 1 / size) < 4 * np.sqrt(2 / count) / size
    assert scipy.stats.kstest(found.ravel() * size**0.5, "norm").pvalue > 1e-3


@pytest.mark.slow
def test_distinct_integers_are_distinct_and_uniform():
    for num, below in ((1000, 1000), (50, 51), (700, 1797), (3, 2**24), (1, 1)):
        found = np.asarray(distinct_integers(jax.random.key(num), num, below))
        assert len(set(found.tolist())) == num
        assert found.min() >= 0
        assert found.max() < below
    one = lambda k: distinct_integers(k, 3, 7)  # noqa: E731
    many = np.asarray(jax.vmap(one)(jax.random.split(jax.random.key(0), 7000)))
    # every place holds every integer equally often: 6 degrees of freedom, no p below 1e-3 of 3
    for place in many.T:
        assert scipy.stats.chisquare(np.bincount(place, minlength=7)).pvalue > 1e-3
    # and so do ordered pairs
    pairs = np.bincount(7 * many[:, 0] + many[:, 1], minlength=49).reshape(7, 7)
    assert scipy.stats.chisquare(pairs[~np.eye(7, dtype=bool)]).pvalue > 1e-3


def test_nothing_is_stored_for_ten_million_parameters_and_a_thousand_directions(key):
    params = jax.ShapeDtypeStruct((10**7,), jnp.float32)

    def project(key, vector):
        return random_directions(vector, key, num=1000).project(vector)

    memory = jax.jit(project).lower(key, params).compile().memory_analysis()
    # Hadamard: a few vectors of 2^24 numbers, not 1000 of 10^7 (40 GB)
    assert memory.temp_size_in_bytes < 8 * 4 * 2**24
    drawn = lambda key, v: random_directions(v, key, num=1000, kind="gaussian").project(v)  # noqa: E731
    memory = jax.jit(drawn).lower(key, params).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 8 * 4 * 10**7


@pytest.mark.slow
def test_drawn_in_blocks_and_drawn_at_once_are_the_same_directions(net, key, monkeypatch):
    params = jax.tree.map(jnp.asarray, net.make_problem(np.float32)[0])
    for kind in ("gaussian", "rademacher"):
        directions = random_directions(params, key, num=7, kind=kind)
        whole = directions.project(params)
        np.testing.assert_allclose(directions.kept().project(params), whole, rtol=1e-5, atol=1e-6)
        # Row r does not depend on how many there are; another number is another program too
        more = random_directions(params, key, num=9, kind=kind)
        drawn = jax.make_jaxpr(lambda d: d.project(params))
        assert "scan" not in str(drawn(directions))
        with monkeypatch.context() as patch:
            patch.setattr("poster_jax.gradient_noise.directions.BLOCK", 2 * more.dim)
            np.testing.assert_allclose(more.project(params)[:7], whole, rtol=1e-5, atol=1e-6)
        assert "scan" in str(drawn(more))


def test_given_vectors_become_unit_vectors_and_zero_stays_zero(net):
    vectors = {"a": jnp.array([[3e-30, 0.0], [0.0, 0.0]]), "b": jnp.array([4e-30, 0.0])}
    directions = directions_along(vectors)
    W = net.matrix_of(directions)
    np.testing.assert_allclose(W, [[0.6, 0, 0.8], [0, 0, 0]], rtol=1e-6)
    tree = {"a": jnp.array([1.0, 2.0]), "b": jnp.float32(3.0)}
    np.testing.assert_allclose(directions.project(tree), [3.0, 0.0], rtol=1e-6)


def test_half_precision_leaves_are_joined_in_float32(key):
    params = {"w": jnp.ones(64, jnp.bfloat16)}
    directions = random_directions(params, key, num=3)
    assert directions.tangent(0)["w"].dtype == jnp.bfloat16
    assert directions.project(params).dtype == jnp.float32


@pytest.mark.slow
def test_directions_pass_through_jit_and_vmap(key):
    params = tree_of(20)
    keys = jax.random.split(key, 3)
    families = jax.vmap(lambda k: random_directions(params, k, num=4))(keys)
    assert isinstance(families, Directions)
    tree = jax.tree.map(lambda a: a + 1.0, params)
    ours = jax.jit(jax.vmap(lambda d: d.project(tree)))(families)
    alone = random_directions(params, keys[1], num=4).project(tree)
    np.testing.assert_allclose(ours[1], alone, rtol=1e-6, atol=2e-7)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"num": 0}, ValueError, "num must be at least 1"),
        ({"num": 1.5}, TypeError, "num must be an integer"),
        ({"num": 3, "kind": "hadamar"}, ValueError, "Did you mean 'hadamard'"),
        ({"num": 21, "kind": "hadamard"}, ValueError, "at most the number of parameters, 20"),
        ({"num": 21, "kind": "coordinates"}, ValueError, "at most the number of parameters, 20"),
        ({"num": 3, "layer": "c"}, ValueError, "names nothing"),
    ],
)
def test_bad_options(options, error, match, key):
    with pytest.raises(error, match=match):
        random_directions(tree_of(20), key, **options)


@pytest.mark.bad_input
def test_bad_arguments(key):
    with pytest.raises(TypeError, match="key must be a PRNG key"):
        random_directions(tree_of(5), 0, num=2)
    with pytest.raises(TypeError, match="floating point"):
        random_directions({"w": jnp.arange(3)}, key, num=2)
    with pytest.raises(ValueError, match="must share the leading example axis"):
        directions_along({"a": jnp.ones((2, 3)), "b": jnp.ones((3, 3))})
    directions = random_directions(tree_of(20), key, num=2)
    with pytest.raises(ValueError, match="tree must have the structure"):
        directions.project({"a": jnp.ones(3)})
