"""The other forms in which libraries hand over a network, and what is no network."""

import builtins

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from poster_jax.core import models, paths

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (8, 5))
_NNX = nnx.Linear(5, 3, rngs=nnx.Rngs(3))
_EQX = eqx.nn.MLP(5, 3, 4, 1, key=KEY)
PLAIN = {
    "linen": models.from_linen(nn.Dense(3)),
    "nnx maker": models.from_nnx(lambda rngs: nnx.Linear(5, 3, rngs=rngs)),
    "nnx module": models.from_nnx(_NNX),
    "equinox maker": models.from_equinox(lambda key: eqx.nn.MLP(5, 3, 4, 1, key=key)),
    "equinox module": models.from_equinox(_EQX),
    "haiku": models.from_haiku(hk.transform(lambda x: hk.Linear(3)(x))),
    "haiku without rng": models.from_haiku(
        hk.without_apply_rng(hk.transform(lambda x: hk.Linear(3)(x)))
    ),
    "haiku with empty state": models.from_haiku(hk.transform_with_state(lambda x: hk.Linear(3)(x))),
    "function": models.from_function(
        lambda key, x: jax.random.normal(key, (x.shape[-1], 3)), lambda w, x: x @ w
    ),
}


@pytest.mark.parametrize("model", PLAIN.values(), ids=PLAIN)
def test_without_a_state_all_modes_are_one(model):
    params, state = model.init(KEY, X), model.init_state(KEY, X)
    assert state == ()
    want = model.apply_fn(params, X)
    assert want.shape == (8, 3)
    outputs, new = model.apply_train(params, state, X, KEY)
    assert new == ()
    for got in (outputs, model.apply_eval(params, state, X), model.freeze(())(params, X)):
        np.testing.assert_array_equal(got, want)
    stacked = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
    both = jax.jit(jax.vmap(model.apply_fn, (0, None)))(stacked, X)
    np.testing.assert_allclose(both[0], want, rtol=1e-5, atol=1e-6)
    grads = jax.grad(lambda p: (model.apply_fn(p, X) ** 2).sum())(params)
    assert jax.tree.structure(grads) == jax.tree.structure(params)


def test_init_draws_what_the_library_draws():
    """To rounding: ours is compiled, theirs is not."""
    linen = nn.Dense(3).init(KEY, X)["params"]
    flax = nnx.to_pure_dict(nnx.state(nnx.Linear(5, 3, rngs=nnx.Rngs(KEY)), nnx.Param))
    haiku = hk.transform(lambda x: hk.Linear(3)(x)).init(KEY, X)
    equinox = eqx.filter(_EQX, eqx.is_inexact_array)
    for name, want in {
        "linen": linen,
        "nnx maker": flax,
        "haiku": haiku,
        "equinox maker": equinox,
    }.items():
        got = PLAIN[name].init(KEY, X)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
            jax.tree.leaves(got),
            jax.tree.leaves(want),
        )


def test_a_module_that_is_made_already_keeps_its_values_and_is_not_changed():
    before = np.asarray(_NNX.kernel[...])
    params = PLAIN["nnx module"].init(jax.random.key(9), X)
    np.testing.assert_array_equal(params["kernel"], before)
    np.testing.assert_allclose(PLAIN["nnx module"].apply_fn(params, X), _NNX(X), rtol=1e-6)
    PLAIN["nnx module"].apply_train(jax.tree.map(jnp.zeros_like, params), (), X, KEY)
    np.testing.assert_array_equal(_NNX.kernel[...], before)
    params = PLAIN["equinox module"].init(jax.random.key(9), X)
    np.testing.assert_allclose(
        PLAIN["equinox module"].apply_fn(params, X), jax.vmap(_EQX)(X), rtol=1e-6
    )


def test_params_go_back_to_their_library():
    params = jax.tree.map(lambda p: p + 1, PLAIN["nnx module"].init(KEY, X))
    own = nnx.clone(_NNX)
    nnx.update(own, params)
    np.testing.assert_allclose(own(X), PLAIN["nnx module"].apply_fn(params, X), rtol=1e-6)
    params = jax.tree.map(lambda p: p + 1, PLAIN["equinox module"].init(KEY, X))
    own = eqx.combine(params, _EQX)
    np.testing.assert_allclose(
        jax.vmap(own)(X), PLAIN["equinox module"].apply_fn(params, X), rtol=1e-6
    )


def test_names_of_leaves_in_every_library():
    names = {name: paths.leaf_paths(model.init(KEY, X)) for name, model in PLAIN.items()}
    assert names["linen"] == names["nnx maker"] == ("bias", "kernel")
    assert names["equinox maker"][0] == "layers/0/weight"
    assert names["haiku"] == ("linear/b", "linear/w")


