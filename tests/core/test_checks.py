"""Every check says in one sentence what was wrong with which argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poster_jax.core import checks

pytestmark = pytest.mark.bad_input


def _loss(params, batch):
    x, y = batch
    return jnp.mean((x @ params["w"] - y) ** 2)


PARAMS = {"w": jnp.ones((3, 2))}
BATCH = (jnp.ones((5, 3)), jnp.ones((5, 2)))


@given(st.integers(max_value=0))
def test_counts_below_one(value):
    with pytest.raises(ValueError, match=r"num_probes must be at least 1, got -?\d+\. It"):
        checks.check_count("num_probes", value, hint="It takes one.")


@given(st.one_of(st.floats(), st.text(), st.none(), st.booleans(), st.lists(st.integers())))
def test_counts_of_a_wrong_kind(value):
    with pytest.raises(TypeError, match="k must be an integer"):
        checks.check_count("k", value)


def test_counts_that_are_right():
    assert checks.check_count("k", np.int64(3)) == 3


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_positive(value):
    with pytest.raises(ValueError, match="radius must be finite and above 0"):
        checks.check_positive("radius", value)
    with pytest.raises(TypeError, match="radius must be a real number"):
        checks.check_positive("radius", "wide")
    checks.check_positive("radius", 0.0, zero_allowed=True)


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan])
def test_fractions(value):
    with pytest.raises(ValueError, match="fraction must lie between 0 and 1"):
        checks.check_fraction("fraction", value)


def test_choices_suggest():
    with pytest.raises(ValueError, match="Did you mean 'largest'"):
        checks.check_choice("which", "largst", ["largest", "smallest"])


def test_keys():
    checks.check_key("key", jax.random.key(0))
    checks.check_key("key", jax.random.PRNGKey(0))
    for wrong in (0, jnp.zeros(2), jax.random.split(jax.random.key(0))):
        with pytest.raises(TypeError, match="key must be a PRNG key"):
            checks.check_key("key", wrong)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({}, ValueError, "no array"),
        ({"w": jnp.ones((3, 2), int)}, TypeError, r"params\['w'\] must be a floating"),
        ({"w": "kernel"}, TypeError, r"params\['w'\]"),
        ({"w": jnp.full((3, 2), jnp.nan)}, ValueError, r"params\['w'\] must be finite, got 6 NaN"),
        ({"w": jnp.ones((4, 2))}, ValueError, "do not fit"),
        ({"v": jnp.ones((3, 2))}, ValueError, "do not fit"),
    ],
)
def test_params(params, error, message):
    with pytest.raises(error, match=message):
        checks.check_loss(_loss, params, BATCH)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((jnp.ones((0, 3)), jnp.ones((0, 2))), "at least 1 example"),
        ((jnp.ones((5, 3)), jnp.ones((4, 2))), "share the leading example axis"),
        ((jnp.ones((5, 3)).at[0, 0].set(jnp.inf), jnp.ones((5, 2))), r"batch\[0\] must be finite"),
        ((), "got none"),
        ((jnp.ones((5, 3)), jnp.float32(1.0)), "got a scalar"),
    ],
)
def test_batches(batch, message):
    with pytest.raises(ValueError, match=message):
        checks.check_loss(_loss, PARAMS, batch)


def test_losses():
    with pytest.raises(TypeError, match="loss_fn must be a function"):
        checks.check_loss(3, PARAMS, BATCH)
    with pytest.raises(ValueError, match="one floating point scalar"):
        checks.check_loss(lambda p, b: b[0] @ p["w"], PARAMS, BATCH)
    with pytest.raises(ValueError, match="one floating point scalar"):
        checks.check_loss(lambda p, b: (_loss(p, b), 0), PARAMS, BATCH)
    with pytest.raises(ValueError, match="apply_fn"):
        checks.check_apply(lambda p, x: x @ p["w"], PARAMS, jnp.ones((5, 4)))


def test_structures():
    with pytest.raises(ValueError, match="vector must have the structure of params"):
        checks.check_same_structure("vector", {"u": jnp.ones(2)}, "params", PARAMS)
    with pytest.raises(ValueError, match=r"vector\['w'\] must have the shape \(3, 2\) of params"):
        checks.check_same_structure("vector", {"w": jnp.ones((2, 3))}, "params", PARAMS)


def test_traced_values_pass_and_traced_shapes_do_not():
    assert jax.jit(lambda p, b: (checks.check_loss(_loss, p, b), p)[1])(PARAMS, BATCH)
    with pytest.raises(ValueError, match="do not fit"):
        jax.jit(lambda p, b: (checks.check_loss(_loss, p, b), p)[1])({"w": jnp.ones((4, 2))}, BATCH)


@pytest.mark.parametrize("bad", [False, True])
def test_arrays_on_an_accelerator_are_read_while_a_program_is_traced(bad, monkeypatch):
    monkeypatch.setattr(checks, "_on_host", lambda leaf: False)
    array = jnp.ones(3).at[1].set(jnp.nan if bad else 1)

    @jax.jit
    def program(x):
        checks.check_finite("array", array)
        return x + array

    if bad:
        with pytest.raises(ValueError, match="array must be finite, got 1 NaN or infinite entries"):
            program(jnp.zeros(3))
    else:
        np.testing.assert_array_equal(program(jnp.zeros(3)), 1)
