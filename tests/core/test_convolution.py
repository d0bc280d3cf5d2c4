"""The drop-in equals `jax.lax.conv_general_dilated` to rounding: every argument, every dtype.

Reference: lax's own in float64. Tolerance: a sum of L products in any order is off by at most
L eps times the sum of the products' magnitudes (Higham, Accuracy and Stability, 3.1), and that sum
is the same convolution of the magnitudes.
"""

from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import PartitionSpec as P

from poster_jax.core import devices
from poster_jax.core.convolution import banded, conv_general_dilated, forms

CHANNELS_LAST = {
    1: ("NWC", "WIO", "NWC"),
    2: ("NHWC", "HWIO", "NHWC"),
    3: ("NDHWC", "DHWIO", "NDHWC"),
}


class Case(NamedTuple):
    lhs: tuple[int, ...]
    rhs: tuple[int, ...]
    strides: tuple[int, ...]
    padding: Any
    options: dict = MappingProxyType({})


CASES = {
    "same": Case((2, 3, 9, 8), (4, 3, 3, 3), (1, 1), "SAME"),
    "same lower, even taps": Case((2, 3, 9, 8), (4, 3, 4, 2), (1, 2), "SAME_LOWER"),
    "valid, strides": Case((2, 3, 9, 8), (4, 3, 3, 3), (2, 1), "VALID"),
    "one tap": Case((2, 3, 5, 4), (4, 3, 1, 1), (1, 1), "VALID"),
    "one tap, strides, odd ends": Case((2, 3, 6, 5), (4, 3, 1, 1), (2, 3), "VALID"),
    "negative padding": Case((2, 3, 9, 8), (4, 3, 3, 3), (1, 1), [(2, -1), (-2, 3)]),
    "everything at once": Case(
        (2, 3, 9, 8),
        (4, 3, 3, 2),
        (2, 3),
        [(2, -1), (-2, 3)],
        {"lhs_dilation": (2, 3), "rhs_dilation": (1, 2)},
    ),
    "same, kernel dilation": Case(
        (1, 2, 9, 8), (4, 2, 3, 2), (1, 1), "SAME", {"rhs_dilation": (2, 3)}
    ),
    "feature groups": Case((2, 4, 9, 8), (6, 2, 3, 3), (2, 1), "SAME", {"feature_group_count": 2}),
    "depthwise": Case((2, 5, 6, 6), (10, 1, 3, 3), (1, 1), "SAME", {"feature_group_count": 5}),
    "many groups": Case((2, 24, 4, 4), (24, 2, 2, 2), (1, 1), "SAME", {"feature_group_count": 12}),
    "batch groups": Case(
        (6, 3, 5, 4), (9, 3, 2, 2), (1, 1), [(0, 1), (1, 0)], {"batch_group_count": 3}
    ),
    "few large images": Case((2, 2, 24, 23), (3, 2, 3, 3), (1, 1), "SAME"),
    "1-D": Case((4, 9, 3), (3, 3, 6), (2,), "SAME", {"dimension_numbers": CHANNELS_LAST[1]}),
    "3-D": Case(
        (2, 5, 3, 4, 3), (2, 2, 3, 3, 5), (1, 2, 1), "SAME", {"dimension_numbers": CHANNELS_LAST[3]}
    ),
    "layout of its own": Case(
        (3, 9, 8, 2), (3, 4, 3, 3), (1, 2), "SAME", {"dimension_numbers": ("CWHN", "IOHW", "WNCH")}
    ),
    "no spatial axis": Case((3, 4), (5, 4), (), []),
}


@pytest.fixture(params=["plain", "banded"])
def form(request, monkeypatch):
    """Both forms of a map, whatever the sizes."""
    if request.param == "banded":
        use_banded_forms(monkeypatch)
    return request.param


def use_banded_forms(patch):
    """For what is compiled from now on; `value_and_vjp` below compiles anew at every call."""
    for module, limit in [
        (banded, "_BLOCK_SIZE"),
        (banded, "_ROWS_AT_LEAST"),
        (forms, "_CHANNELS_AT_LEAST"),
    ]:
        patch.setattr(module, limit, 1)


def both(case: Case):
    kwargs = {"window_strides": case.strides, "padding": case.padding, **case.options}
    return partial(conv_general_dilated, **kwargs), partial(lax.conv_general_dilated, **kwargs)


def operands(case: Case, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in (case.lhs, case.rhs)]


def cotangent(fn, lhs, rhs):
    like = jax.eval_shape(fn, lhs, rhs)
    return jnp.asarray(np.random.default_rng(9).standard_normal(like.shape), like.dtype)


