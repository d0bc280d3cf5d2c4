"""Random rescalings keep the function, stay within their bound, and move what may move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax import flatness
from poster_jax.flatness.random_rescaling import measure_under_rescaling, random_layer_factors

LAYERS = ("a", "c", "e")
BIASES = ("b", "d", "f")


def _params(key):
    shapes = {"a": (3, 4), "b": (4,), "c": (4, 5), "d": (5,), "e": (5, 2), "f": (2,)}
    keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))
    return {name: jax.random.normal(keys[name], shape) for name, shape in shapes.items()}


def _apply(params, x):
    x = jax.nn.relu(x @ params["a"] + params["b"])
    x = jax.nn.relu(x @ params["c"] + params["d"])
    return x @ params["e"] + params["f"]


@pytest.mark.parametrize("num_layers", [2, 3, 7])
def test_factors_have_product_one_and_stay_within_their_bound(key, num_layers):
    draw = jax.vmap(lambda key: random_layer_factors(key, num_layers, largest=50.0))
    factors = np.asarray(draw(jax.random.split(key, 2000)), np.float64)
    # The sum of logarithms up to log 50 in float32.
    assert np.abs(np.log(factors).sum(axis=1)).max() < 1e-5
    assert factors.max() < 50 * 1.0001
    assert factors.min() > 0.02 * 0.9999


def test_every_layer_is_spread_over_the_decades_alike(key):
    draw = jax.vmap(lambda key: random_layer_factors(key, 3))
    logs = np.log10(np.asarray(draw(jax.random.split(key, 4000))))
    # By symmetry the mean is 0 and the spread the same for all; 4,000 draws know both to 3 %.
    assert np.abs(logs.mean(axis=0)).max() < 0.1
    assert np.ptp(logs.std(axis=0)) < 0.06
    assert logs.std() > 1.2


def test_two_layers_are_log_uniform(key):
    draw = jax.vmap(lambda key: random_layer_factors(key, 2))
    logs = np.log10(np.asarray(draw(jax.random.split(key, 4000))))[:, 0]
    assert np.histogram(logs, bins=6, range=(-3, 3))[0].min() > 4000 / 6 * 0.85


def test_the_function_stays_and_the_norm_moves(key):
    params, x = _params(key), jax.random.normal(key, (6, 3))
    found = measure_under_rescaling(
        lambda p: {"outputs": _apply(p, x), "norm": flatness.squared_norm(p)},
        params,
        key,
        layers=LAYERS,
        biases=BIASES,
        num_rescalings=25,
        at_once=4,
    )
    scale = jnp.abs(found.before["outputs"]).max()
    # float32 products over six decades: some tens of units of the last place.
    assert float(jnp.abs(found.after["outputs"] - found.before["outputs"]).max()) < 1e-5 * scale
    assert found.after["outputs"].shape == (25, 6, 2)
    assert float(jnp.median(found.after["norm"] / found.before["norm"])) > 10


def test_a_bias_that_is_left_out_breaks_the_invariance(key):
    params, x = _params(key), jax.random.normal(key, (6, 3))
    found = measure_under_rescaling(lambda p: _apply(p, x), params, key, layers=LAYERS)
    assert float(jnp.abs(found.after - found.before).max()) > 0.1


@pytest.mark.bad_input
def test_nonsense_is_refused_by_name(key):
    with pytest.raises(ValueError, match="num_layers"):
        random_layer_factors(key, 1)
    with pytest.raises(ValueError, match="largest"):
        random_layer_factors(key, 3, largest=0.5)
    with pytest.raises(ValueError, match="num_rescalings"):
        measure_under_rescaling(
            flatness.squared_norm, _params(key), key, layers=LAYERS, num_rescalings=0
        )
    with pytest.raises(TypeError, match="measure_fn"):
        measure_under_rescaling(3, _params(key), key, layers=LAYERS)
