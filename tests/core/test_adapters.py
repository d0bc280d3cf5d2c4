"""Every library's network through its adapter: the library's own numbers, under every transform.

One table of networks, each with BatchNorm and dropout, and each beside the library's own call.
"""

from typing import Any, NamedTuple

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from poster_jax.core import losses, models, paths, training

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (8, 5))
Y = jnp.arange(8) % 3


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(6)(x))
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return nn.Dense(3)(x)


class NnxNet(nnx.Module):
    def __init__(self, *, rngs):
        self.layers = nnx.List([nnx.Linear(5, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)])
        self.norm = nnx.BatchNorm(6, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = self.dropout(nnx.relu(self.norm(self.layers[0](x))))
        return self.layers[1](x)


class EquinoxNet(eqx.Module):
    layers: list
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.layers = [eqx.nn.Linear(5, 6, key=first), eqx.nn.Linear(6, 3, key=second)]
        self.norm = eqx.nn.BatchNorm(6, "batch", mode="ema", momentum=0.9)
        self.dropout = eqx.nn.Dropout(0.5)

    def __call__(self, x, state, *, key=None):
        x, state = self.norm(self.layers[0](x), state)
        return self.layers[1](self.dropout(jax.nn.relu(x), key=key)), state


def haiku_net(x, is_training):
    norm = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)
    x = jax.nn.relu(norm(hk.Linear(6)(x), is_training))
    x = hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x
    return hk.Linear(3)(x)


HAIKU = hk.transform_with_state(haiku_net)


class Case(NamedTuple):
    """A model, its library's own training step and evaluation, and the name of a kernel."""

    model: models.Model
    native_train: Any  # (params, state, x, key) -> (outputs, state)
    native_eval: Any  # (params, state, x) -> outputs
    kernel: str


def _compiled(case):
    """The same, each function compiled once for all tests."""
    model = case.model._replace(
        apply_train=jax.jit(case.model.apply_train), apply_eval=jax.jit(case.model.apply_eval)
    )
    return case._replace(
        model=model, native_train=jax.jit(case.native_train), native_eval=jax.jit(case.native_eval)
    )


def _linen_train(params, state, x, key):
    variables = {"params": params, **state}
    out, new = LinenNet().apply(
        variables, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
    )
    return out, dict(new)


def _linen_eval(params, state, x):
    return LinenNet().apply({"params": params, **state}, x, train=False)


def _nnx_module(params, state, key):
    net = NnxNet(rngs=nnx.Rngs(7))
    nnx.update(net, params)
    nnx.update(net, state)
    nnx.update(net, {"dropout": {"rngs": {"key": key, "count": jnp.uint32(0)}}})
    return net


def _nnx_train(params, state, x, key):
    net = _nnx_module(params, state, key)
    net.train()
    return net(x), nnx.to_pure_dict(nnx.state(net, nnx.BatchStat))


def _nnx_eval(params, state, x):
    net = _nnx_module(params, state, KEY)
    net.eval()
    return net(x)


_EQX_MODULE, _EQX_FIRST = eqx.nn.make_with_state(EquinoxNet)(KEY)
_EQX_STATIC = eqx.partition(_EQX_MODULE, eqx.is_inexact_array)[1]
_EQX_STATE = jax.tree.structure(_EQX_FIRST)


def _equinox_train(params, state, x, key):
    net = eqx.combine(params, _EQX_STATIC)
    eqx_state = jax.tree.unflatten(_EQX_STATE, state)
    call = jax.vmap(
        lambda x, s, k: net(x, s, key=k),
        axis_name="batch",
        in_axes=(0, None, 0),
        out_axes=(0, None),
    )
    out, new = call(x, eqx_state, jax.random.split(key, len(x)))
    return out, tuple(jax.tree.leaves(new))


def _equinox_eval(params, state, x):
    net = eqx.nn.inference_mode(eqx.combine(params, _EQX_STATIC))
    eqx_state = jax.tree.unflatten(_EQX_STATE, state)
    return jax.vmap(lambda x: net(x, eqx_state)[0], axis_name="batch")(x)


CASES = {
    "linen": Case(models.from_linen(LinenNet()), _linen_train, _linen_eval, "Dense_1/kernel"),
    "nnx": Case(models.from_nnx(NnxNet), _nnx_train, _nnx_eval, "layers/1/kernel"),
    "equinox": Case(
        models.from_equinox(eqx.nn.make_with_state(EquinoxNet)),
        _equinox_train,
        _equinox_eval,
        "layers/1/weight",
    ),
    "haiku": Case(
        models.from_haiku(HAIKU),
        lambda p, s, x, k: HAIKU.apply(p, s, k, x, is_training=True),
        lambda p, s, x: HAIKU.apply(p, s, None, x, is_training=False)[0],
        "linear_1/w",
    ),
}
CASES = {name: _compiled(case) for name, case in CASES.items()}
every_library = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def _start(case, key=KEY):
    """Params and a state that has seen one batch, so that statistics are not where they began."""
    params, state = case.model.init(key, X), case.model.init_state(key, X)
    return params, case.model.apply_train(params, state, 2 * X + 1, key)[1]


def _assert_equal(got, want, rtol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), got, want)


