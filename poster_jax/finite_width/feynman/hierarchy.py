r"""The neural tangent hierarchy: the kernel, how it moves, how that moves.

$$O_1(x) = f(x), \qquad O_{s+1}(x_1, \dots, x_{s+1}) = \nabla_\theta O_s(x_1, \dots, x_s)
  \cdot \nabla_\theta f(x_{s+1})$$

O_2 is the neural tangent kernel. Under gradient flow of (1/2) sum (f - y)^2 over training points,
dO_s/dt = - sum_x' O_{s+1}(.., x') (f(x') - y'). O_3 and O_4 are O(1/n), O_5 and O_6 O(1/n^2).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_apply, check_callable, check_count
from poster_jax.core.typing import ApplyFn, Array, Float, Params, Scalar
from poster_jax.core.vectors import matmul
from poster_jax.finite_width.feynman._clusters import directional

__all__ = ["Hierarchy", "hierarchy", "hierarchy_fn"]


class Hierarchy(NamedTuple):
    """O_1 to O_4 on M inputs.

    Attributes:
      o1: (M,), the outputs.
      o2: (M, M), the kernel.
      o3: (M, M, M), symmetric in the first two; None when not asked for.
      o4: (M, M, M, M), symmetric in the first two; None when not asked for.
    """

    o1: Any
    o2: Any
    o3: Any
    o4: Any


def hierarchy_fn(apply_fn: ApplyFn, *, order: int) -> Callable[..., Scalar]:
    """O_s as a function `o(params, x_1, ..., x_s) -> scalar` of single inputs, for any model.

    Each order is one derivative along a gradient more; nothing grows with the number of parameters
    but the gradients.

    Args:
      apply_fn: `apply_fn(params, x) -> outputs` for x of shape (1, ...), with one output.
      order: s, at least 1; 2 is the neural tangent kernel.

    Returns:
      The function; it may be differentiated, and goes under `jit` and `vmap`.

    Raises:
      ValueError, TypeError: order below 1, apply_fn no function; when called, another number of
        inputs than s.

    Source: Huang and Yau 2019 (arXiv 1909.08156), neural tangent hierarchy; Dyer and Gur-Ari 2019
      (arXiv 1909.11304), equation 12.

    Example:
      >>> def apply_fn(params, x): return params["v"] * jnp.tanh(params["u"] * x)
      >>> params = {"u": jnp.float32(0.0), "v": jnp.float32(2.0)}
      >>> float(hierarchy_fn(apply_fn, order=2)(params, jnp.float32(1.0), jnp.float32(3.0)))
      12.0
    """
    check_callable("apply_fn", apply_fn)
    order = check_count("order", order)

    def output(params: Params, x: Any) -> Scalar:
        return jnp.asarray(apply_fn(params, jnp.asarray(x)[None])).reshape(())

    def operator(params: Params, *xs: Any) -> Scalar:
        if len(xs) != order:
            raise ValueError(f"xs must be {order} inputs for O_{order}, got {len(xs)}.")
        return _nested(output, params, xs)

    return operator


def _nested(output: Callable[..., Any], params: Params, xs: tuple[Any, ...]) -> Any:
    *before, last = xs
    if not before:
        return output(params, last)
    gradient = jax.grad(output)(params, last)
    return directional(lambda p: _nested(output, p, tuple(before)), [gradient])(params)


def hierarchy(
    apply_fn: ApplyFn, params: Params, x: Float[Array, "points ..."], *, order: int = 4
) -> Hierarchy:
    """The kernel of M inputs, and how it and its motion move, as arrays.

    O_3 takes M derivatives of the kernel along gradients, O_4 M^2; the kernel is that of the
    Jacobian, (M, parameters), and no other derivative is written down.

    Args:
      apply_fn: `apply_fn(params, x) -> outputs`, one output an example.
      params: pytree of the network.
      x: (M, ...).
      order: 2, 3 or 4.

    Returns:
      Hierarchy, in the dtype of the outputs. float64 is worth it: O_4 is small.

    Raises:
      ValueError: order not in 2..4, more than one output an example, params or x not finite.
      TypeError: another kind of argument.

    Source: as `hierarchy_fn`.

    Example:
      >>> def apply_fn(params, x): return x @ params  # linear in its parameters: a constant kernel
      >>> found = hierarchy(apply_fn, jnp.ones(2), jnp.eye(2), order=3)
      >>> found.o2.tolist(), bool((found.o3 == 0).all())
      ([[1.0, 0.0], [0.0, 1.0]], True)
    """
    order = check_count("order", order, minimum=2)
    if order > 4:
        raise ValueError(f"order must be 2, 3 or 4, got {order}. hierarchy_fn goes further.")
    out = check_apply(apply_fn, params, x)
    if getattr(out, "size", None) != len(x):
        raise ValueError(
            f"apply_fn must have one output for each of the {len(x)} examples, got shape "
            f"{getattr(out, 'shape', None)}."
        )

    def outputs(params: Params) -> Any:
        return apply_fn(params, x).reshape(len(x))

    def gradients(params: Params) -> Any:
        """A pytree with a leading axis of the M inputs."""
        return jax.jacrev(outputs)(params)

    def kernel(params: Params) -> Any:
        leaves = [leaf.reshape(len(x), -1) for leaf in jax.tree.leaves(gradients(params))]
        return sum(matmul(leaf, leaf.T) for leaf in leaves)

    def raised(operator: Callable[[Params], Any]) -> Callable[[Params], Any]:
        """The next order: its last axis is the direction."""

        def along(params: Params) -> Any:
            def one(gradient: Any) -> Any:
                return directional(operator, [gradient])(params)

            return jnp.moveaxis(jax.lax.map(one, gradients(params)), 0, -1)

        return along

    o3 = raised(kernel)
    return Hierarchy(
        outputs(params),
        kernel(params),
        o3(params) if order >= 3 else None,
        raised(o3)(params) if order == 4 else None,
    )
