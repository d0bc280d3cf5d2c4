"""Modules cut into layers: the pieces make the module, and twins of three libraries are equal."""

from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from poster_jax.core.models import MLP, from_equinox, from_nnx
from poster_jax.jacobian import network_penalty, split_equinox, split_linen, split_nnx

SIZES = (6, 5, 4, 3)


def weights(seed):
    rng = np.random.default_rng(seed)
    return [
        (rng.normal(size=(n, m)) / n**0.5, 0.2 * rng.normal(size=m)) for n, m in pairwise(SIZES)
    ]


def numpy_penalties(pairs, x):
    """||J J' - I||^2 / m of the hidden layers, and the outputs."""
    found = []
    for w, b in pairs[:-1]:
        x = np.tanh(x @ w + b)
        J = (1 - x**2)[:, :, None] * w.T
        M = J @ np.swapaxes(J, 1, 2) - np.eye(J.shape[1])
        found.append((M**2).sum(axis=(1, 2)).mean() / J.shape[1])
    return np.array(found), x @ pairs[-1][0] + pairs[-1][1]


class TwinNnx(nnx.Module):
    def __init__(self, rngs):
        self.early = nnx.List([nnx.Linear(n, m, rngs=rngs) for n, m in pairwise(SIZES[:-1])])
        self.last = nnx.Linear(*SIZES[-2:], rngs=rngs)

    def __call__(self, x):
        for layer in self.early:
            x = jnp.tanh(layer(x))
        return self.last(inputs=x)


class TwinEquinox(eqx.Module):
    early: dict
    last: eqx.nn.Linear

    def __call__(self, x):
        for layer in self.early.values():
            x = jnp.tanh(layer(x))
        return self.last(x)


def twins(x):
    """Of each library: layers, their names, which are asked for, params of weights and back."""
    linen = MLP(SIZES[1:], activation=jnp.tanh)
    by_nnx = TwinNnx(nnx.Rngs(0))
    made = [eqx.nn.Linear(n, m, key=jax.random.key(0)) for n, m in pairwise(SIZES)]
    by_eqx = TwinEquinox({"a": made[0], "b": made[1]}, made[2])
    leaves = lambda m: [  # noqa: E731
        a for layer in (*m.early.values(), m.last) for a in (layer.weight, layer.bias)
    ]

    def to_linen(pairs):
        return {f"Dense_{i}": {"kernel": w, "bias": b} for i, (w, b) in enumerate(pairs)}

    def of_linen(params):
        return [(p["kernel"], p["bias"]) for p in params.values()]

    def to_nnx(pairs):
        first, second, last = ({"kernel": w, "bias": b} for w, b in pairs)
        return {"early": {0: first, 1: second}, "last": last}

    def of_nnx(params):
        return [
            (p["kernel"], p["bias"]) for p in (*params["early"].values(), params["last"])
        ]  # fmt: skip

    def to_equinox(pairs):
        flat = [jnp.asarray(a) for w, b in pairs for a in (w.T, b)]
        return eqx.filter(eqx.tree_at(leaves, by_eqx, flat), eqx.is_inexact_array)

    def of_equinox(params):
        flat = leaves(params)
        return [(w.T, b) for w, b in zip(flat[::2], flat[1::2], strict=True)]

    table = (
        (split_linen, linen, to_linen, of_linen, "Dense_[01]", ["Dense_0", "Dense_1", "Dense_2"]),
        (split_nnx, by_nnx, to_nnx, of_nnx, "early", ["early/0", "early/1", "last"]),
        (split_equinox, by_eqx, to_equinox, of_equinox, ("early",), ["early/a", "early/b", "last"]),
    )
    found = []
    for split, module, to, of, select, names in table:
        layers = split(module, to(weights(0)), x)
        assert [layer.name for layer in layers] == names
        found.append((layers, to, of, select))
    # The modules that were given stay as they were.
    assert {type(m) for _, m in nnx.iter_modules(by_nnx)} == {TwinNnx, nnx.List, nnx.Linear}
    assert type(by_eqx.last) is eqx.nn.Linear
    return found


def test_twins_of_three_libraries_have_one_penalty_and_one_gradient(x64):
    x = np.random.default_rng(1).normal(size=(7, 6))
    libraries = twins(x)

    def ask(pairs):
        answers = []
        for layers, to, of, select in libraries:

            def total(params, layers=layers, select=select):
                ask = (layers, (params,) * 3, x)
                found = network_penalty(*ask, method="exact", select=select)
                return found.total + (found.outputs**2).sum(), found

            gradient, found = jax.grad(total, has_aux=True)(to(pairs))
            answers.append((found, of(gradient)))
        return answers

    seeds = [weights(seed) for seed in range(3)]
    answers = jax.jit(jax.vmap(ask))(jax.tree.map(lambda *a: jnp.stack(a), *seeds))
    for found, gradient in answers:
        for seed, pairs in enumerate(seeds):
            penalties, outputs = numpy_penalties(pairs, x)
            np.testing.assert_allclose(found.per_layer[seed], penalties, rtol=1e-12)
            np.testing.assert_allclose(found.outputs[seed], outputs, rtol=1e-12)
        for a, e in zip(*map(jax.tree.leaves, (gradient, answers[0][1])), strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-14)


