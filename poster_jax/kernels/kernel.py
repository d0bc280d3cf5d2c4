"""`Kernel`: what is known of an infinitely wide layer's outputs on two batches of inputs."""

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.kernels import _pairs

__all__ = ["Kernel"]

_ARRAYS = ("nngp", "ntk", "cov1", "cov2", "x1_is_x2", "mask1", "mask2")


@dataclasses.dataclass(frozen=True, eq=False)
class Kernel:
    """The covariances of an infinitely wide layer, and what they are covariances of.

    A pytree: `nngp`, `ntk`, `cov1`, `cov2`, `x1_is_x2`, `mask1` and `mask2` are its arrays, the
    other fields are static. Batch axes lead, every spatial axis stands twice side by side.

    Attributes:
      nngp: covariance of the first batch's outputs with the second's, `(n1, n2, h, h, w, w, ...)`,
        or `(n1, n2, h, w, ...)` when `diagonal_spatial`.
      ntk: the neural tangent kernel, shaped like `nngp`; None when it was not asked for, a scalar 0
        before the first layer with parameters.
      cov1: covariance of the first batch with itself; `(n1, h, h, ...)` when `diagonal_batch`, else
        `(n1, n1, h, h, ...)`.
      cov2: the same of the second batch; None when there is only one batch.
      x1_is_x2: whether the two batches are the same.
      is_gaussian: whether channels are independent Gaussians given the inputs, as after an affine
        layer with random weights; a nonlinearity needs it.
      is_reversed: whether the spatial axes stand in reverse order. No layer of this library hands
        out such a kernel; `reverse` makes and undoes it.
      is_input: whether these are the inputs themselves.
      diagonal_batch: whether `cov1` and `cov2` keep only an example with itself.
      diagonal_spatial: whether only equal positions are kept, in all covariances.
      shape1: the shape of the activations of the first batch at finite width.
      shape2: the same of the second.
      batch_axis: the examples' axis in these shapes.
      channel_axis: the channels' axis in these shapes.
      mask1: boolean, broadcastable to `shape1`, True where an entry does not exist; or None.
      mask2: the same of the second batch.

    Source: Novak et al. 2020 (arXiv 1912.02803), appendix.

    Example:
      >>> from poster_jax.kernels import stax
      >>> _, _, kernel_fn = stax.Dense(1)
      >>> k = kernel_fn(jnp.ones((3, 2)), None)
      >>> k.nngp.shape, k.is_gaussian, k.diagonal_batch
      ((3, 3), True, True)
    """

    nngp: Any
    ntk: Any
    cov1: Any
    cov2: Any
    x1_is_x2: Any
    is_gaussian: Any
    is_reversed: Any
    is_input: Any
    diagonal_batch: Any
    diagonal_spatial: Any
    shape1: Any
    shape2: Any
    batch_axis: Any
    channel_axis: Any
    mask1: Any = None
    mask2: Any = None

    def replace(self, **changes: Any) -> "Kernel":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def asdict(self) -> dict[str, Any]:
        """The fields by name; arrays are not copied."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(Kernel)}

    def astuple(self) -> tuple[Any, ...]:
        """The fields in order; arrays are not copied."""
        return tuple(self.asdict().values())

    @property
    def cov_ndim(self) -> int:
        """How many batch axes lead `cov1` and `cov2`: 1 when `diagonal_batch`, else 2."""
        return 1 if self.diagonal_batch else 2

    def map_covariances(self, fn: Any) -> "Kernel":
        """A copy with `fn(covariance, number of batch axes)` of all four; scalars and None pass."""

        def apply(x, batch_ndim):
            return x if x is None or jnp.ndim(x) == 0 else fn(x, batch_ndim)

        return self.replace(
            nngp=apply(self.nngp, 2),
            ntk=apply(self.ntk, 2),
            cov1=apply(self.cov1, self.cov_ndim),
            cov2=apply(self.cov2, self.cov_ndim),
        )

    def slice(self, n1_slice: Any, n2_slice: Any) -> "Kernel":
        """The kernel of some examples of the first batch with some of the second."""
        cov1 = self.cov1[n1_slice]
        cov2 = (self.cov1 if self.cov2 is None else self.cov2)[n2_slice]
        mask2 = self.mask1 if self.mask2 is None and self.cov2 is None else self.mask2

        def both(x):
            return x if x is None or jnp.ndim(x) == 0 else x[n1_slice, n2_slice]

        return self.replace(
            nngp=both(self.nngp),
            ntk=both(self.ntk),
            cov1=cov1,
            cov2=cov2,
            shape1=(cov1.shape[0], *self.shape1[1:]),
            shape2=(cov2.shape[0], *self.shape2[1:]),
            mask1=None if self.mask1 is None else self.mask1[n1_slice],
            mask2=None if mask2 is None else mask2[n2_slice],
        )

    def reverse(self) -> "Kernel":
        """The same kernel with its spatial axes in the opposite order."""
        turned = self if self.diagonal_spatial else self.map_covariances(_pairs.reversed_pairs)
        return turned.replace(is_reversed=not self.is_reversed)

    def transpose(self, axes: Sequence[int] | None = None) -> "Kernel":
        """The kernel with spatial axes permuted as `numpy.transpose` would; batch axes stay."""
        axes = tuple(range(len(self.shape1) - 2)) if axes is None else tuple(axes)
        if axes == tuple(range(len(axes))):
            return self

        def permute(x, batch_ndim):
            step = 1 if self.diagonal_spatial else 2
            spatial = (batch_ndim + step * a + i for a in axes for i in range(step))
            return jnp.transpose(x, (*range(batch_ndim), *spatial))

        return self.map_covariances(permute)

    def mask(self, mask1: Any, mask2: Any) -> "Kernel":
        """The kernel with zeros wherever one of the two entries is masked."""
        mask11, mask12, mask22 = self.mask_pairs(mask1, mask2)
        return self.replace(
            nngp=_pairs.masked(self.nngp, mask12),
            ntk=_pairs.masked(self.ntk, mask12),
            cov1=_pairs.masked(self.cov1, mask11),
            cov2=_pairs.masked(self.cov2, mask22),
            mask1=mask1,
            mask2=mask2,
        )

    def mask_pairs(self, mask1: Any, mask2: Any) -> tuple[Any, Any, Any]:
        """Which entries of `cov1`, `nngp` and `cov2` touch a masked entry; None if none do."""
        if mask1 is None and mask2 is None:
            return None, None, None
        m1 = self.position_mask(mask1)
        m2 = m1 if mask2 is None and self.cov2 is None else self.position_mask(mask2)
        end = 1 if self.diagonal_spatial else m1.ndim
        start = 1 if self.diagonal_batch else 0
        return (
            _pairs.outer(m1, m1, start, end, operator.or_),
            _pairs.outer(m1, m2, 0, end, operator.or_),
            _pairs.outer(m2, m2, start, end, operator.or_),
        )

    def position_mask(self, mask: Any) -> Any:
        """The mask as (batch, positions...): channels of infinite width share one."""
        if mask is None:
            return jnp.zeros((1,) * (len(self.shape1) - 1), bool)
        if mask.shape[self.channel_axis] != 1:
            raise NotImplementedError(
                "mask must be the same for all channels of an infinitely wide layer (size 1 along "
                f"axis {self.channel_axis}), got a mask of shape {mask.shape}."
            )
        mask = jnp.moveaxis(mask, (self.batch_axis, self.channel_axis), (0, -1))[..., 0]
        return jnp.transpose(mask, (0, *range(mask.ndim - 1, 0, -1))) if self.is_reversed else mask

    def dot_general(
        self, other1: Any, other2: Any, is_lhs: bool, dimension_numbers: Any
    ) -> "Kernel":
        """The covariances of `lax.dot_general` of the activations with constant arrays.

        Args:
          other1: factor of the first batch, or None.
          other2: factor of the second batch, or None.
          is_lhs: whether the factors stand on the left.
          dimension_numbers: as in `lax.dot_general`; not the channel axis.
        """
        if other1 is None and other2 is None:
            return self
        from poster_jax.kernels._contraction import contract  # it builds on Kernel

        return contract(
            self.reverse() if self.is_reversed else self, other1, other2, is_lhs, dimension_numbers
        )

    def __mul__(self, other: Any) -> "Kernel":
        return self.map_covariances(lambda x, _: other**2 * x)

    __rmul__ = __mul__

    def __add__(self, other: Any) -> "Kernel":
        return self.map_covariances(lambda x, _: other**2 + x).replace(ntk=self.ntk)

    __radd__ = __sub__ = __add__

    def __truediv__(self, other: Any) -> "Kernel":
        return self * (1.0 / other)

    def __neg__(self) -> "Kernel":
        return self

    __pos__ = __neg__

    def __getitem__(self, idx: Any) -> "Kernel":
        """The kernel of `activations[idx]`; channels stay whole and the batch axis stays."""
        ndim = len(self.shape1)
        index = _pairs.canonical_index(idx, ndim)
        if index[self.channel_axis] != slice(None):
            raise NotImplementedError(
                f"idx must leave the (infinite) channel axis {self.channel_axis} whole, got "
                f"{index[self.channel_axis]}."
            )
        batch = index[self.batch_axis]
        if isinstance(batch, int):
            raise NotImplementedError(
                f"idx must keep the batch axis {self.batch_axis}, got the integer {batch}, which "
                "removes it: use a slice or a tuple."
            )
        spatial = [index[i] for i in range(ndim) if i not in (self.batch_axis, self.channel_axis)]
        spatial = spatial[::-1] if self.is_reversed else spatial
        pairs = tuple(s for s in spatial for _ in range(1 if self.diagonal_spatial else 2))
        removed = [i for i, entry in enumerate(index) if isinstance(entry, int)]
        taken = self.map_covariances(lambda x, batch_ndim: x[(batch,) * batch_ndim + pairs])
        return taken.replace(
            channel_axis=self.channel_axis - sum(i < self.channel_axis for i in removed),
            batch_axis=self.batch_axis - sum(i < self.batch_axis for i in removed),
            shape1=_pairs.sliced_shape(self.shape1, idx),
            shape2=_pairs.sliced_shape(self.shape2, idx),
            mask1=None if self.mask1 is None else self.mask1[idx],
            mask2=None if self.mask2 is None else self.mask2[idx],
        )


jax.tree_util.register_dataclass(
    Kernel,
    data_fields=_ARRAYS,
    meta_fields=[f.name for f in dataclasses.fields(Kernel) if f.name not in _ARRAYS],
)
