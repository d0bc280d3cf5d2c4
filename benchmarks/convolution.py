"""Convolutional networks in training: `poster_jax.core.convolution` against torch and `jax.lax`.

    python -m benchmarks.convolution --json=out/benchmarks/convolution.json

Every row times both sides in this one run, one repeat of each in turn, and reports the medians;
`ratio` is how many times faster ours is, `goal` what it should be at least. Three minutes on two
cores.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import app, flags
from flax import linen as nn

from benchmarks._harness import Peer, in_turn, row, timed, write_rows
from poster_jax.core import losses, models, training
from poster_jax.core.pooling import max_pool

FLAGS = flags.FLAGS
_JSON = flags.DEFINE_string("json", None, "file to write the rows to")
_PEERS = flags.DEFINE_string("peers_python", ".venv-peers/bin/python", "a Python that has torch")
_REPEATS = flags.DEFINE_integer("repeats", 7, "timed repeats of each side", lower_bound=1)

BATCH, STEPS, NETWORKS = 64, 10, 8
TORCH = Path(__file__).parent / "peers" / "convolution_torch.py"

TRAIN = f"{STEPS} training steps, batch {BATCH},"


class LaxCNN(nn.Module):
    """The layers of `models.CNN` with the convolution of `jax.lax`."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits (examples, 10)."""
        for width in (32, 32, 64, 64):
            x = nn.relu(nn.Conv(width, (3, 3))(x))
        return nn.Dense(10)(x.mean((1, 2)))


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
        return partial(seconds_of, jax.jit(jax.vmap(train)), jax.random.split(key, networks))
    return partial(seconds_of, jax.jit(train), key)


def gradient_run(module: nn.Module) -> Callable[[], float]:
    """Seconds of one gradient."""
    key = jax.random.key(0)
    batch = jax.random.normal(key, (BATCH, 32, 32, 3)), jnp.zeros((BATCH,), int)
    model = models.from_linen(module)
    gradient = jax.jit(jax.grad(losses.cross_entropy(model.apply_fn)))
    return partial(seconds_of, gradient, model.init(key, batch[0][:1]), batch)


def seconds_of(fn: Callable[..., Any], *args: Any) -> float:
    """One repeat here."""
    return timed(fn, *args)[0]


def compared(
    case: str, ours: Callable[[], float], peer: str, theirs: Callable[[], float], goal: float
) -> dict[str, Any]:
    """Medians of repeats in turn."""
    medians = in_turn({"ours": ours, "peer": theirs}, _REPEATS.value)
    return row(case, medians["ours"], peer, medians["peer"], round(goal, 3))


def rows(torch: Peer) -> list[dict[str, Any]]:
    """Every case."""
    cnn, lenet = training_run(models.CNN(), 3), training_run(models.LeNet5(pool=max_pool), 1)
    population = training_run(models.CNN(), 3, NETWORKS)

    def theirs(network: str) -> Callable[[], float]:
        return lambda: torch.ask(network=network)["seconds"]

    return [
        compared(f"{TRAIN} CNN", cnn, "torch", theirs("cnn"), 1 / 1.5),
        compared(f"{TRAIN} LeNet-5", lenet, "torch", theirs("lenet"), 1 / 1.5),
        compared(
            f"{TRAIN} population of {NETWORKS} CNNs",
            population,
            f"{NETWORKS} times one of ours",
            lambda: NETWORKS * cnn(),
            1 / 1.3,
        ),
        compared(
            f"gradient of the CNN, batch {BATCH}, top level of jit",
            gradient_run(models.CNN()),
            "jax.lax",
            gradient_run(LaxCNN()),
            1.0,
        ),
    ]


def main(_: Any) -> None:
    """Times every case and writes the rows."""
    with Peer(_PEERS.value, str(TORCH), str(BATCH), str(STEPS)) as torch:
        write_rows(rows(torch), [], _JSON.value)


if __name__ == "__main__":
    app.run(main)
