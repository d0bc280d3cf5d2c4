"""The torch side of benchmarks/convolution.py: {"network": ...} a line in, {"seconds": ...} out.

torch at its best here: channels-last images, a thread a core, data in memory.
"""

import json
import os
import sys
import time
from collections.abc import Callable

import torch
from torch import nn


def cnn() -> nn.Module:
    """The layers of `poster_jax.core.models.CNN`."""
    layers = []
    for before, after in [(3, 32), (32, 32), (32, 64), (64, 64)]:
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def lenet() -> nn.Module:
    """The layers of `poster_jax.core.models.LeNet5`."""
    layers = []
    for before, after in [(1, 6), (6, 16)]:
        layers += [nn.Conv2d(before, after, 5), nn.ReLU(), nn.MaxPool2d(2)]
    dense = [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return nn.Sequential(*layers, nn.Flatten(), *dense)


def training(net: nn.Module, channels: int, batch: int, steps: int) -> Callable[[], None]:
    """`steps` steps of gradient descent."""
    net = net.to(memory_format=torch.channels_last)
    shape = (batch, channels, 32, 32)
    x = [torch.randn(shape).to(memory_format=torch.channels_last) for _ in range(steps)]
    y = torch.randint(0, 10, (steps, batch))
    optimizer = torch.optim.SGD(net.parameters(), 0.01)

    def run() -> None:
        for images, labels in zip(x, y, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()

    return run


def main(batch: int, steps: int) -> None:
    """Answers until the input ends."""
    torch.set_num_threads(os.cpu_count())
    networks = {
        "cnn": training(cnn(), 3, batch, steps),
        "lenet": training(lenet(), 1, batch, steps),
    }
    for line in sys.stdin:
        train = networks[json.loads(line)["network"]]
        start = time.perf_counter()
        train()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
