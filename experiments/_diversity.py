"""The shallow network with u kinds of features: a whole grid of starts as one population.

Members are networks that differ in u, in noise and in how their output weights are tied; all
networks of a seed see the same batches. Every function is pure.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from poster_jax import feature_diversity as diversity
from poster_jax.core import batching, losses, models, training

MODES = ("zero", "duplicated", "independent")
TIED = MODES[:2]
"""Those under which copies stay copies; claims are about the first, the authors' own start."""
ENDS = {"inputs": "Dense_0", "outputs": "Dense_1"}
NUM_PROBES = 64
THRESHOLD = 0.01  # of the diversity q, above which the symmetry counts as broken


class Examples(NamedTuple):
    """The data that all networks share.

    Attributes:
      train: (x, y).
      test: (x, y).
    """

    train: Any
    test: Any


class Condition(NamedTuple):
    """How a shallow network starts.

    Attributes:
      mode: how its output weights are tied.
      num_unique: u.
      noise: s2.
    """

    mode: str
    num_unique: int
    noise: float


def conditions(settings: Any) -> list[Condition]:
    """Every u in every mode without noise; then one kind with noise in the tied ones."""
    grid = [Condition(mode, u, 0.0) for mode in MODES for u in settings.num_unique]
    return grid + [Condition(mode, 1, noise) for mode in TIED for noise in settings.noises]


def recorded(settings: Any) -> tuple[int, ...]:
    """After how many updates the diversity is measured: finely at first, then coarsely."""
    fine, steps = settings.record_every, settings.shallow_steps
    until = min(settings.record_until, steps)
    return tuple(sorted({*range(0, until + 1, fine), *range(until, steps + 1, 10 * fine), steps}))


def starts(settings: Any, num_inputs: int, num_classes: int, key: Any) -> Any:
    """The parameters of all conditions of one seed, stacked."""
    keys, rows = jax.random.split(key, 2), conditions(settings)
    width = settings.width
    kernel = jax.vmap(
        lambda u, noise: diversity.duplicate_features(
            keys[0], (num_inputs, width), num_unique=u, noise=noise
        )
    )(jnp.array([row.num_unique for row in rows]), jnp.array([row.noise for row in rows]))
    drawn = jax.nn.initializers.lecun_normal()(keys[1], (width, num_classes), jnp.float32)
    readout = jnp.stack(
        [diversity.tie_output(drawn, num_unique=row.num_unique, mode=row.mode) for row in rows]
    )
    return {
        "Dense_0": {"kernel": kernel, "bias": jnp.zeros((len(rows), width))},
        "Dense_1": {"kernel": readout, "bias": jnp.zeros((len(rows), num_classes))},
    }


def hidden(params: Any, x: Any) -> Any:
    """The hidden layer before its ReLU."""
    return x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]


def accuracy_of(apply_fn: Any, params: Any, batch: Any, microbatch: int) -> Any:
    """The share of a batch that the network gets right."""
    metric = losses.accuracy(apply_fn)
    return batching.mean_over_batch(
        lambda chunk: metric(params, chunk), batch, microbatch=min(microbatch, len(batch[1]))
    )


def train_one(
    settings: Any, examples: Examples, params: Any, key: Any, optimizer: Any = None
) -> dict[str, Any]:
    """A trained network and how the diversity of its hidden layer went."""
    model = models.from_linen(models.MLP((settings.width, num_outputs(params))))
    probe = examples.test[0][:NUM_PROBES]
    fit = training.fit(
        losses.cross_entropy(model.apply_fn),
        params,
        examples.train,
        key,
        optimizer=optax.sgd(settings.shallow_rate) if optimizer is None else optimizer,
        num_steps=settings.shallow_steps,
        batch_size=settings.shallow_batch,
        metrics_fn=lambda state: diversity.feature_diversity(
            jax.nn.relu(hidden(state.params, probe))
        ),
        metrics_steps=recorded(settings),
    )
    return {
        "accuracy": accuracy_of(model.apply_fn, fit.params, examples.test, settings.microbatch),
        "loss": fit.losses[-20:].mean(),
        "diversity": fit.metrics,
        "correlation": diversity.weight_correlation(fit.params["Dense_0"]["kernel"]),
        "width": diversity.effective_width(jax.nn.relu(hidden(fit.params, probe))),
        "leak": diversity.symmetry_leak(fit.params, **ENDS),
        "diverged": fit.diverged,
    }


def train_seed(settings: Any, examples: Examples, params: Any, key: Any) -> dict[str, Any]:
    """All conditions of one seed: one order of batches, so the first layer is one product."""
    return training.map_population(
        lambda params: train_one(settings, examples, params, key),
        params,
        group_size=settings.side_by_side,
    )


def train_rounded(settings: Any, examples: Examples, params: Any, key: Any) -> dict[str, Any]:
    """One kind of features, no noise but the rounding of sums whose order nobody fixed."""
    rounding = diversity.rounding_noise(jax.random.fold_in(key, 1), scale=settings.rounding)
    optimizer = optax.chain(rounding, optax.sgd(settings.shallow_rate))
    return train_one(settings, examples, params, key, optimizer)


