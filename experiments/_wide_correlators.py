"""Correlators of many networks over width, and training beside its expansion in 1/width."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments._program import Run
from poster_jax.finite_width import feynman
from poster_jax.finite_width.feynman import correlator

ACTIVATIONS = {
    "linear": lambda z: z,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "erf": jax.lax.erf,
    "softplus": jax.nn.softplus,
}
CORRELATORS = {
    "f f": correlator("f f"),
    "f f f f, connected": correlator("f^4", connected=True),
    "df.df": correlator("df.df"),
    "df.df df.df": correlator("(df.df)^2"),
    "df.df, variance": correlator("(df.df)^2", connected=True),
    "f df.ddf.df": correlator("f df.ddf.df"),
    "df.ddf.ddf.df": correlator("df.ddf.ddf.df"),
    "dddf(df,df,df)": correlator("dddf(df, df, df)"),
    "ddf:ddf": correlator("ddf:ddf"),
}
INPUT = np.array([0.6, 0.8])
IMAGE = np.random.default_rng(0).normal(size=(4, 4, 1)) / 4  # of norm one, about
TIMES = np.linspace(0, 1, 6)
POINTS = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])
TARGETS = np.array([1.0, -1.0, 0.5, 0.0])
STEPS = 8  # of Runge and Kutta between two of the times: a step is 1/40, far below 2.8 / eigenvalue


class Population(NamedTuple):
    """The correlators of one network over width.

    Attributes:
      measured: name of the correlator -> feynman.Measurement.
      fitted: name -> feynman.Exponent.
      exact: name -> feynman.Polynomial where it is known.
    """

    measured: dict[str, Any]
    fitted: dict[str, Any]
    exact: dict[str, Any]


class Training(NamedTuple):
    """Gradient flow beside the expansion, at each width.

    Attributes:
      widths: (widths,).
      moved: (widths, networks, TIMES), how far the kernel moved (Frobenius norm).
      theta_error: (widths, networks, TIMES), how far the first-order kernel is from the true one.
      order0: (widths, networks, TIMES), how far outputs are from those with a constant kernel.
      order1: (widths, networks, TIMES), and from those of first order.
      entry: (widths, networks, TIMES, 2), an entry of the kernel: true, and of first order.
    """

    widths: Any
    moved: Any
    theta_error: Any
    order0: Any
    order1: Any
    entry: Any


def convolutional(activation: Any, *, pooling: bool) -> feynman.WidthNetwork:
    """Two 3x3 convolutions of n channels, then all pixels, or their mean, to the output."""

    def init_fn(key: Any, width: int) -> Any:
        last = (width,) if pooling else (IMAGE.size, width)
        shapes = [(3, 3, 1, width), (3, 3, width, width), last]
        keys = jax.random.split(key, 3)
        return [jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)]

    def apply_fn(params: Any, x: Any) -> Any:
        first, second, last = params
        width = first.shape[-1]
        hidden = activation(_convolve(x, first))
        hidden = activation(_convolve(hidden, second) / (3 * width**0.5))
        hidden = hidden.reshape(len(x), -1, width)
        if pooling:
            return hidden.mean(1) @ last / width**0.5
        return jnp.einsum("xpc,pc->x", hidden, last) / (IMAGE.size * width) ** 0.5

    return feynman.WidthNetwork(init_fn, apply_fn)


def _convolve(x: Any, kernel: Any) -> Any:
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
    axes = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=axes)


def populations(run: Run) -> dict[str, Population]:
    """All networks of the preset; two at a time, since most of it is compilation on one core."""
    chosen = run.settings
    jobs: dict[str, tuple] = {}
    for name, depth in itertools.product(chosen.activations, chosen.depths):
        network = feynman.deep_network(ACTIVATIONS[name], depth=depth, input_dim=2)
        jobs[f"{name}, {depth}"] = (network, INPUT, chosen.widths, chosen.num_networks)
    for name in chosen.convolutions:
        network = convolutional(jnp.tanh, pooling=name == "pooling")
        jobs[f"CNN, {name}"] = (network, IMAGE, chosen.channels, chosen.num_convolutional)

    def work(item: tuple[int, tuple[str, tuple]]) -> tuple[str, Population]:
        number, (name, (network, x, widths, counts)) = item
        with jax.enable_x64(True):
            found = feynman.measure_all(
                list(CORRELATORS.values()),
                *network,
                {"x": x},
                jax.random.fold_in(run.key, number),
                widths=widths,
                num_networks=counts,
            )
        measured = dict(zip(CORRELATORS, found, strict=True))
        fitted = {label: feynman.fit_exponent(m) for label, m in measured.items()}
        return name, Population(measured, fitted, _exact(name))

    with run.progress("networks", len(jobs)) as update, ThreadPoolExecutor(2) as pool:
        results = {}
        for done, (name, found) in enumerate(pool.map(work, enumerate(jobs.items()))):
            results[name] = found
            update(done + 1, name)
    return results


def _exact(name: str) -> dict[str, Any]:
    kind, depth = name.split(", ")
    if kind == "linear":
        return {
            label: feynman.linear_polynomial(c, depth=int(depth))
            for label, c in CORRELATORS.items()
        }
    if kind in ACTIVATIONS and depth == "1":
        return {
            label: feynman.one_layer_polynomial(c, ACTIVATIONS[kind], num_nodes=150)
            for label, c in CORRELATORS.items()
        }
    return {}


def small_correlators(max_degree: int) -> list[Any]:
    """All of two or four tensors, one of each kind, each tensor differentiated at most so often."""
    found = {}
    for size in (2, 4):
        pairs = list(itertools.combinations(range(size), 2))
        images = [
            [pairs.index(tuple(sorted((p[i], p[j])))) for i, j in pairs]
            for p in itertools.permutations(range(size))
        ]
        for counts in itertools.product(range(max_degree + 1), repeat=len(pairs)):
            degrees = [sum(c for c, p in zip(counts, pairs, strict=True) if t in p)
                       for t in range(size)]  # fmt: skip
            if max(degrees) <= max_degree:
                kind = max(tuple(counts[k] for k in image) for image in images)
                edges = tuple(p for p, c in zip(pairs, kind, strict=True) for _ in range(c))
                found[size, kind] = feynman.Correlator(("x",) * size, edges)
    return list(found.values())


def training(run: Run) -> Training:
    """Two hidden tanh layers on four points, by gradient flow of half the summed squares."""
    chosen = run.settings
    network = feynman.deep_network(jnp.tanh, depth=2, input_dim=2)
    rows = []
    with jax.enable_x64(True):
        for width in chosen.training_widths:
            keys = jax.random.split(jax.random.fold_in(run.key, width), chosen.num_trained)
            one = jax.jit(lambda key, width=width: _flow(network, width, key))
            rows.append(
                jax.tree.map(lambda *a: np.stack(a), *[jax.device_get(one(k)) for k in keys])
            )
    stacked = jax.tree.map(lambda *a: np.stack(a), *rows)
    return Training(np.array(chosen.training_widths), *stacked)


def _flow(network: feynman.WidthNetwork, width: int, key: Any) -> tuple[Any, ...]:
    """Of one network; the fields of Training after its widths."""
    apply_fn, x, y = network.apply_fn, jnp.asarray(POINTS), jnp.asarray(TARGETS)
    params = network.init_fn(key, width)
    start = feynman.hierarchy(apply_fn, params, x)
    slope = jax.grad(lambda p: -0.5 * jnp.sum((apply_fn(p, x) - y) ** 2))
    h = (TIMES[1] - TIMES[0]) / STEPS

    def step(params: Any, _: Any) -> tuple[Any, None]:
        def ahead(fraction: float, k: Any) -> Any:
            return slope(jax.tree.map(lambda p, s: p + fraction * h * s, params, k))

        k1 = slope(params)
        k2 = ahead(0.5, k1)
        k3 = ahead(0.5, k2)
        k4 = ahead(1.0, k3)
        change = jax.tree.map(lambda a, b, c, d: h / 6 * (a + 2 * b + 2 * c + d), k1, k2, k3, k4)
        return jax.tree.map(jnp.add, params, change), None

    def segment(params: Any, _: Any) -> tuple[Any, Any]:
        params = jax.lax.scan(step, params, None, length=STEPS)[0]
        found = feynman.hierarchy(apply_fn, params, x, order=2)
        return params, (found.o1 - y, found.o2)

    _, (residual, theta) = jax.lax.scan(segment, params, None, length=len(TIMES) - 1)
    residual = jnp.concatenate([start.o1[None] - y, residual])
    theta = jnp.concatenate([start.o2[None], theta])
    ours = feynman.first_order_dynamics(*start[1:], start.o1 - y, jnp.asarray(TIMES))
    kernel_norm = lambda a: jnp.linalg.norm(a, axis=(1, 2))  # noqa: E731
    return (
        kernel_norm(theta - start.o2),
        kernel_norm(theta - ours.theta),
        jnp.linalg.norm(residual - ours.residual_order0, axis=1),
        jnp.linalg.norm(residual - ours.residual, axis=1),
        jnp.stack([theta[:, 0, 1], ours.theta[:, 0, 1]], axis=1),
    )
