"""Training at several image sizes against one size, host dispatch, and torch.

The convolutional network of three layers and the digits of the experiment. Mixed sizes and one size
are compared by seconds a pixel; a scan that switches among the sizes, with one jitted program a
size called from the host; and with torch on the same batches from the same weights, without
augmentation on either side.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from benchmarks._harness import Peer, in_turn, row, timed
from poster_jax.core import data, losses, models, training
from poster_jax.core.models.layers import batch_norm, conv
from poster_jax.core.training.batches import order_key
from poster_jax.core.training.step import make_step
from poster_jax.mixed_sizes import (
    epoch_plan,
    fit_mixed,
    resize_batch,
    size_regime,
    smooth_gradients,
)

KEY = jax.random.key(0)
SIZES, FRACTIONS, BASE, BATCH, PASSES = (16, 24, 12, 8), (0.3, 0.2, 0.3, 0.2), 16, 64, 8
STEPS = 100  # of one epoch, which has 121
WIDTHS, STRIDES = (16, 32, 64), (1, 2, 2)
OPTIMIZER = optax.chain(smooth_gradients(), optax.sgd(0.05, momentum=0.9))
TORCH = Path(__file__).parent / "peers" / "training_sizes_torch.py"


class Net(nn.Module):
    """Three 3x3 convolutions with BatchNorm and the mean of the pixels."""

    @nn.compact
    def __call__(self, x: Any, *, train: bool = False) -> Any:
        """Logits."""
        for features, stride in zip(WIDTHS, STRIDES, strict=True):
            x = conv(features, 3, strides=stride, padding=1, use_bias=False)(x)
            x = nn.relu(batch_norm(train)(x))
        return nn.Dense(10)(x.mean((1, 2)))


MODEL = models.from_linen(Net())
LOSS = training.model_loss(MODEL, losses.softmax_cross_entropy)


def flip(key: Any, image: Any, size: int) -> Any:
    """A view: half of the images mirrored, then resized."""
    image = jnp.where(jax.random.bernoulli(key), image, image[:, ::-1])
    return resize_batch(image[None], size)[0]


def regime_of(adapt: str) -> Any:
    """The sizes, or the base size alone for "none"."""
    sizes, fractions = ((BASE,), (1.0,)) if adapt == "none" else (SIZES, FRACTIONS)
    return size_regime(sizes, fractions, base_size=BASE, base_batch=BATCH, adapt=adapt)


def rows(repeats: int, peers_python: str) -> list[dict]:
    """The rows of this part."""
    examples = data.load("digits").train
    start = jax.jit(lambda x: (MODEL.init(KEY, x), MODEL.init_state(KEY, x)))(examples[0])
    pixels, sides, regime = {}, {}, regime_of("batch")
    for adapt in ("none", "batch", "duplicates"):
        run = jax.jit(partial(_fit, regime_of(adapt), flip)).lower(start, examples).compile()
        cost = np.array([c.batch_size * c.duplicates * c.size**2 for c in regime_of(adapt)])
        pixels[adapt] = int(cost[np.asarray(run(start, examples).sizes)].sum())
        sides[adapt] = lambda run=run: timed(run, start, examples)[0]
    whole = jax.jit(partial(_fit, regime, None)).lower(start, examples).compile()
    sides["scan"] = lambda: timed(whole, start, examples)[0]
    plan = jax.jit(partial(epoch_plan, num_examples=len(examples[1]), regime=regime, passes=PASSES))
    plan = jax.tree.map(np.asarray, plan(order_key(KEY)))
    batches = [
        (int(index), plan.tables[index][place])
        for index, place in zip(plan.size_index[:STEPS], plan.row[:STEPS], strict=True)
    ]
    sides["host"] = lambda: timed(_from_the_host, regime, batches, start, examples)[0]
    answer = {}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "inputs.npz"
        _write(path, regime, batches, start[0], examples)
        with Peer(peers_python, str(TORCH), str(path)) as torch:

            def torch_repeat() -> float:
                answer.update(torch.ask())
                return answer["seconds"]

            medians = in_turn(sides | {"torch": torch_repeat}, repeats)
    ours = np.asarray(whole(start, examples).losses)[:10]
    error = float(np.max(np.abs(ours / np.array(answer["losses"])[:10] - 1)))
    per = {adapt: medians[adapt] / pixels[adapt] * 1e9 for adapt in pixels}
    case = f"{STEPS} steps of mixed sizes, B+"
    return [
        row("a gigapixel of mixed sizes, B+", per["batch"], "of one size", per["none"], 1 / 1.15),
        row(
            "a gigapixel of mixed sizes, D+",
            per["duplicates"],
            "of one size",
            per["none"],
            1 / 1.15,
        ),
        row(case, medians["scan"], "a program a size, from the host", medians["host"], 1),
        row(case, medians["scan"], "torch", medians["torch"], 1, loss_error_of_10_steps=error),
    ]


def _fit(regime: Any, augment: Any, start: Any, examples: Any) -> Any:
    params, state = start
    return fit_mixed(
        LOSS,
        params,
        examples,
        KEY,
        regime=regime,
        optimizer=OPTIMIZER,
        num_steps=STEPS,
        augment=augment,
        model_state=state,
        passes=PASSES if len(regime) > 1 else 1,
    )


def _from_the_host(regime: Any, batches: Any, start: Any, examples: Any) -> Any:
    """The steps one by one, each a program of its size."""
    params, model_state = start
    state = training.init_state(params, KEY, optimizer=OPTIMIZER, model_state=model_state)
    losses_seen = []
    for index, rows in batches:
        state, loss = _step(regime[index].size, state, examples, rows)
        losses_seen.append(loss)
    return state, losses_seen


@partial(jax.jit, static_argnums=0)
def _step(size: int, state: Any, examples: Any, rows: Any) -> Any:
    x, y = examples
    return make_step(LOSS, OPTIMIZER)(state, (resize_batch(x[rows], size), y[rows]))


def _write(path: Path, regime: Any, batches: Any, params: Any, examples: Any) -> None:
    """What the other process starts from, in torch's order of axes."""
    x, y = (np.asarray(part) for part in examples)
    arrays = {"x": x.transpose(0, 3, 1, 2), "y": y.astype(np.int64)}
    for layer in range(len(WIDTHS)):
        kernel = np.asarray(params[f"Conv_{layer}"]["kernel"])
        arrays[f"conv{layer}"] = kernel.transpose(3, 2, 0, 1)
    arrays |= {
        "kernel": np.asarray(params["Dense_0"]["kernel"]).T,
        "bias": np.asarray(params["Dense_0"]["bias"]),
        "sizes": np.array([regime[index].size for index, _ in batches]),
    }
    arrays |= {f"rows{step}": rows.astype(np.int64) for step, (_, rows) in enumerate(batches)}
    np.savez(path, **arrays)
