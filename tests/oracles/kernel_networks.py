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
    groups = {
        "dense": _dense,
        "conv": _convolutions,
        "pool": _pools,
        "net": _image_networks,
        "mask": _masked,
    }
    return {f"{g}/{name}": case for g, make in groups.items() for name, case in make(stax).items()}


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


def _convolutions(stax):
    """One convolution of every kind, alone: all position pairs are compared."""
    out = {}
    kinds = {"conv": stax.Conv, "local": stax.ConvLocal, "transpose": stax.ConvTranspose}
    for kind, layer in kinds.items():
        for padding in ("VALID", "SAME", "CIRCULAR"):
            for taps, strides in (
                ((3, 2), (1, 1)),
                ((3, 3), (2, 1)),
                ((2, 3), (2, 3)),
                ((1, 4), (1, 2)),
            ):
                net = layer(4, taps, strides, padding, 1.2, 0.3)
                name = f"{kind}_{padding.lower()}_{taps[0]}{taps[1]}_{strides[0]}{strides[1]}"
                out[name] = (net, OBLONG, {})
                out[f"{name}_diagonal"] = (net, OBLONG, {"diagonal_spatial": True})
        one = layer(4, (3,), (2,), "SAME", 1.2, 0.3, parameterization="standard", s=(1, 2))
        two = layer(4, (3,), (1,), "SAME", 1.2, 0.3, parameterization="standard", s=(2, 1))
        out[f"{kind}_standard"] = (stax.serial(one, stax.Relu(), two), SERIES, {})
        out[f"{kind}_twice"] = (
            stax.serial(
                layer(4, (3,), (1,), "CIRCULAR", 1.2), stax.Erf(), layer(4, (2,), (2,), "SAME")
            ),
            SERIES,
            {"diagonal_batch": False},
        )
        numbers = ("HNCW", "OWHI", "CNHW")
        x1, x2 = (np.transpose(x, (1, 0, 3, 2)) for x in OBLONG)
        if kind != "local":
            net = layer(4, (3, 2), (2, 1), "SAME", 1.2, 0.3, numbers)
            out[f"{kind}_layout"] = (net, (x1, x2), {})
    line = pair(1, 4, 3, 3, 2, n2=1)
    out["volume"] = (stax.Conv(4, (2, 3, 2), (1, 2, 1), "SAME", 1.1, 0.2), line, {})
    out["volume_diagonal"] = (
        stax.serial(
            stax.Conv(4, (2, 3, 2), None, "CIRCULAR", 1.1, 0.2), stax.Relu(), stax.Flatten()
        ),
        line,
        {},
    )
    return out


def _pools(stax):
    out = {}
    first = stax.Conv(4, (3, 3), padding="SAME", W_std=1.3, b_std=0.2)
    for padding in ("VALID", "SAME", "CIRCULAR"):
        for window, strides in (((2, 2), None), ((3, 2), (2, 1)), ((2, 3), (3, 3))):
            for name, make in {
                "avg": lambda *a: stax.AvgPool(*a),
                "edges": lambda *a: stax.AvgPool(*a, normalize_edges=True),
                "sum": lambda *a: stax.SumPool(*a),
            }.items():
                layer = make(window, strides, padding)
                key = f"{name}_{padding.lower()}_{window[0]}{window[1]}_{strides is not None}"
                out[key] = (stax.serial(first, layer), OBLONG, {})
                local = stax.ConvLocal(4, (2, 2), W_std=1.3, b_std=0.2)
                out[f"{key}_local"] = (stax.serial(local, stax.Relu(), layer), OBLONG, {})
    dense = stax.Dense(1, 1.1, 0.1)
    local = stax.ConvLocal(4, (2, 2), W_std=1.3, b_std=0.2)
    for name, layer in {"gap": stax.GlobalAvgPool(), "gsp": stax.GlobalSumPool()}.items():
        out[name] = (stax.serial(first, stax.Relu(), layer, dense), OBLONG, {})
        out[f"{name}_local"] = (stax.serial(local, stax.Relu(), layer, dense), OBLONG, {})
    x1, x2 = (np.transpose(x, (3, 1, 2, 0)) for x in OBLONG)
    axes = {"batch_axis": 3, "channel_axis": 0}
    numbers = ("CHWN", "HWIO", "CHWN")
    first = stax.Conv(4, (3, 3), padding="SAME", W_std=1.3, b_std=0.2, dimension_numbers=numbers)
    for name, layer in {
        "avg": stax.serial(stax.AvgPool((2, 2), **axes)),
        "gap": stax.GlobalAvgPool(**axes),
        "flat": stax.Flatten(batch_axis=3),
        "flat1": stax.serial(
            stax.Flatten(batch_axis=3, batch_axis_out=1),
            stax.Dense(1, batch_axis=1, channel_axis=0),
        ),
    }.items():
        out[f"{name}_layout"] = (stax.serial(first, stax.Relu(), layer), (x1, x2), {})
    return out


