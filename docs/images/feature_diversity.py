"""Draws feature_diversity.png: python docs/images/feature_diversity.py (some 20 seconds on a CPU).

A hidden layer of 128 copies with noise from 1e-12 to 1e-2 of its variance, trained on the digits;
all networks are one program.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from poster_jax import feature_diversity as diversity
from poster_jax.core import data, losses, models, report, training

NOISES, STEPS = (1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2), tuple(range(0, 601, 5))

digits = data.load("digits", flat=True)
model = models.from_linen(models.MLP(features=(128, 10)))
loss_fn = losses.cross_entropy(model.apply_fn)


def train(noise):
    """The diversity of the hidden layer along the run."""
    kernel = diversity.duplicate_features(jax.random.key(0), (64, 128), num_unique=1, noise=noise)
    params = {
        "Dense_0": {"kernel": kernel, "bias": jnp.zeros(128)},
        "Dense_1": {"kernel": jnp.zeros((128, 10)), "bias": jnp.zeros(10)},
    }

    def look(state):
        layer = state.params["Dense_0"]
        return diversity.feature_diversity(
            jax.nn.relu(digits.test[0][:64] @ layer["kernel"] + layer["bias"])
        )

    return training.fit(
        loss_fn,
        params,
        digits.train,
        jax.random.key(1),
        optimizer=optax.sgd(0.1),
        num_steps=STEPS[-1],
        batch_size=64,
        metrics_fn=look,
        metrics_steps=STEPS,
    ).metrics


curves = np.asarray(training.map_population(train, jnp.array(NOISES)))
figure = report.curves(
    {f"s² = {noise:g}": (STEPS, row) for noise, row in zip(NOISES, curves, strict=True)},
    xlabel="step",
    ylabel="diversity q",
    log_y=True,
    guides={"q = 0.01": 0.01},
)
figure.savefig(pathlib.Path(__file__).with_suffix(".png"), dpi=120)
