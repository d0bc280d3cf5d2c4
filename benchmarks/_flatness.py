"""Relative flatness against the authors' way: every second derivative, a backward pass each."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks._harness import Peer, compile_seconds, in_turn, row, timed
from benchmarks._problems import KEY, Problem, digits, save, trained
from poster_jax.core import models
from poster_jax.flatness import last_layer_relative_flatness, relative_flatness


def rows(peer: Peer, folder: Path, repeats: int) -> list[dict]:
    """The authors materialise second derivatives, a backward pass each; we take products."""
    lenet_kinds = ("conv_valid", "relu", "pool") * 2 + ("flatten",)
    lenet_kinds += ("dense", "relu", "dense", "relu", "dense")
    lenet = trained("lenet", models.LeNet5(), digits(32, 1000), lenet_kinds, 60)
    save(as_torch_flattens(lenet), folder)
    wide_kinds = ("flatten", "dense", "relu", "dense", "relu", "dense")
    wide = trained("wide", models.MLP((512, 512, 10)), digits(28, 1000), wide_kinds, 60)
    save(wide, folder)

    head = lenet.params["Dense_2"]

    @jax.jit
    def measure(features: jax.Array, head: Any) -> Any:
        logits = features @ head["kernel"] + head["bias"]
        return last_layer_relative_flatness(features, logits, head["kernel"])

    @jax.jit
    def closed_form_of(params: Any, x: jax.Array) -> Any:
        return measure(lenet_features(params, x), params["Dense_2"])

    closed_form = partial(closed_form_of, lenet.params, lenet.batch[0])
    features = jax.jit(lenet_features)(lenet.params, lenet.batch[0])

    def products() -> Any:
        return relative_flatness(
            lenet.loss_fn, lenet.params, lenet.batch, KEY, layer="Dense_2/kernel", num_probes=64
        )

    def products_wide() -> Any:
        return relative_flatness(
            wide.loss_fn, wide.params, wide.batch, KEY, layer="Dense_1/kernel", num_probes=64
        )

    exact = float(closed_form())
    answer = {}

    def authors() -> float:
        answer.update(peer.ask(case="relative_flatness", model="lenet", layer=2, rows=840))
        return answer["seconds"]

    some = 64
    sides = {
        "closed": lambda: timed(closed_form)[0],
        "measure": lambda: timed(measure, features, head)[0],
        "products": lambda: timed(products)[0],
        "wide": lambda: timed(products_wide)[0],
        "authors": authors,
        "authors, wide": lambda: peer.ask(
            case="relative_flatness", model="wide", layer=1, rows=some
        )["seconds"],
    }
    compile_s = compile_seconds(products)
    seconds = in_turn(sides, repeats)
    found, found_wide = products(), products_wide()
    accuracy = {"peer_error": abs(answer["kappa"] - exact) / exact}
    case = "relative flatness of LeNet5's last layer"
    authors_way = "the authors' way, 840 backward passes"
    return [
        row(
            case + ", closed form and forward pass",
            seconds["closed"],
            authors_way,
            seconds["authors"],
            50,
            **accuracy,
        ),
        row(
            case + ", closed form of known features",
            seconds["measure"],
            authors_way + " without the first",
            seconds["authors"] - answer["first_s"],
            50,
            **accuracy,
        ),
        row(
            case + ", 64 products",
            seconds["products"],
            authors_way,
            seconds["authors"],
            50,
            **accuracy,
            compile_s=compile_s,
            ours_error=abs(float(found.mean) - exact) / exact,
            ours_stderr=float(found.stderr) / exact,
        ),
        row(
            "relative flatness of a 512x512 layer, 64 products",
            seconds["wide"],
            f"the authors' way, {some} of 262,144 backward passes, scaled",
            seconds["authors, wide"] * 512 * 512 / some,
            50,
            ours_stderr=float(found_wide.stderr) / float(found_wide.mean),
        ),
    ]


def lenet_features(params: Any, x: jax.Array) -> jax.Array:
    """What enters LeNet5's last layer: the outputs with that layer replaced by the identity."""
    head = {"kernel": jnp.eye(84), "bias": jnp.zeros(84)}
    model = models.from_linen(models.LeNet5(num_classes=84))
    return model.apply_fn({**params, "Dense_2": head}, x)


def as_torch_flattens(problem: Problem) -> Problem:
    """The first dense kernel with its rows in the order (channel, height, width)."""
    kernel = problem.params["Dense_0"]["kernel"]
    side = round((kernel.shape[0] // 16) ** 0.5)
    rows = kernel.reshape(side, side, 16, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
    dense = {**problem.params["Dense_0"], "kernel": rows}
    return problem._replace(params={**problem.params, "Dense_0": dense})
