"""One small network, its loss written again in numpy, and matrices of known spectrum."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

SIZES = (5, 6, 3)
EXAMPLES = 100


class Problem(NamedTuple):
    apply_fn: object
    loss_fn: object
    params: dict
    batch: tuple


def apply_fn(params, x):
    hidden = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"])
    return hidden @ params["second"]["kernel"] + params["second"]["bias"]


def cross_entropy(params, batch):
    x, y = batch
    log_p = jax.nn.log_softmax(apply_fn(params, x))
    return -jnp.take_along_axis(log_p, y[:, None], axis=1).mean()


def make_problem(dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    d, h, c = SIZES
    params = {
        "first": {"bias": rng.normal(size=h) / 4, "kernel": rng.normal(size=(d, h)) / 2},
        "second": {"bias": rng.normal(size=c) / 4, "kernel": rng.normal(size=(h, c))},
    }
    x, y = rng.normal(size=(EXAMPLES, d)), rng.integers(0, c, EXAMPLES)
    params = jax.tree.map(lambda a: jnp.asarray(a, dtype), params)
    return Problem(apply_fn, cross_entropy, params, (jnp.asarray(x, dtype), jnp.asarray(y)))


def numpy_forward(flat, x):
    """Flat parameters in the order of `jax.tree.leaves`: biases before kernels."""
    d, h, c = SIZES
    b1, w1, b2, w2 = np.split(flat, np.cumsum([h, d * h, c]))
    hidden = np.tanh(x @ w1.reshape(d, h) + b1)
    logits = hidden @ w2.reshape(h, c) + b2
    shifted = logits - logits.max(axis=1, keepdims=True)
    p = np.exp(shifted)
    return hidden, w2.reshape(h, c), p / p.sum(axis=1, keepdims=True)


def numpy_example_gradients(flat, x, targets):
    """Gradients of each example's cross-entropy (N, P) for targets (N, c), by hand."""
    hidden, w2, p = numpy_forward(flat, x)
    delta2 = p - targets
    delta1 = (delta2 @ w2.T) * (1 - hidden**2)
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


def numpy_hessian(problem, epsilon=1e-5):
    """Central differences of the gradient written by hand, in float64: error about 1e-9."""
    flat, x, onehot = as_numpy(problem)
    columns = []
    for i in range(len(flat)):
        step = np.zeros_like(flat)
        step[i] = epsilon
        up = numpy_example_gradients(flat + step, x, onehot).mean(axis=0)
        down = numpy_example_gradients(flat - step, x, onehot).mean(axis=0)
        columns.append((up - down) / (2 * epsilon))
    return np.array(columns)


def as_numpy(problem):
    flat = np.concatenate(
        [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(problem.params)]
    )
    x, y = problem.batch
    return flat, np.asarray(x, np.float64), np.eye(SIZES[-1])[np.asarray(y)]


def materialise(op):
    """The matrix of an operator, one product a column."""
    leaves, treedef = jax.tree.flatten(op.like)
    ends = np.cumsum([leaf.size for leaf in leaves])
    eye = np.eye(op.dim)
    parts = np.split(eye, ends[:-1], axis=1)
    block = jax.tree.unflatten(
        treedef,
        [
            jnp.asarray(part.reshape(op.dim, *leaf.shape), leaf.dtype)
            for part, leaf in zip(parts, leaves, strict=True)
        ],
    )
    out = jax.tree.leaves(op.block(block))
    return np.concatenate([np.asarray(leaf, np.float64).reshape(op.dim, -1) for leaf in out], 1)


def rotated(eigenvalues, seed=0):
    """A symmetric float64 matrix with these eigenvalues and random eigenvectors."""
    n = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))
    matrix = (q * np.asarray(eigenvalues, float)) @ q.T
    return (matrix + matrix.T) / 2


class Tools(NamedTuple):
    make_problem: object
    numpy_hessian: object
    numpy_example_gradients: object
    numpy_forward: object
    as_numpy: object
    materialise: object
    rotated: object


@pytest.fixture(scope="session")
def tools():
    return Tools(
        make_problem,
        numpy_hessian,
        numpy_example_gradients,
        numpy_forward,
        as_numpy,
        materialise,
        rotated,
    )


@pytest.fixture
def problem():
    return make_problem()