@every_library
def test_evaluation_is_the_native_call(case):
    params, state = _start(case)
    _assert_equal(case.model.apply_eval(params, state, X), case.native_eval(params, state, X))
    _assert_equal(case.model.freeze(state)(params, X), case.native_eval(params, state, X))


@every_library
def test_training_outputs_masks_and_statistics_are_the_native_calls(case):
    params, state = _start(case)
    outputs, new = case.model.apply_train(params, state, X, jax.random.key(5))
    native_outputs, native_new = case.native_train(params, state, X, jax.random.key(5))
    _assert_equal(outputs, native_outputs)
    _assert_equal(jax.tree.leaves(new), jax.tree.leaves(native_new))
    change = jax.tree.map(lambda a, b: np.ptp(np.float64(a) - np.float64(b)), state, new)
    assert max(jax.tree.leaves(change)) > 1e-2


@every_library
def test_the_key_alone_decides_the_mask(case):
    params, state = _start(case)
    a, b, c = (case.model.apply_train(params, state, X, jax.random.key(k))[0] for k in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert float(jnp.abs(a - c).max()) > 1e-2
    # Examples are dropped out independently: equal rows come out different.
    rows = case.model.apply_train(params, state, jnp.tile(X[:1], (8, 1)), jax.random.key(1))[0]
    assert np.ptp(np.asarray(rows), axis=0).max() > 0


@every_library
def test_one_training_step_moves_params_and_statistics_as_the_native_step(case):
    params, state = _start(case)
    optimizer = optax.sgd(0.1)
    loss = training.model_loss(case.model, losses.softmax_cross_entropy)
    begun = training.init_state(params, KEY, optimizer=optimizer, model_state=state)
    run = training.continue_fit(loss, begun, (X, Y), optimizer=optimizer, num_steps=1)

    def native(params):
        outputs, new = case.native_train(params, state, X, jax.random.fold_in(KEY, 0))
        return losses.softmax_cross_entropy(outputs, Y), new

    grads, new = jax.grad(native, has_aux=True)(params)
    _assert_equal(run.params, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))
    _assert_equal(jax.tree.leaves(run.state.model_state), jax.tree.leaves(new))


@every_library
def test_jit_and_grad(case):
    params, state = _start(case)
    apply_fn = case.model.freeze(state)
    loss_fn = losses.cross_entropy(apply_fn)
    _assert_equal(jax.jit(apply_fn)(params, X), apply_fn(params, X), rtol=1e-5)
    grads = jax.jit(jax.grad(loss_fn))(params, (X, Y))
    leaf = paths.get_path(grads, case.kernel)
    step = jnp.zeros_like(leaf).at[0, 1].set(1e-2)
    up, down = (
        loss_fn(
            paths.set_path(params, case.kernel, paths.get_path(params, case.kernel) + s), (X, Y)
        )
        for s in (step, -step)
    )
    # A central difference of step 1e-2 is right to 1e-4, float32 losses to 1e-5.
    np.testing.assert_allclose(leaf[0, 1], (up - down) / 2e-2, atol=3e-4)


@every_library
def test_a_population_is_vmap_over_params_and_state(case):
    keys = jax.random.split(KEY, 3)
    starts = [_start(case, key) for key in keys]
    model = case.model
    params = jax.vmap(model.init, (0, None))(keys, X)
    state = jax.vmap(model.init_state, (0, None))(keys, X)
    train = jax.jit(jax.vmap(model.apply_train, (0, 0, None, 0)))
    _, state = train(params, state, 2 * X + 1, keys)
    _assert_equal(
        jax.tree.leaves((params, state)),
        jax.tree.leaves(jax.tree.map(lambda *a: jnp.stack(a), *starts)),
        rtol=1e-5,
    )
    outputs = jax.jit(jax.vmap(model.apply_eval, (0, 0, None)))(params, state, X)
    _assert_equal(outputs, jnp.stack([model.apply_eval(*s, X) for s in starts]), rtol=1e-5)


@every_library
def test_seeds_differ_and_repeat(case):
    kernels = [
        paths.get_path(case.model.init(jax.random.key(k), X), case.kernel) for k in (1, 1, 2)
    ]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert float(jnp.abs(kernels[0] - kernels[2]).max()) > 1e-2


@every_library
def test_raw_keys_are_keys_too(case):
    params, state = _start(case)
    raw = jax.random.PRNGKey(3)
    _assert_equal(
        case.model.apply_train(params, state, X, raw)[0],
        case.model.apply_train(params, state, X, jax.random.key(3))[0],
    )
    assert jax.tree.structure(case.model.init(raw, X)) == jax.tree.structure(params)


@pytest.mark.bad_input
@every_library
def test_a_model_with_a_state_asks_for_it(case):
    with pytest.raises(ValueError, match=r"take model.freeze\(state\)"):
        case.model.apply_fn(case.model.init(KEY, X), X)


@pytest.mark.bad_input
@every_library
def test_a_number_is_no_key(case):
    for call in (lambda: case.model.init(0, X), lambda: case.model.init_state(0, X)):
        with pytest.raises(TypeError, match="key must be a PRNG key"):
            call()
    params, state = _start(case)
    with pytest.raises(TypeError, match="key must be a PRNG key"):
        case.model.apply_train(params, state, X, 0)
