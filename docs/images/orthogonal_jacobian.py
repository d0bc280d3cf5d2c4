"""Draws orthogonal_jacobian.png: python docs/images/orthogonal_jacobian.py (half a minute, a CPU).

Two networks of 20 tanh layers from the same start, whose gradients vanish: one trained as it is,
one with the penalty of its layers' Jacobians.
"""

import pathlib

import jax
import jax.numpy as jnp
import optax

from poster_jax import jacobian
from poster_jax.core import data, losses, report, training

DEPTH, WIDTH, STEPS = 20, 64, (0, 150, 600)
digits = data.load("digits", flat=True)


def linear(params, x):
    """x W + b."""
    return x @ params["kernel"] + params["bias"]


def hidden(params, x):
    """A layer of the network."""
    return jnp.tanh(linear(params, x))


def penalty(layer_fn, params, x, key):
    """||J J' - I||^2 in closed form: phi' = 1 - h^2."""
    return jacobian.dense_orthogonality_penalty(params["kernel"].T, 1 - layer_fn(params, x) ** 2)


def draw(key, inputs, outputs):
    """Weights that shrink signals and gradients."""
    return {"kernel": jacobian.gaussian(0.7)(key, (inputs, outputs)), "bias": jnp.zeros(outputs)}


layers = (hidden, jacobian.StackedLayers(hidden, DEPTH - 2), linear)
keys = jax.random.split(jax.random.key(0), DEPTH)
params = (
    draw(keys[0], 64, WIDTH),
    jax.vmap(lambda key: draw(key, WIDTH, WIDTH))(keys[1:-1]),
    draw(keys[-1], WIDTH, 10),
)


def norms(state):
    """|dLoss/dh| of every layer."""
    x, y = digits.train
    loss = lambda logits: losses.softmax_cross_entropy(logits, y)  # noqa: E731
    return jacobian.gradient_norm_profile(layers, state.params, loss, x)


@jax.jit
def train(strength):
    """The gradients of one network at the steps."""

    def loss(params, batch):
        found = jacobian.network_penalty(layers, params, batch[0], penalty=penalty)
        return losses.softmax_cross_entropy(found.outputs, batch[1]) + strength * found.total

    return training.fit(
        loss,
        params,
        digits.train,
        jax.random.key(1),
        optimizer=optax.chain(optax.clip_by_global_norm(5.0), optax.sgd(0.02, momentum=0.9)),
        num_steps=STEPS[-1],
        batch_size=64,
        metrics_fn=norms,
        metrics_steps=STEPS,
    ).metrics


found = {name: train(strength) for name, strength in (("no penalty", 0.0), ("penalty", 10.0))}
numbers = jnp.arange(1, DEPTH + 1)
panels = [
    report.LinePanel(f"step {step}", {name: (numbers, of[at]) for name, of in found.items()})
    for at, step in enumerate(STEPS)
]
figure = report.line_panels(panels, xlabel="layer", ylabel="|dLoss/dh|", log_y=True)
figure.savefig(pathlib.Path(__file__).with_suffix(".png"), dpi=120)
