"""Does the noise push where the loss is curved? Traces of products of two operators.

With random signs z, E[(H z)^T (Sigma z)] = tr(H Sigma), and the same two products give tr H,
tr Sigma, ||H||_F^2 and ||Sigma||_F^2: one product of each a probe answers everything.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_count, check_key, check_same_structure, num_examples
from poster_jax.core.typing import Array, Estimate, Params, PRNGKey, Scalar
from poster_jax.curvature import LinearOperator
from poster_jax.curvature.operator import map_vectors
from poster_jax.gradient_noise._ratios import of_means
from poster_jax.gradient_noise.directions import Directions, random_directions
from poster_jax.gradient_noise.second_moments.covariance import NoiseCovariance

__all__ = ["NoiseAlignment", "effective_rank", "noise_alignment", "subspace_overlap"]


class NoiseAlignment(NamedTuple):
    """How noise and curvature lie to each other.

    Attributes:
      trace_product: Estimate of tr(H Sigma): twice the loss that noise of this covariance adds.
      cosine: Estimate of tr(H Sigma) / (||H||_F ||Sigma||_F); 1 when they are proportional.
      gain: Estimate of P tr(H Sigma) / (tr H tr Sigma): how much more the loss rises than under
        isotropic noise of the same size; 1 for isotropic noise.
      noise_scale: Estimate of B_noise = tr(H Sigma) / (gbar^T H gbar), a batch size.
    """

    trace_product: Estimate
    cosine: Estimate
    gain: Estimate
    noise_scale: Estimate


def noise_alignment(
    curvature: LinearOperator, covariance: NoiseCovariance, key: PRNGKey, *, num_probes: int
) -> NoiseAlignment:
    """Whether gradient noise lies in the curved directions, from `num_probes` products of each.

    Args:
      curvature: the Hessian, Gauss-Newton or Fisher operator at the same params.
      covariance: of `noise_covariance_operator`; both restricted to one layer, or neither.
      key: PRNG key of the probes.
      num_probes: random sign vectors; each costs one product of each operator.

    Returns:
      NoiseAlignment. Ratios are of means, with standard errors by the delta method; their bias is
      of the order of 1 / num_probes.

    Raises:
      ValueError: operators on vectors of other shapes; num_probes below 1.
      TypeError: no operators, no key.

    Source: Zhu et al. 2019 (arXiv 1803.00195), equation 7 and section 4, for tr(H Sigma) and its
      isotropic counterpart; McCandlish et al. 2018 (arXiv 1812.06162), equation 2.8, for B_noise.

    Example:
      >>> from poster_jax.curvature import hessian_operator
      >>> from poster_jax.gradient_noise import noise_covariance_operator
      >>> loss_fn = lambda w, x: 0.5 * jnp.mean((w - x) ** 2)  # H = 1, Sigma = Var x
      >>> w, x = jnp.array(2.0), jnp.array([0.0, 2.0])
      >>> covariance = noise_covariance_operator(loss_fn, w, x)
      >>> found = noise_alignment(hessian_operator(loss_fn, w, x), covariance, jax.random.key(0),
      ...                         num_probes=2)
      >>> float(found.trace_product.mean), float(found.cosine.mean), float(found.noise_scale.mean)
      (1.0, 1.0, 1.0)
    """
    for name, op, kind in (
        ("curvature", curvature, LinearOperator),
        ("covariance", covariance, NoiseCovariance),
    ):
        if not isinstance(op, kind):
            raise TypeError(f"{name} must be a {kind.__name__}, got {type(op).__name__}.")
    check_same_structure("curvature.like", curvature.like, "covariance.like", covariance.like)
    signs = _probes(covariance, key, num_probes)
    samples, along_mean = _products(curvature, covariance, signs)
    size = covariance.dim
    return NoiseAlignment(
        of_means(lambda m: m[0], samples),
        of_means(lambda m: m[0] / jnp.sqrt(m[3] * m[4]), samples),
        of_means(lambda m: size * m[0] / (m[1] * m[2]), samples),
        of_means(lambda m: m[0] / along_mean, samples),
    )


def effective_rank(op: LinearOperator, key: PRNGKey, *, num_probes: int) -> Estimate:
    """In how many directions noise of this covariance lives: `(tr Sigma)^2 / tr Sigma^2`.

    Args:
      op: a positive semi-definite operator, such as `noise_covariance_operator`.
      key: PRNG key of the probes.
      num_probes: random sign vectors, a product each.

    Returns:
      Estimate of a scalar between 1 and P; k for k equal eigenvalues, the rest zero. For known
      eigenvalues it is `values.sum() ** 2 / (values**2).sum()`.

    Raises:
      ValueError: num_probes below 1.
      TypeError: no operator, no key.

    Source: Roy, Vetterli 2007 name several; this is the participation ratio.

    Example:
      >>> from poster_jax.curvature import matrix_operator
      >>> op = matrix_operator(jnp.diag(jnp.array([2.0, 2.0, 0.0, 0.0])))
      >>> float(effective_rank(op, jax.random.key(0), num_probes=3).mean)
      2.0
    """
    if not isinstance(op, LinearOperator):
        raise TypeError(f"op must be a LinearOperator, got {type(op).__name__}.")
    signs = _probes(op, key, num_probes)
    return of_means(lambda m: m[0] ** 2 / m[1], _own_products(op, signs))


def subspace_overlap(first: Params, second: Params) -> Scalar:
    """How much of one subspace lies in another: 1 for the same, k / P for a random one.

    `||U V^T||_F^2 / min(k, l)` for orthonormal rows U (k, P) and V (l, P): the mean squared cosine
    of the angles between them.

    Args:
      first: vectors of `curvature.top_eigenpairs`, each leaf with a leading axis k.
      second: the same with a leading axis l, such as the Hessian's beside the covariance's.

    Returns:
      Scalar in [0, 1].

    Raises:
      ValueError: vectors of other shapes, or without a common leading axis.

    Source: Gur-Ari, Roberts, Dyer 2018, "Gradient descent happens in a tiny subspace" (arXiv
      1812.04754), equation 5.

    Example:
      >>> float(subspace_overlap(jnp.eye(4)[:2], jnp.eye(4)[1:3]))
      0.5
    """
    smaller = min(num_examples(first, "first"), num_examples(second, "second"))
    one = lambda tree: jax.tree.map(lambda a: a[0], tree)  # noqa: E731
    check_same_structure("a vector of first", one(first), "second", one(second))
    products = [
        jnp.matmul(a.reshape(len(a), -1), b.reshape(len(b), -1).T, precision="highest")
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    ]
    return (sum(products) ** 2).sum() / smaller


def _probes(op: LinearOperator, key: PRNGKey, num_probes: int) -> Directions:
    check_key("key", key)
    check_count("num_probes", num_probes, hint="The standard error needs at least 2.")
    return random_directions(op.like, key, num=num_probes, kind="rademacher")


@jax.jit
def _products(
    curvature: LinearOperator, covariance: NoiseCovariance, signs: Directions
) -> tuple[Array, Array]:
    """A row (tr HS, tr H, tr S, |H|^2, |S|^2) a probe, and gbar^T H gbar."""
    curve, scatter = curvature.linear_map(), covariance.linear_map()
    join = signs.layout.join

    def of_probe(r: Array) -> Array:
        z = signs.tangent(r)
        z, h, s = (join(jax.tree.leaves(v)) for v in (z, curve(z), scatter(z)))
        # z is a unit vector: with the entries +-1 every product would be P times as large.
        return z.size * jnp.stack([_dot(h, s), _dot(z, h), _dot(z, s), _dot(h, h), _dot(s, s)])

    mean = covariance.restricted_mean
    along_mean = _dot(join(jax.tree.leaves(mean)), join(jax.tree.leaves(curve(mean))))
    return map_vectors(of_probe, jnp.arange(signs.num)), along_mean


@jax.jit
def _own_products(op: LinearOperator, signs: Directions) -> Array:
    product, join = op.linear_map(), signs.layout.join

    def of_probe(r: Array) -> Array:
        z = signs.tangent(r)
        z, s = (join(jax.tree.leaves(v)) for v in (z, product(z)))
        return z.size * jnp.stack([_dot(z, s), _dot(s, s)])

    return map_vectors(of_probe, jnp.arange(signs.num))


def _dot(a: Any, b: Any) -> Array:
    return jnp.vdot(a, b, precision="highest")
