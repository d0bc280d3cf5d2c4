"""What must hold of every kernel, whoever computes it: symmetries, masks, positive definiteness.

Kernels are mostly computed inside one jax.jit: eager layers compile each of their operations.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.kernels import stax

RELU, GAP = stax.Relu(), stax.GlobalAvgPool()
DENSE = stax.Dense(1, 1.2, 0.3)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def conv(padding="SAME", **kwargs):
    return stax.Conv(1, (3,), padding=padding, W_std=1.3, b_std=0.2, **kwargs)


ATTENTION = stax.GlobalSelfAttention(1, 1, 1, 1, pos_emb_type="SUM", b_std=0.1)
NETWORKS = {
    "fully connected": (stax.serial(DENSE, RELU, DENSE, stax.Erf(), DENSE), (4,)),
    "convolutional": (stax.serial(conv(), RELU, stax.AvgPool((2,), (2,)), conv(), RELU, GAP), (6,
    2)), "attention": (stax.serial(conv(), RELU, ATTENTION, stax.Gelu(), stax.Flatten(), DENSE), (5,
    2)), "normalised": (stax.serial(conv(), stax.LayerNorm(), stax.Abs(), conv(), GAP), (5, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_gram_matrices_are_symmetric_positive_semidefinite_and_follow_permutations(name, x64):
    net, shape = NETWORKS[name]
    x = normal(7, *shape)
    x[3], x[4], x[5] = x[2], -x[2], 0  # equal, opposite and zero inputs are where it is tight
    fn = jax.jit(lambda x: net[2](x, None, ("nngp", "ntk")))
    order = np.random.default_rng(1).permutation(7)
    for k, permuted in zip(fn(x), fn(x[order]), strict=True):
        k = np.asarray(k)
        np.testing.assert_allclose(k, k.T, rtol=1e-13, atol=1e-14)
        assert np.linalg.eigvalsh(k).min() >= -1e-13 * np.linalg.norm(k)
        np.testing.assert_allclose(permuted, k[order][:, order], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", NETWORKS)
def test_batches_exchanged_transpose_the_kernel(name, x64):
    net, shape = NETWORKS[name]
    fn = jax.jit(lambda x1, x2: net[2](x1, x2, ("nngp", "ntk")))
    x1, x2 = normal(3, *shape), normal(3, *shape, seed=1)
    for there, back in zip(fn(x1, x2), fn(x2, x1), strict=True):
        np.testing.assert_allclose(there, back.T, rtol=1e-12)


@pytest.mark.parametrize("mask_constant", [100.0, np.nan])
@pytest.mark.parametrize(
    ("layers", "pads"),
    {
        "gap": ((conv(), RELU, conv(), RELU, GAP, DENSE), "right"),
        "sum": ((conv(), RELU, stax.GlobalSumPool(), DENSE), "right"),
        "layer norm": ((conv(), stax.LayerNorm((1, 2)), RELU, GAP, DENSE), "right"),
        "attention": ((conv(), RELU, stax.GlobalSelfAttention(1, 1, 1, 1), RELU, GAP), "right"),
        "deep": pytest.param(
            (conv(), RELU, conv(), stax.Erf(), conv(), RELU, GAP), "both", marks=pytest.mark.slow
        ),
    }.values(),
    ids=["gap", "sum", "layer norm", "attention", "deep"],
)
def test_masked_input_equals_the_shorter_input(layers, pads, mask_constant, x64):
    """SAME padding puts zeros where the mask does: 4 of 7 positions equal 4 of 4."""
    kernel_fn = stax.serial(*layers)[2]
    short1, short2 = normal(1, 4, 2), normal(1, 5, 2, seed=1)
    start = 1 if pads == "both" else 0
    x1, x2 = np.full((2, 1, 7, 2), mask_constant)
    x1[:, start : start + 4], x2[:, start : start + 5] = short1, short2

    @jax.jit
    def masked(x1, x2):
        return (
            kernel_fn(x1, x2, ("nngp", "ntk", "cov1", "cov2"), mask_constant=mask_constant),
            kernel_fn(
                jnp.concatenate([x1, x2]), None, ("nngp", "ntk"), mask_constant=mask_constant
            ),
        )

    @jax.jit
    def alone(short1, short2):
        want = kernel_fn(short1, None, ("nngp", "ntk", "cov1"))
        return want, kernel_fn(short2, None, "cov1")

    kernels, both = masked(x1, x2)
    want, second = alone(short1, short2)
    np.testing.assert_allclose(kernels.cov1, want.cov1, rtol=1e-12)
    np.testing.assert_allclose(kernels.cov2, second, rtol=1e-12)
    for k, cross in zip(both, kernels, strict=False):
        np.testing.assert_allclose(k[:1, 1:], cross, rtol=1e-12)
    for k, short in zip(both, (want.nngp, want.ntk), strict=True):
        np.testing.assert_allclose(k[0, 0], short[0, 0], rtol=1e-12)


def test_circular_network_with_global_pooling_ignores_shifts(x64):
    image = (4, 5, 2)
    circular = stax.Conv(1, (3, 2), padding="CIRCULAR", W_std=1.3, b_std=0.2)
    net = stax.serial(circular, RELU, circular, RELU, GAP, DENSE)
    fn = jax.jit(lambda x1, x2: net[2](x1, x2, ("nngp", "ntk")))
    x1, x2 = normal(2, *image), normal(3, *image, seed=1)
    shifted = np.roll(x1, (1, 3), (1, 2)), np.roll(x2, (2, -1), (1, 2))
    for k, moved in zip(fn(x1, x2), fn(*shifted), strict=True):
        np.testing.assert_allclose(moved, k, rtol=1e-12)


@pytest.mark.parametrize(
    "phi", [RELU, stax.LeakyRelu(0.3), stax.Abs()], ids=["relu", "leaky", "abs"]
)
def test_homogeneous_nonlinearities_without_biases_scale_with_their_inputs(phi, x64):
    net = stax.serial(stax.Dense(1, 1.3), phi, stax.Dense(1), phi, stax.Dense(1))
    fn = jax.jit(lambda x1, x2: net[2](x1, x2, ("nngp", "ntk")))
    x1, x2 = normal(3, 4), normal(2, 4, seed=1)
    for k, scaled in zip(fn(x1, x2), fn(1e3 * x1, 1e-5 * x2), strict=True):
        np.testing.assert_allclose(scaled, 1e-2 * k, rtol=1e-12)


def test_standard_parameterisation_of_one_layer_is_a_constant_times_ntk(x64):
    """Theta = fan_in / s_in k_old: with s = fan-in the NTK without W_std, b_std."""
    x1, x2 = normal(3, 4), normal(2, 4, seed=1)
    ntk = stax.Dense(1, 1.0, 1.0)[2](x1, x2, "ntk")
    standard = stax.Dense(1, 1.7, 0.3, parameterization="standard", s=(4, 1))[2](x1, x2, "ntk")
    np.testing.assert_allclose(standard, ntk, rtol=1e-14)


def test_permuted_pixels_do_not_matter_to_a_flattened_fully_connected_network(x64):
    net = stax.serial(stax.Flatten(), DENSE, RELU, DENSE)
    x = normal(3, 4, 3, 2)
    order = np.random.default_rng(1).permutation(24)
    shuffled = x.reshape(3, 24)[:, order].reshape(x.shape)
    for k, moved in zip(
        net[2](x, None, ("nngp", "ntk")), net[2](shuffled, None, ("nngp", "ntk")), strict=True
    ):
        np.testing.assert_allclose(moved, k, rtol=1e-12)


@functools.cache
def flattened(**kwargs):
    kernel_fn = stax.serial(conv(), RELU, stax.Flatten(), DENSE)[2]
    x1, x2 = normal(2, 5, 2), normal(3, 5, 2, seed=1)
    return jax.jit(lambda x1, x2: kernel_fn(x1, x2, **kwargs))(x1, x2)


@pytest.mark.parametrize("diagonal", [True, False])
def test_pooling_after_flattening_needs_no_more_than_equal_positions(diagonal, x64):
    k, full = flattened(diagonal_spatial=diagonal), flattened(diagonal_batch=False)
    np.testing.assert_allclose(k.ntk, full.ntk, rtol=1e-12)
    np.testing.assert_allclose(k.cov1, np.diagonal(full.cov1), rtol=1e-12)


def test_a_kernel_fed_again_goes_on_where_it_stopped(x64):
    first, second = stax.serial(conv(), RELU, conv()), stax.serial(stax.Erf(), GAP, DENSE)
    x1, x2 = normal(2, 5, 2), normal(3, 5, 2, seed=1)
    whole = jax.jit(stax.serial(first, second)[2])(x1, x2)
    halves = jax.jit(second[2])(jax.jit(first[2])(x1, x2))
    assert (halves.shape1, halves.is_gaussian) == (whole.shape1, whole.is_gaussian)
    np.testing.assert_allclose(halves.nngp, whole.nngp, rtol=1e-13)
    np.testing.assert_allclose(halves.ntk, whole.ntk, rtol=1e-13)


@pytest.mark.parametrize("pool", [stax.GlobalSumPool(), GAP], ids=["sum", "mean"])
def test_finite_network_on_a_masked_input_equals_it_on_the_shorter_input(pool, key, x64):
    """What a bias writes into masked positions does not reach the next layer."""
    init_fn, apply_fn, _ = stax.serial(
        stax.Conv(4, (3,), padding="SAME", b_std=0.5), stax.Conv(4, (3,), padding="SAME", b_std=1),
        pool, stax.Dense(2),
    )  # fmt: skip
    short = normal(2, 4, 3)
    padded = np.concatenate([short, np.full((2, 3, 3), 9.0)], 1)
    _, params = init_fn(key, padded.shape)
    got = stax.unmask_fn(apply_fn)(params, padded, mask_constant=9.0)
    np.testing.assert_allclose(got, apply_fn(params, short), rtol=1e-12)
