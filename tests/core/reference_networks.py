"""The networks of `poster_jax.core.models` in float64 numpy, with loops: oracles of its tests."""

import numpy as np


def conv(layer, x, stride=1, padding=0):
    """Cross-correlation of (n, h, w, c) with (k, k, c, d), one output pixel after the other."""
    kernel, bias = layer["kernel"], layer.get("bias", 0.0)
    size = kernel.shape[0]
    x = np.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    height, width = ((s - size) // stride + 1 for s in x.shape[1:3])
    out = np.zeros((len(x), height, width, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            patch = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
            out[:, i, j] = np.einsum("nhwc,hwcd->nd", patch, kernel)
    return out + bias


def dense(layer, x):
    return x @ layer["kernel"] + layer.get("bias", 0.0)


def relu(x):
    return x * (x > 0)


def norm(params, state, x):
    x = (x - state["mean"]) / np.sqrt(state["var"] + 1e-5)
    return x * params["scale"] + params["bias"]


def pool(x, reduce):
    out = np.zeros((len(x), x.shape[1] // 2, x.shape[2] // 2, x.shape[3]))
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            out[:, i, j] = reduce(x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2], axis=(1, 2))
    return out


def mlp(params, state, x):
    x = x.reshape(len(x), -1)
    x = relu(dense(params["Dense_0"], x))
    x = relu(dense(params["Dense_1"], x))
    return dense(params["Dense_2"], x)


def lenet5(params, state, x, padding=0, pool=np.max):
    for name in ("Conv_0", "Conv_1"):
        x = globals()["pool"](relu(conv(params[name], x, padding=padding)), pool)
    return mlp(params, state, x)


def cnn(params, state, x):
    x = relu(conv(params["Conv_0"], x, 1, 1))
    x = relu(conv(params["Conv_1"], x, 2, 1))
    return dense(params["Dense_0"], x.mean((1, 2)))


def resnet(params, state, x):
    stats = state.get("batch_stats", {}) if state else {}

    def conv_norm(params, stats, number, x, stride=1, padding=1):
        x = conv(params[f"Conv_{number}"], x, stride, padding)
        name = f"BatchNorm_{number}"
        return norm(params[name], stats[name], x) if name in params else x

    x = relu(conv_norm(params, stats, 0, x))
    num_blocks = sum(name.startswith("Block") for name in params)
    for index in range(num_blocks):
        p, s = params[f"Block_{index}"], stats.get(f"Block_{index}", {})
        stride = 2 if index in (num_blocks // 3, 2 * num_blocks // 3) else 1
        y = conv_norm(p, s, 1, relu(conv_norm(p, s, 0, x, stride)))
        if "Conv_2" in p:
            x = conv_norm(p, s, 2, x, stride, padding=0)
        elif stride == 2:
            x = np.concatenate([x[:, ::2, ::2], 0 * y[..., x.shape[-1] :]], -1)
        x = relu(x + y)
    return dense(params["Dense_0"], x.mean((1, 2)))


def imagenet_resnet(params, state, x, blocks):
    """`blocks` of each stage; parameters of blocks one by one, in their order."""
    stats = state["batch_stats"]

    def conv_norm(params, stats, number, x, stride=1, padding=0, name=None):
        x = conv(params[name or f"Conv_{number}"], x, stride, padding)
        return norm(params[f"BatchNorm_{number}"], stats[f"BatchNorm_{number}"], x)

    x = relu(conv_norm(params, stats, 0, x, 2, 3))
    x = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=-np.inf)
    height, width = ((s - 3) // 2 + 1 for s in x.shape[1:3])
    windows = [
        [x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2)) for j in range(width)]
        for i in range(height)
    ]
    x = np.moveaxis(np.array(windows), 2, 0)
    firsts = np.cumsum((0, *blocks))
    for index in range(sum(blocks)):
        p, s = params[f"Block_{index}"], stats[f"Block_{index}"]
        stride = 2 if index in firsts[1:] else 1
        if "Conv_2" in p:
            y = relu(conv_norm(p, s, 0, x))
            y = relu(conv_norm(p, s, 1, y, stride, 1))
            y = conv_norm(p, s, 2, y)
        else:
            y = relu(conv_norm(p, s, 0, x, stride, 1))
            y = conv_norm(p, s, 1, y, 1, 1)
        if "shortcut" in p:
            x = conv_norm(p, s, 3 if "Conv_2" in p else 2, x, stride, name="shortcut")
        x = relu(x + y)
    return dense(params["Dense_0"], x.mean((1, 2)))


def vgg(params, state, x):
    stats = state["batch_stats"] if state else {}
    pooled_after = (1, 2) if "Conv_2" in params else (0, 1)  # the two cases of the tests
    for index in range(pooled_after[-1] + 1):
        x = conv(params[f"Conv_{index}"], x, 1, 1)
        name = f"BatchNorm_{index}"
        x = relu(norm(params[name], stats[name], x) if stats else x)
        x = pool(x, np.max) if index in pooled_after else x
    x = x.reshape(len(x), -1)
    if "Dense_1" in params:
        x = relu(dense(params["Dense_0"], x))
        return dense(params["Dense_1"], x)
    return dense(params["Dense_0"], x)
