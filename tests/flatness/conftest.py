"""Tiny ReLU networks whose Hessians are derived by hand in numpy, sharing no code with the library.

A ReLU network is piecewise linear in one layer's weights, so that the Hessian by layer W is exactly
the mean of J_i^T S_i J_i with S_i the Hessian of the loss by the logits and J_i = (downstream map,
with the active units) (x) phi_i. `test_reference.py` checks it by finite differences.
"""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.core.typing import Estimate

WIDTHS = (4, 6, 5, 3)


def make_params(seed=0, widths=WIDTHS, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return {
        f"Dense_{i}": {
            "kernel": (rng.normal(size=(m, d)) * np.sqrt(2 / m)).astype(dtype),
            "bias": (0.1 * rng.normal(size=d)).astype(dtype),
        }
        for i, (m, d) in enumerate(itertools.pairwise(widths))
    }


def make_batch(seed=1, num_examples=20, widths=WIDTHS, dtype=np.float64):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_examples, widths[0])).astype(dtype)
    return x, rng.integers(0, widths[-1], num_examples)


def apply_fn(params, x):
    for i in range(len(params)):
        x = x @ params[f"Dense_{i}"]["kernel"] + params[f"Dense_{i}"]["bias"]
        x = jax.nn.relu(x) if i < len(params) - 1 else x
    return x


def loss_fn(params, batch):
    x, y = batch
    logits = apply_fn(params, x)
    own = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - own)


def numpy_loss(params, batch):
    x, y = batch
    for i in range(len(params)):
        x = x @ params[f"Dense_{i}"]["kernel"] + params[f"Dense_{i}"]["bias"]
        x = np.maximum(x, 0) if i < len(params) - 1 else x
    top = x.max(axis=1, keepdims=True)
    log_z = np.log(np.exp(x - top).sum(axis=1)) + top[:, 0]
    return np.mean(log_z - x[np.arange(len(y)), y])


def numpy_features(params, x, layer):
    for i in range(layer):
        x = x @ params[f"Dense_{i}"]["kernel"] + params[f"Dense_{i}"]["bias"]
        x = np.maximum(x, 0)
    return x


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def numpy_hessian(params, batch, layer):
    """(neurons, inputs, neurons, inputs), by hand."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x = np.asarray(batch[0], np.float64)
    phi = numpy_features(params, x, layer)
    z = phi @ params[f"Dense_{layer}"]["kernel"] + params[f"Dense_{layer}"]["bias"]
    # `down[i]` maps a change of this layer's pre-activations to a change of the logits.
    down = np.broadcast_to(np.eye(z.shape[1]), (len(x), z.shape[1], z.shape[1]))
    for i in range(layer + 1, len(params)):
        down = down * (z > 0)[:, None, :]
        down = down @ params[f"Dense_{i}"]["kernel"]
        z = np.maximum(z, 0) @ params[f"Dense_{i}"]["kernel"] + params[f"Dense_{i}"]["bias"]
    p = softmax(z)
    S = np.einsum("ia,ab->iab", p, np.eye(p.shape[1])) - np.einsum("ia,ib->iab", p, p)
    inner = np.einsum("isa,iab,irb->isr", down, S, down)
    return np.einsum("isr,it,iu->stru", inner, phi, phi) / len(x)


def definitions(W, H):
    """Every measure by its definition, in loops, from W (d, m) and H (d, m, d, m)."""
    W, (d, m) = np.asarray(W, np.float64), W.shape
    flat = H.reshape(d * m, d * m)
    norm = (W**2).sum()
    neuronwise = columnwise = eigen = 0.0
    for s in range(d):
        eigen += (W[s] ** 2).sum() * np.linalg.eigvalsh(H[s, :, s, :])[-1]
        for r in range(d):
            neuronwise += W[s] @ W[r] * np.trace(H[s, :, r, :])
            for t in range(m):
                columnwise += W[s, t] * W[r, t] * H[s, t, r, t]
    return {
        "layer_trace": norm * np.trace(flat),
        "normalized_layer_trace": norm * np.trace(flat) / (d * m),
        "layer_max_eigenvalue": norm * np.linalg.eigvalsh(flat)[-1],
        "neuronwise_trace": neuronwise,
        "neuronwise_max_eigenvalue": eigen,
        "columnwise_trace": columnwise,
    }


def exact_trace(op, key, *, num_probes):
    """An "estimator" that visits every basis vector, so that a measure is exact."""
    del key, num_probes
    basis = jnp.eye(op.dim, dtype=op.like.dtype).reshape(op.dim, *op.like.shape)
    total = jnp.sum(op.block(basis) * basis)
    return Estimate(total, jnp.zeros_like(total), jnp.asarray(0))


def exact_measure(name, hessian, key):
    """A measure without sampling error: by the exact trace, or with a tight eigenvalue search."""
    from poster_jax import flatness

    measure = getattr(flatness, name)
    if name.endswith("trace"):
        return float(measure(hessian, key, num_probes=1, estimator=exact_trace).mean)
    return float(measure(hessian, key, tol=1e-9).mean)


@pytest.fixture
def net():
    """The toolbox above as one object, since test modules do not import each other."""
    names = (
        "make_params make_batch apply_fn loss_fn numpy_loss numpy_features numpy_hessian softmax "
        "definitions exact_trace exact_measure"
    )
    return SimpleNamespace(**{name: globals()[name] for name in names.split()})


MEASURES = (
    "layer_trace",
    "normalized_layer_trace",
    "layer_max_eigenvalue",
    "neuronwise_trace",
    "neuronwise_max_eigenvalue",
    "columnwise_trace",
)


@pytest.fixture(params=MEASURES)
def measure(request):
    return request.param
