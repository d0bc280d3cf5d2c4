"""What is written is read back to the bit, and what is not whole is not read."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from poster_jax.core import checkpoints
from poster_jax.core.devices import data_mesh, replicate, shard_population

TREE = {
    "a/b": jnp.array([[1.0, jnp.nan], [jnp.inf, 1e-45]]),
    "half": jnp.arange(3, dtype=jnp.bfloat16),
    "typed key": jax.random.key(1),
    "old key": jax.random.PRNGKey(2),
    "nothing": jnp.zeros((0, 3)),
    "adam": optax.adam(1e-3).init({"w": jnp.ones(3)}),
    "flag": jnp.array(True),
}


def same_bits(ours, theirs):
    def bits(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        leaf = np.asarray(leaf)
        return leaf.dtype, leaf.shape, leaf.tobytes()

    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    return [bits(a) for a in jax.tree.leaves(ours)] == [bits(b) for b in jax.tree.leaves(theirs)]


def test_every_kind_of_leaf_comes_back_to_the_bit(tmp_path):
    checkpoints.save(tmp_path, 5, TREE, metadata={"note": [1, "two"]})
    assert checkpoints.latest(tmp_path) == (5, {"note": [1, "two"]})
    assert same_bits(checkpoints.restore(tmp_path, TREE), TREE)
    like = jax.eval_shape(lambda: TREE)
    assert same_bits(checkpoints.restore(tmp_path, like), TREE)


def test_float64_comes_back_to_the_bit(tmp_path, x64):
    tree = {"w": jnp.array([np.pi, 1 / 3])}
    checkpoints.save(tmp_path, 1, tree)
    assert same_bits(checkpoints.restore(tmp_path, tree), tree)


def test_only_the_newest_are_kept(tmp_path):
    for step in range(5):
        checkpoints.save(tmp_path, step, {"w": jnp.full(2, float(step))}, keep=2)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["3", "4"]
    like = {"w": jnp.zeros(2)}
    assert checkpoints.restore(tmp_path, like)["w"].tolist() == [4.0, 4.0]
    assert checkpoints.restore(tmp_path, like, step=3)["w"].tolist() == [3.0, 3.0]


def test_what_is_not_whole_is_not_read_and_not_in_the_way(tmp_path):
    tree = {"w": jnp.ones(3)}
    checkpoints.save(tmp_path, 1, tree)
    # a writer killed before the renaming leaves a directory with a temporary name
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp-7")
    # a copy broken off leaves a directory without the file that orbax writes last
    shutil.copytree(tmp_path / "1", tmp_path / "3")
    (tmp_path / "3" / "_CHECKPOINT_METADATA").unlink()
    assert checkpoints.latest(tmp_path) == (1, {})
    assert same_bits(checkpoints.restore(tmp_path, tree), tree)
    checkpoints.save(tmp_path, 2, {"w": jnp.zeros(3)})
    checkpoints.save(tmp_path, 3, {"w": jnp.full(3, 3.0)})
    assert checkpoints.latest(tmp_path)[0] == 3
    assert checkpoints.restore(tmp_path, tree)["w"].tolist() == [3.0] * 3


@pytest.mark.parametrize("place", [replicate, shard_population])
def test_arrays_on_many_devices_return_to_them(tmp_path, place):
    tree = place({"w": jnp.ones((8, 2)), "k": jnp.arange(8)}, data_mesh(8))
    checkpoints.save(tmp_path, 1, tree)
    back = checkpoints.restore(tmp_path, tree)
    assert same_bits(back, tree)
    assert back["w"].sharding == tree["w"].sharding


def test_what_does_not_fit_is_refused_by_name(tmp_path):
    checkpoints.save(tmp_path, 1, {"w": jnp.ones((2, 3))})
    for like, message in [
        ({"w": jnp.ones((3, 2))}, r"'00000.w' the checkpoint holds float32\[2, 3\], like float32"),
        ({"w": jnp.ones((2, 3), int)}, "holds float32.*like int32"),
        ({"w": jnp.ones((2, 3)), "x": jnp.ones(1)}, "'00001.x' the checkpoint holds nothing"),
        ({"v": jnp.ones((2, 3))}, "'00000.v' the checkpoint holds nothing"),
    ]:
        with pytest.raises(ValueError, match=message):
            checkpoints.restore(tmp_path, like)


def test_a_missing_checkpoint_is_said(tmp_path):
    assert checkpoints.latest(tmp_path) is None
    with pytest.raises(ValueError, match="no checkpoint of step None"):
        checkpoints.restore(tmp_path, {})
    checkpoints.save(tmp_path, 3, {"w": jnp.ones(1)})
    with pytest.raises(ValueError, match=r"no checkpoint of step 2 in .*; there are \[3\]"):
        checkpoints.restore(tmp_path, {"w": jnp.ones(1)}, step=2)


@pytest.mark.bad_input
def test_bad_input_is_named(tmp_path):
    tree = {"w": jnp.ones(1)}
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        checkpoints.save(tmp_path, -1, tree)
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        checkpoints.save(tmp_path, 1, tree, keep=0)
    with pytest.raises(TypeError, match=r"tree\['w'\] must be an array, got float"):
        checkpoints.save(tmp_path, 1, {"w": 1.0})
    checkpoints.save(tmp_path, 4, tree)
    with pytest.raises(ValueError, match="step must be above 4"):
        checkpoints.save(tmp_path, 4, tree)
