"""Networks trained under AALR and under everything it is compared with, each arm a population."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments._augment import augmented
from experiments._program import Run
from poster_jax import curvature
from poster_jax import learning_rate as lr
from poster_jax.core import adversarial, batching, losses, training

SCHEDULES = ("constant", "step decay", "cosine restarts", "one-cycle")
ADAPTIVE = ("reduce on plateau", "hypergradient", "schedule-free")
AALR, ALWAYS = "AALR", "AALR, always restoring"
READINGS = {AALR: "nonfinite", ALWAYS: "always"}
MOMENTUM = 0.9


class Examples(NamedTuple):
    """Three parts, each `(x, y)`; the best baseline is chosen on the second."""

    train: Any
    valid: Any
    test: Any


class Attack(NamedTuple):
    """How inputs are attacked, in units of the inputs; one step is FGSM.

    Attributes:
      epsilon: radius.
      step_size: of PGD.
      num_steps: of training; 1 is FGSM.
      test_steps: of the PGD that measures robust accuracy.
    """

    epsilon: float
    step_size: float
    num_steps: int
    test_steps: int


@dataclasses.dataclass(frozen=True)
class Task:
    """What all networks share.

    Attributes:
      model: a models.Model.
      num_epochs: budget of every run, rejected epochs included.
      epoch_steps: steps an epoch.
      batch_size: examples a step.
      weight_decay: added to the gradient.
      augment: whether training images are shifted by up to 4 pixels and mirrored.
      bounds: the range of the inputs.
      microbatch: examples measured at once.
    """

    model: Any
    num_epochs: int
    epoch_steps: int
    batch_size: int
    weight_decay: float
    augment: bool
    bounds: tuple[float, float]
    microbatch: int

    @property
    def num_steps(self) -> int:
        """Of every run."""
        return self.num_epochs * self.epoch_steps

    def loss(self, attack: Attack | None) -> training.StatefulLoss:
        """The training loss, on attacked inputs where asked."""
        loss_fn = training.model_loss(self.model, losses.softmax_cross_entropy)
        if attack is not None:
            step = None if attack.num_steps == 1 else attack.step_size
            loss_fn = adversarial.adversarial_loss(
                loss_fn,
                epsilon=attack.epsilon,
                step_size=step,
                num_steps=attack.num_steps,
                bounds=self.bounds,
            )
        return augmented(loss_fn) if self.augment else loss_fn

    def optimizer(self, *pieces: Any) -> optax.GradientTransformation:
        """The pieces after weight decay."""
        return optax.chain(optax.add_decayed_weights(self.weight_decay), *pieces)

    def sgd(self, rate: Any) -> optax.GradientTransformation:
        """SGD with momentum at a rate or schedule."""
        return self.optimizer(optax.sgd(rate, momentum=MOMENTUM))


def scores(task: Task, params: Any, state: Any, examples: Examples, attack: Any) -> dict[str, Any]:
    """Accuracy on the validation and test part; on attacked inputs too where there is an attack."""
    apply_fn = task.model.freeze(state)
    accuracy, loss_fn = losses.accuracy(apply_fn), losses.cross_entropy(apply_fn)

    def measure(batch: Any) -> dict[str, Any]:
        found = {"accuracy": accuracy(params, batch)}
        if attack is not None:
            options = {"step_size": attack.step_size, "num_steps": attack.test_steps}
            moved = adversarial.pgd(
                loss_fn,
                params,
                batch,
                jax.random.key(0),
                epsilon=attack.epsilon,
                bounds=task.bounds,
                **options,
            )
            found["robust"] = accuracy(params, (moved, batch[1]))
        return found

    parts = {"valid": examples.valid, "test": examples.test}
    found = {
        part: batching.mean_over_batch(measure, batch, microbatch=task.microbatch)
        for part, batch in parts.items()
    }
    return {f"{part} {name}": v for part, values in found.items() for name, v in values.items()}


class Shared(NamedTuple):
    """What all arms have in common; the starts and keys of all seeds, leading axes of seeds.

    Attributes:
      examples: the data.
      starts: (params, model_state) where training begins.
      keys: of the order of the examples.
    """

    examples: Examples
    starts: Any
    keys: Any

    def of(self, seed: Any) -> tuple[Any, Any, Any]:
        """The network of a seed and its key, the same in every arm."""
        return *jax.tree.map(lambda a: a[seed], self.starts), self.keys[seed]


def shared(run: Run, task: Task, examples: Examples, num_seeds: int) -> Shared:
    """The starts as a program of their own, which those of the arms need not compile again."""
    keys = jax.vmap(partial(jax.random.fold_in, run.key))(jnp.arange(num_seeds))
    init_keys, run_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)

    def start(x: Any, key: Any) -> Any:
        return task.model.init(key, x), task.model.init_state(key, x)

    starts = run.population("starts", start, examples.train[0][:1], init_keys)
    # From the devices that drew them to where the examples are.
    return Shared(examples, jax.tree.map(np.asarray, starts), run_keys)


def train_aalr(
    task: Task, attack: Attack | None, restore: str, of_all: Shared, seed: Any, rate: Any
) -> dict[str, Any]:
    """One network under the controller, which goes back to its checkpoint after such failures."""
    params, state, run_key = of_all.of(seed)
    run = lr.fit_aalr(
        task.loss(attack),
        params,
        of_all.examples.train,
        run_key,
        optimizer_fn=task.sgd,
        num_epochs=task.num_epochs,
        batch_size=task.batch_size,
        initial_rate=rate,
        model_state=state,
        options=lr.AalrOptions(restore=restore),
    )
    params, _, state = run.best
    return {**scores(task, params, state, of_all.examples, attack), **run.history._asdict()}


def train_with(
    task: Task,
    attack: Attack | None,
    optimizer_fn: Callable[[Any], optax.GradientTransformation],
    params_fn: Callable[[training.TrainState], Any],
    of_all: Shared,
    seed: Any,
    rates: Any,
) -> dict[str, Any]:
    """One network under an optimiser; `rates` is its rate, or one for each step."""
    params, state, run_key = of_all.of(seed)
    run = training.fit(
        task.loss(attack),
        params,
        of_all.examples.train,
        run_key,
        optimizer=optimizer_fn(rates),
        num_steps=task.num_steps,
        batch_size=task.batch_size,
        model_state=state,
    )
    last = scores(task, params_fn(run.state), run.state.model_state, of_all.examples, attack)
    return {**last, "loss": run.losses.reshape(task.num_epochs, -1).mean(1)}


def table(task: Task, name: str, rate: float) -> Any:
    """The rate of each step under a schedule."""
    total = task.num_steps
    schedule = {
        "constant": lambda step: rate + 0 * step,
        "step decay": lr.step_decay(rate, num_steps=total),
        "cosine restarts": lr.cosine_restarts(
            rate, first_period=max(1, task.num_epochs // 6) * task.epoch_steps, num_steps=total
        ),
        "one-cycle": lr.one_cycle(rate, num_steps=total),
    }[name]
    return jax.vmap(schedule)(jnp.arange(total, dtype=jnp.float32))


def _adaptive(task: Task, name: str) -> tuple[Any, Any]:
    """Optimiser of a rate, and where its parameters stand."""
    plateau = optax.contrib.reduce_on_plateau(
        factor=0.5, patience=5, accumulation_size=task.epoch_steps
    )
    optimizers = {
        "reduce on plateau": lambda rate: optax.chain(task.sgd(rate), plateau),
        # As published, without momentum: with it the rate runs away from every start.
        "hypergradient": lambda rate: task.optimizer(lr.hypergradient(rate, step_size=1e-3)),
        "schedule-free": lambda rate: optax.contrib.schedule_free(
            task.optimizer(optax.scale_by_learning_rate(rate)), rate, b1=MOMENTUM
        ),
    }
    if name == "schedule-free":
        at: Any = lambda s: optax.contrib.schedule_free_eval_params(s.opt_state, s.params)  # noqa: E731
    else:
        at = lambda s: s.params  # noqa: E731
    return optimizers[name], at


def train_arms(
    run: Run,
    task: Task,
    of_all: Shared,
    attack: Attack | None,
    label: str,
    *,
    arms: dict[str, tuple[float, ...]],
    num_seeds: int,
) -> dict[str, dict[str, Any]]:
    """Arm -> name -> (rates, seeds, ...); seeds are the same networks in every arm."""

    def members(rates: Any) -> tuple[Any, Any]:
        rates = jnp.asarray(rates, jnp.float32)
        return jnp.tile(jnp.arange(num_seeds), len(rates)), jnp.repeat(rates, num_seeds, axis=0)

    def fold(found: Any, num_rates: int) -> Any:
        return jax.tree.map(
            lambda a: np.asarray(a).reshape(num_rates, num_seeds, *a.shape[1:]), found
        )

    found: dict[str, Any] = {}
    fixed = {name: rates for name, rates in arms.items() if name in SCHEDULES}
    at: Any = lambda state: state.params  # noqa: E731
    by_step: Any = lambda rates: task.sgd(lambda step: rates[step])  # noqa: E731
    with run.progress(f"training: {label}", sum(map(len, arms.values()))) as update:

        def train(name: str, one: Any, rates: Any) -> Any:
            found = run.population(f"{label}_{name}", one, of_all, *members(rates))
            return fold(found, len(rates))

        def count(note: str) -> None:
            update(sum(len(arms[name]) for name in found), note)

        for arm in (arm for arm in READINGS if arm in arms):
            one = partial(train_aalr, task, attack, READINGS[arm])
            found[arm] = train(f"aalr_{READINGS[arm]}", one, arms[arm])
            count(arm)
        if fixed:  # one program: they differ in a table
            rows = jnp.stack([table(task, name, rate) for name in fixed for rate in fixed[name]])
            stage = train("schedules", partial(train_with, task, attack, by_step, at), rows)
            for name, rates in fixed.items():
                place = sum(len(fixed[other]) for other in fixed if other in found)
                part = slice(place, place + len(rates))
                found[name] = jax.tree.map(lambda a, part=part: a[part], stage)
            count("schedules")
        for name in arms:
            if name in ADAPTIVE:
                one = partial(train_with, task, attack, *_adaptive(task, name))
                found[name] = train("_".join(name.replace("-", " ").split()), one, arms[name])
                count(name)
    return {name: found[name] for name in arms}


def edge(task: Task, num_examples: int, of_all: Shared, rate: Any) -> dict[str, Any]:
    """Rate and largest Hessian eigenvalue after each epoch of one network under AALR."""
    params, state, run_key = of_all.of(0)
    part = jax.tree.map(lambda a: a[:num_examples], of_all.examples.train)

    def top(now: training.TrainState, _: Any) -> Any:
        loss_fn = losses.cross_entropy(task.model.freeze(now.model_state))
        operator = curvature.hessian_operator(loss_fn, now.params, part)
        return curvature.top_eigenpairs(operator, run_key, k=1, tol=1e-2, max_iters=30).values[0]

    run = lr.fit_aalr(
        task.loss(None),
        params,
        of_all.examples.train,
        run_key,
        optimizer_fn=task.sgd,
        num_epochs=task.num_epochs,
        batch_size=task.batch_size,
        initial_rate=rate,
        model_state=state,
        metrics_fn=top,
    )
    return {"curvature": run.metrics, **run.history._asdict()}


def quadratic(num_epochs: int, curvatures: Any, rate: Any) -> dict[str, Any]:
    """AALR on a quadratic by gradient descent, one step an epoch."""
    run = lr.fit_aalr(
        lambda x, batch: jnp.sum(batch[0] * x**2) / 2,
        jnp.ones(curvatures.shape[-1]),
        curvatures[None],
        jax.random.key(0),
        optimizer_fn=optax.sgd,
        num_epochs=num_epochs,
        initial_rate=rate,
        loss="evaluate",
    )
    return run.history._asdict()


def epoch_seconds(task: Task, of_all: Shared, repeats: int) -> dict[str, Any]:
    """Seconds an epoch of one network, under AALR and as plain SGD, one repeat of each in turn."""
    params, state, run_key = of_all.of(0)
    train, loss_fn = of_all.examples.train, task.loss(None)
    options = {"batch_size": task.batch_size, "model_state": state}

    def tuned(params: Any) -> Any:
        return lr.fit_aalr(
            loss_fn, params, train, run_key,
            optimizer_fn=task.sgd, num_epochs=task.num_epochs, initial_rate=0.05, **options,
        ).params  # fmt: skip

    def plain(params: Any) -> Any:
        return training.fit(
            loss_fn, params, train, run_key,
            optimizer=task.sgd(0.05), num_steps=task.num_steps, **options,
        ).params  # fmt: skip

    programs = {name: jax.jit(fn) for name, fn in ((AALR, tuned), ("plain SGD", plain))}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for repeat in range(repeats + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(params))
            if repeat:  # the first compiles
                seconds[name].append((time.perf_counter() - start) / task.num_epochs)
    return {name: np.array(values) for name, values in seconds.items()}


def median_ratio(seconds: dict[str, Any]) -> float:
    """Of the medians, AALR over plain SGD."""
    return statistics.median(seconds[AALR]) / statistics.median(seconds["plain SGD"])
