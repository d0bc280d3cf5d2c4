"""Draws gradient_noise.png: python docs/images/gradient_noise.py (some 30 seconds on a CPU).

One network at four steps of its training; how much of its gradient noise is not normal, by batch
size, and how much of Gaussian noise with the same covariance would seem so.
"""

import pathlib
from functools import partial

import jax
import optax

from poster_jax import gradient_noise as noise
from poster_jax.core import data, losses, models, report, training

SIZES, STEPS = (8, 16, 32, 64, 128, 256, 512, 1024), (0, 30, 300, 3000)

digits = data.load("digits")
model = models.from_linen(models.MLP(features=(64, 64, 10)))
loss_fn = losses.cross_entropy(model.apply_fn)
fit = training.fit(
    loss_fn,
    model.init(jax.random.key(0), digits.train[0]),
    digits.train,
    jax.random.key(1),
    optimizer=optax.sgd(0.1),
    num_steps=STEPS[-1],
    batch_size=64,
    metrics_fn=lambda state: state.params,
    metrics_steps=STEPS,
)


@jax.jit
def measure(params, key):
    """Rejected fraction for each batch size, and the upper end of its band."""
    keys = jax.random.split(key, 2 + len(SIZES))
    directions = noise.random_directions(params, keys[0], num=100)
    samples = noise.noise_projections(
        loss_fn, params, digits.train, directions, keys[1], batch_sizes=SIZES, num_batches=1000
    )
    verdict = partial(noise.gaussianity, tests=("shapiro_wilk",), num_surrogates=39)
    found = jax.lax.map(lambda of: verdict(*of), (samples, keys[2:])).tests["shapiro_wilk"]
    return found.rejected_fraction, found.rejected_high


keys = jax.random.split(jax.random.key(2), len(STEPS))
rejected, high = jax.lax.map(lambda of: measure(*of), (fit.metrics, keys))
figure = report.curves(
    {f"step {step:,}": (SIZES, row) for step, row in zip(STEPS, rejected, strict=True)}
    | {"Gaussian noise stays below": (SIZES, high.mean(axis=0))},
    xlabel="batch size",
    ylabel="rejected fraction of directions",
    log_x=True,
)
figure.savefig(pathlib.Path(__file__).with_suffix(".png"), dpi=120)