@pytest.mark.slow
def test_what_comes_before_a_layer_costs_nothing_once_compiled(key):
    """The whole module is called for each of its layers; XLA counts one forward pass all the same.

    Two float operations for each of a handful of elementwise steps may differ; one product of the
    first layer alone would be 6 % of the whole.
    """
    x = np.random.default_rng(6).normal(size=(7, 6)).astype(np.float32)
    pairs = jax.tree.map(np.float32, weights(0))
    hidden = lambda p, x: jnp.tanh(x @ p[0] + p[1])  # noqa: E731
    by_hand = (hidden, hidden, lambda p, x: x @ p[0] + p[1])

    def flops(layers, params):
        ask = lambda params, key: network_penalty(layers, params, x, key, select="all")  # noqa: E731
        return jax.jit(ask).lower(params, key).compile().cost_analysis()["flops"]

    wants = flops(by_hand, tuple(pairs))
    for layers, to, _, _ in twins(x):
        assert abs(flops(layers, (to(pairs),) * 3) / wants - 1) < 0.02


class Convolutions(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(2, 3, (3, 3), padding="CIRCULAR", rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.second = nnx.Conv(3, 4, (3, 3), strides=2, padding="CIRCULAR", rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.second(jnp.tanh(self.norm(self.first(x)))).mean(axis=(1, 2)))


@pytest.mark.slow
def test_state_rides_along_and_the_mode_is_the_modules(key):
    x = np.random.default_rng(2).normal(size=(5, 6, 6, 2)).astype(np.float32)
    model = from_nnx(Convolutions)
    params, state = model.init(key, x), model.init_state(key, x)
    _, state = jax.jit(model.apply_train)(params, state, x, key)
    module = Convolutions(nnx.Rngs(1))
    module.eval()
    layers = split_nnx(module, params, x, state=state)
    ask = jax.jit(lambda p: network_penalty(layers, (p, p), x, key, select="first").outputs)
    wants = model.apply_eval(params, state, x)
    np.testing.assert_allclose(ask(params), wants, rtol=1e-5, atol=1e-6)
    # In training mode the statistics are the batch's, and dropout draws from the module's streams.
    module.train()
    module.drop.deterministic = True
    train = split_nnx(module, params, x, state=state)
    differ = jnp.abs(train[0](params, x) - layers[0](params, x)).max()
    alone = jnp.abs(train[0](params, x)[:1] - train[0](params, x[:1])).max()
    assert differ > 1e-3
    assert alone > 1e-3


class EquinoxConvolutions(eqx.Module):
    first: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    second: eqx.nn.Conv2d

    def __init__(self, key):
        self.first = eqx.nn.Conv2d(2, 3, 3, key=key)
        self.norm = eqx.nn.BatchNorm(3, "batch", mode="batch")
        self.second = eqx.nn.Conv2d(3, 4, 2, key=key)

    def __call__(self, x, state):
        x, state = self.norm(self.first(x), state)
        return self.second(jnp.tanh(x)).mean(axis=(1, 2)), state


@pytest.mark.slow
def test_equinox_state_is_read_again_and_again(key, x64):
    x = np.random.default_rng(3).normal(size=(5, 2, 6, 6))
    made, state = eqx.nn.make_with_state(EquinoxConvolutions)(key)
    model = from_equinox((made, state))
    params = model.init(key, x)
    for inference in (True, False):
        module = eqx.nn.inference_mode(made, value=inference)
        first, second = split_equinox(module, params, x, state=state)
        outputs = second(params, first(params, x))
        if inference:
            wants = model.apply_eval(params, model.init_state(key, x), x)
        else:
            wants, _ = model.apply_train(params, model.init_state(key, x), x, key)
        np.testing.assert_allclose(outputs, wants, rtol=1e-12)


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(x.shape[-1])(jnp.tanh(nn.Dense(5)(x)))


class Deep(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        for _ in range(2):
            x = Residual()(x)
            x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(2)(x)


class ByName(nn.Module):
    lift: bool = False

    @nn.compact
    def __call__(self, x):
        layer = nn.remat(nn.Dense) if self.lift else nn.Dense
        x = jnp.tanh(layer(3)(inputs=x))
        return layer(2)(inputs=x)


def test_inputs_by_name_are_found_and_lifted_modules_refused(key):
    x = jnp.ones((4, 3))
    params = jax.jit(ByName().init)(key, x)["params"]
    layers = split_linen(ByName(), params, x)
    hidden = jnp.tanh(x @ params["Dense_0"]["kernel"])
    np.testing.assert_allclose(layers[0](params, x), hidden, rtol=1e-6)
    params = {f"CheckpointDense_{i}": params[f"Dense_{i}"] for i in (0, 1)}
    with pytest.raises(ValueError, match="inside a lifted transformation"):
        split_linen(ByName(lift=True), params, x)


@pytest.mark.slow
def test_blocks_with_state_are_cut_whole_and_training_mode_is_coupled(key, x64):
    x = np.random.default_rng(6).normal(size=(4, 3))
    variables = jax.jit(Deep().init)(key, x)
    params, state = variables["params"], {"batch_stats": variables["batch_stats"]}
    with pytest.raises(ValueError, match="something passes by a cut"):
        split_linen(Deep(), params, x, state=state, boundary=nn.Dense)
    layers = split_linen(Deep(), params, x, state=state, boundary=Residual)
    assert len(layers) == 2
    train = split_linen(Deep(), params, x, state=state, boundary=Residual, train=True)
    found = jax.jit(
        lambda params: network_penalty(
            train, (params,) * 2, x, method="exact", coupled=True, select="all"
        )
    )(params)
    J = np.asarray(jax.jit(jax.jacrev(lambda x: train[0](params, x)))(x)).reshape(12, 12)
    M = J @ J.T - np.eye(12)
    np.testing.assert_allclose(found.per_layer[0], (M**2).sum() / 4 / 3, rtol=1e-12)


class SkipNnx(nnx.Module):
    def __init__(self, rngs, lift=False):
        self.first, self.last = nnx.Linear(3, 3, rngs=rngs), nnx.Linear(3, 3, rngs=rngs)
        self.lift = lift

    def __call__(self, x):
        call = lambda layer, x: layer(x)  # noqa: E731
        if self.lift:
            return nnx.remat(call)(self.last, nnx.remat(call)(self.first, x))
        return x + self.last(self.first(x))


class SkipEquinox(eqx.Module):
    first: eqx.nn.Linear
    last: eqx.nn.Linear
    lift: bool

    def __call__(self, x):
        if self.lift:
            return eqx.filter_checkpoint(self.last)(eqx.filter_checkpoint(self.first)(x))
        return x + self.last(self.first(x))


@pytest.mark.parametrize("lift", [False, True])
def test_what_passes_by_a_cut_or_stands_in_a_transformation_is_refused(lift, key):
    x = np.random.default_rng(4).normal(size=(4, 3)).astype(np.float32)
    by_nnx = SkipNnx(nnx.Rngs(0), lift)
    by_eqx = SkipEquinox(*(eqx.nn.Linear(3, 3, key=key) for _ in range(2)), lift)
    for split, module, params in (
        (split_nnx, by_nnx, nnx.to_pure_dict(nnx.state(by_nnx, nnx.Param))),
        (split_equinox, by_eqx, eqx.filter(by_eqx, eqx.is_inexact_array)),
    ):
        with pytest.raises(ValueError, match="inside a lifted" if lift else "passes by a cut"):
            split(module, params, x)
        (whole,) = split(module, params, x, boundary=type(module))
        np.testing.assert_array_equal(whole(params, x).shape, x.shape)


@pytest.mark.bad_input
def test_bad_input(key):
    x = jnp.ones((2, 3))
    norm = nnx.LayerNorm(3, rngs=nnx.Rngs(0))
    eqx_norm = eqx.nn.LayerNorm(3)
    with pytest.raises(TypeError, match=r"module must be a flax\.linen\.Module"):
        split_linen(norm, {}, x)
    with pytest.raises(TypeError, match=r"module must be an nnx\.Module"):
        split_nnx(eqx_norm, {}, x)
    with pytest.raises(TypeError, match=r"module must be an eqx\.Module"):
        split_equinox(norm, {}, x)
    with pytest.raises(ValueError, match=r"must call at least one of .'Dense', 'Conv'"):
        split_linen(nn.LayerNorm(use_bias=False, use_scale=False), {}, x)
    with pytest.raises(ValueError, match=r"must call at least one of .'Linear', 'Conv'"):
        split_nnx(norm, nnx.to_pure_dict(nnx.state(norm)), x)
    with pytest.raises(ValueError, match=r"must call at least one of .'Linear', 'Conv'"):
        split_equinox(eqx_norm, eqx_norm, x)
