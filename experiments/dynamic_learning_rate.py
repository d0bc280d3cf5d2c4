"""Can a network find its own learning rate while it trains, from whatever rate it starts?

Poster: "A Simple Dynamic Learning Rate Tuning Algorithm For Automated Training of DNNs",
Mukherjee, Khare, Sabharwal, Verma, NeurIPS 2019 workshop (arXiv 1910.11605). AALR and seven ways
to set the rate, each from six initial rates, at one budget of epochs; then adversarial training.

    python -m experiments.dynamic_learning_rate --preset=smoke     # seconds, to see that it runs
    python -m experiments.dynamic_learning_rate                    # laptop: MLPs on the digits
    python -m experiments.dynamic_learning_rate --preset=paper     # CIFAR-10, a GPU, days
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _program
from experiments import _rates as rates
from experiments._rates_claims import START, Results
from experiments._rates_report import findings
from poster_jax.core import checks, models, training

DECADES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)


@dataclasses.dataclass(frozen=True)
class Settings:
    """One instance a preset; every number and text is a flag."""

    dataset: str = _program.setting("digits", "name for core.data.load; inputs scaled to (0, 1)")
    network: str = _program.setting("MLP", "MLP (128-128-classes), ResNet20, ResNet56 or VGG16")
    # 768 digits are left, whole batches: the mean loss of an epoch is then one over all examples.
    num_valid: int = _program.setting(232, "training examples kept to choose the best baseline")
    batch_size: int = _program.setting(64, "examples a step")
    num_epochs: int = _program.setting(60, "budget of every run, rejected epochs included")
    initial_rates: tuple = _program.setting(DECADES, "where AALR and every baseline start")
    baselines: tuple = _program.setting(rates.SCHEDULES + rates.ADAPTIVE, "what AALR is beside")
    num_seeds: int = _program.setting(10, "networks an arm and rate")
    weight_decay: float = _program.setting(0.0, "strength, added to the gradient")
    augment: str = _program.setting("no", "yes shifts and mirrors training images")
    attacks: tuple = _program.setting(("FGSM", "PGD"), "adversarial training")
    attack_rates: tuple = _program.setting((0.03, 0.1, 0.3), "of the baselines there")
    attack_seeds: int = _program.setting(5, "networks an arm and rate there")
    epsilon: float = _program.setting(0.1, "radius of attacks, of the range of the inputs")
    step_size: float = _program.setting(0.025, "of the steps of PGD")
    attack_steps: int = _program.setting(7, "steps of PGD in training")
    test_steps: int = _program.setting(20, "steps of PGD in testing")
    edge_examples: int = _program.setting(400, "training examples of the Hessian")
    repeats: int = _program.setting(15, "timed repeats of an epoch")
    group_size: int = _program.setting(10, "networks trained side by side")
    microbatch: int = _program.setting(1000, "examples measured at once")

    def __post_init__(self) -> None:
        checks.check_choice("network", self.network, ["MLP", "ResNet20", "ResNet56", "VGG16"])
        checks.check_choice("augment", self.augment, ["yes", "no"])


PRESETS = {
    "smoke": Settings(
        num_epochs=14,
        initial_rates=(1e-3, 0.1, 10.0),
        baselines=("constant", "step decay", "reduce on plateau"),
        num_seeds=2,
        attacks=("FGSM",),
        attack_rates=(0.1,),
        attack_seeds=2,
        test_steps=3,
        edge_examples=50,
        repeats=3,
    ),
    "laptop": Settings(),
    # 8/255 and 2/255 are the convention of adversarial training on CIFAR-10; which networks the
    # paper used could not be learnt.
    "paper": Settings(
        dataset="tfds:cifar10",
        network="ResNet56",
        num_valid=5072,
        batch_size=128,
        num_epochs=200,
        num_seeds=5,
        weight_decay=5e-4,
        augment="yes",
        attack_rates=(0.01, 0.1),
        attack_seeds=3,
        epsilon=8 / 255,
        step_size=2 / 255,
        edge_examples=1000,
        repeats=3,
        group_size=1,
    ),
}


def prepare(run: _program.Run) -> tuple[rates.Task, rates.Examples, float]:
    """The network, the three parts of the data, and the accuracy of a guess."""
    chosen = run.settings
    dataset = run.load(chosen.dataset, scaling="unit")
    (x, y), classes = dataset.train, dataset.num_classes
    num_train = len(x) - chosen.num_valid
    if num_train < chosen.batch_size:
        raise _program.RefusedError(
            f"{len(x)} training examples less {chosen.num_valid} for validation are fewer than a "
            f"batch of {chosen.batch_size}."
        )
    part = lambda low, high: (x[low:high], y[low:high])  # noqa: E731
    examples = rates.Examples(part(0, num_train), part(num_train, None), dataset.test)
    module = {
        "MLP": models.MLP((128, 128, classes)),
        "ResNet20": models.ResNet(num_blocks=3, num_classes=classes),
        "ResNet56": models.ResNet(num_blocks=9, num_classes=classes),
        "VGG16": models.VGG16(num_classes=classes, norm="batch"),
    }[chosen.network]
    task = rates.Task(
        model=models.from_linen(module),
        num_epochs=chosen.num_epochs,
        epoch_steps=training.steps_per_epoch(num_train, chosen.batch_size),
        batch_size=chosen.batch_size,
        weight_decay=chosen.weight_decay,
        augment=chosen.augment == "yes",
        bounds=(0.0, 1.0),
        microbatch=chosen.microbatch,
    )
    return task, examples, 1 / classes


def experiment(run: _program.Run) -> _program.Findings:
    """Trains all arms, plainly and under attack; words and pictures are in the report."""
    chosen = run.settings
    task, examples, chance = prepare(run)
    num_seeds = max(chosen.num_seeds, chosen.attack_seeds)
    of_all = rates.shared(run, task, examples, num_seeds)
    names = (*rates.READINGS, *chosen.baselines)
    arms = {"plain": dict.fromkeys(names, chosen.initial_rates)}
    found = {
        "plain": rates.train_arms(
            run, task, of_all, None, "plain", arms=arms["plain"], num_seeds=chosen.num_seeds
        )
    }
    for kind in chosen.attacks:
        steps = 1 if kind == "FGSM" else chosen.attack_steps
        attack = rates.Attack(chosen.epsilon, chosen.step_size, steps, chosen.test_steps)
        baselines = dict.fromkeys(("constant", "step decay"), chosen.attack_rates)
        arms[kind] = {**dict.fromkeys(rates.READINGS, (START,)), **baselines}
        found[kind] = rates.train_arms(
            run, task, of_all, attack, kind, arms=arms[kind], num_seeds=chosen.attack_seeds
        )
    with run.progress("curvature and time", 2) as update:
        starts = jnp.asarray((START, max(chosen.initial_rates)))
        one = partial(rates.edge, task, chosen.edge_examples)
        at_edge = run.population("edge", one, of_all, starts)
        curvatures = jnp.asarray(np.logspace(-2, 0, 10), jnp.float32)
        one = partial(rates.quadratic, 60)
        bowls = run.population("quadratics", one, curvatures, jnp.asarray(chosen.initial_rates))
        update(1, "along the way")
        seconds = rates.epoch_seconds(task, of_all, chosen.repeats)
        update(2, "time")
    as_numpy = partial(jax.tree.map, np.asarray)
    return findings(run, Results(arms, found, seconds, as_numpy(at_edge), as_numpy(bowls), chance))


if __name__ == "__main__":
    _program.spread_over_cores()
    _program.launch("dynamic_learning_rate", PRESETS, experiment)
