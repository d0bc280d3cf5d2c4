"""Training BatchNorm alone: torch's numbers, differences, and what may be computed at all."""

import pathlib
from collections import Counter
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.extend import core as jax_core

from poster_jax import batchnorm_only
from poster_jax.core import losses, models
from poster_jax.core.convolution.primitive import convolution_p
from poster_jax.core.models.layers import batch_norm, conv, normalisation
from poster_jax.core.training import fit, freeze, merge, model_loss, partition

KEY = jax.random.key(0)
TORCH = np.load(pathlib.Path(__file__).parents[1] / "oracles" / "batchnorm.npz")
PARAMS = {
    **{f"Conv_{i}": {"kernel": TORCH[f"kernel_{i}"]} for i in (0, 1)},
    **{
        f"BatchNorm_{i}": {"scale": TORCH[f"scale_{i}"], "bias": TORCH[f"bias_{i}"]} for i in (0, 1)
    },
    "Dense_0": {"kernel": TORCH["dense_kernel"], "bias": TORCH["dense_bias"]},
}


class Small(nn.Module):
    """The network of tests/oracles/make_batchnorm.py."""

    norm: str = "batch"

    @nn.compact
    def __call__(self, x: Any, *, train: bool = False) -> Any:
        for _ in range(2):
            x = conv(4, 3, padding=1, use_bias=False)(x)
            x = nn.relu(normalisation(self.norm, train, nn.initializers.ones)(x))
        return nn.Dense(3)(x.mean((1, 2)))


def _problem(norm="batch"):
    """Torch's weights in float64, also where the statistics are left out."""
    model = models.from_linen(Small(norm))
    loss = model_loss(model, losses.softmax_cross_entropy)
    data = jnp.asarray(TORCH["x"]), jnp.asarray(TORCH["y"])
    layer = "BatchNorm" if norm == "batch" else "Affine"
    params = {
        k.replace("BatchNorm", layer): jax.tree.map(jnp.asarray, v) for k, v in PARAMS.items()
    }
    state = model.init_state(KEY, data[0])
    return loss, params, jax.tree.map(lambda leaf: leaf.astype(jnp.float64), state), data


def test_the_layer_is_torchs(x64):
    module = batch_norm(train=True)
    params = {"scale": jnp.asarray(TORCH["scale_0"]), "bias": jnp.asarray(TORCH["bias_0"])}
    stats = {"mean": jnp.zeros(4), "var": jnp.ones(4)}

    @jax.jit
    def run(params, x):
        def inner(params, x):
            variables = {"params": params, "batch_stats": stats}
            y, new = module.apply(variables, x, mutable=["batch_stats"])
            return (y * TORCH["cotangent"]).sum(), (y, new["batch_stats"])

        return jax.grad(inner, argnums=(0, 1), has_aux=True)(params, x)

    x = jnp.asarray(TORCH["layer_x"])
    (dparams, dx), (y, new) = run(params, x)
    # Torch keeps the unbiased variance, Flax (and we) the one that normalises.
    size = x.size // 4
    unbiased = (np.asarray(new["var"]) - 0.9) * size / (size - 1) + 0.9
    for ours, name in (
        (y, "y"),
        (dx, "dx"),
        (dparams["scale"], "dscale"),
        (dparams["bias"], "dbias"),
        (new["mean"], "mean"),
        (unbiased, "var"),
    ):
        # Another order of the sums; E x^2 - (E x)^2 loses a digit.
        np.testing.assert_allclose(ours, TORCH[f"layer_{name}"], rtol=1e-11, atol=1e-12)


def test_batchnorm_only_training_ends_where_torchs_does(x64):
    """Momentum and weight decay on gamma and beta, everything else frozen: six steps."""
    loss, params, state, data = _problem()
    optimizer = optax.chain(optax.add_decayed_weights(1e-2), optax.sgd(0.1, momentum=0.9))

    @jax.jit
    def train(params):
        trainable, frozen = partition(params, batchnorm_only.trains(params, "batchnorm"))
        run = fit(
            freeze(loss, frozen), trainable, data, KEY, optimizer=optimizer, num_steps=6,
            model_state=state,
        )  # fmt: skip
        return run.losses, merge(run.params, frozen), run.state.opt_state

    found, after, kept = train(params)
    np.testing.assert_allclose(found, TORCH["losses"], rtol=1e-9)
    for layer in (0, 1):
        for name in ("scale", "bias"):
            np.testing.assert_allclose(
                after[f"BatchNorm_{layer}"][name], TORCH[f"trained_{name}_{layer}"], rtol=1e-8,
                atol=1e-10,
            )  # fmt: skip
    # The optimiser keeps a momentum of what trains, and of nothing else.
    assert sum(leaf.size for leaf in jax.tree.leaves(kept) if leaf.ndim) == 16


