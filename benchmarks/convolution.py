"""Convolutional networks in training: `poster_jax.core.convolution` against torch and `jax.lax`.

    python -m benchmarks.convolution --json=out/benchmarks/convolution.json

Every row times both sides in this one run, one repeat of each in turn, and reports the medians;
`ratio` is how many times faster ours is, `goal` what it should be at least. torch runs in a process
of its own, in its own environment, and is asked for one repeat at a time. Three minutes on two
cores.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import app, flags
from flax import linen as nn

from poster_jax.core import losses, models, training
from poster_jax.core.pooling import max_pool

FLAGS = flags.FLAGS
_JSON = flags.DEFINE_string("json", None, "file to write the rows to")
_PEERS = flags.DEFINE_string("peers_python", ".venv-peers/bin/python", "a Python that has torch")
_REPEATS = flags.DEFINE_integer("repeats", 7, "timed repeats of each side", lower_bound=1)

BATCH, STEPS, NETWORKS = 64, 10, 8
TORCH = Path(__file__).parent / "peers" / "convolution_torch.py"

TRAIN_CNN = f"{STEPS} training steps of the CNN, batch {BATCH}"
TRAIN_LENET = f"{STEPS} training steps of LeNet-5, batch {BATCH}"
GRADIENT = f"gradient of the CNN, batch {BATCH}, top level of jit"


class LaxCNN(nn.Module):
    """The layers of `models.CNN` with the convolution of `jax.lax`."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits (examples, 10)."""
        for width in (32, 32, 64, 64):
            x = nn.relu(nn.Conv(width, (3, 3))(x))
        return nn.Dense(10)(x.mean((1, 2)))


class Torch:
    """The other process; one repeat of a case gives its seconds. A context manager."""

    def __init__(self, python: str):
        self._command = [python, str(TORCH), str(BATCH), str(STEPS)]

    def __enter__(self) -> "Torch":
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *error: Any) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def seconds(self, case: str) -> float:
        """One repeat there."""
        print(case, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())


def training_run(module: nn.Module, channels: int, networks: int = 0) -> Callable[[], float]:
    """Seconds of STEPS steps of `module` through `fit`; of a population if `networks`."""
    key = jax.random.key(0)
    x = jax.random.normal(key, (STEPS * BATCH, 32, 32, channels))
    y = jax.random.randint(key, (STEPS * BATCH,), 0, 10)
    model = models.from_linen(module)

    def train(key: jax.Array) -> jax.Array:
        return training.fit(
            losses.cross_entropy(model.apply_fn),
            model.init(key, x[:1]),
            (x, y),
            key,
            optimizer=optax.sgd(0.01),
            num_steps=STEPS,
            batch_size=BATCH,
        ).losses

    if networks:
        return partial(seconds, jax.jit(jax.vmap(train)), jax.random.split(key, networks))
    return partial(seconds, jax.jit(train), key)


def gradient_run(module: nn.Module) -> Callable[[], float]:
    """Seconds of one gradient."""
    key = jax.random.key(0)
    batch = jax.random.normal(key, (BATCH, 32, 32, 3)), jnp.zeros((BATCH,), int)
    model = models.from_linen(module)
    gradient = jax.jit(jax.grad(losses.cross_entropy(model.apply_fn)))
    return partial(seconds, gradient, model.init(key, batch[0][:1]), batch)


def seconds(fn: Callable[..., Any], *args: Any) -> float:
    """One repeat here."""
    start = time.perf_counter()
    jax.block_until_ready(fn(*args))
    return time.perf_counter() - start


def row(
    case: str, ours: Callable[[], float], peer: str, theirs: Callable[[], float] | None, goal: float
) -> dict[str, Any]:
    """Medians of interleaved repeats after one that compiles and warms up."""
    sides = [ours] if theirs is None else [ours, theirs]
    repeats = [[side() for side in sides] for _ in range(1 + _REPEATS.value)][1:]
    ours_s, *peer_s = [statistics.median(column) for column in zip(*repeats, strict=True)]
    found = {"case": case, "ours_s": ours_s, "peer": peer, "peer_s": None, "ratio": None}
    if peer_s:
        found |= {"peer_s": peer_s[0], "ratio": peer_s[0] / ours_s}
    else:
        found["peer"] = f"{peer}, which is not at {_PEERS.value}"
    found["goal"] = goal
    print(json.dumps(found), file=sys.stderr)
    return found


def rows(torch: Torch | None) -> list[dict[str, Any]]:
    """Every case."""
    cnn, lenet = training_run(models.CNN(), 3), training_run(models.LeNet5(pool=max_pool), 1)
    population = training_run(models.CNN(), 3, NETWORKS)
    theirs = {case: torch and partial(torch.seconds, case) for case in (TRAIN_CNN, TRAIN_LENET)}
    singles = f"{NETWORKS} times one of ours"
    return [
        row(TRAIN_CNN, cnn, "torch 2", theirs[TRAIN_CNN], 1 / 1.5),
        row(TRAIN_LENET, lenet, "torch 2", theirs[TRAIN_LENET], 1 / 1.5),
        row(
            f"population of {NETWORKS} CNNs", population, singles, lambda: NETWORKS * cnn(), 1 / 1.3
        ),
        row(GRADIENT, gradient_run(models.CNN()), "jax.lax", gradient_run(LaxCNN()), 1.0),
    ]


def main(_: Any) -> None:
    """Times every case and writes the rows."""
    if Path(_PEERS.value).exists():
        with Torch(_PEERS.value) as torch:
            found = rows(torch)
    else:
        found = rows(None)
    if _JSON.value:
        Path(_JSON.value).parent.mkdir(parents=True, exist_ok=True)
        Path(_JSON.value).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
