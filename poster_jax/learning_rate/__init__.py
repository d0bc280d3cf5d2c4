"""Can the learning rate be found while training, without a schedule and without a trial?

Poster: "A Simple Dynamic Learning Rate Tuning Algorithm For Automated Training of DNNs",
Mukherjee, Khare, Sabharwal, Verma, NeurIPS 2019 workshop, arXiv 1910.11605 (AALR). A controller
looks at the training loss once an epoch: it halves the rate until the loss falls steadily, then
doubles it after every success, gives a failure a second chance, and goes back to its checkpoint
when the loss is not finite. `aalr_update` is that controller, `fit_aalr` a network trained under
it, `aalr` an optax transformation; `schedules` holds what it is compared with.
"""

from poster_jax.learning_rate.controller import (
    EVENTS,
    AalrOptions,
    AalrState,
    aalr_best,
    aalr_init,
    aalr_update,
)
from poster_jax.learning_rate.fit import AalrHistory, FitAalr, continue_fit_aalr, fit_aalr
from poster_jax.learning_rate.schedules import (
    HypergradientState,
    cosine,
    cosine_restarts,
    hypergradient,
    one_cycle,
    step_decay,
)
from poster_jax.learning_rate.transformation import AalrTransformationState, aalr

__all__ = [
    "EVENTS",
    "AalrHistory",
    "AalrOptions",
    "AalrState",
    "AalrTransformationState",
    "FitAalr",
    "HypergradientState",
    "aalr",
    "aalr_best",
    "aalr_init",
    "aalr_update",
    "continue_fit_aalr",
    "cosine",
    "cosine_restarts",
    "fit_aalr",
    "hypergradient",
    "one_cycle",
    "step_decay",
]
