"""Kernels in float32 where float32 is hard: no NaN, relative error below 1e-5 against float64.

Hard are inputs that are equal, opposite, nearly so, multiples of each other, or zero (the angle
between outputs cancels), a hundred layers, and variances whose product float32 cannot hold.
"""

import functools

import jax
import numpy as np
import pytest

from poster_jax.kernels import stax


def hard_inputs(features=20):
    """Two of each kind; row 0 is the one that others are near to."""
    rng = np.random.default_rng(0)
    first, second, direction = rng.normal(size=(3, features))
    zero = np.zeros(features)
    near = [first + h * direction for h in (1e-2, 1e-3, 1e-5)]
    rows = [first, first, -first, *near, -near[1], 3 * first, second, 1e-3 * second, zero, zero]
    return np.asarray(rows, np.float32)


@functools.cache  # so that equal networks share their programs
def mlp(phi, depth, W_std=2**0.5, b_std=None):
    block = stax.serial(stax.Dense(1, W_std, b_std), phi)
    return stax.serial(stax.repeat(block, depth), stax.Dense(1, W_std, b_std))


@functools.cache
def program(net):
    return jax.jit(lambda *xs: tuple(net[2](*xs, ("nngp", "ntk"))))


def kernels(net, x1, x2, dtype):
    """NNGP and NTK computed in `dtype`, from the same float32 inputs."""
    with jax.enable_x64(dtype == np.float64):
        xs = [None if x is None else np.asarray(x, dtype) for x in (x1, x2)]
        return [np.asarray(k, np.float64) for k in program(net)(*xs)]


def check(got, want, own):
    """1e-5 of every entry, but of sqrt(k_ii k_jj) / 5 where the entry itself cancels below that."""
    assert np.isfinite(want).all()
    scale = np.maximum(np.abs(want), 0.2 * np.sqrt(own))
    assert np.all(np.abs(got - want) <= 1e-5 * scale)


# Chaotic networks turn a relative error of the distance between two inputs into one of the kernel.
# (Just above criticality it takes all hundred layers: Sin at W_std 1.5, Erf at 1.3 reach 3e-5.)
DEEP = {
    "relu": (stax.Relu(), 2**0.5, None, (1, 3, 100)),
    "relu with bias": (stax.Relu(), 1.8**0.5, 0.2**0.5, (3, 100)),
    "leaky": (stax.LeakyRelu(0.3), 1.3, 0.1, (1, 100)),
    "abs": (stax.Abs(), 1.0, None, (1, 100)),
    "erf": (stax.Erf(), 1.3, 0.2, (1, 3)),
    "offset": (stax.Sigmoid_like(), 1.3, 0.2, (3,)),
    "gelu": (stax.Gelu(), 1.4, 0.1, (1, 3, 100)),
    "gaussian": (stax.Gaussian(), 1.2, 0.2, (1, 100)),
    "sin": (stax.Sin(), 1.2, 0.1, (1, 3)),
    "chaotic sin": (stax.Sin(), 2.0, 0.2, (100,)),
    "chaotic erf": (stax.Erf(), 2.0, 0.2, (100,)),
}
CASES = [(name, depth) for name, (*_, depths) in DEEP.items() for depth in depths]
QUICK_CASES = [
    ("relu", 3), ("relu", 100), ("leaky", 1), ("abs", 100), ("erf", 3), ("gelu", 3),
    ("gaussian", 1), ("sin", 3), ("chaotic erf", 100),
]  # fmt: skip


def others_slow(cases, quick):
    """Each case compiles large programs; those that are not quick run with the slow tests."""
    return [pytest.param(c, marks=() if c in quick else pytest.mark.slow, id=str(c)) for c in cases]


