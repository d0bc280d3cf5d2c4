"""Writes predict_figures.npz: what neural-tangents 0.6.5 predicts, in float64.

    VENV_NT/bin/python tests/oracles/make_predict_figures.py

in an environment with neural-tangents==0.6.5, jax==0.5.3, jaxlib==0.5.3 and scipy. The inputs of
every case are stored beside its answers, so that the test shares nothing with this program but the
two small functions `kernel_fn` and `cross_entropy`.
"""

import json
import pathlib
from collections import namedtuple

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from neural_tangents import predict  # noqa: E402

RNG = np.random.default_rng(0)
TIMES = {"scalar": 3.0, "zero": 0.0, "grid": np.array([[0.0, 0.5, 2.0], [7.0, 40.0, 1e3]])}
Both = namedtuple("Kernel", "nngp ntk")


def kernel_fn(x1, x2, get, scale=1.0):
    x2 = x1 if x2 is None else x2
    base = x1 @ x2.T / x1.shape[1] + 1.0
    kernels = {"nngp": scale * base**2, "ntk": scale * (base**2 + base**3)}
    return (
        kernels[get] if isinstance(get, str) else namedtuple("K", get)(*(kernels[g] for g in get))
    )


def cross_entropy(fx, y):
    return -jnp.mean(jax.nn.log_softmax(fx) * y)


def half_mse(fx, y):
    return 0.5 * jnp.mean((fx - y) ** 2)


def spd(rows, columns=()):
    """A joint kernel of train and test outputs, split into train-train, test-train, test-test."""
    n, m = int(np.prod(rows)), int(np.prod(columns))
    half = RNG.normal(size=(n + m, n + m + 3)) / np.sqrt(n + m)
    joint = half @ half.T

    def lay(block, first, second):
        block = block.reshape(*first, *second)
        return np.moveaxis(block, range(len(first), block.ndim), range(1, block.ndim, 2))

    return (
        lay(joint[:n, :n], rows, rows),
        lay(joint[n:, :n], columns, rows),
        lay(joint[n:, n:], columns, columns),
    )


CASES = {  # shape of y_train, shape of y_test, trace_axes
    "logits": ((6, 2), (3, 2), (-1,)),
    "full": ((4, 2), (3, 2), ()),
    "vector": ((5,), (2,), ()),
    "images": ((3, 2, 4), (2, 2, 4), (2,)),
    "middle": ((3, 2, 4), (2, 2, 4), (1,)),
    "two": ((4, 3, 2), (3, 3, 2), (-1, 1)),
}
out = {}


def keep(name, value):
    for i, leaf in enumerate(jax.tree_util.tree_leaves(value)):
        out[f"{name}/{i}"] = np.asarray(leaf)


for case, (train, test, trace_axes) in CASES.items():
    traced = [a % len(train) for a in trace_axes]
    rows = tuple(s for i, s in enumerate(train) if i not in traced)
    columns = tuple(s for i, s in enumerate(test) if i not in traced)
    nngp, ntk = spd(rows, columns), spd(rows, columns)
    k_dd, k_td, k_tt = (Both(a, b) for a, b in zip(nngp, ntk, strict=True))
    y, f_train, f_test = (RNG.normal(size=s) for s in (train, train, test))
    given = {"y": y, "f_train": f_train, "f_test": f_test}
    for name, kernel in (("dd", k_dd), ("td", k_td), ("tt", k_tt)):
        given[f"nngp_{name}"], given[f"ntk_{name}"] = kernel
    out.update({f"{case}/{k}": v for k, v in given.items()})

    for reg, absolute in ((0.0, False), (0.1, False), (0.2, True)):
        tag = f"{case}/mse/{reg}"
        fn = predict.gradient_descent_mse(
            jnp.array(k_dd.ntk), jnp.array(y), 0.7, reg, absolute, trace_axes
        )
        td = jnp.array(k_td.ntk)
        for name, t in {**TIMES, "none": None}.items():
            keep(f"{tag}/{name}/pair", fn(t, f_train, f_test, td))
            keep(f"{tag}/{name}/default", fn(t, 0.0, 0.0, td))
            keep(f"{tag}/{name}/train", fn(t, f_train))
            keep(f"{tag}/{name}/test", fn(t, None, f_test, td))
        infer = predict.gp_inference(
            jax.tree_util.tree_map(jnp.array, k_dd), jnp.array(y), reg, absolute, trace_axes
        )
        for get in ("nngp", "ntk", "ntkgp", ("ntk", "nngp"), None):
            name = get if isinstance(get, str) else "both" if get else "none"
            keep(f"{tag}/gp/{name}/mean", infer(get, k_td))
            keep(f"{tag}/gp/{name}/cov", infer(get, k_td, k_tt))
            keep(f"{tag}/gp/{name}/train", infer(get, None, True))

    if case in ("logits", "full"):
        ts = np.array([0.0, 0.3, 1.0, 5.0])
        for loss in (half_mse, cross_entropy):
            for momentum in (None, 0.0, 0.9):
                fn = predict.gradient_descent(
                    loss, jnp.array(k_dd.ntk), jnp.array(y), 0.5, momentum, trace_axes
                )
                td = jnp.array(k_td.ntk)
                tag = f"{case}/ode/{loss.__name__}/{momentum}"
                keep(f"{tag}/pair", fn(ts, f_train, f_test, td))
                keep(f"{tag}/scalar", fn(2.0, f_train, f_test, td))
                keep(f"{tag}/train", fn(2.0))
                keep(f"{tag}/test", fn(2.0, None, f_test, td))
                state = fn(1.0, predict.ODEState(f_train, f_test), None, td)
                keep(f"{tag}/state", state)
                keep(f"{tag}/resumed", fn(ts.reshape(2, 2), state, None, td))

x, x_test, y = RNG.normal(size=(5, 9)), RNG.normal(size=(3, 9)), RNG.normal(size=(5, 2))
out.update({"ensemble/x": x, "ensemble/x_test": x_test, "ensemble/y": y})
for reg in (0.0, 0.1):
    fn = predict.gradient_descent_mse_ensemble(
        kernel_fn, jnp.array(x), jnp.array(y), 0.5, reg, scale=1.5
    )
    for name, t in {**TIMES, "none": None}.items():
        for get in ("nngp", "ntk", ("ntk", "nngp"), None):
            g = get if isinstance(get, str) else "both" if get else "none"
            for where, points in (("train", None), ("test", jnp.array(x_test))):
                keep(f"ensemble/{reg}/{name}/{g}/{where}/mean", fn(t, points, get))
                keep(f"ensemble/{reg}/{name}/{g}/{where}/cov", fn(t, points, get, True))

# One vector and the names and shapes of its parts: an array a file would be mostly headers.
path = pathlib.Path(__file__).with_name("predict_figures.npz")
parts = {name: np.asarray(value, np.float64) for name, value in out.items()}
np.savez_compressed(
    path,
    values=np.concatenate([part.ravel() for part in parts.values()]),
    index=json.dumps({name: part.shape for name, part in parts.items()}),
)
