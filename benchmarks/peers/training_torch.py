"""The torch side of benchmarks/training.py: AALR, the networks one after another.

    python training_torch.py inputs.npz

Reads a line; answers the seconds of training all networks and what the controller did in each
epoch. No data loader; losses are read back once an epoch; one thread, as two do not help at this
size.
"""

import json
import math
import sys
import time

import numpy as np
import torch
from torch import nn

WENT_ON, SUCCESS, SECOND, HALVING, RESTORE = range(5)


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


class Aalr:
    """The controller around an optimiser."""

    def __init__(self, net, optimizer, initial_loss):
        self.params, self.optimizer = list(net.parameters()), optimizer
        self.first, self.patience, self.count, self.second = True, 1, 0, False
        self.best = self.initial = initial_loss
        for param in self.params:
            optimizer.state[param]["momentum_buffer"] = torch.zeros_like(param)
        self.save()

    def buffers(self):
        """What is kept."""
        momenta = [self.optimizer.state[param]["momentum_buffer"] for param in self.params]
        return [param.data for param in self.params] + momenta

    def save(self):
        """Keeps parameters and momentum."""
        self.kept = [buffer.clone() for buffer in self.buffers()]

    def restore(self):
        """Brings them back."""
        for buffer, kept in zip(self.buffers(), self.kept, strict=True):
            buffer.copy_(kept)

    def scale(self, factor):
        """The rate times a factor."""
        self.optimizer.param_groups[0]["lr"] *= factor

    def update(self, loss):
        """After an epoch; says what was done."""
        bad = not math.isfinite(loss) or not all(
            bool(torch.isfinite(buffer).all()) for buffer in self.buffers()
        )
        self.count += 1
        if self.first:
            if bad or loss > self.best:
                self.scale(0.5)
                self.count, self.best = 0, self.initial
                self.restore()
                return RESTORE
            self.best = loss
            if self.count == 10:
                self.first, self.count = False, 0
                self.save()
                self.scale(2)
            return SUCCESS
        if not bad and self.count < self.patience:
            return WENT_ON
        self.count = 0
        if not bad and loss < self.best:
            self.best, self.patience, self.second = loss, 1, False
            self.save()
            self.scale(2)
            return SUCCESS
        if not bad and not self.second:
            self.second = True
            return SECOND
        self.scale(0.5)
        self.patience, self.second = 2 * self.patience, False
        if bad:
            self.restore()
        return RESTORE if bad else HALVING


def train_one(arrays, index, x, y, rows):
    """Events of one network."""
    net, loss_fn = network(arrays, index), nn.CrossEntropyLoss()
    rate = float(arrays["rates"][index])
    optimizer = torch.optim.SGD(net.parameters(), rate, momentum=0.9)
    with torch.no_grad():
        before = float(torch.stack([loss_fn(net(x[rows_]), y[rows_]) for rows_ in rows[0]]).mean())
    controller, events = Aalr(net, optimizer, before), []
    for epoch in rows:
        losses = []
        for chosen in epoch:
            optimizer.zero_grad(set_to_none=True)
            loss = loss_fn(net(x[chosen]), y[chosen])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        events.append(controller.update(float(torch.stack(losses).mean())))
    return events


def main(path):
    """Answers line by line."""
    torch.set_num_threads(1)
    arrays = dict(np.load(path))
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    rows = torch.from_numpy(arrays["rows"])
    for _ in sys.stdin:
        start = time.perf_counter()
        events = [train_one(arrays, index, x, y, own) for index, own in enumerate(rows)]
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "events": events}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
