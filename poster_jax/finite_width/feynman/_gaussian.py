"""Quadrature for Gaussian means of functions that may have a kink at zero."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["gaussian_rule", "has_kink"]

_FAR = 11.0  # exp(-11^2 / 2) = 5e-27: nothing is left beyond


def gaussian_rule(gram: np.ndarray, *, num_nodes: int, kink: bool) -> tuple[np.ndarray, np.ndarray]:
    """Nodes z (inputs, nodes) and weights (nodes,) with E[g(z)] = sum w g(z), z ~ N(0, gram).

    Without a kink the trapezoidal rule on a grid; with kinks where a z_i is zero, polar
    coordinates: along rays everything is smooth, and the angles are cut where a z_i changes sign.
    """
    root, rank = _root(gram)
    limit = 2 if kink else 3
    if rank > limit:
        kind = "with a kink at zero" if kink else "that is smooth"
        raise ValueError(
            f"gram must have a rank of at most {limit} for an activation {kind}, got {rank} "
            "independent inputs."
        )
    if rank == 0:
        return np.zeros((len(gram), 1)), np.ones(1)
    points, weights = _polar(root, num_nodes) if kink else _trapezoid(rank, num_nodes)
    return root @ points, weights


def has_kink(activation: Callable[[Any], Any]) -> bool:
    """Whether the function or its slope jumps at zero, as relu's does."""
    left, right = jnp.float64(-1e-9), jnp.float64(1e-9)
    jumps = (abs(float(fn(right)) - float(fn(left))) for fn in (activation, jax.grad(activation)))
    return max(jumps) > 1e-6


def _root(gram: np.ndarray) -> tuple[np.ndarray, int]:
    values, vectors = np.linalg.eigh(gram)
    small = 1e-12 * max(abs(values).max(), 1e-300)
    if values.min() < -small:
        raise ValueError(
            "gram must be positive semidefinite, as products x_i . x_j are; its smallest "
            f"eigenvalue is {values.min():.3g}."
        )
    kept = values > small
    return vectors[:, kept] * np.sqrt(values[kept]), int(kept.sum())


def _trapezoid(rank: int, num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Equal steps: the error falls as exp(-2 pi d / step), d the distance of the nearest pole.

    Gauss-Hermite converges far slower on functions with poles, such as tanh.
    """
    nodes = np.linspace(-_FAR, _FAR, num_nodes)
    weights = np.exp(-(nodes**2) / 2)
    points = np.array(list(itertools.product(nodes, repeat=rank))).T
    return points, np.array(list(itertools.product(weights / weights.sum(), repeat=rank))).prod(1)


def _polar(root: np.ndarray, num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Rays from the origin: two in one dimension, Gauss-Legendre over the angles in two."""
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    radii = _FAR * (nodes + 1) / 2
    at_radii = _FAR / 2 * weights * np.exp(-(radii**2) / 2)
    if root.shape[1] == 1:
        directions, at_directions = np.array([[-1.0, 1.0]]), np.full(2, (2 * np.pi) ** -0.5)
    else:
        at_radii = at_radii * radii
        # z_i = |root_i| cos(angle - angle_i) changes sign a quarter of a turn from root_i.
        zeros = np.arctan2(root[:, 1], root[:, 0])[:, None] + np.pi / 2 * np.array([1, 3])
        cuts = np.unique(np.concatenate([zeros.ravel() % (2 * np.pi), [0, 2 * np.pi]]))
        low, high = cuts[:-1, None], cuts[1:, None]
        angles = (low + (high - low) * (nodes + 1) / 2).ravel()
        at_directions = ((high - low) / 2 * weights).ravel() / (2 * np.pi)
        directions = np.stack([np.cos(angles), np.sin(angles)])
    points = directions[:, :, None] * radii
    return points.reshape(len(directions), -1), np.outer(at_directions, at_radii).ravel()
