"""The torch side of benchmarks/_training_sizes.py: the same steps on the same batches.

    python training_sizes_torch.py inputs.npz

Reads a line; answers the seconds of all steps, from the same weights each time, and their losses,
which are read back at the end. Images lie in memory and are resized step by step, as on our side.
"""

import json
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def network(arrays):
    """Three convolutions with BatchNorm, and the mean of the pixels."""
    layers = []
    for layer, stride in enumerate((1, 2, 2)):
        kernel = torch.from_numpy(arrays[f"conv{layer}"])
        outputs, inputs = kernel.shape[:2]
        convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        with torch.no_grad():
            convolution.weight.copy_(kernel)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
    dense = nn.Linear(64, 10)
    with torch.no_grad():
        dense.weight.copy_(torch.from_numpy(arrays["kernel"]))
        dense.bias.copy_(torch.from_numpy(arrays["bias"]))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), dense)


def train(arrays, x, y, sizes, batches):
    """Losses of all steps; gradients are scaled to the running average of their norms."""
    net, loss_fn = network(arrays), nn.CrossEntropyLoss()
    params = list(net.parameters())
    optimizer = torch.optim.SGD(params, 0.05, momentum=0.9)
    losses, running = [], None
    for size, rows in zip(sizes, batches, strict=True):
        images = x[rows]
        if size != images.shape[-1]:
            images = functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_fn(net(images), y[rows])
        loss.backward()
        norm = torch.stack([param.grad.norm() for param in params]).norm()
        first = running is None
        running = norm if first else 0.9 * running + 0.1 * norm
        if not first:
            for param in params:
                param.grad *= running / (norm + 1e-6)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def main(path):
    """Answers line by line."""
    arrays = dict(np.load(path))
    x, y = torch.from_numpy(arrays["x"].copy()), torch.from_numpy(arrays["y"])
    sizes = arrays["sizes"].tolist()
    batches = [torch.from_numpy(arrays[f"rows{step}"]) for step in range(len(sizes))]
    for _ in sys.stdin:
        start = time.perf_counter()
        losses = train(arrays, x, y, sizes, batches)
        print(json.dumps({"seconds": time.perf_counter() - start, "losses": losses}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
