"""Draws neural_tangents.png: python docs/images/neural_tangents.py (some 20 seconds on a CPU).

Two hundred trained networks of width 16 and of width 256 beside the closed form of infinite width.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from poster_jax import kernels as nt
from poster_jax.core import losses, report, training
from poster_jax.kernels import stax

STEPS, RATE = 400, 0.15
x = jnp.array([-2.5, -1.8, -0.4, 0.3, 1.9])[:, None]
x_test = jnp.linspace(-jnp.pi, jnp.pi, 61)[:, None]
y = jnp.sin(x)


def network(width):
    """Two hidden layers of erf units."""
    hidden = [stax.Dense(width, 1.5, 0.05), stax.Erf()]
    return stax.serial(*hidden, *hidden, stax.Dense(1, 1.5, 0.05))


def trained_outputs(width, key):
    """What one network of this width says after STEPS steps."""
    init_fn, apply_fn, _ = network(width)
    init_key, fit_key = jax.random.split(key)
    _, params = init_fn(init_key, x.shape)
    fit = training.fit(
        losses.squared_error(apply_fn),
        params,
        (x, y),
        fit_key,
        optimizer=optax.sgd(RATE),
        num_steps=STEPS,
        batch_size=len(x),
    )
    return apply_fn(fit.params, x_test)[:, 0]


predict_fn = nt.predict.gradient_descent_mse_ensemble(network(1)[2], x, y, learning_rate=RATE)
mean, covariance = predict_fn(t=STEPS, x_test=x_test, get="ntk", compute_cov=True)
theory = (mean[:, 0], jnp.sqrt(jnp.diagonal(covariance)))
panels = []
for width in (16, 256):
    keys = jax.random.split(jax.random.key(0), 200)
    outputs = np.asarray(jax.jit(jax.vmap(lambda key: trained_outputs(width, key)))(keys))  # noqa: B023
    found = (outputs.mean(0), outputs.std(0, ddof=1))
    predictions = {"infinite width": theory, "200 trained networks": found}
    points = (x[:, 0], y[:, 0])
    panels.append(report.BandPanel(f"width {width}", x_test[:, 0], predictions, points))
figure = report.bands(panels, xlabel="input", ylabel="output")
figure.savefig(pathlib.Path(__file__).with_suffix(".png"), dpi=120)