@pytest.mark.parametrize("case", others_slow(CASES, QUICK_CASES))
def test_deep_networks_on_hard_inputs(case):
    name, depth = case
    phi, W_std, b_std, _ = DEEP[name]
    x = hard_inputs()
    net = mlp(phi, depth, W_std, b_std)
    wants = kernels(net, x, None, np.float64)
    for pair in ((x, None), (x, x[::-1][:5].copy())):
        for got, whole in zip(kernels(net, *pair, np.float32), wants, strict=True):
            variances = np.outer(np.diag(whole), np.diag(whole))
            if pair[1] is None:
                check(got, whole, variances)
            else:
                check(got, whole[:, ::-1][:, :5], variances[:, ::-1][:, :5])


def conv(padding="SAME", b_std=0.1):
    return stax.Conv(1, (3,), padding=padding, W_std=1.4, b_std=b_std)


CONVOLUTIONAL = {
    "same": (stax.repeat(stax.serial(conv(), stax.Relu()), 2), stax.GlobalAvgPool()),
    "deep": (stax.repeat(stax.serial(conv(), stax.Relu()), 10), stax.GlobalAvgPool()),
    "valid": (conv("VALID"), stax.Relu(), conv("VALID"), stax.Relu(), stax.GlobalAvgPool()),
    "circular": (stax.repeat(stax.serial(conv("CIRCULAR"), stax.Abs()), 2), stax.GlobalSumPool()),
    "flat": (conv(b_std=None), stax.Relu(), stax.Flatten(), stax.Dense(1), stax.Relu()),
}


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_convolutions_of_hard_inputs(name):
    """Windows read positions that are equal, nearly so, masked by zeros, or outside."""
    x = hard_inputs().reshape(-1, 10, 2)
    x = np.concatenate([x, np.where(np.arange(10)[:, None] < 4, x[:1], 0)])
    net = stax.serial(*CONVOLUTIONAL[name])
    found, wants = (kernels(net, x, None, dtype) for dtype in (np.float32, np.float64))
    for got, want in zip(found, wants, strict=True):
        check(got, want, np.outer(np.diag(want), np.diag(want)))


SMOOTH = {
    "erf": stax.Erf(), "sigmoid": stax.Sigmoid_like(), "gelu": stax.Gelu(), "sin": stax.Sin(),
    "cos": stax.Cos(), "gaussian": stax.Gaussian(), "gabor": stax.Gabor(), "rbf": stax.Rbf(),
    "exp": stax.Exp(0.5, 0.5), "exp_normalized": stax.ExpNormalized(), "cubic": stax.Monomial(3),
    "polynomial": stax.Polynomial([0.1, 0.5, 0.2]), "square of relu": stax.RectifiedMonomial(2),
    "step": stax.RectifiedMonomial(0), "sign": stax.Sign(),
}  # fmt: skip


QUICK_SMOOTH = ("erf", "gelu", "sin", "polynomial", "square of relu", "sign")


@pytest.mark.parametrize("name", others_slow(SMOOTH, QUICK_SMOOTH))
def test_a_rectifier_behind_another_nonlinearity(name):
    """The rectifier's slope is the angle, so that the gap itself has to pass the layer before it.

    Its inputs are of all distances: the way over which the gap is followed changes in between.
    """
    dense = stax.Dense(1, 1.3, 0.2)
    net = stax.serial(dense, SMOOTH[name], dense, stax.Relu(), dense)
    rng = np.random.default_rng(1)
    first, direction = rng.normal(size=(2, 20))
    steps = [s * h for h in np.logspace(-5, 0, 11) for s in (1, -1)]
    x = np.asarray([*hard_inputs(), *(first + h * direction for h in steps)], np.float32)
    found, wants = (kernels(net, x, None, dtype) for dtype in (np.float32, np.float64))
    for got, want in zip(found, wants, strict=True):
        check(got, want, np.outer(np.diag(want), np.diag(want)))