def train_reduced(settings: Any, examples: Examples, params: Any, key: Any) -> dict[str, Any]:
    """One kind of features without any noise: the network of width 1, and how copies would part."""
    found = diversity.symmetric_reduction(params, **ENDS)
    model = models.from_linen(models.MLP((1, num_outputs(params))))
    x, y = examples.train
    x = x.reshape(len(x), -1)

    probe = examples.test[0][:NUM_PROBES]

    def look(state: training.TrainState) -> dict[str, Any]:
        logits = model.apply_fn(state.params, x)
        gradients = jax.nn.softmax(logits) - jax.nn.one_hot(y, logits.shape[1])
        seen = hidden(state.params, probe)
        return {
            "coupling": diversity.copy_coupling(x, hidden(state.params, x), gradients)[0],
            "active": seen[:, 0] > 0,
            "power": jnp.mean(jax.nn.relu(seen) ** 2),
        }

    fit = training.fit(
        losses.cross_entropy(model.apply_fn),
        found.params,
        examples.train,
        key,
        optimizer=optax.chain(
            diversity.scale_gradients(found.multipliers), optax.sgd(settings.shallow_rate)
        ),
        num_steps=settings.shallow_steps,
        batch_size=settings.shallow_batch,
        metrics_fn=look,
        metrics_steps=tuple(
            range(0, min(settings.record_until, settings.shallow_steps), settings.record_every)
        ),
    )
    accuracy = accuracy_of(model.apply_fn, fit.params, examples.test, settings.microbatch)
    return {"accuracy": accuracy, "diverged": fit.diverged, **fit.metrics}


def num_outputs(params: Any) -> int:
    """Outputs of the network."""
    return params["Dense_1"]["bias"].shape[-1]


def predicted_diversity(settings: Any, exact: dict[str, Any], probe: Any) -> np.ndarray:
    """q per unit of noise along the noiseless path, (seeds, times); nothing is fitted.

    As many differences as a layer has copies, LeCun's variance in the kernel and none in the bias,
    as the path moves them, seen by the probes that the feature is on for.
    """
    probe = np.asarray(probe, np.float64).reshape(len(probe), -1)
    inputs, rng = probe.shape[1], np.random.default_rng(0)
    start = rng.normal(size=(inputs + 1, settings.width)) * inputs**-0.5
    start[-1] = 0
    with_bias = np.append(probe, np.ones((len(probe), 1)), 1)
    rows = []
    for coupling, active, power in zip(
        exact["coupling"], exact["active"], exact["power"], strict=True
    ):
        path = diversity.deviation_path(
            coupling, settings.shallow_rate, start, step=settings.record_every
        )
        seen = [
            np.mean(((with_bias @ d_w) * on[:, None]) ** 2)
            for d_w, on in zip(path, active, strict=False)  # the path has its end as well
        ]
        rows.append(np.array(seen) * (1 - 1 / settings.width) / power)
    return np.array(rows)


def predicted_times(settings: Any, exact: dict[str, Any], probe: Any) -> np.ndarray:
    """Steps until the symmetry is broken, (seeds, noises); NaN where the path ends before."""
    q = predicted_diversity(settings, exact, probe)[:, None] * np.array(settings.noises)[:, None]
    broken = q > THRESHOLD
    first = np.array(settings.record_every) * broken.argmax(-1)
    return np.where(broken.any(-1), first, np.nan)


def fastest_times(settings: Any, exact: dict[str, Any]) -> np.ndarray:
    """The same if every difference lay along the direction that grows fastest, at every step."""
    sigma = np.linalg.svd(np.asarray(exact["coupling"], np.float64), compute_uv=False)[..., 0]
    rates = np.asarray(diversity.growth_rate(-sigma, settings.shallow_rate))
    predict = partial(diversity.predicted_breaking_time, step=settings.record_every)
    return np.array([[predict(row, noise=s2) for s2 in settings.noises] for row in rates])


def measured_times(settings: Any, curves: Any) -> np.ndarray:
    """Steps until q is above 0.01, shaped like `curves` without its last axis; NaN for never."""
    first = jax.vmap(diversity.breaking_time)(jnp.asarray(curves).reshape(-1, curves.shape[-1]))
    first = np.asarray(first).reshape(curves.shape[:-1])
    return np.where(first < 0, np.nan, np.array(recorded(settings))[first])


def train(run: Any, examples: Examples, num_classes: int) -> dict[str, Any]:
    """Every condition of every seed, the rounded one, and the exact one without noise."""
    chosen = run.settings
    flat = Examples(*((x.reshape(len(x), -1), y) for x, y in examples))
    start_key, run_key = jax.random.split(jax.random.fold_in(run.key, 1))
    seeds = jnp.arange(chosen.shallow_seeds)
    keys = jax.vmap(partial(jax.random.fold_in, run_key))(seeds)
    start = partial(starts, chosen, flat.train[0].shape[1], num_classes)
    params = jax.jit(jax.vmap(lambda seed: start(jax.random.fold_in(start_key, seed))))(seeds)
    rows = conditions(chosen)
    tied = rows.index(Condition(TIED[0], 1, 0.0))
    copies = jax.tree.map(lambda leaf: leaf[:, tied], params)
    with run.progress("shallow networks", 3) as update:
        found = run.population("shallow", partial(train_seed, chosen), flat, params, keys)
        update(1, f"{len(rows)} starts, {chosen.shallow_seeds} seeds")
        rounded = run.population("rounded", partial(train_rounded, chosen), flat, copies, keys)
        update(2, "rounding alone")
        exact = run.population("exact", partial(train_reduced, chosen), flat, copies, keys)
        update(3)
    exact["probe"] = flat.test[0][:NUM_PROBES]
    return jax.tree.map(np.asarray, {"grid": found, "rounded": rounded, "exact": exact})
