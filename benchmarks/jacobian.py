"""Penalties of Jacobians and of weights: against a plain training step, torch, and an explicit J.

    python -m benchmarks.jacobian --json=out/benchmarks/jacobian.json

Every row times both sides in this one run, one repeat of each in turn, and reports medians; `ratio`
is how many times faster ours is than that peer, `goal` what it should be at least. `step` and
`dense` compare a whole training step that has the penalty on every layer with one that has none
(4.5 and 1.6 of them); `plain_steps_in_flops` is the same ratio as XLA counts operations. `hoffman`
and `weights` time the value and its gradient by all weights, networks, weights and examples being
the same on both sides; `difference` is how far the exact values differ. `spectrum` is the top of
the spectrum of one example's Jacobian, 3072 inputs to 1000 outputs, against materialising it;
`memory_mb` is what the two compiled programs hold beside their arguments. `depth` compiles a step
with the penalty on 200 stacked layers, the peer being 20 of them: the time should not grow.

`--shrink` divides widths and batches, to see that it runs.
"""

import itertools
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import linen as nn

from benchmarks._harness import Peer, compile_seconds, in_turn, row, timed, write_rows
from benchmarks._problems import KEY, Problem, digits, save, trained
from poster_jax import jacobian
from poster_jax.core import models

FLAGS = flags.FLAGS
_JSON = flags.DEFINE_string("json", None, "file to write the rows to")
_PEERS = flags.DEFINE_string("peers_python", ".venv-peers/bin/python", "a Python that has torch")
_REPEATS = flags.DEFINE_integer("repeats", 9, "timed repeats of each side", lower_bound=1)
_PARTS = flags.DEFINE_list(
    "parts", "step,dense,depth,hoffman,weights,spectrum", "which parts to run"
)
_SHRINK = flags.DEFINE_integer("shrink", 1, "divides widths and batches", lower_bound=1)

TORCH = Path(__file__).parent / "peers" / "jacobian_torch.py"
STRENGTH, LEARNING_RATE, DEPTH = 1.0, 0.01, 20


