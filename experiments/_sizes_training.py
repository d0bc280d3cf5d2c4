"""Networks trained at one size and at several, and how well they do at every size.

`train_one` and `test_one` are of one network and pure; `Run.population` makes populations of them.
Networks of one seed start from the same weights. All see the sizes in the same order, so that a
population computes at each step the one size that it needs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments._program import RefusedError, Run
from experiments._sizes_networks import (
    Case,
    build,
    first_weights,
    move,
    optimiser,
    resized,
    storage,
    view_of,
)
from poster_jax.core import losses, training
from poster_jax.core.cost import count_flops
from poster_jax.mixed_sizes import (
    SizeConfig,
    continue_mixed,
    epoch_steps,
    gradient_norms,
    size_regime,
    size_sweep,
)

FIXED, BATCH, COPIES, ROUGH = "fixed", "B+", "D+", "B+ without smoothing"
METHODS = (FIXED, BATCH, COPIES, ROUGH)
MIXED = (BATCH, COPIES)
SMOOTHING = 0.9  # the weight of the past, as in the authors' code


class Examples(NamedTuple):
    """The data that all networks of a case share.

    Attributes:
      train: images as stored and labels.
      test: the same, for accuracies.
      calibration: (batches, examples, ...) training images, moved about as in training.
      order: the key of the order of the sizes.
    """

    train: Any
    test: Any
    calibration: Any
    order: Any


class Task(NamedTuple):
    """What all networks of a case share, arrays aside.

    Attributes:
      case: data set, network and schedule.
      settings: of the run.
      num_classes: outputs.
      num_train: training examples.
    """

    case: Case
    settings: Any
    num_classes: int
    num_train: int

    def regime(self, method: str) -> tuple[SizeConfig, ...]:
        """The sizes of a method."""
        mixture = self.case.mixture
        base = {"base_size": mixture.base_size, "base_batch": mixture.base_batch}
        if method == FIXED:
            return size_regime((mixture.base_size,), (1.0,), adapt="none", **base)
        adapt = "duplicates" if method == COPIES else "batch"
        return size_regime(mixture.sizes, mixture.fractions, adapt=adapt, **base)

    def passes(self, method: str) -> int:
        """Permutations in an epoch: one size needs no more than one."""
        return 1 if method == FIXED else self.case.passes

    def epoch(self, method: str) -> np.ndarray:
        """Steps of an epoch at each size."""
        return np.array(
            epoch_steps(self.num_train, self.regime(method), passes=self.passes(method))
        )

    def step_pixels(self, method: str) -> np.ndarray:
        """Pixels of a step at each size."""
        return np.array([c.batch_size * c.duplicates * c.size**2 for c in self.regime(method)])

    def segment_steps(self, method: str) -> int:
        """Steps between two looks; all methods process about as many pixels in them."""
        base = self.case.steps or self.case.epochs * int(self.epoch(FIXED)[0])
        share = self.epoch(method) / self.epoch(method).sum()
        mean = float((share * self.step_pixels(method)).sum())
        pixels = base * float(self.step_pixels(FIXED)[0])
        return max(1, round(pixels / mean / self.settings.num_looks))

    def num_steps(self, method: str) -> int:
        """Of training."""
        return self.settings.num_looks * self.segment_steps(method)


def prepare(run: Run, case: Case) -> tuple[Task, Examples]:
    """The task of a case and its examples."""
    chosen = run.settings
    dataset = run.load(case.dataset, **storage(case))
    (x, y), test = dataset.train, dataset.test
    if x.ndim != 4:
        raise RefusedError(f"{case.dataset} must hold images, got inputs {dataset.input_shape}.")
    task = Task(case, chosen, dataset.num_classes, len(y))
    try:
        for method in METHODS:
            task.epoch(method)
    except ValueError as error:
        raise RefusedError(f"{case.dataset}: {error}") from error
    size = (chosen.calibration_batches, chosen.calibration_size)

    @jax.jit
    def draw(key: Any, x: Any) -> tuple[Any, Any]:
        order, rows_key, view_key = jax.random.split(key, 3)
        rows = jax.random.randint(rows_key, (size[0] * size[1],), 0, len(x))
        views = x[rows]
        if case.side is None:  # of photographs the centres, as in tests
            views = jax.vmap(partial(move, case))(jax.random.split(view_key, len(rows)), views)
        return order, views.reshape(*size, *x.shape[1:])

    order, views = draw(jax.random.fold_in(run.key, 2**31), x)
    return task, Examples((x, y), test, views, order)


def init_one(task: Task, x: Any, key: Any) -> tuple[Any, Any]:
    """Weights and BatchNorm's statistics of one network, before training."""
    network, x = build(task.case, task.num_classes), x.astype(jnp.float32)
    return first_weights(task.case, network.init(key, x)), network.init_state(key, x)


def train_one(
    task: Task, method: str, examples: Examples, begin: Any, key: Any, decay: Any
) -> dict[str, Any]:
    """One network, trained: losses, sizes and gradient norms of all steps, weights at the looks."""
    network, regime = build(task.case, task.num_classes), task.regime(method)
    params, state = begin
    optimizer = optimiser(task.case, task.num_steps(method), decay)
    steps = task.segment_steps(method)

    def segment(state: training.TrainState, start: Any) -> tuple[Any, Any]:
        run = continue_mixed(
            training.model_loss(network, losses.softmax_cross_entropy),
            state,
            examples.train,
            regime=regime,
            optimizer=optimizer,
            num_steps=steps,
            start=start,
            augment=view_of(task.case),
            size_key=examples.order,
            passes=task.passes(method),
            metrics_fn=lambda state: gradient_norms(state.opt_state),
            metrics_steps=range(1, steps + 1),
        )
        seen = {"loss": run.losses, "size": run.sizes, **run.metrics._asdict()}
        return run.state, (seen, (run.state.params, run.state.model_state))

    start = training.init_state(params, key, optimizer=optimizer, model_state=state)
    starts = steps * jnp.arange(task.settings.num_looks)
    _, (seen, looks) = jax.lax.scan(segment, start, starts)
    # Segments follow one another.
    return {"seen": jax.tree.map(jnp.ravel, seen), "looks": looks}


