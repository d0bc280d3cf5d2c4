"""Section 6 of the method card: one entry of nine kernels, seen by running neural-tangents 0.6.5.

Written from the card's table, not from a figure file, so that a wrong figure program cannot hide.
"""

import jax
import numpy as np
import pytest

from poster_jax.kernels import stax


def grid(shape, a=0.7, b=0.3):
    i = np.arange(np.prod(shape))
    return (np.sin(a * i + b) + 0.1 * np.cos(3 * i)).reshape(shape)


def both(*shape):
    return grid(shape), grid(shape, 1.1, 0.8)


def standard(*s):
    return stax.Dense(8, 1.3, 0.2, parameterization="standard", s=s)


def series_with_gaps():
    first, second = both(2, 7, 4)
    first[0, 5:] = second[1, 4:] = 100
    return first, second


X = grid((3, 5)), grid((2, 5), 1.1, 0.8)
D, RELU, GAP = stax.Dense(8, 1.3, 0.2), stax.Relu(), stax.GlobalAvgPool()
C = stax.Conv(8, (3, 3), W_std=1.2, b_std=0.1, padding="SAME")
CIRCULAR = stax.Conv(8, (3, 3), W_std=1.2, b_std=0.1, padding="CIRCULAR")
C3 = stax.Conv(8, (3,), padding="SAME")
LOCAL = stax.ConvLocal(4, (3, 3), (2, 2), "VALID", 1.1, 0.3)
ATTENTION = stax.GlobalSelfAttention(
    8, 8, 8, 4, True, W_key_std=1.2, W_query_std=0.9, W_value_std=1.1, W_out_std=1.0, b_std=0.1,
    pos_emb_type="SUM", pos_emb_decay_fn=lambda d: 1 / (1 + d**2), W_pos_emb_std=0.7,
)  # fmt: skip
ROOT_ATTENTION = stax.GlobalSelfAttention(
    8, 8, 8, 4, False, attention_mechanism="IDENTITY", pos_emb_type="CONCAT", W_pos_emb_std=0.5,
    val_pos_emb=True,
)  # fmt: skip

GOLDENS = {
    "fully connected": ((D, RELU, D, RELU, D), X, {},
        (0.503014193352157, 0.992979804731973, 0.316047043105442)),
    "standard": ((standard(1, 2), stax.Erf(), standard(2, 1)), X, {},
        (0.434436783940637, 4.84883734357688, -1.05316099507708)),
    "normalised": ((D, stax.LayerNorm(), stax.Gelu(), stax.Dropout(0.8), D), (X[0], None), {},
        (-0.0669234756996833, -0.189967253348398, -0.189967253348398)),
    "pooled": ((C, RELU, stax.AvgPool((2, 2), (2, 2)), C, RELU, GAP, D), both(2, 6, 6, 2), {},
        (0.110286541048931, 0.15177231607303, 0.151583496634012)),
    "circular, transposed": (
        (CIRCULAR, RELU, stax.ConvTranspose(4, (3, 3), (2, 2), "CIRCULAR"), RELU, GAP),
        both(2, 6, 6, 2), {}, (0.016077044512947, 0.00275613946567989, 0.00272401276031366)),
    "local": ((LOCAL, stax.Erf(), stax.Flatten(), D), both(2, 6, 6, 2), {},
        (0.0859961608108502, 0.132627207586641, 0.246553933040812)),
    "attention": ((C3, RELU, ATTENTION, RELU, GAP, D), both(2, 7, 4), {},
        (0.127106684979666, 0.263255525405155, 0.267627154937851)),
    "attention, square root": ((D, ROOT_ATTENTION, stax.Flatten(), D), both(2, 7, 4), {},
        (0.810351228841402, 6.20280983073122, 6.0577015031762)),
    "masked": (
        (stax.Conv(8, (3,), padding="SAME", b_std=0.3), RELU, GAP, D), series_with_gaps(),
        {"mask_constant": 100}, (0.220938433040067, 0.270562153178415, 0.283691479496599)),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_of_the_card(name, x64):
    """To the 15 digits that the card prints."""
    layers, (x1, x2), kwargs, want = GOLDENS[name]
    nngp, ntk = stax.serial(*layers)[2](x1, x2, ("nngp", "ntk"), **kwargs)
    np.testing.assert_allclose((nngp[0, 1], ntk[0, 1], ntk[1, 0]), want, rtol=5e-14)


def test_entries_that_equal_by_symmetry_are_equal(x64):
    layers, (x1, _), *_ = GOLDENS["normalised"]
    ntk = stax.serial(*layers)[2](x1, None, "ntk")
    with jax.numpy_rank_promotion("raise"):
        np.testing.assert_allclose(ntk, ntk.T, rtol=1e-14)
