"""How fast do copies part? The growth of small differences, and the time it takes.

At a symmetric point gradient descent with rate eta multiplies a difference between copies by
1 - eta H, with H the Hessian on the subspace orthogonal to all symmetric directions; it never mixes
them. The most negative eigenvalue there sets the pace.

In a network of one hidden ReLU layer H is known: a difference between copies leaves the outputs
alone to first order, so that only the second derivative of the network itself counts, neuron by
neuron. For neuron j with input weights w (bias included) and readers v it is the matrix
[[0, M], [M', 0]], M = mean_i 1[w x_i > 0] x_i g_i', with g_i the gradient of example i's loss by
its outputs. Its eigenvalues are plus and minus the singular values of M: whatever the data and the
rate, copies repel each other until the loss is stationary.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax import curvature
from poster_jax.core.checks import check_callable, check_params, check_positive
from poster_jax.core.typing import Array, Batch, Float, LossFn, Params
from poster_jax.feature_diversity.symmetry import symmetrise

__all__ = [
    "antisymmetric_hessian",
    "copy_coupling",
    "deviation_path",
    "growth_rate",
    "predicted_breaking_time",
]


def copy_coupling(
    x: Float[Array, "examples inputs"],
    hidden: Float[Array, "examples features"],
    output_gradients: Float[Array, "examples outputs"],
) -> Float[Array, "features inputs_and_bias outputs"]:
    """The matrix M of each hidden neuron, whose singular values say how fast its copies part.

    Args:
      x: inputs.
      hidden: the hidden layer before its ReLU.
      output_gradients: for each example, the gradient of its own loss by the outputs:
        softmax minus one-hot for cross-entropy.

    Returns:
      One matrix a neuron; the last row belongs to its bias. `growth_rate` of the negative of its
      largest singular value is the rate at which copies of that neuron part.

    Source: derived here, see the module.

    Example:
      >>> x, hidden = jnp.array([[2.0]]), jnp.array([[1.0, -1.0]])
      >>> copy_coupling(x, hidden, jnp.array([[0.5]]))[..., 0].tolist()
      [[1.0, 0.5], [0.0, 0.0]]
    """
    with_bias = jnp.concatenate([x, jnp.ones_like(x[:, :1])], 1)
    active = (hidden > 0).astype(x.dtype)
    weighted = active[:, :, None] * with_bias[:, None, :]
    return jnp.einsum("nfi,no->fio", weighted, output_gradients) / len(x)


def antisymmetric_hessian(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    *,
    inputs: Any,
    outputs: Any,
    num_unique: int = 1,
    microbatch: int | None = None,
) -> curvature.LinearOperator:
    """The Hessian between differences of copies, for any network, as an operator.

    `curvature.top_eigenpairs(op, key, k=1, which="smallest")` finds the direction in which copies
    part fastest, by Lanczos. Symmetric directions are in its null space.

    Args:
      loss_fn: `loss_fn(params, batch) -> scalar`, a mean; evaluation mode.
      params: a symmetric point, see `symmetric_reduction`.
      batch: the examples.
      inputs: as in `symmetric_reduction`.
      outputs: as there.
      num_unique: as there.
      microbatch: as in `curvature.hessian_operator`.

    Returns:
      The operator P H P, P the projection orthogonal to the symmetric subspace. Its vectors are
      dicts from path to leaf.

    Raises:
      ValueError, TypeError: as `symmetrise` and `curvature.hessian_operator`.

    Source: derived here: the gradient maps the symmetric subspace into itself, hence so does the
    Hessian at its points, and, being symmetric, its complement too.

    Example:
      >>> loss_fn = lambda p, x: jnp.mean((x * p["in"] @ p["out"] - 1.0) ** 2)
      >>> params = {"in": jnp.ones((1, 2)), "out": jnp.zeros((2, 1))}
      >>> op = antisymmetric_hessian(loss_fn, params, jnp.ones((1, 1)), inputs="in", outputs="out")
      >>> pairs = curvature.top_eigenpairs(op, jax.random.key(0), k=1, which="smallest")
      >>> round(float(pairs.values[0]), 4)
      -2.0
    """
    check_callable("loss_fn", loss_fn)
    check_params(params)

    def moved_loss(pair: Any, batch: Batch) -> Any:
        move = pair["move"]
        mean = symmetrise(move, inputs=inputs, outputs=outputs, num_unique=num_unique)
        there = jax.tree.map(lambda p, m, s: p + m - s, pair["at"], move, mean)
        return loss_fn(there, batch)

    pair = {"at": params, "move": jax.tree.map(jnp.zeros_like, params)}
    return curvature.hessian_operator(moved_loss, pair, batch, microbatch=microbatch).restrict(
        "move"
    )


def growth_rate(eigenvalue: Any, learning_rate: Any) -> Any:
    """By how much, in natural logarithm, a step of gradient descent multiplies a difference.

    Args:
      eigenvalue: of the Hessian along it; arrays are taken entry by entry.
      learning_rate: eta.

    Returns:
      `ln |1 - eta eigenvalue|`.

    Source: gradient descent, linearised.

    Example:
      >>> round(float(growth_rate(-1.0, 0.1)), 4)
      0.0953
    """
    return jnp.log(jnp.abs(1 - jnp.asarray(learning_rate) * eigenvalue))


def deviation_path(
    couplings: Any, learning_rate: float, start: Any, *, step: int = 1
) -> np.ndarray:
    """What gradient descent makes of small differences in the input weights of one neuron's copies.

    Differences of input weights and of readers are each other's source: to first order a step adds
    `-eta M d_v` to d_w and `-eta M' d_w` to d_v. Readers begin equal, and the steps follow the path
    of the symmetric network, so that nothing is fitted and no direction is taken for the fastest.

    Args:
      couplings: (T, inputs and bias, outputs) `copy_coupling` at every `step`-th step of the
        reduced network, concrete; each is taken to hold until the next.
      learning_rate: eta.
      start: (inputs and bias, K) K differences d_w before the first step; as the law is linear,
        their size does not matter.
      step: steps between two couplings.

    Returns:
      Float64 (T + 1, inputs and bias, K): d_w after 0, step, 2 step, ... steps.

    Raises:
      ValueError: learning_rate or step not above 0, couplings not of 3 axes, start of another
        number of rows.

    Source: derived here: gradient descent linearised at the symmetric path, see the module.

    Example:
      >>> path = deviation_path(np.full((2, 1, 1), -1.0), 0.1, np.ones((1, 1)))
      >>> path[:, 0, 0].round(4).tolist()
      [1.0, 1.0, 1.01]
    """
    check_positive("learning_rate", learning_rate)
    check_positive("step", step)
    couplings, d_w = np.asarray(couplings, np.float64), np.asarray(start, np.float64)
    if couplings.ndim != 3:
        raise ValueError(
            f"couplings must be (T, inputs and bias, outputs), got shape {couplings.shape}."
        )
    if d_w.ndim != 2 or len(d_w) != couplings.shape[1]:
        raise ValueError(
            f"start must have a row for each of {couplings.shape[1]} inputs and bias, got shape "
            f"{d_w.shape}."
        )
    d_v = np.zeros((couplings.shape[2], d_w.shape[1]))
    path = [d_w]
    for coupling in couplings:
        pull = learning_rate * coupling
        for _ in range(step):
            d_w, d_v = d_w - pull @ d_v, d_v - pull.T @ d_w
        path.append(d_w)
    return np.stack(path)


def predicted_breaking_time(
    rates: Any, *, noise: float, threshold: float = 0.01, step: int = 1
) -> float:
    """When copies that start a little apart are apart, from the growth along the symmetric path.

    A relative deviation delta = sqrt(s2) grows by the sum of the rates; the copies are apart when
    it is sqrt(threshold). For a constant rate lambda this is `ln(sqrt(threshold) / delta) / lambda`
    steps: linear in log10 of the noise, with slope `-ln(10) / (2 lambda)`.

    Args:
      rates: (T,) `growth_rate` at every `step`-th step of the reduced network, concrete.
      noise: s2 of `duplicate_features`, above 0.
      threshold: of `feature_diversity`.
      step: steps between two rates.

    Returns:
      Steps, interpolated; infinite when the path ends before.

    Raises:
      ValueError: noise, threshold or step not above 0.

    Source: derived here. A lower bound rather than an identity: it takes the deviation to lie along
    the fastest direction at every step; `deviation_path` follows the deviation itself.

    Example:
      >>> round(predicted_breaking_time(np.full(100, 0.1), noise=1e-6), 1)  # ln(100) / 0.1
      46.1
    """
    check_positive("noise", noise)
    check_positive("threshold", threshold)
    check_positive("step", step)
    rates = np.asarray(rates, np.float64)
    grown = np.concatenate([[0.0], np.cumsum(rates) * step])
    needed = math.log(threshold / noise) / 2
    if needed <= 0:
        return 0.0
    reached = np.maximum.accumulate(grown) >= needed
    if not reached.any():
        return math.inf
    last = int(reached.argmax())
    return float(step * (last - (grown[last] - needed) / (grown[last] - grown[last - 1])))
