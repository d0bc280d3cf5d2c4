"""`GlobalSelfAttention`.

With linear scaling (dot products divided by the width, Q = K) attention weights become constants:
with C the covariance of one input's positions (plus positional embeddings) and
G = mechanism(W_q W_k C), rows normalised by softmax,

    k <- (W_o W_v)^2 G1 k G2^T + b^2,      t <- (W_o W_v)^2 G1 t G2^T + b^2 + 2 (k_new - b^2).

With square-root scaling weights stay random; for the identity mechanism moments are closed:
with <x, y> summed over all pairs of positions and s = W_q W_k W_o W_v,

    k <- s^2 <k, k> k + b^2,               t <- s^2 (2 <k, t> k + <k, k> (t + 4 k)) + b^2.

The b^2 in the NTK besides the one of k_new is the original's convention, kept.

Source: Hron et al. 2020, "Infinite attention" (arXiv 2006.10540).
"""

import enum
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_choice
from poster_jax.kernels import _pairs
from poster_jax.kernels.kernel import Kernel
from poster_jax.kernels.stax._dependent_gap import among_equal
from poster_jax.kernels.stax.dense import affine
from poster_jax.kernels.stax.layer import layer
from poster_jax.kernels.stax.masking import supports_masking
from poster_jax.kernels.stax.requirements import Bool, Diagonal, requires

__all__ = ["AttentionMechanism", "GlobalSelfAttention", "PositionalEmbedding"]

# A weight of -inf everywhere would make softmax NaN where a whole row is masked.
_NEVER = -1e20


class PositionalEmbedding(enum.Enum):
    """How positional embeddings join the activations: not, added, or as further channels."""

    NONE = "NONE"
    SUM = "SUM"
    CONCAT = "CONCAT"


class AttentionMechanism(enum.Enum):
    """What is done to the dot products of queries and keys."""

    SOFTMAX = "SOFTMAX"
    IDENTITY = "IDENTITY"
    ABS = "ABS"
    RELU = "RELU"

    def fn(self) -> Callable[..., Any]:
        """The function; softmax takes `axis`, the others act on every entry."""
        return {
            "SOFTMAX": lambda x, axis=-1: jax.nn.softmax(x, axis),
            "IDENTITY": lambda x, axis=None: x,
            "ABS": lambda x, axis=None: jnp.abs(x),
            "RELU": lambda x, axis=None: jnp.maximum(x, 0),
        }[self.name]


