r"""Function and kernel in training to order 1/n, in closed form from O_2, O_3, O_4 at the start.

With Theta_0 = U diag(lam) U', residuals r_0 = U rho, and g(lam) = exp(-lam t), what is integrated
over time are products of exponentials, so that everything is a divided difference of g:

$$\Theta_1(t) = \sum_i \rho_i O_3(\cdot,\cdot,u_i)\, g[0, \lambda_i]
  + \sum_{ij} \rho_i \rho_j O_4(\cdot,\cdot,u_i,u_j)\, g[0, \lambda_i, \lambda_i + \lambda_j]$$
$$u_a \cdot r_1(t) = \sum_b \rho_b \Big( \sum_i \rho_i O_3(a,b,i)\, g[\lambda_a, \lambda_b,
  \lambda_b + \lambda_i] + \sum_{ij} \rho_i \rho_j O_4(a,b,i,j)\, g[\lambda_a, \lambda_b,
  \lambda_b + \lambda_i, \lambda_b + \lambda_i + \lambda_j] \Big)$$

Divided differences have no denominators that vanish where eigenvalues meet. Gradient descent of
rate eta is the same with g(lam) = (1 - eta lam)^k, k = t / eta, and a + b - eta a b for a + b.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poster_jax.core.checks import check_finite, check_positive, is_traced
from poster_jax.core.precision import full_precision
from poster_jax.core.typing import Array, Float

__all__ = ["FirstOrderDynamics", "first_order_dynamics"]


class FirstOrderDynamics(NamedTuple):
    """Training to order 1/n.

    Attributes:
      residual: (times, M), f - y.
      theta: (times, M, M), the kernel.
      residual_order0: (times, M), with the kernel held at its start.
    """

    residual: Any
    theta: Any
    residual_order0: Any


@full_precision
def first_order_dynamics(
    theta0: Float[Array, "points points"],
    o3: Float[Array, "points points points"],
    o4: Float[Array, "points points points points"],
    residual0: Float[Array, "points"],
    times: Float[Array, "times"],
    *,
    learning_rate: float | None = None,
) -> FirstOrderDynamics:
    """Residuals and kernel on the training set over time, to order 1/n.

    The loss is (1/2) sum (f - y)^2 over the M training points (a sum, no mean).

    Args:
      theta0: the kernel at the start, `hierarchy(...).o2`.
      o3: of `hierarchy`.
      o4: of `hierarchy`.
      residual0: f - y at the start.
      times: at least 0. For gradient descent, steps times the learning rate.
      learning_rate: None for gradient flow. A number for full-batch gradient descent, to order 1/n
        but for terms of relative order learning_rate times a kernel eigenvalue: second derivatives
        of f within one step are no part of the hierarchy.

    Returns:
      FirstOrderDynamics; its error is O(1/n^2).

    Raises:
      ValueError: shapes that do not fit, values that are not finite, negative times, a learning
        rate that is not positive, times that are no multiples of it.

    Source: Dyer and Gur-Ari 2019 (arXiv 1909.11304), section 4; Huang and Yau 2019 (arXiv
      1909.08156); the form with divided differences and the function's part: this library.

    Example:
      >>> flat = jnp.zeros((1, 1, 1)), jnp.zeros((1, 1, 1, 1))
      >>> found = first_order_dynamics(jnp.ones((1, 1)), *flat, jnp.ones(1), jnp.array([0.0, 1.0]))
      >>> round(float(found.residual[1, 0]), 4)  # exp(-1): a constant kernel
      0.3679
    """
    count = residual0.shape[0]
    arrays = {"theta0": theta0, "o3": o3, "o4": o4, "residual0": residual0}
    for axes, (name, array) in zip((2, 3, 4, 1), arrays.items(), strict=True):
        if array.shape != (count,) * axes:
            raise ValueError(
                f"{name} must have shape {(count,) * axes} for {count} residuals, got "
                f"{array.shape}."
            )
        check_finite(name, array)
    check_positive("times", times, zero_allowed=True)
    if learning_rate is not None:
        check_positive("learning_rate", learning_rate)
        if not is_traced(times):
            steps = np.asarray(times, np.float64) / learning_rate
            if np.any(abs(steps - steps.round()) > 1e-3):
                raise ValueError(
                    f"times must be whole steps of learning_rate {learning_rate}, got {times}."
                )
    return _dynamics(theta0, o3, o4, residual0, times, learning_rate)


@jax.jit
def _dynamics(
    theta0: Array, o3: Array, o4: Array, residual0: Array, times: Array, rate: Any
) -> FirstOrderDynamics:
    lam, U = jnp.linalg.eigh(theta0)
    rho = U.T @ residual0
    o3 = jnp.einsum("xyz,xa,yb,zi,i->abi", o3, U, U, U, rho)
    o4 = jnp.einsum("xyzw,xa,yb,zi,wj,i,j->abij", o4, U, U, U, U, rho, rho)
    eta = 0.0 if rate is None else rate
    zero = jnp.zeros_like(lam)

    def joined(a: Any, b: Any) -> Any:
        """The rate at which a product of two decays falls."""
        return a + b - eta * a * b

    def shrink(a: Any, power: int) -> Any:
        """A shift of all nodes by a, where time comes in steps."""
        return (1 - eta * a) ** power

    a, b = lam[:, None, None, None], lam[:, None, None]
    i, j = lam[:, None], lam

    def at(time: Any) -> FirstOrderDynamics:
        def g(*nodes: Any) -> Any:
            return _divided_difference(time, rate, jnp.broadcast_arrays(*nodes))

        second = shrink(i, 1) * g(zero, i, joined(i, j))
        theta1 = o3 @ g(zero, lam) + jnp.einsum("abij,ij->ab", o4, second)
        a3, b3, i3 = a[..., 0], b[..., 0], i[..., 0]
        by_o3 = shrink(b3, 1) * g(a3, b3, joined(b3, i3))
        by_o4 = shrink(b, 2) * shrink(i, 1) * g(a, b, joined(b, i), joined(b, joined(i, j)))
        r1 = jnp.einsum("abi,abi,b->a", o3, by_o3, rho)
        r1 = r1 + jnp.einsum("abij,abij,b->a", o4, by_o4, rho)
        r0 = g(lam) * rho
        return FirstOrderDynamics(U @ (r0 + r1), theta0 + U @ theta1 @ U.T, U @ r0)

    return jax.lax.map(at, times)


def _divided_difference(time: Any, rate: Any, nodes: list[Any]) -> Any:
    """g[nodes] = the corner of g(B), B bidiagonal with the nodes and ones (Opitz 1964)."""
    size = len(nodes)
    flat = jnp.stack([node.ravel() for node in nodes], axis=-1)
    matrices = jax.vmap(lambda row: jnp.diag(row) + jnp.eye(size, k=1, dtype=row.dtype))(flat)
    if rate is None:
        found = _exponential(-time * matrices)
    else:
        steps = jnp.round(time / rate).astype(jnp.int32)
        found = _power(jnp.eye(size, dtype=flat.dtype) - rate * matrices, steps)
    return found[:, 0, -1].reshape(nodes[0].shape)


def _exponential(matrices: Array) -> Array:
    """Scaling and squaring; there is less to compile than in jax.scipy's, which solves systems."""
    norm = jnp.abs(matrices).sum(axis=-1).max()
    halvings = jnp.ceil(jnp.log2(jnp.maximum(norm, 1))).astype(jnp.int32)
    scaled = matrices * 0.5 ** halvings.astype(matrices.dtype)
    one = jnp.broadcast_to(jnp.eye(matrices.shape[-1], dtype=matrices.dtype), matrices.shape)

    def horner(total: Any, order: Any) -> tuple[Any, None]:
        return one + scaled @ total / order, None

    # The norm is at most 1: 1 / 19! is below the rounding of float64.
    orders = jnp.arange(18, 0, -1).astype(matrices.dtype)
    result = jax.lax.scan(horner, one, orders)[0]
    return jax.lax.fori_loop(0, halvings, lambda _, m: m @ m, result)


def _power(matrices: Array, steps: Any) -> Array:
    """By squaring, for a traced number of steps."""

    def square(carry: Any, bit: Any) -> tuple[Any, None]:
        result, base = carry
        result = jnp.where((steps >> bit) & 1, result @ base, result)
        return (result, base @ base), None

    one = jnp.broadcast_to(jnp.eye(matrices.shape[-1], dtype=matrices.dtype), matrices.shape)
    return jax.lax.scan(square, (one, matrices), jnp.arange(31))[0][0]
