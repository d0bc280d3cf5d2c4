"""Kernels in tiles are the whole kernels, whatever the sizes, devices and answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.kernels import stax
from poster_jax.kernels.batch import batch
from poster_jax.kernels.empirical import empirical_kernel_fn, empirical_ntk_fn
from poster_jax.kernels.kernel import Kernel

pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(0)
X1, X2 = RNG.normal(size=(13, 5)), RNG.normal(size=(7, 5))
INIT, APPLY, KERNEL_FN = stax.serial(stax.Dense(6), stax.Relu(), stax.Dense(1, b_std=0.1))


def assert_same_kernels(ours, theirs):
    for name, a, b in zip(
        Kernel.__dataclass_fields__, ours.astuple(), theirs.astuple(), strict=True
    ):
        assert (a is None) == (b is None), name
        if a is not None:
            np.testing.assert_allclose(a, b, atol=1e-13, err_msg=name)


@pytest.mark.parametrize(
    ("batch_size", "device_count", "store_on_device"),
    [(0, 0, True), (0, -1, False), (3, -1, True), (5, 0, False), (5, 3, True), (100, 3, False)],
)
@pytest.mark.parametrize("x2", [None, X2, X1], ids=["own", "other", "equal"])
def test_tiles_are_the_whole(batch_size, device_count, store_on_device, x2):
    batched = batch(KERNEL_FN, batch_size, device_count, store_on_device)
    ours, whole = batched(X1, x2, ("ntk", "nngp")), KERNEL_FN(X1, x2, ("ntk", "nngp"))
    assert type(ours) is type(whole)
    np.testing.assert_allclose(ours, whole, atol=1e-13)
    assert_same_kernels(batched(X1, x2), KERNEL_FN(X1, x2))


def test_kernel_of_one_batch_takes_half_the_tiles():
    seen = []

    def counting(x1, x2, get):
        jax.debug.callback(lambda: seen.append(1))
        return KERNEL_FN(x1, x2, get)

    for symmetric, tiles in ((True, 10), (False, 16)):
        seen.clear()
        counting.symmetric = symmetric
        ours = batch(counting, 4, 0)(X1, None, "ntk")
        jax.effects_barrier()
        assert len(seen) == tiles
        np.testing.assert_allclose(ours, KERNEL_FN(X1, None, "ntk"), atol=1e-13)


def test_plain_functions_never_see_none():
    # Of an unknown function neither symmetry nor a meaning of None is assumed.
    skew = RNG.normal(size=(5, 5))
    ours = batch(lambda x1, x2: x1 @ skew @ x2.T, 4)(X1)
    np.testing.assert_allclose(ours, X1 @ skew @ X1.T, atol=1e-12)


def test_whole_images_with_positions_kept():
    _, _, kernel_fn = stax.serial(stax.Conv(1, (2,), padding="SAME"), stax.Relu())
    x, whole = RNG.normal(size=(5, 4, 2)), jax.jit(kernel_fn)
    for batch_size in (0, 2):
        assert_same_kernels(batch(kernel_fn, batch_size)(x), whole(x))
        assert_same_kernels(batch(kernel_fn, batch_size)(x, x[:3]), whole(x, x[:3]))


def test_a_kernel_may_be_batched_through_further_layers():
    _, _, first = stax.serial(stax.Dense(1), stax.Relu())
    _, _, rest = stax.serial(stax.Dense(1), stax.Erf())
    for x2 in (None, X2):
        kernel = jax.jit(first)(X1, x2)
        assert_same_kernels(batch(rest, 4)(kernel), jax.jit(rest)(kernel))


def test_several_inputs_and_outputs_are_cut_together():
    _, _, kernel_fn = stax.serial(
        stax.parallel(stax.Dense(1), stax.Dense(2)), stax.parallel(stax.Relu(), stax.Erf())
    )
    x1, x2 = (X1, X1[:, :3]), (X2, X2[:, :3])
    for get in ("nngp", ("nngp", "ntk")):
        ours = batch(kernel_fn, 4)(x1, x2, get)
        whole = jax.jit(kernel_fn, static_argnums=2)(x1, x2, get)
        assert jax.tree.structure(ours) == jax.tree.structure(whole)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), ours, whole)


def test_keywords_in_pairs_are_cut_with_the_inputs():
    _, _, kernel_fn = stax.serial(
        stax.Dense(1), stax.Aggregate(1, 0, -1), stax.Relu(), stax.GlobalAvgPool()
    )
    x1, x2 = RNG.normal(size=(5, 3, 2)), RNG.normal(size=(4, 3, 2))
    pattern = (RNG.random((5, 3, 3)), RNG.random((4, 3, 3)))
    whole = jax.jit(kernel_fn, static_argnums=2)(x1, x2, "ntk", pattern=pattern)
    np.testing.assert_allclose(
        batch(kernel_fn, 2)(x1, x2, "ntk", pattern=pattern), whole, atol=1e-13
    )


def test_parameters_are_handed_on_by_place_and_by_name():
    params = jax.jit(lambda key: INIT(key, (1, 5))[1])(jax.random.key(0))
    kernel_fn = empirical_kernel_fn(APPLY, trace_axes=(), vmap_axes=0)
    whole = jax.jit(kernel_fn)(X1, X2, None, params)
    for ours in (
        batch(kernel_fn, 4)(X1, X2, None, params),
        batch(kernel_fn, 4)(X1, X2, get=None, params=params),
    ):
        np.testing.assert_allclose(ours.ntk, whole.ntk, atol=1e-12)
        assert ours.ntk.shape == (13, 7, 1, 1)
    pair = (jnp.asarray(X1.T), jnp.ones((7, 2)))  # led by 5 and 7: parameters all the same
    f = lambda p, x: jnp.tanh(x @ p[0][:, :7]) @ p[1]  # noqa: E731
    ntk_fn = empirical_ntk_fn(f, vmap_axes=0)
    np.testing.assert_allclose(
        batch(ntk_fn, 4)(X1, X2, params=pair), jax.jit(ntk_fn)(X1, X2, pair), atol=1e-12
    )


def test_random_keys_differ_from_tile_to_tile():
    f = lambda p, x, rng: x * jax.random.normal(rng, (x.shape[0], 1)) @ p  # noqa: E731
    kernel_fn = empirical_kernel_fn(f)
    ours = batch(kernel_fn, 4)(X1, X2, "nngp", jnp.ones((5, 1)), rng=jax.random.key(0))
    ratio = np.asarray(ours) / (X1.sum(1)[:, None] * X2.sum(1))
    assert len(np.unique(ratio.round(9))) == 13 * 7


def test_a_batched_function_can_be_traced():
    batched = batch(KERNEL_FN, 4)
    whole = KERNEL_FN(X1, None, "ntk")
    np.testing.assert_allclose(jax.jit(lambda x: batched(x, None, "ntk"))(X1), whole, atol=1e-13)
    slope = jax.jit(jax.grad(lambda x: batched(x, X2, "ntk").sum()))(X1)
    expected = jax.jit(jax.grad(lambda x: KERNEL_FN(x, X2, "ntk").sum()))(X1)
    np.testing.assert_allclose(slope, expected, atol=1e-12)


def test_eight_devices_share_the_tiles():
    def place(x1, x2):
        return x1 @ x2.T + 100 * jax.lax.axis_index("data")

    whole = batch(place, 2, 8, False)(X1, X2)
    assert len(np.unique(np.asarray(whole).round(-2))) == 8
    assert whole.devices() == {jax.devices("cpu")[0]}


def test_batches_of_a_batched_function_are_allowed():
    twice = batch(batch(KERNEL_FN, 2, 0), 5, 0)
    np.testing.assert_allclose(twice(X1, None, "ntk"), KERNEL_FN(X1, None, "ntk"), atol=1e-13)


BAD = {
    "batch_size must be at least 0": lambda: batch(KERNEL_FN, -1),
    "device_count must be at least -1": lambda: batch(KERNEL_FN, 1, -2),
    "device_count must be at most 8": lambda: batch(KERNEL_FN, 1, 9)(X1),
    "kernel_fn must answer kernels that lead": lambda: batch(lambda a, b: a.sum(1), 4)(X1),
    "x2 must be None beside a Kernel": lambda: batch(KERNEL_FN, 4)(KERNEL_FN(X1), X2),
    "x1 must hold at least 1": lambda: batch(KERNEL_FN, 4)(X1[:0]),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_in_one_sentence(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


@pytest.mark.bad_input
def test_full_covariances_within_a_batch_are_refused_in_tiles():
    with pytest.raises(NotImplementedError, match="diagonal_batch must be True"):
        batch(KERNEL_FN, 4)(X1, diagonal_batch=False)
