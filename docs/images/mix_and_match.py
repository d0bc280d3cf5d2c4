"""Draws mix_and_match.png: python docs/images/mix_and_match.py (a minute, a CPU).

Two small ResNets on the digits, one trained at 16 pixels and one at four sizes on as many pixels
(B+), tested at eight sizes, with BatchNorm's statistics of the test size and of training.
"""

import pathlib
from functools import partial

import jax
import optax

from poster_jax import mixed_sizes
from poster_jax.core import data, losses, models, report, training

SIZES = (6, 8, 10, 12, 16, 20, 24, 32)
digits = data.load("digits")
net = models.from_linen(models.ResNet(num_blocks=1, width=8))
regimes = {
    "trained at 16 pixels": mixed_sizes.size_regime((16,), (1.0,), base_size=16, base_batch=64),
    "trained at 8 to 24 pixels": mixed_sizes.size_regime(
        (16, 24, 12, 8), (0.3, 0.2, 0.3, 0.2), base_size=16, base_batch=64
    ),
}
optimizer = optax.chain(mixed_sizes.smooth_gradients(), optax.sgd(0.05, momentum=0.9))
x, _ = digits.train
key = jax.random.key(0)
params, state = jax.jit(lambda x: (net.init(key, x), net.init_state(key, x)))(x)


@jax.jit
def test(params, state):
    """Accuracy at all sizes, calibrated and not."""
    sweep = partial(mixed_sizes.size_sweep, net, params, state, digits.test)
    batches = x.reshape(8, -1, *x.shape[1:])
    return [sweep(batches, key, sizes=SIZES, calibrate=how).accuracy for how in (True, False)]


found = {}
for name, regime in regimes.items():
    run = mixed_sizes.train_mixed(
        training.model_loss(net, losses.softmax_cross_entropy),
        params,
        digits.train,
        key,
        regime=regime,
        optimizer=optimizer,
        num_steps=300,
        model_state=state,
        passes=8 if len(regime) > 1 else 1,
    )
    found[name] = test(run.params, run.state.model_state)
panels = [
    report.LinePanel(title, {name: (SIZES, accuracy[at]) for name, accuracy in found.items()})
    for at, title in enumerate(("calibrated for the size", "statistics of training"))
]
figure = report.line_panels(
    panels,
    xlabel="side of the test images, pixels",
    ylabel="test accuracy",
    log_x=True,
    panel_size=(3.6, 2.8),
)
figure.savefig(pathlib.Path(__file__).with_suffix(".png"), dpi=120)
