"""A network of copies is the narrow network with its own rates, step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from poster_jax import feature_diversity as fd
from poster_jax.core import losses, models, training

ENDS = {"inputs": "Conv_0", "outputs": "Dense_0"}


def symmetric_start(params, key):
    """Random, but the same for all channels (and for all classes, but for the dense bias)."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]

    def draw(name, leaf, key):
        shape = list(leaf.shape)
        if "Conv_0']['kernel" in name and "Block" not in name:
            shape[-1] = 1  # the stem's kernels may differ from colour to colour
        elif "Dense_0']['bias" in name:
            pass
        elif "Dense_0']['kernel" in name:
            shape[-2] = 1
        else:
            shape[-2:] = [1] * len(shape[-2:])
        size = 1 / max(leaf.shape[-2] if leaf.ndim > 1 else 1, 1)
        return jnp.broadcast_to(
            size * (jax.random.normal(key, shape, jnp.float64) + 0.3), leaf.shape
        )

    return treedef.unflatten([draw(*of) for of in zip(names, leaves, keys, strict=True)])


def run(model, params, state, data, key, multipliers, num_steps):
    optimizer = optax.chain(
        fd.scale_gradients(multipliers),
        optax.add_decayed_weights(5e-4),
        optax.sgd(0.03, momentum=0.9),
    )
    loss_fn = training.model_loss(model, losses.softmax_cross_entropy)

    @jax.jit
    def fit(params, state):
        found = training.fit(
            loss_fn, params, data, key, optimizer=optimizer, num_steps=num_steps,
            batch_size=8, model_state=state,
        )  # fmt: skip
        state = found.state
        return (
            state.params,
            state.model_state,
            model.freeze(state.model_state)(state.params, data[0]),
        )

    return fit(params, state)


@pytest.mark.parametrize(
    "module",
    [
        fd.ConstNet((4, 4, 6), num_blocks=1, num_classes=3),
        pytest.param(
            fd.LeakyNet("1_11_11_11", (4, 4, 6, 6), num_classes=3), marks=pytest.mark.slow
        ),
        pytest.param(
            fd.ConstNet((4, 4, 6, 6), num_blocks=2, num_classes=3, norm=None),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["ConstNet", "LeakyNet", "Fixup"],
)
def test_a_symmetric_network_is_the_one_channel_network(module, key, x64):
    """60 steps with momentum, weight decay and batch norm, to 1e-10; wrong rates fail at step 2."""
    data_key, start_key, run_key = jax.random.split(key, 3)
    x = jax.random.normal(data_key, (24, 8, 8, 3), jnp.float64)
    data = (x, jnp.arange(24) % 3)
    model, narrow_model = models.from_linen(module), models.from_linen(module.reduced())
    params = symmetric_start(model.init(key, x), start_key)
    state = jax.tree.map(lambda a: a.astype(jnp.float64), model.init_state(key, x))
    found = fd.symmetric_reduction(params, **ENDS, model_state=state)
    assert jax.tree.map(jnp.shape, found.params) == jax.tree.map(
        jnp.shape, narrow_model.init(key, x)
    )
    ones = jax.tree.map(lambda _: 1.0, params)
    _, wide_state, wide = run(model, params, state, data, run_key, ones, 60)
    _, narrow_state, narrow = run(
        narrow_model, found.params, found.model_state, data, run_key, found.multipliers, 60
    )
    assert float(jnp.abs(wide).max()) > 0.1
    np.testing.assert_allclose(narrow, wide, atol=1e-10)
    for one, many in zip(jax.tree.leaves(narrow_state), jax.tree.leaves(wide_state), strict=True):
        np.testing.assert_allclose(jnp.broadcast_to(one, many.shape), many, atol=1e-10)
    *_, wide = run(model, params, state, data, run_key, ones, 2)
    *_, wrong = run(narrow_model, found.params, found.model_state, data, run_key, ones, 2)
    assert float(jnp.abs(wrong - wide).max()) > 1e-4


@pytest.mark.parametrize("num_unique", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("mode", ["zero", "duplicated"])
def test_a_duplicated_layer_is_a_narrow_one(num_unique, mode, two_layers, examples, key, x64):
    """In numpy; the library gives start, narrow parameters and rates."""
    x, y = examples
    keys = jax.random.split(key, 4)
    kernel = fd.duplicate_features(keys[0], (5, 12), num_unique=num_unique, dtype=jnp.float64)
    bias = fd.duplicate_features(keys[1], (1, 12), num_unique=num_unique, dtype=jnp.float64)[0]
    drawn = jax.random.normal(keys[2], (12, 3), jnp.float64)
    readout = fd.tie_output(drawn, num_unique=num_unique, mode=mode)
    params = {"hidden": [kernel, bias], "last": [readout, jax.random.normal(keys[3], (3,))]}
    found = fd.symmetric_reduction(params, inputs="hidden", outputs="last", num_unique=num_unique)
    copies = 12 // num_unique
    assert found.multipliers == {"hidden": [1 / copies] * 2, "last": [copies, 1.0]}
    batches = [(x[i % 3 :: 3], y[i % 3 :: 3]) for i in range(60)]
    how = {"rate": 0.2, "momentum": 0.9, "decay": 5e-4}
    wide = two_layers.train(jax.tree.leaves(params), batches, multipliers=[1, 1, 1, 1], **how)
    narrow = two_layers.train(
        jax.tree.leaves(found.params), batches, multipliers=jax.tree.leaves(found.multipliers),
        **how,
    )  # fmt: skip
    outputs = two_layers.forward(wide, x)[1]
    np.testing.assert_allclose(two_layers.forward(narrow, x)[1], outputs, atol=1e-9)
    assert np.abs(outputs).max() > 1


def test_the_leak_is_the_largest_difference_and_the_mean_takes_it_away(key):
    params = {"in": jnp.tile(jax.random.normal(key, (3, 2)), 3), "out": jnp.ones((6, 2))}
    ends = {"inputs": "in", "outputs": "out", "num_unique": 2}
    assert float(fd.symmetry_leak(params, **ends)) == 0.0
    moved = {**params, "in": params["in"].at[1, 4].add(0.25)}
    expected = 0.25 / np.sqrt(np.mean(np.square(moved["in"])))
    assert float(fd.symmetry_leak(moved, **ends)) == pytest.approx(expected, rel=1e-6)
    back = fd.symmetrise(moved, **ends)
    assert float(fd.symmetry_leak(back, **ends)) < 1e-6
    third = np.asarray(params["in"][:, :2]) + np.array([[0, 0], [0.25 / 3, 0], [0, 0]])
    np.testing.assert_allclose(back["in"], np.tile(third, 3), rtol=1e-6)


@pytest.mark.bad_input
def test_bad_input_is_refused_in_one_sentence(key):
    params = {"in": jax.random.normal(key, (3, 4)), "out": jnp.ones((4, 2))}
    with pytest.raises(ValueError, match="the same for all copies of 1 kinds of features, got rel"):
        fd.symmetric_reduction(params, inputs="in", outputs="out")
    with pytest.raises(ValueError, match="must divide the number of features, got 3 for 4 at 'in'"):
        fd.symmetrise(params, inputs="in", outputs="out", num_unique=3)
    with pytest.raises(ValueError, match=r"inputs must be paths of layers, got 'stem'; there are"):
        fd.symmetrise(params, inputs="stem", outputs="out")
    with pytest.raises(ValueError, match="num_unique must be at least 1, got 0"):
        fd.symmetry_leak(params, inputs="in", outputs="out", num_unique=0)
