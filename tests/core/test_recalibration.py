"""Recalibrated statistics are those numpy finds in the batches, layer by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from poster_jax.core.models import from_linen
from poster_jax.core.recalibration import pool_moments, recalibrate


class _TwoNorms(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)(x)
        x = nn.Dense(4, use_bias=False)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)(x)
        return x.mean((1, 2))


MODEL = from_linen(_TwoNorms())
KEY = jax.random.key(0)


def _problem():
    draw = np.random.default_rng(0)
    offset = draw.normal(size=(6, 1, 1, 1, 3))  # batches differ, or both modes agree
    x = (draw.normal(size=(6, 8, 5, 5, 3)) * [1, 2, 3] + offset).astype(np.float32)
    return MODEL.init(KEY, x[0]), MODEL.init_state(KEY, x[0]), x


def _by_numpy(params, x, mode):
    x = x.astype(np.float64)
    hidden = (x - x.mean((1, 2, 3), keepdims=True)) / np.sqrt(
        x.var((1, 2, 3), keepdims=True) + 1e-5
    )
    stats = []
    for values in (x, hidden @ np.asarray(params["Dense_0"]["kernel"], np.float64)):
        if mode == "exact":
            stats.append((values.mean((0, 1, 2, 3)), values.var((0, 1, 2, 3))))
        else:
            stats.append((values.mean((1, 2, 3)).mean(0), values.var((1, 2, 3)).mean(0)))
    return stats


@pytest.mark.parametrize("mode", ["cumulative", "exact"])
def test_statistics_are_those_of_the_batches_whatever_they_were_before(mode):
    params, state, x = _problem()
    run = jax.jit(lambda s: recalibrate(MODEL, params, s, x, KEY, mode=mode))
    new = run(state)
    for layer, (mean, var) in zip(("0", "1"), _by_numpy(params, x, mode), strict=True):
        found = new["batch_stats"][f"BatchNorm_{layer}"]
        np.testing.assert_allclose(found["mean"], mean, atol=1e-5)
        np.testing.assert_allclose(found["var"], var, rtol=2e-5)
    for a, b in zip(jax.tree.leaves(run(new)), jax.tree.leaves(new), strict=True):
        np.testing.assert_array_equal(a, b)  # doing it again changes nothing


def test_groups_of_unequal_size_pool_to_all_values():
    draw = np.random.default_rng(1)
    groups = [draw.normal(i, 1 + i, size=(n, 3)) for i, n in enumerate((3, 50, 17))]
    with jax.enable_x64(True):
        mean, variance = pool_moments(
            jnp.stack([g.mean(0) for g in groups]),
            jnp.stack([g.var(0) for g in groups]),
            jnp.array([3.0, 50.0, 17.0]),
        )
    everything = np.concatenate(groups)
    np.testing.assert_allclose(mean, everything.mean(0), rtol=1e-12)
    np.testing.assert_allclose(variance, everything.var(0), rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": {"count": np.zeros(())}}, "running statistics"),
        ({"mode": "exakt"}, "Did you mean"),
        ({"momentum": 1.0}, "below 1"),
    ],
)
def test_what_cannot_be_recalibrated_is_refused(change, message):
    params, state, x = _problem()
    state = change.pop("state", state)
    with pytest.raises(ValueError, match=message):
        recalibrate(MODEL, params, state, x, KEY, **change)
