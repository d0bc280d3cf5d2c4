"""Names of leaves in the trees of every library, and functions of one subtree."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from poster_jax.core.paths import get_path, leaf_paths, restrict, set_path


def _trees():
    key = jax.random.key(0)
    linen = nn.Dense(2).init(key, jnp.ones((1, 3)))["params"]
    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([4, 2])(x)))
    haiku = net.init(jax.random.PRNGKey(0), jnp.ones((1, 3)))
    equinox = eqx.filter(eqx.nn.MLP(3, 2, 4, 1, key=key), eqx.is_inexact_array)
    _, nnx_state = nnx.split(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    return {
        "linen": (linen, "kernel", (3, 2)),
        "haiku": (haiku, "mlp/~/linear_0/w", (3, 4)),
        "equinox": (equinox, "layers/0/weight", (4, 3)),
        "nnx": (nnx_state, "kernel/value", (3, 2)),
        "plain": ([jnp.ones((3, 2)), jnp.ones(2)], "0", (3, 2)),
    }


@pytest.mark.parametrize("library", ["linen", "haiku", "equinox", "nnx", "plain"])
def test_reads_and_replaces_a_leaf_of_each_library(library):
    tree, path, shape = _trees()[library]
    if path not in leaf_paths(tree) and library == "nnx":  # newer nnx names the variable itself
        path = path.removesuffix("/value")
    assert get_path(tree, path).shape == shape
    replaced = set_path(tree, path, jnp.zeros(shape))
    assert jax.tree.structure(replaced) == jax.tree.structure(tree)
    assert float(jnp.abs(get_path(replaced, path)).sum()) == 0.0
    assert float(jnp.abs(get_path(tree, path)).sum()) > 0.0  # the original is untouched


def test_restricted_function_has_the_partial_gradient():
    params = {"a": {"k": jnp.array([2.0, 3.0]), "b": jnp.array(1.0)}, "c": jnp.array(5.0)}

    def fn(p, x):
        return jnp.sum(p["a"]["k"] ** 2 * p["c"]) + p["a"]["b"] * x

    inner, subtree = restrict(fn, params, "a")
    assert set(subtree) == {"b", "k"}
    assert float(inner(subtree, 4.0)) == float(fn(params, 4.0))
    gradient = jax.jit(jax.grad(inner))(subtree, 4.0)
    assert gradient["k"].tolist() == [20.0, 30.0]
    assert float(gradient["b"]) == 4.0
    leaf_fn, leaf = restrict(fn, params, "a/k")
    assert jax.grad(leaf_fn)(leaf, 4.0).tolist() == [20.0, 30.0]


@pytest.mark.bad_input
def test_wrong_paths_name_the_nearest():
    params = {"Dense_0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    with pytest.raises(ValueError, match=r"path 'Dense_0/kernle' .*'Dense_0/kernel'"):
        get_path(params, "Dense_0/kernle")
    with pytest.raises(TypeError, match="path must be a string"):
        get_path(params, 0)
    with pytest.raises(ValueError, match="keys"):
        set_path(params, "Dense_0", {"kernel": jnp.ones((2, 2))})