@layer
@supports_masking(remask_kernel=True)
def GlobalSelfAttention(  # noqa: N802
    n_chan_out: int,
    n_chan_key: int,
    n_chan_val: int,
    n_heads: int,
    linear_scaling: bool = True,
    W_key_std: Any = 1.0,
    W_value_std: Any = 1.0,
    W_query_std: Any = 1.0,
    W_out_std: Any = 1.0,
    b_std: Any = None,
    attention_mechanism: Any = "SOFTMAX",
    pos_emb_type: Any = "NONE",
    pos_emb_p_norm: Any = 2,
    pos_emb_decay_fn: Callable[[Any], Any] | None = None,
    n_chan_pos_emb: int | None = None,
    W_pos_emb_std: Any = 1.0,
    val_pos_emb: bool = False,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Any:
    """Every position attends to all positions, by many heads.

    Args:
      n_chan_out: channels of the output.
      n_chan_key: channels of keys and queries.
      n_chan_val: channels of values.
      n_heads: heads.
      linear_scaling: divide dot products by `n_chan_key` and tie queries to keys; False: divide by
        its square root (a kernel then exists for "IDENTITY" only).
      W_key_std: of the keys; only its product with `W_query_std` matters.
      W_value_std: of the values; only its product with `W_out_std` matters.
      W_query_std: of the queries.
      W_out_std: of the output weights.
      b_std: of the biases; None: no bias.
      attention_mechanism: "SOFTMAX", "IDENTITY", "ABS" or "RELU".
      pos_emb_type: "NONE", "SUM" or "CONCAT".
      pos_emb_p_norm: p of the distance sum_axis |i - j|^p between positions.
      pos_emb_decay_fn: embedding covariance as a function of it; None: 1 where equal, else 0.
      n_chan_pos_emb: channels of the embeddings; None: as many as the input's.
      W_pos_emb_std: of the embeddings.
      val_pos_emb: whether values see them too.
      batch_axis: the examples' axis.
      channel_axis: the channels' axis.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`.

    Raises:
      NotImplementedError: (`kernel_fn`) square-root scaling with another mechanism than "IDENTITY".
      ValueError: another name of a mechanism or embedding.

    Example:
      >>> init_fn, _, _ = GlobalSelfAttention(8, 4, 4, 2, linear_scaling=False)
      >>> init_fn(jax.random.key(0), (-1, 10, 3))[0]
      (-1, 10, 8)
    """
    embedding = _member("pos_emb_type", pos_emb_type, PositionalEmbedding)
    mechanism = _member("attention_mechanism", attention_mechanism, AttentionMechanism)
    qk_std, ov_std = W_query_std * W_key_std, W_out_std * W_value_std
    position_covariance = functools.partial(
        _position_covariance, p=pos_emb_p_norm, decay_fn=pos_emb_decay_fn
    )

    def init_fn(rng, input_shape):
        ndim = len(input_shape)
        axis = channel_axis % ndim
        rng_q, rng_k, rng_v, rng_o, rng_b, rng_e = jax.random.split(rng, 6)
        num_in = input_shape[axis]
        num_emb = num_in if n_chan_pos_emb is None else n_chan_pos_emb
        pos_emb = None
        num_keys = num_vals = num_in
        if embedding is not PositionalEmbedding.NONE:
            sizes = {axis: num_emb, batch_axis % ndim: 1}
            pos_emb = jax.random.normal(rng_e, [sizes.get(i, n) for i, n in enumerate(input_shape)])
        if embedding is PositionalEmbedding.CONCAT:
            num_keys += num_emb
            num_vals += num_emb if val_pos_emb else 0
        keys = jax.random.normal(rng_k, (n_heads, num_keys, n_chan_key))
        values = jax.random.normal(rng_v, (n_heads, num_vals, n_chan_val))
        out = jax.random.normal(rng_o, (n_chan_val * n_heads, n_chan_out))
        b_shape = [n_chan_out if i == axis else 1 for i in range(ndim)]
        b = None if b_std is None else jax.random.normal(rng_b, b_shape)
        if linear_scaling:
            queries = None
        else:
            queries = jax.random.normal(rng_q, (n_heads, num_keys, n_chan_key))
        shape = (*input_shape[:axis], n_chan_out, *input_shape[axis + 1 :])
        return shape, (queries, keys, values, out, b, pos_emb)

    def apply_fn(params, inputs, mask=None, **kwargs):
        query_matrices, key_matrices, value_matrices, W_out, b, pos_emb = params
        ndim = inputs.ndim

        def rows(x):
            """(batch, positions, channels)."""
            x = jnp.moveaxis(x, (batch_axis, channel_axis), (0, -1))
            return x.reshape(x.shape[0], -1, x.shape[-1])

        shape = [
            n
            for i, n in enumerate(inputs.shape)
            if i not in (batch_axis % ndim, channel_axis % ndim)
        ]
        x = seen = rows(inputs)
        if pos_emb is not None:
            emb = rows(pos_emb)
            if pos_emb_decay_fn is not None:
                root = jnp.linalg.cholesky(_as_matrix(position_covariance(shape)))
                emb = jnp.einsum("pq,nqc->npc", root, emb)
            emb = W_pos_emb_std * jnp.broadcast_to(emb, (x.shape[0], *emb.shape[1:]))
            if mask is not None:
                emb = jnp.where(rows(jnp.all(mask, channel_axis, keepdims=True)), 0, emb)
            added = embedding is PositionalEmbedding.SUM
            x = x + emb if added else jnp.concatenate([x, emb], -1)
            seen = x if val_pos_emb else seen

        keys = jnp.einsum("npc,hck->hnpk", x, key_matrices)
        queries = keys if linear_scaling else jnp.einsum("npc,hck->hnpk", x, query_matrices)
        norm = x.shape[-1] * n_chan_key ** (1 if linear_scaling else 0.5)
        weights = qk_std / norm * jnp.einsum("hnpk,hnqk->hnpq", queries, keys)
        if mask is not None:
            masked = rows(jnp.all(mask, channel_axis, keepdims=True))[None, :, None, :, 0]
            never = _NEVER if mechanism is AttentionMechanism.SOFTMAX else 0
            weights = jnp.where(masked, never, weights)
        weights = mechanism.fn()(weights)
        values = jnp.einsum("npc,hcv->hnpv", seen, value_matrices)
        heads = jnp.einsum("hnpq,hnqv->npvh", weights, values)
        outputs = heads.reshape(*heads.shape[:2], -1) @ W_out
        outputs = outputs * ov_std / (n_chan_val * n_heads * seen.shape[-1]) ** 0.5
        outputs = outputs.reshape(inputs.shape[batch_axis], *shape, n_chan_out)
        outputs = jnp.moveaxis(outputs, (0, -1), (batch_axis, channel_axis))
        return outputs if b is None else outputs + b_std * b

    @requires(
        batch_axis=batch_axis, channel_axis=channel_axis, diagonal_spatial=Diagonal(input=Bool.NO)
    )
    def kernel_fn(k, **kwargs):
        num_in = k.shape1[channel_axis]
        num_emb = num_in if n_chan_pos_emb is None else n_chan_pos_emb
        total = num_in + num_emb
        shares = (
            (num_in / total, num_emb / total) if embedding is PositionalEmbedding.CONCAT else (1, 1)
        )

        with_positions = k
        if embedding is not PositionalEmbedding.NONE:
            shape = [n for i, n in enumerate(k.shape1) if i not in (k.batch_axis, k.channel_axis)]
            covariance = position_covariance(shape)
            with_positions = _with_positions(k, covariance, shares[0], shares[1] * W_pos_emb_std**2)
        if linear_scaling:
            new = _linear_attention(
                k, with_positions, mechanism, qk_std, ov_std, b_std, val_pos_emb
            )
        elif mechanism is AttentionMechanism.IDENTITY:
            new = _identity_attention(k, with_positions, qk_std * ov_std, b_std, val_pos_emb)
        else:
            raise NotImplementedError(
                "attention_mechanism must be 'IDENTITY' with linear_scaling=False for a kernel: "
                f"the integral of {mechanism.name} has no closed form."
            )
        out = k.replace(**new, is_gaussian=True, few_channels=False)
        known = all(getattr(k, name, None) is not None for name in ("ntk", "gap", "equal"))
        return out.replace(gap=among_equal(k, out)) if known else out

    def mask_fn(mask, input_shape):
        return jnp.all(mask, channel_axis, keepdims=True)

    return init_fn, apply_fn, kernel_fn, mask_fn


def _linear_attention(
    k: Kernel, with_positions: Kernel, mechanism: AttentionMechanism,
    qk_std: Any, ov_std: Any, b_std: Any, val_pos_emb: bool,
) -> dict[str, Any]:  # fmt: skip
    weights1 = _weights(k, with_positions.cov1, k.mask1, mechanism, qk_std)
    if k.cov2 is None:
        weights2 = weights1
    else:
        weights2 = _weights(k, with_positions.cov2, k.mask2, mechanism, qk_std)
    source = with_positions if val_pos_emb else k

    def attend(x, left, right):
        if x is not None and x.ndim:
            x = _both_sides(left, x, right)
        return affine(x, ov_std, b_std)

    nngp = attend(source.nngp, weights1, weights2)
    ntk = attend(source.ntk, weights1, weights2)
    return {
        "nngp": nngp,
        "ntk": None if ntk is None else ntk + 2 * (nngp if b_std is None else nngp - b_std**2),
        "cov1": attend(source.cov1, weights1, weights1),
        "cov2": None if k.cov2 is None else attend(source.cov2, weights2, weights2),
    }


def _weights(k: Kernel, cov: Any, mask: Any, mechanism: AttentionMechanism, qk_std: Any) -> Any:
    """(n, h, h', w, w'): how much (h, w) attends to (h', w')."""
    if not k.diagonal_batch:
        cov = jnp.moveaxis(jnp.diagonal(cov), -1, 0)
    logits = qk_std * cov
    if mask is not None:
        mask = k.position_mask(jnp.all(mask, axis=k.channel_axis, keepdims=True))
        hidden = _pairs.columns(mask, 1, mask.ndim)
        never = _NEVER if mechanism is AttentionMechanism.SOFTMAX else 0
        logits = jnp.where(hidden, never, logits)
    return mechanism.fn()(logits, axis=tuple(range(2, logits.ndim, 2)))


def _both_sides(left: Any, x: Any, right: Any) -> Any:
    """sum over (a', b') of left[a, a'] x[a', b'] right[b, b'], a and b being positions."""
    num = (left.ndim - 1) // 2
    batch_ndim = x.ndim - 2 * num
    batch = [0, 1] if batch_ndim == 2 else [0]
    a, b, a2, b2 = (range(2 + i * num, 2 + (i + 1) * num) for i in range(4))

    def pairs(first, second):
        return [i for pair in zip(first, second, strict=True) for i in pair]

    return jnp.einsum(
        left, [0, *pairs(a, a2)], x, batch + pairs(a2, b2), right, [batch[-1], *pairs(b, b2)],
        batch + pairs(a, b), optimize=True,
    )  # fmt: skip


def _identity_attention(
    k: Kernel, with_positions: Kernel, std: Any, b_std: Any, val_pos_emb: bool
) -> dict[str, Any]:
    values = with_positions if val_pos_emb else k

    def inner(x, y, batch_ndim):
        return jnp.sum(x * y, tuple(range(batch_ndim, x.ndim)), keepdims=True)

    def attend(name, batch_ndim):
        x = getattr(with_positions, name)
        if x is None:
            return None
        return affine(inner(x, getattr(values, name), batch_ndim) * x, std, b_std)

    ntk = None
    if k.ntk is not None:
        nngp, t = with_positions.nngp, with_positions.ntk
        both = inner(nngp, values.ntk, 2) + inner(values.nngp, t, 2)
        ntk = affine(both * nngp + inner(nngp, values.nngp, 2) * (t + 4 * nngp), std, b_std)
    return {
        "nngp": attend("nngp", 2),
        "ntk": ntk,
        "cov1": attend("cov1", k.cov_ndim),
        "cov2": attend("cov2", k.cov_ndim),
    }


def _with_positions(k: Kernel, covariance: Any, input_weight: Any, position_weight: Any) -> Kernel:
    """The kernel of activations that carry positional embeddings."""
    masks = k.mask_pairs(k.mask1, k.mask2)

    def join(x, batch_ndim, mask):
        if x is None:
            return None
        shared = _pairs.masked(covariance.astype(x.dtype)[(None,) * batch_ndim], mask)
        return input_weight * x + position_weight * shared

    return k.replace(
        nngp=join(k.nngp, 2, masks[1]),
        ntk=join(k.ntk, 2, masks[1]),
        cov1=join(k.cov1, k.cov_ndim, masks[0]),
        cov2=join(k.cov2, k.cov_ndim, masks[2]),
    )


def _position_covariance(shape: Any, *, p: Any, decay_fn: Any) -> Any:
    """(h, h, w, w): the covariance of the embeddings of two positions."""
    ndim = len(shape)
    distance = jnp.zeros(())
    for i, size in enumerate(shape):
        steps = jnp.arange(size, dtype=float)
        apart = jnp.abs(steps[:, None] - steps) ** p
        distance = distance + apart.reshape(
            (1,) * (2 * i) + apart.shape + (1,) * (2 * (ndim - i - 1))
        )
    covariance = jnp.where(distance == 0, 1.0, 0.0) if decay_fn is None else decay_fn(distance)
    return jnp.broadcast_to(covariance, [n for size in shape for n in (size, size)])


def _as_matrix(covariance: Any) -> Any:
    size = math.prod(covariance.shape[::2])
    return _pairs.separated(covariance).reshape(size, size)


def _member(name: str, value: Any, kind: Any) -> Any:
    if isinstance(value, kind):
        return value
    check_choice(name, value, [member.name for member in kind])
    return kind(value)