def test_an_equinox_module_that_takes_a_batch():
    class Whole(eqx.Module):
        weight: jax.Array
        steps: jax.Array  # an array that is no parameter belongs to the state

        def __call__(self, x):
            assert x.shape == (8, 5)
            return x @ self.weight

    module = Whole(jnp.ones((5, 3)), jnp.arange(2))
    model = models.from_equinox(module, per_example=False)
    params, state = model.init(KEY, X), model.init_state(KEY, X)
    assert [leaf.tolist() for leaf in jax.tree.leaves(state)] == [[0, 1]]
    np.testing.assert_allclose(model.apply_eval(params, state, X), X @ jnp.ones((5, 3)), rtol=1e-5)


def test_an_equinox_pair_of_module_and_state():
    class Net(eqx.Module):
        norm: eqx.nn.BatchNorm

        def __init__(self):
            self.norm = eqx.nn.BatchNorm(5, "rows", mode="ema")

        def __call__(self, x, state):
            return self.norm(x, state)

    made, eqx_state = eqx.nn.make_with_state(Net)()
    model = models.from_equinox((made, eqx_state), axis_name="rows")
    params, state = model.init(KEY, X), model.init_state(KEY, X)
    outputs, _ = model.apply_train(params, state, X, KEY)
    np.testing.assert_allclose(outputs.mean(0), np.zeros(5), atol=1e-5)


def test_several_random_streams_and_keywords_of_ones_own():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x, loud):
            x = nn.Dense(3)(x)
            if not loud:
                return x
            keys = self.make_rng("a"), self.make_rng("b")
            return x + sum(jax.random.normal(k, x.shape) for k in keys)

    model = models.from_linen(
        Noisy(), rngs=("a", "b"), train_kwargs={"loud": True}, eval_kwargs={"loud": False}
    )
    params = model.init(KEY, X)
    noise = model.apply_train(params, (), X, KEY)[0] - model.apply_fn(params, X)
    keys = {"a": KEY, "b": jax.random.fold_in(KEY, 1)}
    want = Noisy().apply({"params": params}, X, True, rngs=keys) - model.apply_fn(params, X)
    np.testing.assert_allclose(noise, want, atol=1e-6)


def test_what_an_nnx_module_sows_is_no_state():
    class Sower(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(5, 3, rngs=rngs)

        def __call__(self, x):
            x = self.layer(x)
            self.sow(nnx.Intermediate, "seen", x)
            return x

    model = models.from_nnx(Sower)
    assert model.apply_train(model.init(KEY, X), (), X, KEY)[1] == ()


def test_init_computes_no_forward_pass():
    """A network whose forward pass does not fit in memory is still drawn."""

    class Huge(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.Dense(3)(x)
            return 1 + jnp.broadcast_to(y.sum(), (200_000, 1_000_000))

    params = models.from_linen(Huge()).init(KEY, X)
    assert params["Dense_0"]["kernel"].shape == (5, 3)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("adapter", "wrong", "message"),
    [
        (models.from_linen, _NNX, "module must be a flax.linen.Module"),
        (models.from_linen, nn.Dense, "module must be a flax.linen.Module"),
        (models.from_nnx, 3, "module must be an nnx.Module or a function"),
        (models.from_nnx, lambda rngs: 3, "module must make an nnx.Module, got"),
        (models.from_equinox, 3, "module must be an eqx.Module, a pair"),
        (models.from_equinox, lambda key: 3.0, "module must make an eqx.Module, got"),
        (models.from_haiku, lambda x: x, "transformed must come from hk.transform"),
    ],
)
def test_what_is_no_network(adapter, wrong, message):
    with pytest.raises(TypeError, match=message):
        adapter(wrong)


@pytest.mark.bad_input
def test_functions_must_be_functions():
    with pytest.raises(TypeError, match="init must be a function"):
        models.from_function(None, lambda p, x: x)
    with pytest.raises(TypeError, match="apply must be a function"):
        models.from_function(lambda k, x: 0.0, None)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("library", "adapter", "package"),
    [("equinox", models.from_equinox, "equinox"), ("haiku", models.from_haiku, "dm-haiku")],
)
def test_a_missing_library_is_named_with_its_package(monkeypatch, library, adapter, package):
    theirs = builtins.__import__

    def without(name, *args, **kwargs):
        if name == library:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return theirs(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        adapter(_EQX)


def test_importing_models_imports_neither_equinox_nor_haiku():
    import subprocess
    import sys

    code = (
        "import sys; from poster_jax.core import models; "
        "print([m for m in ('equinox', 'haiku') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_params_that_depend_on_the_data_are_drawn_from_it():
    class Centred(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x - self.param("mean", lambda key: x.mean(0))

    params = models.from_linen(Centred()).init(KEY, X)
    np.testing.assert_allclose(params["mean"], X.mean(0), atol=1e-6)
