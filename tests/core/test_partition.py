"""Training a part: the parts make the whole, and what is frozen costs nothing and stays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from poster_jax.core.training import fit, freeze, merge, partition, stateful

PARAMS = {"a": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}, "b": jnp.full((2,), 2.0)}


def loss(params, x):
    return jnp.mean((jnp.tanh(x @ params["a"]["kernel"] + params["a"]["bias"]) @ params["b"]) ** 2)


def test_parts_make_the_whole_and_a_mask_says_the_same_as_a_rule():
    rule = partition(PARAMS, lambda path, leaf: path == "b" or leaf.ndim == 2)
    mask = partition(PARAMS, {"a": {"kernel": True, "bias": False}, "b": True})
    for parts in (rule, mask):
        assert parts[0]["a"]["bias"] is None
        assert parts[1]["a"]["kernel"] is parts[1]["b"] is None
        assert jax.tree.map(jnp.shape, merge(*parts)) == jax.tree.map(jnp.shape, PARAMS)


@pytest.mark.parametrize("kind", ["plain", "stateful"])
def test_the_gradient_is_that_of_the_whole_and_the_frozen_part_does_not_move(kind, x64):
    params = jax.tree.map(lambda a: jnp.asarray(a, float), PARAMS)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 3)))
    trainable, frozen = partition(params, lambda path, leaf: path != "b")
    whole = loss if kind == "plain" else stateful(lambda p, s, b, k: (loss(p, b), s))
    part = freeze(whole, frozen)
    if kind == "plain":
        found, full = jax.grad(part)(trainable, x), jax.grad(loss)(params, x)
        np.testing.assert_allclose(found["a"]["kernel"], full["a"]["kernel"], rtol=1e-12)
        assert found["b"] is None
    optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))
    run = fit(part, trainable, x, jax.random.key(0), optimizer=optimizer, num_steps=5, batch_size=8)
    assert run.params["b"] is None
    assert len(jax.tree.leaves(run.state.opt_state)) == 2  # momenta of kernel and bias alone
    after = merge(run.params, frozen)
    assert after["b"] is params["b"]
    assert bool((after["a"]["kernel"] != params["a"]["kernel"]).all())


@pytest.mark.bad_input
def test_bad_input():
    with pytest.raises(ValueError, match="trainable must name at least 1 of 3 leaves, got none"):
        partition(PARAMS, lambda path, leaf: False)
    with pytest.raises(ValueError, match="trainable must be a function or a tree like params"):
        partition(PARAMS, {"a": True})
    with pytest.raises(TypeError, match="trainable must say True or False of every leaf, got 1"):
        partition(PARAMS, lambda path, leaf: 1)
    with pytest.raises(ValueError, match="trainable and frozen must be the two parts"):
        merge(PARAMS, PARAMS)
    with pytest.raises(TypeError, match="loss_fn"):
        freeze(3, PARAMS)
