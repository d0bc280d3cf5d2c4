"""A small tanh network whose per-example gradients are written by hand in numpy."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

SIZES = (4, 5, 3)
EXAMPLES = 23


def apply_fn(params, x):
    hidden = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"])
    return hidden @ params["second"]["kernel"] + params["second"]["bias"]


def loss_fn(params, batch):
    x, y = batch
    log_p = jax.nn.log_softmax(apply_fn(params, x))
    return -jnp.take_along_axis(log_p, y[:, None], axis=1).mean()


def make_problem(dtype=np.float64, seed=0, examples=EXAMPLES):
    """Params and batch as numpy arrays, so that jax takes them in the precision that is on."""
    rng = np.random.default_rng(seed)
    d, h, c = SIZES
    params = {
        "first": {"bias": rng.normal(size=h) / 4, "kernel": rng.normal(size=(d, h))},
        "second": {"bias": rng.normal(size=c) / 4, "kernel": rng.normal(size=(h, c))},
    }
    x, y = rng.normal(size=(examples, d)), rng.integers(0, c, examples)
    return jax.tree.map(lambda a: a.astype(dtype), params), (x.astype(dtype), y)


def numpy_gradients(params, batch):
    """(N, P) by hand, leaves in the order of `jax.tree.leaves`: biases before kernels."""
    x, y = (np.asarray(a) for a in batch)
    x = x.astype(np.float64)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    hidden = np.tanh(x @ p["first"]["kernel"] + p["first"]["bias"])
    z = hidden @ p["second"]["kernel"] + p["second"]["bias"]
    soft = np.exp(z - z.max(axis=1, keepdims=True))
    delta2 = soft / soft.sum(axis=1, keepdims=True) - np.eye(z.shape[1])[y]
    delta1 = (delta2 @ p["second"]["kernel"].T) * (1 - hidden**2)
    n = len(x)
    return np.concatenate(
        [
            delta1,
            np.einsum("ni,nj->nij", x, delta1).reshape(n, -1),
            delta2,
            np.einsum("ni,nj->nij", hidden, delta2).reshape(n, -1),
        ],
        axis=1,
    )


def flat(tree):
    """A pytree as one float64 vector."""
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def rows_of(tree):
    """A pytree of stacked vectors as a float64 matrix, one vector a row."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def matrix_of(directions):
    """The directions as a float64 matrix (R, P), one a row."""
    return rows_of(_tangents(directions))


@jax.jit
def _tangents(directions):
    return jax.vmap(directions.tangent)(jnp.arange(directions.num))


@pytest.fixture(scope="session")
def net():
    """The toolbox above as one object, since test modules do not import each other."""
    names = "apply_fn loss_fn make_problem numpy_gradients flat rows_of matrix_of"
    return SimpleNamespace(**{name: globals()[name] for name in names.split()})
