"""The networks whose kernels are compared with the original's, written for any library named `stax`.

`make_kernel_figures.py` builds them with neural-tangents, tests/kernels/test_stax_figures.py with
poster_jax; both get the same inputs and arguments.
"""

import numpy as np


def grid(shape, a=0.7, b=0.3):
    """Smooth numbers that no library makes differently."""
    i = np.arange(np.prod(shape))
    return (np.sin(a * i + b) + 0.1 * np.cos(3 * i)).reshape(shape)


def pair(*shape, n2=2):
    """Two batches of `shape`, the second of n2 examples."""
    return grid(shape), grid((n2, *shape[1:]), 1.1, 0.8)


FLAT = pair(3, 5)
IMAGES = pair(2, 6, 6, 2)
OBLONG = pair(2, 6, 5, 2)
SERIES = pair(2, 7, 4)


def networks(stax):
    """name -> (layer, (x1, x2), keyword arguments of kernel_fn)."""
    return {
        **{f"dense/{name}": case for name, case in _dense(stax).items()},
    }


def _nonlinearities(stax):
    return {
        "abrelu": stax.ABRelu(0.3, 1.2),
        "abrelu_stable": stax.ABRelu(-0.4, 0.9, do_stabilize=True),
        "relu": stax.Relu(),
        "leaky": stax.LeakyRelu(0.2),
        "abs": stax.Abs(),
        "sign": stax.Sign(),
        "erf": stax.Erf(1.3, 0.7, 0.2),
        "sigmoid_like": stax.Sigmoid_like(),
        "gabor": stax.Gabor(),
        "gelu": stax.Gelu(),
        "sin": stax.Sin(1.2, 0.8, 0.4),
        "cos": stax.Cos(1.2, 0.8, 0.4),
        "rbf": stax.Rbf(0.6),
        "exp": stax.Exp(0.7, 0.6),
        "gaussian": stax.Gaussian(1.4, -0.7),
        "exp_normalized": stax.ExpNormalized(1.3, -0.8, do_clip=True),
        "hermite0": stax.Hermite(0),
        "hermite3": stax.Hermite(3),
        **{f"monomial{i}": stax.Monomial(i) for i in range(6)},
        **{f"rectified{i}": stax.RectifiedMonomial(i) for i in range(4)},
        "polynomial": stax.Polynomial([0.3, -0.5, 0.2, 0.1]),
        "elementwise": stax.Elementwise(None, _erf_dual),
        "elementwise_slope": stax.Elementwise(None, _erf_dual, _erf_slope),
        "numerical": stax.ElementwiseNumerical(np_tanh(stax), 9),
    }


def np_tanh(stax):
    import jax.numpy as jnp

    return jnp.tanh


def _erf_dual(k, v1, v2):
    import jax.numpy as jnp

    return 2 / np.pi * jnp.arcsin(2 * k / jnp.sqrt((1 + 2 * v1) * (1 + 2 * v2)))


def _erf_slope(k, v1, v2):
    import jax.numpy as jnp

    return 4 / np.pi / jnp.sqrt((1 + 2 * v1) * (1 + 2 * v2) - 4 * k**2)


def _dense(stax):
    first, last = stax.Dense(8, 1.3, 0.2), stax.Dense(8, 0.9, 0.1)
    relu = stax.Relu()
    residual = stax.serial(
        stax.FanOut(2),
        stax.parallel(stax.serial(relu, stax.Dense(8, 1.1, 0.3)), stax.Identity()),
        stax.FanInSum(),
    )
    gated = stax.serial(
        stax.FanOut(2),
        stax.parallel(stax.serial(first, stax.Gelu()), stax.Dense(8, 0.7)),
        stax.FanInProd(),
    )
    concatenated = stax.serial(
        stax.FanOut(3),
        stax.parallel(
            stax.serial(stax.Dense(4, 1.2, 0.1), relu),
            stax.serial(stax.Dense(8, 0.8), stax.Erf()),
            stax.Identity(),
        ),
        stax.FanInConcat(),
    )
    nets = {name: stax.serial(first, phi, last) for name, phi in _nonlinearities(stax).items()}
    nets |= {
        "only": first,
        "deep": stax.serial(first, relu, first, relu, first),
        "no_bias": stax.serial(
            stax.Dense(8, 1.3), relu, stax.Dense(8, 1.3), relu, stax.Dense(1, 1.3)
        ),
        "standard": stax.serial(
            stax.Dense(8, 1.3, 0.2, parameterization="standard", s=(1, 2)),
            stax.Erf(),
            stax.Dense(8, 1.3, 0.2, parameterization="standard", s=(2, 1)),
        ),
        "standard_no_bias": stax.serial(
            stax.Dense(8, 1.3, parameterization="standard"),
            relu,
            stax.Dense(3, parameterization="STANDARD"),
        ),
        "residual": stax.serial(first, residual, residual, relu, last),
        "gated": stax.serial(first, relu, gated, last),
        "concatenated": stax.serial(first, concatenated, last),
        "repeat": stax.serial(first, stax.repeat(stax.serial(relu, last), 4)),
        "channels_first": stax.serial(
            stax.Dense(8, 1.3, 0.2, batch_axis=1, channel_axis=0),
            relu,
            stax.Dense(8, 1.3, 0.2, batch_axis=1, channel_axis=0),
        ),
        "nested": stax.serial(
            stax.serial(first, stax.serial(relu, last)), stax.serial(stax.Cos(), last)
        ),
    }
    out = {name: (net, FLAT, {}) for name, net in nets.items()}
    x1, x2 = FLAT
    out["channels_first"] = (nets["channels_first"], (x1.T, x2.T), {})
    out["full_batch"] = (nets["deep"], FLAT, {"diagonal_batch": False})
    out["spatial"] = (nets["deep"], SERIES, {})
    out["spatial_diagonal"] = (nets["deep"], SERIES, {"diagonal_spatial": True})
    out["spatial_full"] = (nets["deep"], OBLONG, {"diagonal_spatial": False})
    for name in ("erf", "gabor", "gelu", "sin", "rbf", "exp", "gaussian", "exp_normalized", "monomial3",
                 "polynomial", "elementwise", "numerical", "rectified2"):  # fmt: skip
        out[f"full_batch_{name}"] = (nets[name], FLAT, {"diagonal_batch": False})
        out[f"spatial_full_{name}"] = (nets[name], SERIES, {"diagonal_spatial": False})
    two_inputs = stax.serial(
        stax.parallel(first, stax.Dense(8, 0.5, 0.4)), stax.FanInSum(), relu, last
    )
    y1, y2 = grid((3, 4), 0.9), grid((2, 4), 0.6)
    out["two_inputs"] = (two_inputs, ((x1, y1), (x2, y2)), {})
    out["two_outputs"] = (
        stax.serial(first, relu, stax.FanOut(2), stax.parallel(last, stax.Dense(8, 0.5, 0.4))),
        FLAT,
        {},
    )
    return out
