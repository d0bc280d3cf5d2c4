"""Layers, and their penalties from explicit Jacobians, by numpy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

GELU_SLOPE = lambda z: (  # noqa: E731
    0.5 * (1 + scipy.special.erf(z / 2**0.5)) + z * np.exp(-(z**2) / 2) / (2 * np.pi) ** 0.5
)
ACTIVATIONS = {
    "tanh": (jnp.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "relu": (jax.nn.relu, lambda z: (z > 0) * 1.0),
    "gelu": (partial(jax.nn.gelu, approximate=False), GELU_SLOPE),
}


def draw(m, n, examples=6, seed=0):
    """W (m, n), b, x, with pre-activations away from the kink of ReLU."""
    rng = np.random.default_rng(seed)
    W, b = rng.normal(size=(m, n)) / n**0.5, 0.3 * rng.normal(size=m)
    x = rng.normal(size=(200, n))
    x = x[np.abs(x @ W.T + b).min(axis=1) > 0.02][:examples]
    return W, b, x


def dense(phi):
    return lambda params, x: phi(x @ params[0].T + params[1])


def linear(W, x):
    return x @ W.T


def batch_norm(W, x):
    z = x @ W.T
    return jnp.tanh((z - z.mean(axis=0)) / jnp.sqrt(z.var(axis=0) + 1e-3))


def squares(J, dim):
    """||J J' - I||^2 for J (dim, n), and the trace of it."""
    M = J @ J.T - np.eye(dim)
    return (M**2).sum(), np.trace(M)


def norm_preservation(J, dim):
    squared, trace = squares(J, dim)
    return (trace**2 + 2 * squared) / (dim + 2)


def numpy_penalty(W, b, x, slope):
    """The mean of R over the batch, from W and phi' alone."""
    D = slope(x @ W.T + b)
    return np.mean([squares(d[:, None] * W, len(W))[0] for d in D])
