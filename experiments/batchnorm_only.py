"""How far does a ResNet get if only BatchNorm's scales and shifts are trained, all else random?

Poster: "Training BatchNorm and Only BatchNorm", Frankle, Schwab, Morcos, NeurIPS 2019 workshop
(ICLR 2021, arXiv 2003.00152). A ResNet is trained in parts: BatchNorm alone, the output alone, as
many random weights, everything; without normalisation; deeper and wider.

    python -m experiments.batchnorm_only --preset=smoke     # half a minute, to see that it runs
    python -m experiments.batchnorm_only                    # laptop: ResNets on the digits
    python -m experiments.batchnorm_only --preset=paper     # ResNet-14 to -866 on CIFAR-10, a GPU
    python -m experiments.batchnorm_only --preset=imagenet  # ResNet-18 to -200, weeks of GPUs
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _batchnorm_population as population
from experiments import _batchnorm_training as batchnorm
from experiments import _program
from experiments._batchnorm_claims import Results
from experiments._batchnorm_report import findings
from poster_jax.core import checks


@dataclasses.dataclass(frozen=True)
class Settings:
    """One instance a preset; every number and text is a flag."""

    dataset: str = _program.setting("digits", "name for core.data.load")
    num_classes: int = _program.setting(10, "classes of the data set")
    network: str = _program.setting("CIFAR", "whose ResNets: CIFAR or ImageNet")
    side: int = _program.setting(256, "pixels of ImageNet's stored squares; networks see 7/8 of it")
    num_blocks: int = _program.setting(
        1, "blocks a stage of the network that all conditions train; layers of ImageNet's"
    )
    width: int = _program.setting(8, "channels of its first stage")
    depths: tuple = _program.setting((1, 2, 4), "blocks a stage where depth is varied, same width")
    widths: tuple = _program.setting((4, 8, 16), "widths where width is varied")
    width_blocks: int = _program.setting(1, "blocks a stage of those")
    per_channel: tuple = _program.setting((2, 8, 32), "random weights of each channel")
    num_seeds: int = _program.setting(4, "networks of each condition")
    num_epochs: int = _program.setting(20, "passes over the training part")
    batch_size: int = _program.setting(128, "examples a step")
    rate: float = _program.setting(0.1, "learning rate; falls to a tenth at the drops")
    drops: tuple = _program.setting((0.5, 0.75), "shares of the epochs after which it falls")
    warmup_epochs: float = _program.setting(0.0, "epochs over which the rate grows from 0")
    weight_decay: float = _program.setting(1e-4, "of everything that trains, BatchNorm included")
    augment: bool = _program.setting(False, "whether images are mirrored and shifted")
    one_program: bool = _program.setting(
        True, "freeze by masks in one program: one compilation, but every step a full one"
    )
    full_length: bool = _program.setting(False, "whether trained as long as the paper's zeros need")
    scan_from: int = _program.setting(4, "blocks a stage from which they run in one loop")
    microbatch: int = _program.setting(1000, "examples evaluated at once")
    group_size: int = _program.setting(1, "networks trained side by side")

    def __post_init__(self) -> None:
        checks.check_positive("rate", self.rate)
        checks.check_choice("network", self.network, list(batchnorm.FAMILIES))
        if 2 not in self.per_channel:
            raise ValueError(f"per_channel must hold 2, as BatchNorm has, got {self.per_channel}.")


PRESETS = {
    "smoke": Settings(
        width=2,
        depths=(1, 2),
        widths=(2, 4),
        per_channel=(2,),
        num_seeds=2,
        num_epochs=1,
        batch_size=500,
    ),
    "laptop": Settings(),
    # ResNet-110 for the conditions; ResNet-14 to -866; ResNet-14 up to 32 times as wide.
    "paper": Settings(
        dataset="tfds:cifar10",
        num_blocks=18,
        width=16,
        depths=(2, 5, 9, 18, 36, 72, 144),
        widths=(16, 32, 64, 128, 256, 512),
        width_blocks=2,
        per_channel=(2, 4, 8, 16, 32, 64),
        num_seeds=5,
        num_epochs=160,
        augment=True,
        one_program=False,
        full_length=True,
    ),
    # ResNet-50 for the conditions; ResNet-18 to -200.
    "imagenet": Settings(
        dataset="tfds:imagenet2012",
        num_classes=1000,
        network="ImageNet",
        num_blocks=50,
        width=64,
        depths=(18, 34, 50, 101, 200),
        widths=(64,),
        width_blocks=50,
        per_channel=(2, 4, 8, 16, 32, 64),
        num_seeds=3,
        num_epochs=90,
        batch_size=1024,
        rate=0.4,
        drops=(30 / 90, 60 / 90, 80 / 90),
        warmup_epochs=5.0,
        augment=True,
        one_program=False,
        microbatch=256,
    ),
}


def experiment(run: _program.Run) -> _program.Findings:
    """Trains every condition and every size, measures features; words are in the report."""
    chosen = run.settings
    dataset = run.load(chosen.dataset, **batchnorm.storage(chosen))
    if dataset.num_classes != chosen.num_classes:
        raise _program.RefusedError(
            f"flag --num_classes={chosen.num_classes}: {chosen.dataset} has {dataset.num_classes}."
        )
    shared = tuple(jnp.asarray(part) for part in (*dataset.train, *dataset.test))
    base = batchnorm.Network("batch", chosen.num_blocks, chosen.width)
    counts = population.counts_of(run, shared[0])
    table = batchnorm.conditions(chosen.per_channel, counts[base]["batchnorm"])
    results = (
        {name: jax.tree.map(np.asarray, row) for name, row in rows.items()}  # in their order
        for rows in population.train_all(run, shared, base, table)
    )
    places = population.places_of(run, base, shared[0])
    return findings(run, Results(*results, counts, base, places))


if __name__ == "__main__":
    _program.launch("batchnorm_only", PRESETS, experiment)