def test_the_gradient_of_a_part_is_that_part_of_the_whole_gradient(x64):
    """To the last digits; central differences agree, through the batch's statistics and without."""

    def gradients(norm, params, direction):
        loss, _, state, data = _problem(norm)
        mine = batchnorm_only.trains(params, "batchnorm")
        trainable, frozen = partition(params, mine)
        of_part = freeze(loss, frozen).fn
        value = lambda p: of_part(p, state, data, KEY)[0]  # noqa: E731
        whole = jax.grad(lambda p: loss.fn(p, state, data, KEY)[0])(params)
        along = lambda t: value(jax.tree.map(lambda p, d: p + t * d, trainable, direction))  # noqa: E731
        step = 1e-5
        difference = (along(step) - along(-step)) / (2 * step)
        return jax.grad(value)(trainable), partition(whole, mine)[0], difference

    @jax.jit
    def both(problems):
        return {norm: gradients(norm, *problem) for norm, problem in problems.items()}

    problems = {}
    for norm in ("batch", "affine"):
        _, params, _, _ = _problem(norm)
        part, _ = partition(params, batchnorm_only.trains(params, "batchnorm"))
        problems[norm] = params, jax.tree.map(lambda leaf: jnp.sin(7 * leaf), part)
    for norm, (mine, theirs, difference) in both(problems).items():
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)
        pairs = zip(jax.tree.leaves(mine), jax.tree.leaves(problems[norm][1]), strict=True)
        np.testing.assert_allclose(sum((a * d).sum() for a, d in pairs), difference, rtol=1e-7)


def _convolutions(jaxpr, times=1):
    """How often each of the three maps of a convolution runs."""
    counts = Counter()
    for equation in jaxpr.eqns:
        if equation.primitive is convolution_p:
            counts[equation.params["kind"]] += times
        for inner in jax_core.jaxprs_in_params(equation.params):
            counts += _convolutions(inner, times * equation.params.get("length", 1))
    return counts


@cache
def _step(num_blocks, scan, *groups):
    """The convolutions of a training step of a ResNet."""
    model = models.from_linen(models.ResNet(projection=True, num_blocks=num_blocks, scan=scan))
    loss = model_loss(model, losses.softmax_cross_entropy)
    x = jax.ShapeDtypeStruct((16, 8, 8, 1), jnp.float32)
    params, state = (jax.eval_shape(fn, KEY, x) for fn in (model.init, model.init_state))
    chosen = batchnorm_only.trains(
        jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), params), *groups
    )

    def gradient(params, state, x, y):
        trainable, frozen = partition(params, chosen)
        part = freeze(loss, frozen)
        return jax.grad(part.fn, has_aux=True)(trainable, state, (x, y), KEY)

    y = jax.ShapeDtypeStruct((16,), jnp.int32)
    return _convolutions(jax.make_jaxpr(gradient)(params, state, x, y).jaxpr)


def test_no_gradient_of_a_frozen_kernel_is_computed():
    """n = 2: 12 convolutions in blocks, 2 in shortcuts, the stem, which needs no input gradient."""
    assert _step(2, False, *batchnorm_only.GROUPS) == {"output": 15, "input": 14, "kernel": 15}
    assert _step(2, False, "batchnorm") == {"output": 15, "input": 14}
    assert _step(2, False, "batchnorm", "output") == {"output": 15, "input": 14}
    assert _step(2, False, "output") == {"output": 15}


def test_blocks_in_a_loop_are_recomputed_and_still_no_kernel_gradient():
    """n = 4: the stem, 2 shortcuts, 24 in blocks; 4 + 3 + 3 blocks of 2 run in loops, twice."""
    assert _step(4, True, "batchnorm") == {"output": 27 + 20, "input": 26}


@pytest.mark.slow
def test_scales_of_frozen_kernels_count_where_nothing_is_normalised(x64):
    """The control of their irrelevance under BatchNorm."""
    found = {}
    for norm in ("batch", "affine"):
        loss, params, state, data = _problem(norm)
        large = jax.tree.map(lambda leaf: 1e3 * leaf if leaf.ndim == 4 else leaf, params)
        larger = jax.tree.map(lambda leaf: 3.0 * leaf if leaf.ndim == 4 else leaf, large)
        value = jax.jit(
            lambda p, loss=loss, state=state, data=data: loss.fn(p, state, data, KEY)[0]
        )
        found[norm] = float(value(large)), float(value(larger))
    np.testing.assert_allclose(*found["batch"], rtol=1e-8)
    assert abs(found["affine"][0] - found["affine"][1]) > 1