def test_one(task: Task, examples: Examples, looks: Any) -> dict[str, Any]:
    """Accuracies at all sizes in the end, calibrated or not; at the base size, at every look."""
    network = build(task.case, task.num_classes)

    def sweep(at: Any, **options: Any) -> Any:
        found = size_sweep(
            network,
            *at,
            examples.test,
            examples.calibration,
            jax.random.key(0),
            microbatch=task.settings.microbatch,
            resize=partial(resized, task.case),
            **options,
        )
        return found.accuracy

    end = jax.tree.map(lambda a: a[-1], looks)
    sizes, base = task.case.test_sizes, (task.case.mixture.base_size,)
    return {
        "calibrated": sweep(end, sizes=sizes),
        "uncalibrated": sweep(end, sizes=sizes, calibrate=False),
        "by look": jax.lax.map(lambda at: sweep(at, sizes=base)[0], looks),
    }


class Results(NamedTuple):
    """The numbers of a case.

    Attributes:
      task: what was done.
      seen: method -> "loss", "size", "raw" and "smoothed", each (seeds, steps).
      accuracy: method -> "calibrated" and "uncalibrated" (seeds, test sizes), "by look"
        (seeds, looks).
      flops: (test sizes,), of one image.
    """

    task: Task
    seen: dict[str, Any]
    accuracy: dict[str, Any]
    flops: Any

    def at_base(self, method: str) -> np.ndarray:
        """(seeds,), calibrated accuracy at the base size."""
        case = self.task.case
        return self.accuracy[method]["calibrated"][:, case.test_sizes.index(case.mixture.base_size)]

    def pixels(self, method: str) -> np.ndarray:
        """(steps,), pixels processed after each step; the same for all seeds."""
        return np.cumsum(self.task.step_pixels(method)[self.seen[method]["size"][0]])

    def pixels_at_looks(self, method: str) -> np.ndarray:
        """(looks,), pixels processed before each look."""
        steps = self.task.segment_steps(method)
        return self.pixels(method)[steps - 1 :: steps]


def measure(run: Run, case: Case, update: Callable[[str], None]) -> tuple[Results, Examples]:
    """Trains and tests the networks of a case."""
    task, examples = prepare(run, case)
    seeds = jnp.arange(run.settings.num_seeds)
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(run.key, 1)))(seeds)
    name = f"{case.dataset}_{case.network}".replace(":", "_").replace(" ", "_")
    update(f"{case.dataset}, {FIXED}")

    def stage(name: str, fn: Callable[..., Any], *args: Any) -> Any:
        """As `Run.population`, on the host: what was read from disk lies on one device."""
        return jax.tree.map(np.asarray, run.population(name, fn, *args))

    begin = stage(f"init_{name}", partial(init_one, task), examples.train[0][:2], keys)

    def train(method: str, *decays: float) -> Any:
        """All seeds with each weight of the past in smoothing, one program."""
        repeat = lambda a: jnp.concatenate([a] * len(decays))  # noqa: E731
        members = jax.tree.map(repeat, (begin, keys))
        decay = jnp.repeat(jnp.array(decays), len(keys))
        place = f"train_{name}_{method.replace('+', '')}"
        return stage(place, partial(train_one, task, method), examples, *members, decay)

    trained = {FIXED: train(FIXED, 0.0)}
    update(f"{case.dataset}, {COPIES}")
    trained[COPIES] = train(COPIES, SMOOTHING)
    update(f"{case.dataset}, {BATCH}")
    both = train(BATCH, SMOOTHING, 0.0)
    cut = len(keys)
    trained[BATCH] = jax.tree.map(lambda a: a[:cut], both)
    trained[ROUGH] = jax.tree.map(lambda a: a[cut:], both)
    update(f"{case.dataset}, tests")
    looks = jax.tree.map(
        lambda *parts: np.concatenate(parts), *(trained[method]["looks"] for method in METHODS)
    )
    tested = stage(f"test_{name}", partial(test_one, task), examples, looks)
    split = lambda leaf: np.split(leaf, len(METHODS))  # noqa: E731
    accuracy = {
        method: {kind: split(values)[index] for kind, values in tested.items()}
        for index, method in enumerate(METHODS)
    }
    seen = {method: trained[method]["seen"] for method in METHODS}
    return Results(task, seen, accuracy, _flops(task, examples)), examples


def _flops(task: Task, examples: Examples) -> np.ndarray:
    """Of one image at each test size."""
    network, x = build(task.case, task.num_classes), examples.train[0][:1].astype(jnp.float32)
    key = jax.random.key(0)
    params, state = jax.eval_shape(lambda x: (network.init(key, x), network.init_state(key, x)), x)
    sides = [(1, size, size, x.shape[-1]) for size in task.case.test_sizes]
    images = [jax.ShapeDtypeStruct(side, jnp.float32) for side in sides]
    return np.array([count_flops(network.apply_eval, params, state, image) for image in images])
