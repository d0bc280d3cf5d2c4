"""The torch side of benchmarks/_training_diversity.py: one network after another, one thread.

    python feature_diversity_torch.py inputs.npz

Each line of input asks for one training of all networks; the answer has its seconds and the final
losses, (seeds, conditions). No data loader, no reading back of losses.
"""

import json
import sys
import time

import numpy as np
import torch
from torch import nn


def network(arrays, seed, condition):
    """One network with its own weights."""
    layers = []
    for layer in range(2):
        kernel = torch.from_numpy(arrays[f"kernel{layer}"][seed, condition])
        linear = nn.Linear(*kernel.shape)
        with torch.no_grad():
            linear.weight.copy_(kernel.T)
            linear.bias.copy_(torch.from_numpy(arrays[f"bias{layer}"][seed, condition]))
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def train_all(arrays):
    """Seconds, and the losses at the end."""
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    rows = torch.from_numpy(arrays["rows"])
    num_seeds, num_conditions = arrays["kernel0"].shape[:2]
    places = [(s, c) for s in range(num_seeds) for c in range(num_conditions)]
    nets = [network(arrays, *place) for place in places]
    loss_fn = nn.CrossEntropyLoss()
    start = time.perf_counter()
    for net, (seed, _) in zip(nets, places, strict=True):
        optimizer = torch.optim.SGD(net.parameters(), float(arrays["rate"]))
        for chosen in rows[seed]:
            optimizer.zero_grad()
            loss_fn(net(x[chosen]), y[chosen]).backward()
            optimizer.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        losses = [float(loss_fn(net(x), y)) for net in nets]
    return seconds, np.reshape(losses, (num_seeds, num_conditions)).tolist()


def main(path):
    """Answers line by line."""
    torch.set_num_threads(1)
    arrays = dict(np.load(path))
    for _ in sys.stdin:
        seconds, losses = train_all(arrays)
        print(json.dumps({"seconds": seconds, "losses": losses}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
