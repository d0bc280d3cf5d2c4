"""How does a network train, a thousand of them, or one that must survive a power cut?

`fit` is a pure function: `lax.scan` over steps, batches drawn on the device, everything that
changes in a `TrainState`. So `jax.vmap(fit)` is a population, and `map_population` the same over
devices and in groups. `fit_until` stops each network by itself when its training loss is low
enough. `train` is the host loop around the same steps: progress bar, `metrics.jsonl`, checkpoints,
bitwise resume.
"""

from poster_jax.core.training.batches import epoch_order, steps_per_epoch
from poster_jax.core.training.fit import Fit, continue_fit, fit
from poster_jax.core.training.loop import Trained, run_chunks, train
from poster_jax.core.training.padding import mask_updates, stack_padded, unpad
from poster_jax.core.training.partition import freeze, merge, partition
from poster_jax.core.training.population import map_population
from poster_jax.core.training.state import (
    StatefulLoss,
    TrainState,
    init_state,
    model_loss,
    stateful,
)
from poster_jax.core.training.until import FitUntil, fit_until

__all__ = [
    "Fit",
    "FitUntil",
    "StatefulLoss",
    "TrainState",
    "Trained",
    "continue_fit",
    "epoch_order",
    "fit",
    "fit_until",
    "freeze",
    "init_state",
    "map_population",
    "mask_updates",
    "merge",
    "model_loss",
    "partition",
    "run_chunks",
    "stack_padded",
    "stateful",
    "steps_per_epoch",
    "train",
    "unpad",
]
