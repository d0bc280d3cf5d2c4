"""The torch side of benchmarks/populations.py: trains the networks one after another.

    python populations_torch.py inputs.npz

Reads {"batch", "optimizer"} a line; answers the seconds of training all networks and their mean
loss on all data. No data loader, no reading back of losses, and one thread: at this size two are
7 % slower (batch 16) or 5 % faster (batch 64) on a quiet machine, and many times slower on a busy
one.
"""

import json
import sys
import time

import numpy as np
import torch
from torch import nn

OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, 0.05),
    "adam": lambda params: torch.optim.Adam(params, 1e-3),
}


def network(arrays, index):
    """Number `index` of the population, with its own weights."""
    layers = []
    for layer in range(3):
        kernel = torch.from_numpy(arrays[f"kernel{layer}"][index])
        linear = nn.Linear(*kernel.shape)
        with torch.no_grad():
            linear.weight.copy_(kernel.T)
            linear.bias.copy_(torch.from_numpy(arrays[f"bias{layer}"][index]))
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def train_all(arrays, batch, make_optimizer):
    """Seconds, and the mean loss at the end."""
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    rows = torch.from_numpy(arrays[f"rows{batch}"])
    nets = [network(arrays, index) for index in range(len(rows))]
    loss_fn = nn.CrossEntropyLoss()
    start = time.perf_counter()
    for net, steps in zip(nets, rows, strict=True):
        optimizer = make_optimizer(net.parameters())
        for chosen in steps:
            optimizer.zero_grad()
            loss_fn(net(x[chosen]), y[chosen]).backward()
            optimizer.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        return seconds, float(np.mean([float(loss_fn(net(x), y)) for net in nets]))


def main(path):
    """Answers line by line."""
    torch.set_num_threads(1)
    arrays = dict(np.load(path))
    for line in sys.stdin:
        request = json.loads(line)
        make_optimizer = OPTIMIZERS[request["optimizer"]]
        seconds, loss = train_all(arrays, request["batch"], make_optimizer)
        print(json.dumps({"seconds": seconds, "loss": loss}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