def test_equal_inputs_stay_equal_through_smooth_layers():
    net = stax.serial(conv(), stax.Erf(), conv(), stax.Relu(), stax.GlobalAvgPool())
    x = hard_inputs().reshape(-1, 10, 2)
    found, wants = (kernels(net, x, None, dtype) for dtype in (np.float32, np.float64))
    for got, want in zip(found, wants, strict=True):
        check(got, want, np.outer(np.diag(want), np.diag(want)))
    some = np.ix_([0, 1, 8], [0, 1, 8])
    np.testing.assert_allclose(found[1][some], wants[1][some], rtol=2e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_input_of_zeros_has_a_kernel_of_zeros(dtype):
    block = stax.serial(conv(b_std=None), stax.Relu())
    net = stax.serial(stax.repeat(block, 2), stax.GlobalAvgPool())
    x = hard_inputs().reshape(-1, 10, 2)
    for k in kernels(net, x, None, dtype):
        assert not x[-1].any()
        assert not k[-1].any()


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize(
    "phi", [stax.Relu(), stax.Abs(), stax.LeakyRelu(0.1)], ids=["relu", "abs", "leaky"]
)
def test_rectifiers_at_variances_from_1e_minus_12_to_1e12(scale, phi):
    """The user's issue 197: v1 v2 would leave float32."""
    x = np.float32(scale) * hard_inputs()
    net = mlp(phi, 3)
    for got, want in zip(
        kernels(net, x, None, np.float32), kernels(net, x, None, np.float64), strict=True
    ):
        check(got, want, np.outer(np.diag(want), np.diag(want)))


def test_large_weights_through_fifteen_layers_do_not_overflow():
    """Issue 197 again: W_std = 16, so that k grows to 1e36 where float32 ends at 3e38."""
    x = hard_inputs()
    net = mlp(stax.Relu(), 15, 16.0)
    for got, want in zip(
        kernels(net, x, None, np.float32), kernels(net, x, None, np.float64), strict=True
    ):
        check(got, want, np.outer(np.diag(want), np.diag(want)))


SCALED = ("erf", "sigmoid", "gelu", "sin", "gaussian", "gabor", "rbf", "exp_normalized")


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("name", others_slow(SCALED, ("erf", "gabor")))
def test_smooth_networks_at_variances_from_1e_minus_12_to_1e12(name, scale):
    """Bounded ones read v1 v2 - k^2 beside v1 + v2: of multiples that is far below a half ulp."""
    x = np.float32(scale) * hard_inputs()
    net = mlp(SMOOTH[name], 1)
    found, wants = (kernels(net, x, None, dtype) for dtype in (np.float32, np.float64))
    for got, want in zip(found, wants, strict=True):
        check(got, want, np.outer(np.diag(want), np.diag(want)))


def test_no_nan_of_steps_at_any_scale():
    for scale in (1e-6, 1.0, 1e6):
        x = np.float32(scale) * hard_inputs()
        for k in kernels(mlp(stax.Sign(), 1), x, None, np.float32):
            assert np.isfinite(k).all()


DENSE = stax.Dense(1, 1.4, 0.1)
MIXED = {
    "average": (stax.AvgPool((2,), (2,)), conv(), stax.Relu(), stax.GlobalAvgPool()),
    "edges": (
        stax.AvgPool((3,), padding="SAME", normalize_edges=True), conv(), stax.Relu(),
        stax.GlobalAvgPool(),
    ),
    "sum": (stax.SumPool((2,), (2,)), conv(), stax.Relu(), stax.GlobalAvgPool()),
    "global": (stax.GlobalAvgPool(), DENSE, stax.Relu(), DENSE),
    "global sum": (stax.GlobalSumPool(), DENSE, stax.Relu(), DENSE),
    "attention": (
        stax.GlobalSelfAttention(1, n_chan_key=1, n_chan_val=1, n_heads=1), stax.Relu(),
        stax.GlobalAvgPool(),
    ),
    "resize": (
        stax.ImageResize((-1, 5, -1), "linear"), conv(), stax.Relu(), stax.GlobalAvgPool(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("phi", [stax.Relu(), stax.Erf()], ids=["relu", "erf"])
@pytest.mark.parametrize("name", others_slow(MIXED, ("average", "global", "attention")))
def test_equal_opposite_and_zero_inputs_where_dependent_outputs_are_added(name, phi):
    """Nearly equal ones lose more: what pooling adds is not known to more than float32 holds."""
    x = hard_inputs().reshape(-1, 10, 2)
    net = stax.serial(conv(b_std=None), phi, *MIXED[name])
    found, wants = (kernels(net, x, None, dtype) for dtype in (np.float32, np.float64))
    # Of attention nobody follows whether it is odd, so that opposite inputs are nearly so.
    some = [0, 1, 8, 10, 11] + [2] * (name != "attention")
    exact = np.ix_(some, some)
    for got, want in zip(found, wants, strict=True):
        own = np.outer(np.diag(want), np.diag(want))
        check(got[exact], want[exact], own[exact])
        assert np.abs(got - want).max() <= 2e-4 * np.sqrt(own).max()


def test_equal_inputs_with_equal_masks():
    net = stax.serial(conv(), stax.Relu(), stax.GlobalAvgPool(), DENSE, stax.Relu(), DENSE)
    x = np.random.default_rng(0).normal(size=(4, 6, 2)).astype(np.float32)
    x[1], x[2] = x[0], x[0]
    x[:2, 4:] = 9
    x[2, 5:] = 9  # the same but for what is masked
    kernel_fn = jax.jit(lambda x: net[2](x, None, ("nngp", "ntk"), mask_constant=9.0))
    single = kernel_fn(x)
    with jax.enable_x64(True):
        double = jax.jit(lambda x: net[2](x, None, ("nngp", "ntk"), mask_constant=9.0))(
            x.astype(np.float64)
        )
    for got, want in zip(single, double, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


@stax.layer
def FreshNoise(variance):  # noqa: N802
    """A user's layer that adds noise of its own to every example, as Dropout does."""

    def kernel_fn(k, **kwargs):
        return k.replace(cov1=k.cov1 + variance)

    return lambda rng, shape: (shape, ()), lambda params, x, **kwargs: x, kernel_fn


@pytest.mark.parametrize("variance", [1e-3, 1.0])
def test_equal_inputs_need_not_have_equal_outputs(variance, x64):
    """Outputs of the same input with noise of their own are apart, and their kernel says so."""
    net = stax.serial(stax.Dense(1), FreshNoise(variance), stax.Relu())
    x = np.ones((2, 3))
    v = 1 + variance
    theta = np.arccos(1 / v)
    found = jax.jit(lambda x: tuple(net[2](x, None, ("nngp", "ntk"))))(x)
    exact = v * (np.sin(theta) + (np.pi - theta) * np.cos(theta)) / (2 * np.pi)
    slope = (np.pi - theta) / (2 * np.pi)  # times the kernel of the first layer, 1
    np.testing.assert_allclose([k[0, 1] for k in found], [exact, slope], rtol=1e-12)


def test_convolutions_with_zero_images_and_equal_images():
    """The user's issue 14: zeros in the input."""
    conv = stax.Conv(1, (3,), padding="SAME", W_std=1.4)
    net = stax.serial(
        conv, stax.Relu(), conv, stax.Relu(), stax.GlobalAvgPool(),
    )  # fmt: skip
    images = np.random.default_rng(0).normal(size=(6, 4, 2))
    images[1], images[2], images[3], images[4, 2:] = images[0], -images[0], 0, 0
    images[5] = images[0] + 1e-4 * images[5]
    images = images.astype(np.float32)
    singles, doubles = (kernels(net, images, None, d) for d in (np.float32, np.float64))
    scales = [np.sqrt(np.outer(np.diag(want), np.diag(want))) for want in doubles]
    nngp_error, ntk_error = (
        np.abs(got - want) / np.where(scale > 0, scale, 1)
        for got, want, scale in zip(singles, doubles, scales, strict=True)
    )
    assert np.all(nngp_error < 2e-6)
    assert np.all(ntk_error < 2e-6)
