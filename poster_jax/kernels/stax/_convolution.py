"""What all convolutions share: finite outputs, kernels, shapes and masks.

k becomes W_std^2 A k + b_std^2 and t becomes W_std^2 A t + k_new, with A the mean over the filter's
taps of equal shifts of both positions (`windows`).
"""

import math
import string
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from poster_jax.core.checks import check_choice, check_count
from poster_jax.kernels import _pairs
from poster_jax.kernels.stax._gap import through_shifts
from poster_jax.kernels.stax.dense import affine, affine_gap
from poster_jax.kernels.stax.requirements import Bool, Diagonal, requires
from poster_jax.kernels.stax.windows import (
    Padding,
    check_padding,
    mean_of_equal_shifts,
    transposed_windows,
    windows,
)

__all__ = ["Convolution"]


class Convolution:
    """The settings of one convolution, in the orders of `lax` and of kernels."""

    def __init__(
        self, out_chan, filter_shape, strides, padding, W_std, b_std, dimension_numbers,
        parameterization, s, *, transpose=False, shared=True, groups=1,
    ):  # fmt: skip
        self.parameterization = parameterization.lower()
        check_choice("parameterization", self.parameterization, ("ntk", "standard"))
        self.standard = self.parameterization == "standard"
        self.padding = check_padding(padding)
        self.filter_shape = tuple(filter_shape)
        self.strides = tuple(strides) if strides else (1,) * len(self.filter_shape)
        self.dimension_numbers = dimension_numbers or _channels_last(len(self.filter_shape))
        self.lhs, self.rhs, self.out = self.dimension_numbers
        self.batch_axis, self.channel_axis = self.lhs.index("N"), self.lhs.index("C")
        # The original scales every layer's width by s[1] but that of ConvLocal: keep its figures.
        self.out_chan = out_chan * s[1] if self.standard and shared else out_chan
        self.W_std, self.b_std, self.s = W_std, b_std, s
        self.transpose, self.shared, self.groups = transpose, shared, groups
        check_count("groups", groups)
        if self.out_chan % groups:
            raise ValueError(
                f"out_chan must be a multiple of groups={groups}, got {self.out_chan}."
            )

    def layer(self) -> Any:
        """`(init_fn, apply_fn, kernel_fn, mask_fn)`."""
        requirement = requires(
            batch_axis=self.batch_axis,
            channel_axis=self.channel_axis,
            diagonal_spatial=Diagonal(output=Bool.NO if self.shared else Bool.MAYBE),
        )

        def init_fn(rng, input_shape):
            return self.init(rng, input_shape)

        def apply_fn(params, inputs, **kwargs):
            return self.apply(params, inputs)

        def kernel_fn(k, **kwargs):
            return self.kernel(k)

        return init_fn, apply_fn, requirement(kernel_fn), self.mask

    # The finite layer.

    def init(self, rng, input_shape):
        """Standard normal weights, scaled only in the standard parameterisation."""
        spatial = dict(zip(self._spatial(self.lhs), self._windows(input_shape), strict=True))
        num_in = self._num_in(input_shape)
        sizes = {"N": input_shape[self.batch_axis], "C": self.out_chan}
        output_shape = tuple(sizes[c] if c in sizes else spatial[c].out for c in self.out)
        taps = iter(self.filter_shape)
        W_shape = [{"O": self.out_chan, "I": num_in}.get(c) or next(taps) for c in self.rhs]
        b_shape = [self.out_chan if c == "C" else 1 for c in self.out]
        if not self.shared:
            per_position = num_in * math.prod(self.filter_shape)
            channels = {"O": self.out_chan, "I": per_position}
            W_shape = [channels[c] if c in channels else spatial[c].out for c in self.rhs]
            b_shape = [1 if c == "N" else n for c, n in zip(self.out, output_shape, strict=True)]
        rng_w, rng_b = jax.random.split(rng)
        W = jax.random.normal(rng_w, W_shape)
        b = None if self.b_std is None else jax.random.normal(rng_b, b_shape)
        if self.standard:
            W = W * (self.W_std / (self._fan_in(input_shape) / self.s[0]) ** 0.5)
            b = None if b is None or self.b_std is None else b * self.b_std
        return output_shape, (W, b)

    def apply(self, params, inputs):
        """The outputs, scaled as the parameterisation says."""
        W, b = params
        outputs = self._convolve(inputs, W)
        if self.standard:
            outputs = outputs / self.s[0] ** 0.5
            return outputs if b is None else outputs + b
        outputs = self.W_std / self._fan_in(inputs.shape) ** 0.5 * outputs
        return outputs if b is None else outputs + self.b_std * b

    def _convolve(self, inputs, W):
        circular = self.padding is Padding.CIRCULAR
        padding = "VALID" if circular else self.padding.name
        numbers = {"dimension_numbers": self.dimension_numbers}
        if self.transpose:
            outputs = lax.conv_transpose(inputs, W, self.strides, padding, **numbers)
            return self._fold(outputs, inputs.shape) if circular else outputs
        if circular:
            inputs = self._wrap(inputs)
        if self.shared:
            return lax.conv_general_dilated(
                inputs, W, self.strides, padding, feature_group_count=self.groups, **numbers
            )
        return lax.conv_general_dilated_local(
            inputs, W, self.strides, padding, filter_shape=self.filter_shape, **numbers
        )

    def _wrap(self, inputs):
        pads = [(0, 0)] * inputs.ndim
        for c, w in zip(self._spatial(self.lhs), self._windows(inputs.shape), strict=True):
            needed = (w.out - 1) * w.stride + w.taps - w.size
            pads[self.lhs.index(c)] = (-w.offset, max(needed + w.offset, 0))
        return jnp.pad(inputs, pads, mode="wrap")

    def _fold(self, outputs, input_shape):
        """Sums what lies a period apart: the full output of length L + 2c onto its middle L."""
        for c, w in zip(self._spatial(self.lhs), self._windows(input_shape), strict=True):
            axis = self.out.index(c)
            before = w.offset + w.taps - 1
            after = -(outputs.shape[axis] - before) % w.out
            pads = [(0, 0)] * outputs.ndim
            pads[axis] = (-before % w.out, after)
            padded = jnp.pad(outputs, pads)
            shape = padded.shape
            folded = padded.reshape(*shape[:axis], -1, w.out, *shape[axis + 1 :])
            outputs = jnp.sum(folded, axis)
        return outputs

    # The infinite layer.

    def kernel(self, k):
        """The kernel of the outputs."""
        mixed = self._mixed(k)
        ntk = None if k.ntk is None else self.W_std**2 * self._mean_of_shifts(k, k.ntk, 2)
        if ntk is not None and self.standard:
            ntk = ntk + self._fan_in(k.shape1) / self.s[0] * mixed.nngp
            ntk = ntk if self.b_std is None else self._add_bias(k, ntk, 1.0, 2)
        nngp = self._affine(k, mixed.nngp, 2)
        if ntk is not None and not self.standard:
            ntk = ntk + nngp
        k = k.replace(
            nngp=nngp,
            ntk=ntk,
            cov1=self._affine(k, mixed.cov1, k.cov_ndim),
            cov2=self._affine(k, mixed.cov2, k.cov_ndim),
            gap=affine_gap(mixed, self.W_std, self.b_std),
            nonnegative=k.nonnegative,
            own1=affine(mixed.own1, self.W_std, self.b_std),
            own2=affine(mixed.own2, self.W_std, self.b_std),
            is_gaussian=self.groups == 1 or not k.few_channels,
            is_input=False,
            few_channels=False,
            batch_axis=self.out.index("N"),
            channel_axis=self.out.index("C"),
        )
        order = self._spatial(self.lhs)
        return k.transpose([order.index(c) for c in self._spatial(self.out)])

    def _mixed(self, k):
        """The kernel with every covariance averaged over the filter's taps."""
        cov1, cov2 = (self._mean_of_shifts(k, x, k.cov_ndim) for x in (k.cov1, k.cov2))
        if k.gap is None or not (self.shared or k.diagonal_spatial):
            nngp, gap = self._mean_of_shifts(k, k.nngp, 2), None
        else:
            nngp, gap = through_shifts(k, self._windows(k.shape1))
        return k.replace(
            nngp=nngp, cov1=cov1, cov2=cov2, gap=gap, nonnegative=k.nonnegative,
            **self._own_variances(k),
        )  # fmt: skip

    def _own_variances(self, k):
        """Those that `k` carries apart: equal shifts take equal positions to equal positions."""
        if k.own1 is None or not self.shared:
            return {}
        kernel_windows = self._windows(k.shape1)
        own1, own2 = (
            None if v is None else mean_of_equal_shifts(v, kernel_windows, 1, diagonal_spatial=True)
            for v in (k.own1, k.own2)
        )
        return {"own1": own1, "own2": own2}

    def _mean_of_shifts(self, k, x, batch_ndim):
        if x is None or x.ndim == 0:
            return x
        kernel_windows = self._windows(k.shape1)
        if self.shared or k.diagonal_spatial:
            return mean_of_equal_shifts(
                x, kernel_windows, batch_ndim, diagonal_spatial=k.diagonal_spatial
            )
        own = mean_of_equal_shifts(
            _pairs.diagonal(x, batch_ndim), kernel_windows, batch_ndim, diagonal_spatial=True
        )
        return _on_diagonal(own, batch_ndim)

    def _affine(self, k, x, batch_ndim):
        if x is None:
            return None
        x = self.W_std**2 * x
        return x if self.b_std is None else self._add_bias(k, x, self.b_std**2, batch_ndim)

    def _add_bias(self, k, x, variance, batch_ndim):
        if self.shared or k.diagonal_spatial:
            return x + variance
        ones = jnp.ones((1,) * batch_ndim + x.shape[batch_ndim::2], x.dtype)
        return x + variance * _on_diagonal(ones, batch_ndim)

    # Shapes and masks.

    def mask(self, mask, input_shape):
        """An output does not exist where the input under the middle of its filter does not."""
        mask = jnp.all(mask, axis=self.channel_axis, keepdims=True)
        same = Padding.SAME if self.padding is Padding.CIRCULAR else self.padding
        for c, w in zip(self._spatial(self.lhs), self._windows(input_shape, same), strict=True):
            axis = self.lhs.index(c)
            if mask.shape[axis] == 1:
                continue
            if self.transpose:  # any input that the output reads
                reads = jnp.asarray(w.incidence, jnp.float32)
                mask = (
                    jnp.moveaxis(jnp.tensordot(reads, mask.astype(reads.dtype), (1, axis)), 0, axis)
                    > 0
                )
            else:
                mask = jnp.take(mask, w.centres, axis)
        return jnp.transpose(mask, [self.lhs.index(c) for c in self.out])

    def _windows(self, input_shape, padding=None):
        """In the order in which the input has its spatial axes."""
        name = "Conv" if self.shared else "ConvLocal"
        name = "ConvTranspose" if self.transpose else name
        if len(input_shape) != len(self.lhs):
            raise ValueError(
                f"the input of {name} with filter_shape={self.filter_shape} must have "
                f"{len(self.filter_shape)} spatial axes beside batch and channels, got the shape "
                f"{tuple(input_shape)}."
            )
        order = self._spatial(self.rhs)
        letters = self._spatial(self.lhs)
        make = transposed_windows if self.transpose else windows
        return make(
            [input_shape[self.lhs.index(c)] for c in letters],
            [self.filter_shape[order.index(c)] for c in letters],
            [self.strides[order.index(c)] for c in letters],
            padding or self.padding,
            f"filter_shape of {name}",
        )

    def _fan_in(self, input_shape):
        return self._num_in(input_shape) * math.prod(self.filter_shape)

    def _num_in(self, input_shape):
        """Channels that one output sees."""
        num_in = input_shape[self.channel_axis]
        if num_in % self.groups:
            raise ValueError(
                f"groups={self.groups} must divide the channels of the input, got {num_in}."
            )
        return num_in // self.groups

    @staticmethod
    def _spatial(spec):
        return [c for c in spec if c not in "NCIO"]


def _channels_last(num_axes: int) -> tuple[str, str, str]:
    spatial = "".join(c for c in string.ascii_uppercase if c not in "NCIO")[:num_axes]
    return f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"


def _on_diagonal(x: Any, batch_ndim: int) -> Any:
    """(..., h, w) as (..., h, h, w, w) with zeros between different positions."""
    end = x.ndim
    equal = np.ones(())
    for size in x.shape[batch_ndim:]:
        equal = np.multiply.outer(equal, np.eye(size))
    return _pairs.rows(x, batch_ndim, end) * jnp.asarray(equal, x.dtype)