def scaled(size: int) -> int:
    """A width or batch size, made smaller by `--shrink`."""
    return max(size // _SHRINK.value, 4)


def keys() -> Callable[[], Any]:
    """A new key every call, made before the clock starts."""
    numbers = itertools.count()
    return lambda: jax.block_until_ready(jax.random.fold_in(KEY, next(numbers)))


# --- a training step with and without the penalty


def dense_layer(params: Any, x: Any) -> Any:
    """tanh(x W + b)."""
    return jnp.tanh(x @ params["kernel"] + params["bias"])


def conv_layer(params: Any, x: Any) -> Any:
    """ReLU of a 3 x 3 convolution that keeps the size."""
    y = jax.lax.conv_general_dilated(
        x, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu(y + params["bias"])


def stack(kernel_shape: tuple[int, ...], depth: int) -> tuple[dict, ...]:
    """`depth` layers of one shape, orthogonally drawn."""
    draw = nn.initializers.orthogonal()
    drawn = [draw(key, kernel_shape) for key in jax.random.split(KEY, depth)]
    return tuple({"kernel": kernel, "bias": jnp.zeros(kernel_shape[-1])} for kernel in drawn)


def train_step(loss_fn: Callable[..., Any]) -> Callable[..., Any]:
    """One step of gradient descent on `loss_fn(params, key)`."""

    @jax.jit
    def step(params: Any, key: Any) -> Any:
        gradient = jax.grad(loss_fn)(params, key)
        return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, gradient)

    return step


def step_rows() -> list[dict]:
    """One Rademacher probe on every layer, dense and convolutional."""
    width, channels, batch = scaled(256), scaled(32), scaled(256)
    dense = stack((width, width), DEPTH)
    conv = stack((3, 3, channels, channels), 8)
    cases = [
        (f"dense, depth {DEPTH}, width {width}", dense_layer, dense, (batch, width)),
        (f"conv, depth 8, {channels} channels, 16 x 16", conv_layer, conv,
         (scaled(64), 16, 16, channels)),
    ]  # fmt: skip
    rows = []
    for name, layer, params, shape in cases:
        x = jax.random.normal(KEY, shape)
        layers = (layer,) * len(params)

        def plain(params: Any, key: Any, x: Any = x, layers: Any = layers) -> Any:
            for layer, part in zip(layers, params, strict=True):
                x = layer(part, x)
            return jnp.mean(x**2)

        def penalised(params: Any, key: Any, x: Any = x, layers: Any = layers) -> Any:
            # Every layer, the last one too: the row says so, and it is the dearer.
            found = jacobian.network_penalty(layers, params, x, key, select="all")
            return jnp.mean(found.outputs**2) + STRENGTH * found.total

        rows += steps_row(f"one probe on every layer, {name}", plain, penalised, params, 4.5)
    return rows


def dense_rows() -> list[dict]:
    """The closed form of dense layers, smooth and piecewise linear."""
    rows = []
    for name, phi, slope, batch in (
        ("tanh", jnp.tanh, lambda h: 1 - h**2, scaled(256)),
        ("ReLU", jax.nn.relu, lambda h: (h > 0).astype(h.dtype), scaled(256)),
        ("ReLU", jax.nn.relu, lambda h: (h > 0).astype(h.dtype), scaled(1024)),
    ):
        width = scaled(256)
        params, x = stack((width, width), DEPTH), jax.random.normal(KEY, (batch, width))

        def plain(params: Any, key: Any, x: Any = x, phi: Any = phi) -> Any:
            for part in params:
                x = phi(x @ part["kernel"] + part["bias"])
            return jnp.mean(x**2)

        def penalised(params: Any, key: Any, x: Any = x, phi: Any = phi, slope: Any = slope) -> Any:
            total = 0.0
            for part in params:
                x = phi(x @ part["kernel"] + part["bias"])
                found = jacobian.dense_orthogonality_penalty(part["kernel"].T, slope(x))
                total += found.value / part["kernel"].shape[1]
            return jnp.mean(x**2) + STRENGTH * total / DEPTH

        case = f"closed form on every layer, {name}, depth {DEPTH}, width {width}, batch {batch}"
        rows += steps_row(case, plain, penalised, params, 1.6)
    return rows


def depth_rows() -> list[dict]:
    """Seconds to compile a penalised step, stacked layers, by depth."""
    width, batch = scaled(256), scaled(256)
    x, seconds = jax.random.normal(KEY, (batch, width)), {}
    for depth in (DEPTH, 10 * DEPTH):
        layers = jacobian.StackedLayers(dense_layer, depth)
        params = jax.tree.map(lambda *a: jnp.stack(a), *stack((width, width), depth))

        def penalised(params: Any, key: Any, layers: Any = layers) -> Any:
            found = jacobian.network_penalty(layers, params, x, key, select="all")
            return jnp.mean(found.outputs**2) + STRENGTH * found.total

        step = train_step(penalised)
        seconds[depth] = timed(lambda step=step, p=params: step.lower(p, KEY).compile())[0]
    case = f"compiling a penalised step, {10 * DEPTH} stacked layers"
    return [row(case, seconds[10 * DEPTH], f"{DEPTH} of them", seconds[DEPTH], 0.8)]


def steps_row(
    case: str, plain: Callable, penalised: Callable, params: Any, allowed: float
) -> list[dict]:
    """A penalised step against `allowed` plain ones."""
    ours, theirs, key = train_step(penalised), train_step(plain), keys()
    compile_s = compile_seconds(ours, params, key())
    flops = [step.lower(params, KEY).compile().cost_analysis()["flops"] for step in (ours, theirs)]
    seconds = in_turn(
        {
            "ours": lambda: timed(ours, params, key())[0],
            "plain": lambda: timed(theirs, params, key())[0],
        },
        _REPEATS.value,
    )
    more = {
        "plain_steps": seconds["ours"] / seconds["plain"],
        "plain_steps_in_flops": flops[0] / flops[1],
        "compile_s": compile_s,
    }
    peer, limit = f"{allowed} plain steps", allowed * seconds["plain"]
    return [row(case, seconds["ours"], peer, limit, 1, **more)]


# --- Hoffman's penalty


def networks() -> list[Problem]:
    """The MLP of its authors' example on the digits, and the CNN of 66 k parameters."""
    x, y = digits(32, scaled(64))
    mlp = models.MLP((scaled(200), scaled(200), 10))
    small = (x[:, ::4, ::4, 0].reshape(len(x), 64), y)
    kinds = ("dense", "relu", "dense", "relu", "dense")
    conv_kinds = ("conv", "relu") * 4 + ("mean", "dense")
    return [
        trained("mlp", mlp, small, kinds, steps=10),
        trained("cnn", models.CNN(), (jnp.tile(x, 3), y), conv_kinds, steps=5),
    ]


def hoffman_rows(peer: Peer, folder: Path) -> list[dict]:
    """One projection, ten, and the exact value; value and gradient."""
    rows = []
    for problem in networks():
        save(problem, folder)
        for num in (1, 10, 0):
            options: dict[str, Any] = {"num_projections": num} if num else {"method": "exact"}

            def penalty(
                params: Any, key: Any, problem: Any = problem, options: Any = options
            ) -> Any:
                x = problem.batch[0]
                return jacobian.jacobian_norm_penalty(
                    problem.apply_fn, params, x, key, **options
                ).value

            what = f"{num} projection{'s' * (num > 1)}" if num else "exact"
            case = f"(1/2)|J|^2 and its gradient, {problem.name}, {what}"
            ask = partial(peer.ask, case="jacobian_norm", model=problem.name, num_projections=num)
            rows += peer_row(case, penalty, problem.params, ask, same=not num)
    return rows


# --- regularisers of weights


def kernels() -> list[jax.Array]:
    """Of a WRN-28-10 one of each shape."""
    widths = [16, *(scaled(width) for width in (160, 320, 640))]
    shapes = [(3, 3, 3, 16)]
    shapes += [(3, 3, a, b) for a, b in itertools.pairwise(widths)]
    shapes += [(3, 3, width, width) for width in widths[1:]]
    shapes += [(1, 1, a, b) for a, b in itertools.pairwise(widths)]
    shapes += [(widths[-1], 10)]
    draw = nn.initializers.lecun_normal()
    return [draw(key, shape) for key, shape in zip(jax.random.split(KEY, 11), shapes, strict=True)]


def weights_rows(peer: Peer, folder: Path) -> list[dict]:
    """SO and SRIP of all kernels and their gradients."""
    params = kernels()
    axes = lambda ndim: (ndim - 1, ndim - 2, *range(ndim - 2))  # noqa: E731
    as_torch = {str(i): np.asarray(k).transpose(axes(k.ndim)) for i, k in enumerate(params)}
    np.savez(folder / "kernels.npz", **{k: np.ascontiguousarray(a) for k, a in as_torch.items()})

    def soft(params: Sequence[Any], key: Any) -> Any:
        sides = sum(max(k.shape[-1] - k.size // k.shape[-1], 0) for k in params)
        return sum(map(jacobian.soft_orthogonality, params)) - sides

    def spectral(params: Sequence[Any], key: Any) -> Any:
        isometry = partial(jacobian.spectral_restricted_isometry, form="code")
        return sum(map(isometry, params, jax.random.split(key, len(params))))

    rows = []
    for name, fn, same in (
        ("soft_orthogonality", soft, True),
        ("spectral_restricted_isometry", spectral, False),
    ):
        case = f"{name} and its gradient, kernels of a WRN-28-10"
        rows += peer_row(case, fn, params, partial(peer.ask, case=name), same=same)
    return rows


def peer_row(
    case: str, fn: Callable, params: Any, ask: Callable[[], dict], *, same: bool
) -> list[dict]:
    """Value and gradient of `fn(params, key)` against the peer's; `same` where no chance enters."""
    ours, key, answer = jax.jit(jax.value_and_grad(fn)), keys(), {}
    compile_s = compile_seconds(ours, params, key())
    value = float(ours(params, key())[0])

    def theirs() -> float:
        answer.update(ask())
        return answer["seconds"]

    sides: dict[str, Callable[[], float]] = {"ours": lambda: timed(ours, params, key())[0]}
    seconds = in_turn(sides | {"torch": theirs}, _REPEATS.value)
    more = {"difference": abs(value / answer["value"] - 1)} if same else {}
    return [row(case, seconds["ours"], "torch", seconds["torch"], 2, compile_s=compile_s, **more)]


# --- the spectrum of a large Jacobian


def spectrum_rows() -> list[dict]:
    """The ten largest singular values of one example's Jacobian."""
    features = (scaled(1024), scaled(1024), scaled(1000))
    model = models.from_linen(models.MLP(features, activation=nn.tanh))
    x = jax.random.normal(KEY, (1, scaled(3072)))
    params = model.init(KEY, x)
    num = min(10, features[-1])

    def materialised(params: Any, x: Any) -> Any:
        J = jax.jacrev(lambda x: model.apply_fn(params, x[None])[0])(x[0])
        return jnp.linalg.svd(J, compute_uv=False)[:num]

    explicit = jax.jit(materialised)
    ours = jax.jit(
        lambda params, x: jacobian.singular_values(model.apply_fn, params, x, num=num, key=KEY)
    )
    compile_s = compile_seconds(ours, params, x)
    memory = [
        fn.lower(params, x).compile().memory_analysis().temp_size_in_bytes / 2**20
        for fn in (ours, explicit)
    ]
    found, expected = ours(params, x), explicit(params, x)
    seconds = in_turn(
        {
            "ours": lambda: timed(ours, params, x)[0],
            "explicit": lambda: timed(explicit, params, x)[0],
        },
        _REPEATS.value,
    )
    return [
        row(
            f"top {num} singular values of J ({features[-1]}, {x.shape[1]})",
            seconds["ours"],
            "jacrev and svd",
            seconds["explicit"],
            10,
            compile_s=compile_s,
            memory_mb=memory,
            products=int(found.num_products[0]),
            converged=bool(found.converged.all()),
            difference=float(jnp.abs(found.values[0] / expected - 1).max()),
        )
    ]


def main(_: list[str]) -> None:
    """Runs what `--parts` names and writes the rows."""
    alone = {
        "step": step_rows,
        "dense": dense_rows,
        "depth": depth_rows,
        "spectrum": spectrum_rows,
    }
    with_peer = {"hoffman": hoffman_rows, "weights": weights_rows}
    rows = []
    with (
        tempfile.TemporaryDirectory() as name,
        Peer(_PEERS.value, "-W", "ignore", str(TORCH), name) as peer,
    ):
        for part in _PARTS.value:
            rows += alone[part]() if part in alone else with_peer[part](peer, Path(name))
    write_rows(rows, [], _JSON.value)


if __name__ == "__main__":
    app.run(main)