def value_and_vjp(fn):
    @jax.jit
    def run(lhs, rhs, ct):
        value, pullback = jax.vjp(fn, lhs, rhs)
        return (value, *pullback(ct))

    return run


def assert_rounds_to(ours, fn, lhs, rhs, ct, eps):
    """Value and both cotangents, within L eps of the magnitudes; L is at most the largest array."""
    wide = [np.asarray(x, np.float64) for x in (lhs, rhs, ct)]
    reference = value_and_vjp(fn)
    exact, magnitudes = reference(*wide), reference(*map(np.abs, wide))
    terms = max(x.size for x in wide)
    for got, want, size in zip(ours, exact, magnitudes, strict=True):
        assert got.shape == want.shape
        bound = terms * eps * np.asarray(size) + 1e-30
        np.testing.assert_array_less(np.abs(np.asarray(got, np.float64) - want), bound)


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients_equal_laxs_to_rounding(name, form, x64):
    ours, theirs = both(CASES[name])
    for dtype in (np.float32, np.float64):
        lhs, rhs = operands(CASES[name], dtype)
        ct = cotangent(theirs, lhs, rhs)
        got = value_and_vjp(ours)(lhs, rhs, ct)
        assert all(x.dtype == dtype for x in got)
        assert_rounds_to(got, theirs, lhs, rhs, ct, np.finfo(dtype).eps)


