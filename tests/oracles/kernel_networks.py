"""The networks whose kernels are compared with the original's, for any library named `stax`.

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


def summary(x, size=40):
    """A large array as its shape, its sums weighted in two ways, and some entries of it."""
    x = np.asarray(x)
    if x.size <= 2 * size:
        return x
    flat = x.reshape(-1)
    i = np.arange(flat.size)
    sums = [np.sum(flat), np.sum(flat * np.cos(i)), np.sum(flat * (i % 7))]
    return np.concatenate([[flat.size], sums, flat[:: flat.size // size + 1]])


def outputs(net, x, kwargs, unmask):
    """Outputs of the finite network with parameters of key 0, and these, as arrays."""
    import jax
    import jax.numpy as jnp

    init_fn, apply_fn, _ = net
    inputs = jax.tree.map(jnp.asarray, x)
    _, params = init_fn(jax.random.PRNGKey(0), jax.tree.map(np.shape, x))
    given = {k: v for k, v in kwargs.items() if k == "mask_constant"}
    given |= {k: jnp.asarray(v[0]) for k, v in kwargs.items() if k == "pattern"}
    out = unmask(apply_fn)(params, inputs, rng=jax.random.PRNGKey(1), **given)
    leaves = jax.tree.leaves(out)
    flat_params = [jnp.zeros(1)] + [leaf.ravel() for leaf in jax.tree.leaves(params)]
    return [summary(x) for x in leaves] + [summary(jnp.concatenate(flat_params))]


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
        "other": _other_layers,
        "attention": _attention,
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
    for name in (
        "erf",
        "gabor",
        "gelu",
        "sin",
        "rbf",
        "exp",
        "gaussian",
        "exp_normalized",
        "monomial3",
        "polynomial",
        "elementwise",
        "numerical",
        "rectified2",
    ):
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


def _other_layers(stax):
    conv = stax.Conv(8, (3, 3), padding="SAME", W_std=1.3, b_std=0.2)
    relu, dense, gap, flat = (
        stax.Relu(),
        stax.Dense(1, 1.1, 0.1),
        stax.GlobalAvgPool(),
        stax.Flatten(),
    )
    out = {}
    for name, axis in {"c": -1, "hc": (1, 3), "nhwc": (0, 1, 2, 3), "wc": (2, -1)}.items():
        norm = stax.LayerNorm(axis)
        out[f"layernorm_{name}"] = (
            stax.serial(conv, norm, relu, conv, norm, gap, dense),
            OBLONG,
            {},
        )
        out[f"layernorm_{name}_flat"] = (
            stax.serial(conv, norm, relu, conv, norm, flat),
            OBLONG,
            {},
        )
    out["layernorm_dense"] = (
        stax.serial(dense, stax.LayerNorm(eps=0.1), stax.Gelu(), dense),
        FLAT,
        {},
    )
    drop = stax.Dropout(0.8)
    out["dropout"] = (stax.serial(dense, relu, drop, dense, relu, drop, dense), FLAT, {})
    out["dropout_test"] = (stax.serial(dense, relu, stax.Dropout(0.8, "test"), dense), FLAT, {})
    out["dropout_image"] = (stax.serial(conv, relu, drop, conv, relu, gap, dense), OBLONG, {})
    out["dropout_flat"] = (stax.serial(conv, relu, drop, conv, relu, flat, dense), OBLONG, {})
    out["dropout_full"] = (stax.serial(dense, relu, drop, dense), FLAT, {"diagonal_batch": False})

    numbers = {
        "scalar": (2.0, (((), ()), ((), ()))),
        "row": (np.array([1.0, -1.0, 0.5, 0.3, 0.2, 0.1]), (((1,), (0,)), ((), ()))),
        "matrix": (grid((6, 4)), (((1,), (0,)), ((), ()))),
        "both": (grid((6, 5, 3)), (((1, 2), (0, 1)), ((), ()))),
        "weights": (grid((5, 6)), (((), ()), ((2, 1), (0, 1)))),
        "batch": (grid((2, 6, 3)), (((1,), (1,)), ((0,), (0,)))),
    }
    for name, (constant, dims) in numbers.items():
        (a, b), (c, d) = dims
        right = stax.DotGeneral(rhs=constant, dimension_numbers=dims)
        left = stax.DotGeneral(lhs=constant, dimension_numbers=((b, a), (d, c)))
        out[f"dot_{name}"] = (stax.serial(conv, right), OBLONG, {})
        if name in ("matrix", "row"):
            side = {"batch_axis": 1, "channel_axis": 3} if name == "matrix" else {}
            after = stax.serial(left, stax.GlobalAvgPool(**side))
            out[f"dot_left_{name}"] = (stax.serial(conv, after), OBLONG, {})
    out["dot_sum_batch"] = (
        stax.serial(
            conv, stax.DotGeneral(rhs=grid((2, 3)), dimension_numbers=(((0,), (0,)), ((), ())))
        ),
        OBLONG,
        {},
    )

    graphs = np.abs(grid((2, 7, 7))), np.abs(grid((2, 7, 7), 1.3))
    narrow = stax.Conv(8, (3,), padding="SAME", W_std=1.3, b_std=0.2)
    for name, layer in {"all": stax.Aggregate(), "one": stax.Aggregate(1), "alone": None}.items():
        net = (
            stax.Aggregate()
            if layer is None
            else stax.serial(narrow, relu, layer, narrow, relu, gap)
        )
        out[f"aggregate_{name}"] = (net, SERIES, {"pattern": graphs})
    images = np.abs(grid((2, 6, 6))), np.abs(grid((2, 6, 6), 1.3))
    net = stax.serial(conv, relu, stax.Aggregate(1), conv, gap)
    out["aggregate_rows"] = (net, OBLONG, {"pattern": images})
    images = np.abs(grid((2, 6, 5, 6, 5))), np.abs(grid((2, 6, 5, 6, 5), 1.3))
    net = stax.serial(conv, relu, stax.Aggregate((1, 2)), conv, gap)
    out["aggregate_image"] = (net, OBLONG, {"pattern": images})
    edges = tuple((np.arange(2 * 8 * 2).reshape(2, 8, 1, 2) * step) % 8 - 1 for step in (3, 5))
    net = stax.serial(narrow, relu, stax.Aggregate(implementation="SPARSE"), narrow, gap)
    out["aggregate_sparse"] = (net, SERIES, {"pattern": edges})
    edges = tuple((np.arange(2 * 8 * 4).reshape(2, 8, 2, 2) * step) % 6 - 1 for step in (3, 5))
    net = stax.serial(
        conv, relu, conv, relu, stax.Aggregate((1, 2), implementation="SPARSE"), conv, gap
    )
    out["aggregate_sparse_image"] = (net, OBLONG, {"pattern": edges})

    for name, shape, method in (
        ("linear", (-1, 4, 7, -1), "linear"),
        ("nearest", (-1, 9, 3, -1), "nearest"),
        ("one_axis", (-1, -1, 3, -1), "bilinear"),
        ("batch", (3, -1, -1, -1), "linear"),
    ):
        for antialias in (True, False):
            layer = stax.ImageResize(shape, method, antialias)
            # Two convolutions: after an odd number the original mixes up the order of the axes.
            net = stax.serial(conv, relu, conv, relu, layer, gap)
            out[f"resize_{name}_{antialias}"] = (net, OBLONG, {})

    for name, idx in {
        "crop": stax.Slice[:, 1:4, ::2],
        "row": stax.Slice[:, 2],
        "column": stax.Slice[..., 1, :],
        "batch": stax.Slice[::-1, :, 1:3],
    }.items():
        out[f"index_{name}"] = (stax.serial(conv, relu, stax.Index(idx), gap), OBLONG, {})
        out[f"index_{name}_flat"] = (
            stax.serial(conv, relu, stax.Index(idx), flat, dense),
            OBLONG,
            {},
        )
    net = stax.serial(conv, relu, stax.Index(stax.Slice[:, 0]), narrow, relu, gap, dense)
    out["index_then_conv"] = (net, OBLONG, {})
    return out


def _attention(stax):
    narrow, relu, gap = stax.Conv(8, (3,), padding="SAME"), stax.Relu(), stax.GlobalAvgPool()
    dense, flat = stax.Dense(8, 1.1, 0.2), stax.Flatten()
    settings = {"W_key_std": 1.2, "W_value_std": 1.1, "W_query_std": 0.9, "W_out_std": 1.3}
    out = {}
    for mechanism in ("SOFTMAX", "IDENTITY", "ABS", "RELU"):
        for embedding in ("NONE", "SUM", "CONCAT"):
            for values in (False, True) if embedding != "NONE" else (False,):
                extra = {**settings, "attention_mechanism": mechanism, "pos_emb_type": embedding}
                extra |= {"val_pos_emb": values, "W_pos_emb_std": 0.7, "b_std": 0.3}
                name = f"{mechanism.lower()}_{embedding.lower()}_{values}"
                layer = stax.GlobalSelfAttention(8, 4, 4, 2, True, **extra)
                out[name] = (stax.serial(narrow, relu, layer, relu, gap, dense), SERIES, {})
                if mechanism == "IDENTITY":
                    layer = stax.GlobalSelfAttention(8, 4, 4, 2, False, **extra)
                    out[f"{name}_root"] = (
                        stax.serial(narrow, relu, layer, relu, flat, dense),
                        SERIES,
                        {},
                    )
                    layer = stax.GlobalSelfAttention(
                        8, 4, 4, 2, False, **{**extra, "b_std": None}, n_chan_pos_emb=None
                    )
                    out[f"{name}_root_first"] = (layer, SERIES, {})
    extra = {**settings, "pos_emb_type": "CONCAT", "n_chan_pos_emb": 3, "pos_emb_p_norm": 1}
    layer = stax.GlobalSelfAttention(
        8, 4, 4, 2, True, **extra, pos_emb_decay_fn=lambda d: 1 / (1 + d), val_pos_emb=True
    )
    conv = stax.Conv(8, (3, 3), padding="SAME", W_std=1.3, b_std=0.2)
    out["image"] = (stax.serial(conv, relu, layer, relu, gap, dense), OBLONG, {})
    out["first"] = (stax.serial(layer, relu, gap, dense), OBLONG, {})
    out["full_batch"] = (stax.serial(layer, flat, dense), SERIES, {"diagonal_batch": False})
    return out


def _masked(stax):
    narrow, relu, gap = (
        stax.Conv(8, (3,), padding="SAME", b_std=0.3),
        stax.Relu(),
        stax.GlobalAvgPool(),
    )
    dense, flat = stax.Dense(8, 1.1, 0.2), stax.Flatten()
    conv = stax.Conv(8, (3, 3), padding="SAME", W_std=1.3, b_std=0.2)
    s1, s2 = (x.copy() for x in SERIES)
    s1[0, 5:] = s2[1, 4:] = 100.0
    i1, i2 = (x.copy() for x in OBLONG)
    i1[0, 4:] = i1[1, :, 3:] = i2[1, 2:, 1:] = 100.0
    n1, n2 = (np.where(x == 100.0, np.nan, x) for x in (s1, s2))
    series = {
        "gap": stax.serial(narrow, relu, gap, dense),
        "flat": stax.serial(narrow, relu, flat, dense),
        "gsp": stax.serial(narrow, relu, stax.GlobalSumPool(), dense),
        "pool": stax.serial(narrow, relu, stax.AvgPool((3,), (2,), "SAME"), narrow, relu, gap),
        "pool_valid": stax.serial(
            narrow, relu, stax.SumPool((2,), None, "VALID"), narrow, relu, gap
        ),
        "valid": stax.serial(stax.Conv(8, (3,), (2,), b_std=0.3), stax.Erf(), gap, dense),
        "circular": stax.serial(
            stax.Conv(8, (3,), (2,), "CIRCULAR", b_std=0.3), stax.Sin(), flat, dense
        ),
        "even": stax.serial(stax.Conv(8, (4,), (2,), "SAME", b_std=0.3), stax.Cos(), narrow, gap),
        "transpose": stax.serial(stax.ConvTranspose(8, (3,), (2,), "SAME", b_std=0.3), relu, gap),
        "transpose_valid": stax.serial(
            stax.ConvTranspose(8, (2,), (3,), "VALID", b_std=0.3), relu, gap
        ),
        "local": stax.serial(
            stax.ConvLocal(8, (3,), None, "SAME", b_std=0.3), relu, narrow, relu, gap
        ),
        "layernorm": stax.serial(narrow, stax.LayerNorm(), relu, narrow, gap),
        "layernorm_all": stax.serial(narrow, stax.LayerNorm((1, 2)), relu, narrow, gap),
        "attention": stax.serial(
            narrow,
            relu,
            stax.GlobalSelfAttention(8, 4, 4, 2, True, b_std=0.3, pos_emb_type="SUM"),
            relu,
            gap,
        ),
        "attention_identity": stax.serial(
            narrow,
            relu,
            stax.GlobalSelfAttention(
                8, 4, 4, 2, False, b_std=0.3, pos_emb_type="CONCAT", attention_mechanism="IDENTITY"
            ),
            relu,
            gap,
        ),
        "attention_relu": stax.serial(
            narrow,
            relu,
            stax.GlobalSelfAttention(8, 4, 4, 2, True, attention_mechanism="RELU"),
            relu,
            flat,
        ),
        "residual": stax.serial(
            narrow,
            stax.FanOut(2),
            stax.parallel(stax.serial(relu, narrow), stax.Identity()),
            stax.FanInSum(),
            relu,
            gap,
            dense,
        ),
        "product": stax.serial(
            narrow,
            stax.FanOut(2),
            stax.parallel(stax.serial(relu, narrow), narrow),
            stax.FanInProd(),
            gap,
            dense,
        ),
        "concat": stax.serial(
            narrow,
            stax.FanOut(2),
            stax.parallel(stax.serial(relu, narrow), narrow),
            stax.FanInConcat(1),
            relu,
            gap,
        ),
        "index": stax.serial(narrow, relu, stax.Index(stax.Slice[:, 1:6:2]), gap),
        "dropout": stax.serial(narrow, relu, stax.Dropout(0.7), narrow, relu, gap),
        "dot": stax.serial(narrow, relu, stax.DotGeneral(rhs=2.0), narrow, gap),
        "resize": stax.serial(narrow, relu, stax.ImageResize((-1, 5, -1), "nearest"), narrow, gap),
        "aggregate": stax.serial(narrow, relu, stax.Aggregate(), narrow, relu, gap),
        "exp": stax.serial(
            narrow, stax.Exp(0.5, 0.4), narrow, stax.Rbf(0.3), narrow, stax.Gaussian(), gap
        ),
        "polynomial": stax.serial(narrow, stax.Hermite(2), narrow, stax.Monomial(3), gap),
        "abrelu": stax.serial(
            narrow, stax.LeakyRelu(0.3), narrow, stax.Abs(), narrow, stax.Gabor(), gap
        ),
    }
    out = {name: (net, (s1, s2), {"mask_constant": 100.0}) for name, net in series.items()}
    net, xs, kwargs = out["aggregate"]
    graphs = np.abs(grid((2, 7, 7))), np.abs(grid((2, 7, 7), 1.3))
    out["aggregate"] = (net, xs, {**kwargs, "pattern": graphs})
    out["nan"] = (series["gap"], (n1, n2), {"mask_constant": np.nan})
    images = {
        "image_gap": stax.serial(conv, relu, stax.AvgPool((2, 2), (2, 2)), conv, relu, gap, dense),
        "image_flat": stax.serial(conv, relu, conv, relu, flat, dense),
        "image_diagonal": stax.serial(conv, stax.LayerNorm((1, 2, 3)), relu, flat, dense),
        "image_transpose": stax.serial(
            conv, relu, stax.ConvTranspose(4, (3, 2), (2, 1), "SAME"), relu, gap
        ),
    }
    out |= {name: (net, (i1, i2), {"mask_constant": 100.0}) for name, net in images.items()}
    return out