def _image_networks(stax):
    conv = stax.Conv(8, (3, 3), padding="SAME", W_std=1.3, b_std=0.2)
    circular = stax.Conv(8, (3, 3), padding="CIRCULAR", W_std=1.2, b_std=0.1)
    relu, dense, gap, flat = (
        stax.Relu(),
        stax.Dense(1, 1.1, 0.1),
        stax.GlobalAvgPool(),
        stax.Flatten(),
    )
    block = stax.serial(
        stax.FanOut(2),
        stax.parallel(stax.serial(relu, conv, relu, conv), stax.Identity()),
        stax.FanInSum(),
    )
    narrow = stax.serial(
        stax.FanOut(2),
        stax.parallel(
            stax.serial(relu, stax.Conv(8, (3, 3), (2, 2), "SAME")),
            stax.Conv(8, (1, 1), (2, 2), "SAME", 1.2),
        ),
        stax.FanInSum(),
    )
    side = stax.serial(stax.FanOut(2), stax.parallel(conv, stax.Conv(8, (2, 2), padding="SAME")))
    nets = {
        "flat": stax.serial(conv, relu, conv, relu, flat, dense),
        "flat_first": stax.serial(flat, dense, relu, dense),
        "gap": stax.serial(conv, relu, conv, relu, gap, dense),
        "valid": stax.serial(
            stax.Conv(8, (3, 2)), relu, stax.Conv(8, (2, 2)), stax.Erf(), flat, dense
        ),
        "myrtle": stax.serial(conv, relu, stax.AvgPool((2, 2), (2, 2)), conv, relu, gap, dense),
        "resnet": stax.serial(conv, block, narrow, block, relu, gap, dense),
        "upsample": stax.serial(
            circular, relu, stax.ConvTranspose(4, (3, 3), (2, 2), "CIRCULAR"), relu, gap
        ),
        "local": stax.serial(
            stax.ConvLocal(4, (3, 3), (2, 2), "VALID", 1.1, 0.3), stax.Erf(), flat, dense
        ),
        "local_then_conv": stax.serial(
            stax.ConvLocal(4, (3, 3), W_std=1.1, b_std=0.3), relu, conv, relu, gap
        ),
        "after_flatten": stax.serial(conv, relu, flat, dense, relu, dense),
        "after_gap": stax.serial(conv, relu, gap, dense, relu, dense),
        "wide_image": stax.serial(conv, relu, conv, gap),
        "concat_channels": stax.serial(side, stax.FanInConcat(-1), gap, dense),
        "concat_rows": stax.serial(side, stax.FanInConcat(1), relu, gap, dense),
        "concat_columns": stax.serial(side, stax.FanInConcat(2), relu, flat, dense),
        "concat_batch": stax.serial(side, stax.FanInConcat(0), relu, gap, dense),
    }
    out = {name: (net, OBLONG, {}) for name, net in nets.items()}
    out["wide_image"] = (nets["wide_image"], pair(1, 15, 3, 2, n2=1), {})
    out["flat_full"] = (nets["flat"], OBLONG, {"diagonal_spatial": False})
    return out


def _masked(stax):
    return {}
