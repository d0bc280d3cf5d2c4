"""What does a kernel learn easily, and what will it learn from n examples?

The eigenvectors of a kernel on given inputs are the functions that it learns, the eigenvalues say
how fast: under gradient flow the part of the targets along v_i decays as exp(-lr l_i t / N). So
three things about a kernel are worth knowing beside its entries: how many directions it has to
speak of, whether the targets lie along the first of them, and which error that makes at n examples.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_finite, check_positive
from poster_jax.core.linalg import eigh
from poster_jax.core.precision import full_precision

__all__ = [
    "KernelSpectrum",
    "effective_dimension",
    "kernel_spectrum",
    "label_alignment",
    "learned_share",
    "predicted_learning_curve",
]

_BISECTIONS = 60  # halves of a logarithm: each end of float32's range is reached to rounding


class KernelSpectrum(NamedTuple):
    """Eigenvalues of a kernel matrix with their functions on the inputs.

    Attributes:
      values: (n,), from the largest; those that rounding made negative are zero.
      vectors: (n, n), the columns belong to the values.
    """

    values: Any
    vectors: Any


@full_precision
def kernel_spectrum(kernel: Any) -> KernelSpectrum:
    """All eigenvalues of a kernel, the largest first.

    Args:
      kernel: (n, n), symmetric, of inputs with themselves.

    Returns:
      KernelSpectrum, of the kernel's precision.

    Raises:
      ValueError: the kernel is no square matrix, or not finite.

    Source: LAPACK syevd.

    Example:
      >>> kernel_spectrum(jnp.array([[1.0, 0.0], [0.0, 3.0]])).values.tolist()
      [3.0, 1.0]
    """
    kernel = _square(kernel)
    values, vectors = eigh((kernel + kernel.T) / 2)
    return KernelSpectrum(jnp.maximum(values[::-1], 0), vectors[:, ::-1])


def effective_dimension(values: Any, ridge: Any) -> Any:
    """How many directions stand above a ridge: `sum l / (l + ridge)`.

    The trace of the matrix that makes predictions of targets in kernel regression with `ridge`
    added to the diagonal: its degrees of freedom.

    Args:
      values: (n,), eigenvalues.
      ridge: positive, in units of the eigenvalues.

    Returns:
      A scalar between 0 and n.

    Raises:
      ValueError: the ridge is not positive.

    Source: Zhang 2005, "Learning bounds for kernel regression using effective data dimensionality".

    Example:
      >>> float(effective_dimension(jnp.array([1.0, 1.0, 0.0]), 1.0))
      1.0
    """
    check_positive("ridge", ridge)
    values = jnp.asarray(values)
    return jnp.sum(values / (values + ridge))


@full_precision
def label_alignment(kernel: Any, targets: Any) -> Any:
    """The cosine between the centred kernel and that of the targets, `<HKH, YY^T> / (|.| |.|)`.

    1 when the kernel knows nothing but the classes, 0 when it does not know them at all.

    Args:
      kernel: (n, n), of inputs with themselves.
      targets: (n,) or (n, outputs), such as one-hot labels; centred here, with the kernel.

    Returns:
      A scalar between 0 and 1; NaN where a kernel is constant.

    Raises:
      ValueError: shapes that do not fit, a kernel that is not finite.

    Source: Cortes, Mohri and Rostamizadeh 2012 (arXiv 1203.0550), definition 4.

    Example:
      >>> y = jnp.array([1.0, -1.0, 1.0, -1.0])
      >>> round(float(label_alignment(jnp.outer(y, y) + 5, y)), 6)
      1.0
    """
    kernel = _square(kernel)
    targets = _columns(targets, len(kernel))
    targets = targets - targets.mean(0)
    kernel = kernel - kernel.mean(0) - kernel.mean(1, keepdims=True) + kernel.mean()
    inner = jnp.sum(targets * (kernel @ targets))
    return inner / (jnp.linalg.norm(kernel) * jnp.linalg.norm(targets.T @ targets))


@full_precision
def learned_share(spectrum: KernelSpectrum, targets: Any) -> Any:
    """Which share of the targets' squares lies along the first k directions, for every k.

    Args:
      spectrum: of the kernel on the same inputs.
      targets: (n,) or (n, outputs), used as they are.

    Returns:
      (n,), rising to 1.

    Raises:
      ValueError: shapes that do not fit.

    Source: Canatar, Bordelon and Pehlevan 2021 (arXiv 2006.13198), the cumulative power C(k).

    Example:
      >>> spectrum = kernel_spectrum(jnp.diag(jnp.array([2.0, 1.0])))
      >>> learned_share(spectrum, jnp.array([1.0, 1.0])).tolist()
      [0.5, 1.0]
    """
    power = _power(spectrum, targets)
    return jnp.cumsum(power) / jnp.sum(power)


def predicted_learning_curve(
    spectrum: KernelSpectrum, targets: Any, num_train: Any, *, ridge: Any
) -> Any:
    """The mean squared error of kernel regression on n examples, from the spectrum alone.

    The inputs of the spectrum stand for the distribution: n of them are drawn with replacement, and
    the error is that on all of them. With l_i the eigenvalues divided by the number of inputs and
    a_i^2 the targets' mean square along v_i, k solves `k = ridge + sum_i k l_i / (k + n l_i)`; with
    `g = sum_i n l_i^2 / (k + n l_i)^2` the error is `sum_i a_i^2 k^2 / (k + n l_i)^2 / (1 - g)`.

    Args:
      spectrum: of the kernel.
      targets: (inputs,) or (inputs, outputs).
      num_train: n, a number or an array of them.
      ridge: what the regression adds to its diagonal, in the kernel's units; positive.

    Returns:
      Shaped like `num_train`: the error summed over outputs, averaged over inputs.

    Raises:
      ValueError: shapes that do not fit, a ridge that is not positive.

    Caution:
      Exact to order 1/n for Gaussian features; good for inputs of many dimensions. Inputs of few
      dimensions, or with far outliers, can be off by tens of percent.

    Source: Bordelon, Canatar and Pehlevan 2020 (arXiv 2002.02561); Canatar et al. 2021 (arXiv
      2006.13198), equation 4, without noise.

    Example:
      >>> spectrum = kernel_spectrum(jnp.eye(2))
      >>> y = jnp.array([1.0, 1.0])
      >>> curve = predicted_learning_curve(spectrum, y, jnp.array([0, 1, 100]), ridge=1e-3)
      >>> bool(curve[0] == 1), bool(curve[1] > curve[2])
      (True, True)
    """
    check_positive("ridge", ridge)
    power = _power(spectrum, targets)
    size = len(power)
    values, power = spectrum.values / size, power / size

    def error(n: Any) -> Any:
        k = _effective_ridge(values, n, ridge)
        left = k / (k + n * values)
        noise = jnp.sum(n * values**2 / (k + n * values) ** 2)
        return jnp.sum(power * left**2) / (1 - noise)

    num_train = jnp.asarray(num_train, values.dtype)
    return jax.vmap(error)(num_train.reshape(-1)).reshape(num_train.shape)


def _effective_ridge(values: Any, n: Any, ridge: Any) -> Any:
    """The root k of `ridge / k + sum_i l_i / (k + n l_i) = 1`, whose left side falls in k."""

    def halve(_: Any, ends: Any) -> Any:
        low, high = ends
        middle = (low + high) / 2
        k = jnp.exp(middle)
        below = ridge / k + jnp.sum(values / (k + n * values)) > 1
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    start = jnp.log(jnp.asarray(ridge, values.dtype)), jnp.log(ridge + jnp.sum(values))
    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, start)
    return jnp.exp((low + high) / 2)


def _power(spectrum: KernelSpectrum, targets: Any) -> Any:
    """(n,): squares of the targets along each direction, summed over outputs."""
    targets = _columns(targets, len(spectrum.values))
    return jnp.sum((spectrum.vectors.T @ targets) ** 2, axis=1)


def _square(kernel: Any) -> Any:
    if len(jnp.shape(kernel)) != 2 or jnp.shape(kernel)[0] != jnp.shape(kernel)[1]:
        raise ValueError(f"kernel must be (n, n), got the shape {jnp.shape(kernel)}.")
    check_finite("kernel", kernel)
    return jnp.asarray(kernel)


def _columns(targets: Any, size: int) -> Any:
    targets = jnp.asarray(targets)
    if targets.ndim not in (1, 2) or len(targets) != size:
        raise ValueError(
            f"targets must be ({size},) or ({size}, outputs), one row an input, got the shape "
            f"{targets.shape}."
        )
    return targets.reshape(size, -1)
