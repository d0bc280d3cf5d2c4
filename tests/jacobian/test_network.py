"""Layers together: one forward pass, one scan, one strength."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from poster_jax.core.devices import data_mesh, replicate, shard_batch
from poster_jax.core.training import fit, stateful
from poster_jax.jacobian import (
    NamedLayer,
    Penalty,
    StackedLayers,
    network_penalty,
    norm_preservation_penalty,
    orthogonality_penalty,
    regularised_loss,
    tied_autoencoder_loss,
)
from poster_jax.jacobian._selection import chosen_layers, layer_names

SIZES = (6, 5, 5, 4, 3)


def layer(params, x):
    return jnp.tanh(x @ params["w"] + params["b"])


def make(sizes=SIZES, seed=0, examples=8, dtype=np.float64):
    rng = np.random.default_rng(seed)
    params = tuple(
        {
            "w": (rng.normal(size=(n, m)) / n**0.5).astype(dtype),
            "b": (0.2 * rng.normal(size=m)).astype(dtype),
        }
        for n, m in pairwise(sizes)
    )
    return params, rng.normal(size=(examples, sizes[0])).astype(dtype)


def forward(params, x):
    """Activations by numpy, the input first."""
    hs = [x]
    for p in params:
        hs.append(np.tanh(hs[-1] @ p["w"] + p["b"]))
    return hs


def numpy_penalty(p, x):
    J = (1 - np.tanh(x @ p["w"] + p["b"]) ** 2)[:, :, None] * p["w"].T
    M = J @ np.swapaxes(J, 1, 2) - np.eye(J.shape[1])
    return (M**2).sum(axis=(1, 2)).mean()


def test_every_layer_has_its_own_penalty_over_its_width(key, x64):
    params, x = make()
    hs = forward(params, x)
    expected = np.array([numpy_penalty(p, h) / p["w"].shape[1] for p, h in zip(params, hs)])  # noqa: B905

    @jax.jit
    def ask(params, x):
        ask = partial(network_penalty, (layer,) * 4, params, x, method="exact")
        return [ask(), ask(select="all"), ask(select=(0, -1))]

    for found, layers in zip(ask(params, x), ([1, 2], [0, 1, 2, 3], [0, 3]), strict=True):
        np.testing.assert_allclose(found.per_layer, expected[layers], rtol=1e-12)
        np.testing.assert_allclose(found.total, expected[layers].mean(), rtol=1e-12)
        np.testing.assert_allclose(found.outputs, hs[-1], rtol=1e-12)
        assert float(found.standard_error) == 0
    lone = jax.jit(partial(network_penalty, layer, method="exact"))(params[0], x)
    np.testing.assert_allclose(lone.per_layer, expected[:1], rtol=1e-12)


def test_layers_are_selected_by_place_number_name_pattern_and_rule():
    layers = (
        NamedLayer(layer, "stem"),
        layer,
        StackedLayers(layer, 2, "Block_0"),
        StackedLayers(layer, 2),
        NamedLayer(layer, "Block_1/Dense_0"),
    )
    names = layer_names(layers, (1, 1, 2, 2, 1))
    assert names == ["stem", "1", "Block_0/0", "Block_0/1", "4", "5", "Block_1/Dense_0"]
    for select, numbers in (
        ("hidden", [1, 2, 3, 4, 5]),
        ("all", [0, 1, 2, 3, 4, 5, 6]),
        ("Block_0", [2, 3]),
        ("Block_?/*0", [2, 6]),
        (("stem", "Block_0/1", -3), [0, 3, 4]),
        (np.array([5, 1]), [1, 5]),
        (lambda number, name: number > 2 and "Block" in name, [3, 6]),
    ):
        assert list(np.flatnonzero(chosen_layers(select, names))) == numbers


@pytest.mark.slow
def test_layers_draw_by_their_number_and_their_errors_add(key, x64):
    params, x = make(seed=1)
    hs = forward(params, x)
    several = (
        (orthogonality_penalty, {"num_probes": 3, "distribution": "sphere"}),
        (orthogonality_penalty, {"num_probes": 3, "stop_gradient_input": True}),
        (norm_preservation_penalty, {"num_probes": 3}),
        (tied_autoencoder_loss, {}),
    )

    @jax.jit
    def ask(key):
        found, singly = [], []
        for penalty, options in several:
            found.append(network_penalty((layer,) * 4, params, x, key, penalty=penalty, **options))
            singly.append(
                [
                    penalty(layer, params[i], hs[i], jax.random.fold_in(key, i), **options)
                    for i in (1, 2)
                ]
            )
        return found, singly

    for found, singly in zip(*ask(key), strict=True):
        widths = np.array([5, 4])
        values, errors = (np.array([p[i] for p in singly]) / widths for i in (0, 2))
        np.testing.assert_allclose(found.per_layer, values, rtol=1e-12)
        np.testing.assert_allclose(found.standard_error, (errors**2).sum() ** 0.5 / 2, rtol=1e-12)


def _count(jaxpr, name=None):
    total = 0
    for eqn in jaxpr.eqns:
        total += name in (None, eqn.primitive.name)
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += _count(inner, name)
    return total


def test_the_forward_pass_runs_once(key):
    params, x = make(dtype=np.float32)
    for penalty in (orthogonality_penalty, norm_preservation_penalty):
        trace = jax.make_jaxpr(
            lambda p, x, key, penalty=penalty: network_penalty(
                (layer,) * 4, p, x, key, penalty=penalty, select="all", num_probes=2
            )
        )(params, x, key)
        assert _count(trace.jaxpr, "tanh") == 4


@pytest.mark.parametrize(
    "select", [(0, 2, 4), *(pytest.param(s, marks=pytest.mark.slow) for s in ("all", (1, 4)))]
)
def test_stacked_layers_are_the_unrolled_ones(select, key, x64):
    params, x = make((6, 5, 5, 5, 5, 3), seed=2)
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *params[1:4])
    layers = (layer, StackedLayers(layer, 3), layer)
    both = ((layer,) * 5, params), (layers, (params[0], stacked, params[4]))

    @jax.jit
    def ask(first, second, key):
        out = []
        for layers, params in zip((both[0][0], both[1][0]), (first, second), strict=True):

            def total(params, layers=layers):
                found = network_penalty(layers, params, x, key, select=select, num_probes=2)
                return found.total, found

            out.append(jax.grad(total, has_aux=True)(params))
        return out

    (by_hand, plain), (by_scan, scanned) = ask(both[0][1], both[1][1], key)
    for a, e in zip(scanned, plain, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-12)
    gradients = (by_hand[0], jax.tree.map(lambda *a: jnp.stack(a), *by_hand[1:4]), by_hand[4])
    for a, e in zip(jax.tree.leaves(by_scan), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-14)


def test_depth_does_not_lengthen_the_program_of_stacked_layers(key):
    params, _ = make((5, 5), dtype=np.float32)

    def length(num):
        stack = jax.tree.map(lambda a: jnp.broadcast_to(a, (num, *a.shape)), params[0])
        deep = StackedLayers(layer, num)
        h = jnp.ones((8, 5))
        ask = lambda p: network_penalty(deep, p, h, key)  # noqa: E731
        return _count(jax.make_jaxpr(ask)(stack).jaxpr)

    assert length(30) == length(4)


@pytest.mark.slow
def test_strengths_and_seeds_are_vmapped_and_eight_devices_equal_one(x64):
    params, x = make(seed=3, examples=16)
    layers = (layer,) * 4

    def penalty(params, batch, key):
        return network_penalty(layers, params, batch, key, num_probes=2)

    def loss_fn(params, batch):
        return (network_penalty(layers, params, batch, method="exact").outputs ** 2).mean()

    def gradient(strength, key, params, x):
        return jax.value_and_grad(regularised_loss(loss_fn, penalty, strength))(params, x, key)

    strengths, keys = jnp.array([0.0, 0.5, 2.0]), jax.random.split(jax.random.key(1), 3)
    together = jax.jit(jax.vmap(gradient, (0, 0, None, None)))(strengths, keys, params, x)
    one = jax.jit(gradient)
    mesh = data_mesh(8)
    for i in range(3):
        single = one(strengths[i], keys[i], params, x)
        spread = one(*replicate((strengths[i], keys[i], params), mesh), shard_batch(x, mesh))
        for a, e, s in zip(*map(jax.tree.leaves, (together, single, spread)), strict=True):
            np.testing.assert_allclose(a[i], e, rtol=1e-6, atol=1e-12)
            np.testing.assert_allclose(s, e, rtol=1e-10, atol=1e-14)
    plain = (forward(params, x)[-1] ** 2).mean()
    np.testing.assert_allclose(together[0][0], plain, rtol=1e-12)


def test_layers_may_have_strengths_of_their_own(x64):
    params, x = make((6, 5, 5, 5, 3))
    penalty = lambda p, x, key: network_penalty((layer,) * 4, p, x, method="exact")  # noqa: E731
    zero = lambda p, x: 0.0 * x.sum()  # noqa: E731

    @jax.jit
    def ask(params, strengths):
        found = penalty(params, x, None)
        own = regularised_loss(zero, penalty, strengths)(params, x)
        by_step = regularised_loss(zero, penalty, lambda step: strengths * step)(params, x, None, 3)
        return found.per_layer, own, by_step

    per_layer, own, by_step = ask(params, jnp.array([0.5, 2.0]))
    np.testing.assert_allclose(own, (0.5 * per_layer[0] + 2 * per_layer[1]) / 2, rtol=1e-12)
    np.testing.assert_allclose(by_step, 3 * own, rtol=1e-12)
    for wrong in (jnp.ones(3), jnp.ones((1, 2))):
        with pytest.raises(ValueError, match=r"as many as a NetworkPenalty has layers, got shape"):
            ask(params, wrong)
    with pytest.raises(ValueError, match=r"got shape \(2,\) for a penalty that has no layers"):
        regularised_loss(zero, lambda p, x, key: 1.0, jnp.ones(2))(params, x)


def test_a_schedule_reads_the_step_and_a_penalty_trains(key):
    schedule = optax.linear_schedule(0.0, 1.0, 10)
    loss = regularised_loss(lambda p, b: jnp.sum(p), lambda p, b, k: Penalty(2.0, b, 0), schedule)
    np.testing.assert_allclose(loss(jnp.ones(3), jnp.ones(3), key, 5), 3 + 0.5 * 2, rtol=1e-6)
    Q, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(4, 4)))
    w, x = (1.3 * Q).astype(np.float32), np.ones((8, 4), np.float32)
    linear = lambda w, x: x @ w  # noqa: E731
    penalty = lambda w, x, key: network_penalty(linear, w, x, key)  # noqa: E731

    def train(strength):
        loss = regularised_loss(lambda w, x: 0 * w.sum(), penalty, strength)
        step = stateful(lambda p, t, b, k: (loss(p, b, k, t), t + 1))
        return fit(
            step, w, x, key, optimizer=optax.sgd(0.1), num_steps=100, model_state=jnp.int32(0)
        ).params

    trained = jax.jit(jax.vmap(train))(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(trained[0], w, atol=1e-6)
    np.testing.assert_allclose(trained[1] @ trained[1].T, np.eye(4), atol=1e-4)


@pytest.mark.bad_input
def test_bad_input(key):
    params, x = make(dtype=np.float32)
    layers = (layer,) * 4
    ask = partial(network_penalty, layers, params, x, key)
    with pytest.raises(ValueError, match="got 4 layers and 3 params"):
        network_penalty(layers, params[:3], x, key)
    with pytest.raises(ValueError, match=r"'Dens', which names none of 4.* \['Dense'\]"):
        chosen_layers("Dens", ["0", "Dense", "2", "3"])
    with pytest.raises(TypeError, match=r"got an entry 1\.5"):
        ask(select=(1.5,))
    with pytest.raises(ValueError, match="select must name layers from 0 to 3, got 4"):
        ask(select=(4,))
    with pytest.raises(ValueError, match="at least one of the 2 layers, got 'hidden'"):
        network_penalty(layers[:2], params[:2], x, key)
    with pytest.raises(TypeError, match=r"layers\[1\] must be a function"):
        network_penalty((layer, None), params[:2], x, key, select="all")
    with pytest.raises(TypeError, match="key must be a PRNG key"):
        network_penalty(layers, params, x)
    with pytest.raises(ValueError, match=r"params\[0\] must have a leading axis of num_layers=2"):
        network_penalty((StackedLayers(layer, 2),), (params[0]["w"],), x, key, select="all")
    stack = jax.tree.map(lambda a: jnp.stack([a, a]), params[0])
    with pytest.raises(ValueError, match="must keep shape and dtype"):
        network_penalty(StackedLayers(layer, 2), stack, x, key, select="all")
    with pytest.raises(ValueError, match="strength must be finite and at least 0"):
        regularised_loss(lambda p, b: 0.0, lambda p, b, k: 0.0, -1.0)
    with pytest.raises(TypeError, match="penalty must be a function"):
        regularised_loss(lambda p, b: 0.0, 1.0, 1.0)
