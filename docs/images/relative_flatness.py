"""Draws relative_flatness.png: python docs/images/relative_flatness.py (some 20 seconds on a CPU).

One trained network, rescaled a hundred times without changing its function; what each measure of
its last layer says of it, divided by what it said before.
"""

import pathlib

import jax
import jax.numpy as jnp
import optax

from poster_jax import flatness
from poster_jax.core import data, losses, models, report, training

digits = data.load("digits")
model = models.from_linen(models.MLP(features=(96, 48, 10)))
loss_fn = losses.cross_entropy(model.apply_fn)
x, y = digits.train
fit = training.fit(
    loss_fn,
    model.init(jax.random.key(0), x),
    digits.train,
    jax.random.key(1),
    optimizer=optax.adam(1e-3),
    num_steps=1000,
    batch_size=64,
)


ORDER = (
    "trace",
    "largest\neigenvalue",
    "squared\nnorm",
    "norm² x\neigenvalue",
    "relative\nflatness",
)


def measures(params):
    """Plain and relative measures of the last layer, at one key."""
    layer = "Dense_2/kernel"
    features = flatness.layer_features(model.apply_fn, params, x, layer=layer)
    logits, kernel = model.apply_fn(params, x), params["Dense_2"]["kernel"]
    hessian = flatness.hessian_of_last_layer(features, logits, kernel)
    squares = flatness.squared_norm(kernel)
    top = flatness.layer_max_eigenvalue(hessian, jax.random.key(2)).mean
    trace = flatness.last_layer_trace(features, logits)
    kappa = flatness.last_layer_relative_flatness(features, logits, kernel)
    return dict(zip(ORDER, (trace, top / squares, squares, top, kappa), strict=True))


rescaled = flatness.measure_under_rescaling(
    measures,
    fit.params,
    jax.random.key(3),
    layers=[f"Dense_{i}/kernel" for i in range(3)],
    biases=[f"Dense_{i}/bias" for i in range(3)],
)
ratios = jax.tree.map(lambda after, before: after / before, rescaled.after, rescaled.before)
figure = report.strips(
    {name: jnp.asarray(ratios[name]) for name in ORDER},
    ylabel="after / before a rescaling",
    log=True,
)
figure.savefig(pathlib.Path(__file__).with_suffix(".png"), dpi=120)
