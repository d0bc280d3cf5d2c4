"""Networks whose curvature both sides measure: weights, data, true residuals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from poster_jax.core import losses, models
from poster_jax.curvature import hessian_operator

KEY = jax.random.key(0)


class Problem(NamedTuple):
    """A trained network of Flax, what its layers are for torch, and its batch."""

    name: str
    apply_fn: Callable[..., Any]
    loss_fn: Callable[..., Any]
    params: Any
    batch: Any
    kinds: tuple[str, ...]


def digits(side: int, num: int) -> tuple[jax.Array, jax.Array]:
    """`num` digits, enlarged to `side` pixels and centred: (num, side, side, 1)."""
    data = load_digits()
    images = np.kron(data.images / 16 - 0.3, np.ones((1, 4, 4)))
    edge = (32 - side) // 2
    images = images[:, edge : 32 - edge, edge : 32 - edge, None]
    chosen = np.random.default_rng(0).permutation(len(images))[:num]
    return jnp.asarray(images[chosen], jnp.float32), jnp.asarray(data.target[chosen], jnp.int32)


def trained(name: str, module: Any, batch: Any, kinds: tuple[str, ...], steps: int) -> Problem:
    """A few Adam steps: enough for the outliers of a trained network's Hessian."""
    model = models.from_linen(module)
    loss_fn = losses.cross_entropy(model.apply_fn)
    optimizer = optax.adam(2e-3)
    params = model.init(KEY, batch[0][:1])
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = optimizer.update(jax.grad(loss_fn)(params, batch), state)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return Problem(name, model.apply_fn, loss_fn, params, batch, kinds)


def layers_of(problem: Problem) -> list[dict]:
    """Kernels and biases in the order of the layers."""
    convs = sorted(name for name in problem.params if name.startswith("Conv"))
    denses = sorted(name for name in problem.params if name.startswith("Dense"))
    return [problem.params[name] for name in (*convs, *denses)]


def save(problem: Problem, folder: Path) -> None:
    """What the torch side reads."""
    layers = iter(layers_of(problem))
    arrays = {"kinds": json.dumps(problem.kinds)}
    for i, kind in enumerate(problem.kinds):
        if kind in {"conv", "conv_valid", "dense"}:
            layer = next(layers)
            arrays[f"kernel{i}"], arrays[f"bias{i}"] = layer["kernel"], layer["bias"]
    x, y = problem.batch
    np.savez(folder / f"{problem.name}.npz", x=x, y=y, **arrays)


def vectors_from(problem: Problem, folder: Path) -> Any:
    """The peer's vectors as a pytree like the parameters, leading axis k."""
    parts = np.load(folder / "answer.npz")
    leaves = [parts[str(i)] for i in range(len(parts.files))]
    stacked = jax.tree.map(lambda _: None, problem.params)
    names = [name for name in sorted(problem.params) if name.startswith("Conv")]
    names += [name for name in sorted(problem.params) if name.startswith("Dense")]
    for i, name in enumerate(names):
        stacked[name] = {"kernel": leaves[2 * i], "bias": leaves[2 * i + 1]}
    return stacked


def true_residual(problem: Problem, values: Any, vectors: Any) -> float:
    """max ||H v - value v|| / ||v|| / |largest value|, every number of it in float64."""
    with jax.enable_x64(True):
        double = lambda tree: jax.tree.map(  # noqa: E731
            lambda a: jnp.asarray(np.asarray(a), jnp.float64), tree
        )
        x, y = problem.batch
        op = hessian_operator(problem.loss_fn, double(problem.params), (double(x), y))
        worst = 0.0
        for i, value in enumerate(np.asarray(values, float)):
            v = jax.tree.map(lambda a, i=i: a[i], double(vectors))
            pairs = zip(jax.tree.leaves(op(v)), jax.tree.leaves(v), strict=True)
            squares = sum(float(jnp.sum((h - value * u) ** 2)) for h, u in pairs)
            length = sum(float(jnp.sum(u**2)) for u in jax.tree.leaves(v))
            worst = max(worst, (squares / length) ** 0.5)
    return worst / float(np.max(np.abs(values)))
