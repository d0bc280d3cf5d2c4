"""Writes empirical_figures.npz: empirical kernels by neural-tangents 0.6.5, in float64.

    VENV_NT/bin/python tests/oracles/make_empirical_figures.py

in an environment with neural-tangents==0.6.5, jax==0.5.3, jaxlib==0.5.3 and scipy. Inputs and
parameters of every case are stored beside its answers; the networks stand in
tests/kernels/test_empirical.py under the same names.
"""

import json
import pathlib

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import neural_tangents as nt  # noqa: E402
import numpy as np  # noqa: E402

RNG = np.random.default_rng(0)
CONV = ("NHWC", "HWIO", "NHWC")


def dense(params, x):
    w, b, v = params
    return jnp.tanh(x @ w / w.shape[0] ** 0.5 + 0.3 * b) @ v


def convolution(params, x):
    w, b, v = params
    y = jax.lax.conv_general_dilated(x, w, (2, 1), "SAME", dimension_numbers=CONV)
    return jax.nn.relu(y + b).mean((1, 2)) @ v


def sequence(params, x):  # outputs keep their positions, every weight acts at each
    w, b, v = params
    return jax.nn.gelu(x @ w + b) @ v


def branches(params, x):  # dict in, dict and tuple out
    a = jnp.tanh(x["a"] @ params[0] + params[1])
    b = x["b"] @ params[2]
    return {"sum": a + b, "pair": (a * b, b.sum(-1))}


def noisy(params, x, rng=None, pattern=None):
    w, b, v = params
    y = jnp.tanh(x @ w + b) * jax.random.bernoulli(rng, 0.7, (x.shape[0], w.shape[1]))
    return (y * pattern) @ v


def normal(*shape):
    return RNG.normal(size=shape)


NETWORKS = {
    "dense": (dense, [(3, 5), (2, 5)], [(5, 7), (7,), (7, 3)]),
    "convolution": (convolution, [(3, 4, 5, 2), (2, 4, 5, 2)], [(3, 3, 2, 4), (4,), (4, 3)]),
    "sequence": (sequence, [(3, 4, 5), (2, 4, 5)], [(5, 6), (6,), (6, 3)]),
}
AXES = {  # trace_axes, diagonal_axes, vmap_axes
    "default": ((-1,), (), None),
    "full": ((), (), 0),
    "diagonal": ((), (-1,), 0),
    "middle": ((1,), (), 0),
}
out = {}


def keep(name, value):
    for i, leaf in enumerate(jax.tree_util.tree_leaves(value)):
        out[f"{name}/{i}"] = np.asarray(leaf)


for name, (f, inputs, shapes) in NETWORKS.items():
    x1, x2 = (normal(*shape) for shape in inputs)
    params = tuple(normal(*shape) for shape in shapes)
    given = {"x1": x1, "x2": x2, **{f"w{i}": w for i, w in enumerate(params)}}
    out.update({f"{name}/{k}": v for k, v in given.items()})
    for axes, (trace, diagonal, vmap) in AXES.items():
        for implementation in (1, 2):
            fn = nt.empirical_kernel_fn(f, trace, diagonal, vmap, implementation)
            tag = f"{name}/{axes}/{implementation}"
            keep(f"{tag}/cross", fn(x1, x2, ("ntk", "nngp"), params))
            keep(f"{tag}/own", fn(x1, None, None, params))
    fn = nt.empirical_kernel_fn(f, (), (0,), None)
    keep(f"{name}/variances", fn(x1, None, None, params))
    delta = np.asarray(f(params, x2))
    keep(f"{name}/product", nt.empirical_ntk_vp_fn(f, x1, x2, params)(delta))
    moved = tuple(w + 0.1 * normal(*w.shape) for w in params)
    out.update({f"{name}/moved{i}": w for i, w in enumerate(moved)})
    keep(f"{name}/linear", nt.linearize(f, params)(moved, x1))
    for degree in (0, 1, 3):
        keep(f"{name}/taylor{degree}", nt.taylor_expand(f, params, degree)(moved, x1))

x1 = {"a": normal(3, 5), "b": normal(3, 2)}
x2 = {"a": normal(2, 5), "b": normal(2, 2)}
params = (normal(5, 4), normal(4), normal(2, 4))
out.update({f"branches/x{i}{k}": v for i, x in ((1, x1), (2, x2)) for k, v in x.items()})
out.update({f"branches/w{i}": w for i, w in enumerate(params)})
for vmap in (None, 0):
    fn = nt.empirical_ntk_fn(branches, (), (), vmap)
    keep(f"branches/{vmap}/ntk", fn(x1, x2, params))
    keep("branches/nngp", nt.empirical_nngp_fn(branches, (), ())(x1, x2, params))

x1, x2, params = normal(3, 5), normal(2, 5), (normal(5, 7), normal(7), normal(7, 3))
patterns = (normal(3, 1), normal(2, 1))
out.update({"noisy/x1": x1, "noisy/x2": x2, "noisy/p1": patterns[0], "noisy/p2": patterns[1]})
out.update({f"noisy/w{i}": w for i, w in enumerate(params)})
fn = nt.empirical_kernel_fn(noisy, ())
key = jax.random.PRNGKey(3)
keep("noisy/cross", fn(x1, x2, None, params, rng=key, pattern=patterns))
keep("noisy/same", fn(x1, x1, None, params, rng=key, pattern=patterns[:1] * 2))
keep("noisy/own", fn(x1, None, None, params, rng=key, pattern=patterns[:1] * 2))

# One vector and the names and shapes of its parts: an array a file would be mostly headers.
path = pathlib.Path(__file__).with_name("empirical_figures.npz")
parts = {name: np.asarray(value, np.float64) for name, value in out.items()}
np.savez_compressed(
    path,
    values=np.concatenate([part.ravel() for part in parts.values()]),
    index=json.dumps({name: part.shape for name, part in parts.items()}),
)