@st.composite
def geometries(draw):
    """Any geometry that lax takes: 1 to 3 axes, small sizes, groups of either kind."""
    axes = draw(st.integers(1, 3))

    def sizes(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    features, batches = draw(st.sampled_from([(1, 1), (2, 1), (3, 1), (1, 2)]))
    c, o, n = (draw(st.integers(1, 3)) for _ in range(3))
    options = {
        "lhs_dilation": sizes(1, 3),
        "rhs_dilation": sizes(1, 3),
        "feature_group_count": features,
        "batch_group_count": batches,
    }
    padding = list(zip(sizes(-1, 3), sizes(-1, 3), strict=True))
    return Case(
        (n * batches, c * features, *sizes(2, 6)),
        (o * features * batches, c, *sizes(1, 4)),
        sizes(1, 3),
        padding,
        options,
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(geometries(), st.booleans())
def test_any_geometry_equals_laxs(case, in_bands):
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(True):
        if in_bands:
            use_banded_forms(patch)
        ours, theirs = both(case)
        lhs, rhs = operands(case)
        ct = cotangent(theirs, lhs, rhs)
        got = value_and_vjp(ours)(lhs, rhs, ct)
        assert_rounds_to(got, theirs, lhs, rhs, ct, np.finfo(np.float64).eps)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_accumulated_in_single_and_rounded_once(dtype):
    case = Case((4, 6, 6, 3), (3, 3, 3, 5), (1, 1), "SAME", {"dimension_numbers": CHANNELS_LAST[2]})
    ours, theirs = both(case)
    lhs, rhs = operands(case, dtype)
    got = ours(lhs, rhs)
    want = theirs(lhs.astype(jnp.float32), rhs.astype(jnp.float32))
    assert got.dtype == dtype
    # Half a unit in the last place of the result; the sums of 27 in single are far finer.
    np.testing.assert_allclose(
        got.astype(jnp.float32), want, rtol=0.51 * float(jnp.finfo(dtype).eps), atol=1e-5
    )
    assert jax.grad(lambda k: ours(lhs, k).astype(jnp.float32).sum())(rhs).dtype == dtype


def test_the_preferred_type_is_that_of_the_result_and_gradients_keep_their_own():
    case = Case((2, 5, 5, 2), (3, 3, 2, 3), (1, 1), "SAME", {"dimension_numbers": CHANNELS_LAST[2]})
    ours, _ = both(case)
    lhs, rhs = operands(case, jnp.bfloat16)
    result = ours(lhs, rhs, preferred_element_type=jnp.float32)
    want = ours(lhs.astype(jnp.float32), rhs.astype(jnp.float32))
    assert result.dtype == jnp.float32
    np.testing.assert_array_equal(result, want)
    loss = lambda k: ours(lhs, k, preferred_element_type=jnp.float32).sum()  # noqa: E731
    assert jax.grad(loss)(rhs).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("lhs", "rhs"),
    [
        (np.ones((1, 2, 4, 4), np.int32), np.ones((3, 2, 2, 2), np.int32)),
        (np.ones((1, 2, 4, 4), np.complex64), np.ones((3, 2, 2, 2), np.complex64)),
        (np.ones((0, 2, 4, 4), np.float32), np.ones((3, 2, 2, 2), np.float32)),
        (np.ones((1, 2, 1, 1), np.float32), np.ones((3, 2, 2, 2), np.float32)),
    ],
    ids=["integers", "complex", "no image", "no output"],
)
def test_what_the_forms_do_not_serve_is_laxs_own(lhs, rhs):
    got = conv_general_dilated(lhs, rhs, (1, 1), "VALID")
    want = lax.conv_general_dilated(lhs, rhs, (1, 1), "VALID")
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


def test_shapes_may_be_symbols():
    shape = jax.export.symbolic_shape("n, 1, 6, 6")
    exported = jax.export.export(
        jax.jit(lambda x: conv_general_dilated(x, jnp.ones((2, 1, 3, 3)), (1, 1), "SAME"))
    )(jax.ShapeDtypeStruct(shape, jnp.float32))
    assert exported.call(jnp.ones((3, 1, 6, 6))).shape == (3, 2, 6, 6)


@pytest.mark.parametrize(
    "arguments",
    [
        (np.ones((1, 2, 4, 4)), np.ones((3, 1, 2, 2)), (1, 1), "SAME"),
        (np.ones((1, 2, 4, 4)), np.ones((3, 2, 2)), (1, 1), "SAME"),
        (np.ones((1, 2, 4, 4)), np.ones((3, 2, 2, 2)), (1,), "SAME"),
        (np.ones((1, 2, 4, 4)), np.ones((3, 2, 2, 2)), (1, 1), "ALMOST"),
        (np.ones((1, 2, 4, 4), np.float32), np.ones((3, 2, 2, 2), np.float16), (1, 1), "SAME"),
    ],
    ids=["channels", "rank", "strides", "padding", "dtypes"],
)
def test_bad_input_is_refused_as_lax_refuses_it(arguments):
    with pytest.raises((TypeError, ValueError, RuntimeError)) as theirs:
        lax.conv_general_dilated(*arguments)
    with pytest.raises(theirs.type) as ours:
        conv_general_dilated(*arguments)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("name", ["window_strides", "lhs_dilation", "rhs_dilation"])
def test_a_step_below_one_is_named(name):
    arguments = {"window_strides": (1, 1), name: (2, 0)}
    with pytest.raises(ValueError, match=rf"{name} must be at least 1.*\(2, 0\)"):
        conv_general_dilated(
            jnp.ones((1, 2, 4, 4)), jnp.ones((3, 2, 2, 2)), padding="SAME", **arguments
        )


def test_flax_takes_it(key):
    x = jax.random.normal(key, (2, 8, 8, 4))
    options = {"strides": 2, "feature_group_count": 2}
    plain = nn.Conv(6, (3, 3), **options)
    ours = nn.Conv(6, (3, 3), conv_general_dilated=conv_general_dilated, **options)
    params = plain.init(key, x)
    np.testing.assert_allclose(ours.apply(params, x), plain.apply(params, x), atol=1e-5)
    layer = nnx.Conv(4, 6, (3, 3), conv_general_dilated=conv_general_dilated, rngs=nnx.Rngs(0))
    assert layer(x).shape == (2, 8, 8, 6)


def test_eight_devices_equal_one(key, form):
    mesh = devices.data_mesh()
    x = jax.random.normal(key, (16, 6, 6, 2))
    kernel = jax.random.normal(key, (3, 3, 2, 4))
    conv = both(Case((), (), (1, 1), "SAME", {"dimension_numbers": CHANNELS_LAST[2]}))[0]

    def gradient(kernel, x):
        return jax.grad(lambda k: jnp.sum(jnp.sin(conv(x, k))))(kernel)

    def summed(kernel, x):
        return lax.psum(gradient(lax.pcast(kernel, ("data",), to="varying"), x), "data")

    want = gradient(kernel, x)
    mapped = jax.shard_map(summed, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    np.testing.assert_allclose(jax.jit(mapped)(kernel, x), want, rtol=1e-4, atol=1e-4)
    # A replicated kernel meets varying images: its cotangent is summed over the devices by itself.
    automatic = jax.shard_map(gradient, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    np.testing.assert_allclose(jax.jit(automatic)(kernel, x), want, rtol=1e-4, atol=1e-4)
    sharded = jax.jit(gradient)(kernel, devices.shard_batch(x, mesh))
    np.testing.assert_allclose(sharded, want, rtol=1e-4, atol=1e-4)
