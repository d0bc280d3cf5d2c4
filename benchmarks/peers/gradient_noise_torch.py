"""The torch side of benchmarks/gradient_noise.py: gradients of single examples, projected.

    python gradient_noise_torch.py folder

Reads a JSON request a line: {"case": a function below, "model": "mlp"}; weights and data stand in
folder/model.npz, directions in torch's order of parameters in folder/model_directions.npy. Answers
{"seconds": ..., "peak_mb": ...}; the projections (R, N) go to folder/projections.npy.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

import backpack
import numpy as np
import torch
from backpack.extensions import BatchGrad
from curvature_torch import network
from opacus.grad_sample import GradSampleModule
from torch import nn


class ResidualBlock(nn.Module):
    """Two convolutions and the parameter-free shortcut: every second pixel, new channels zero."""

    def __init__(self, channels, features, stride):
        super().__init__()
        self.first = nn.Conv2d(channels, features, 3, stride=stride, padding=1)
        self.second = nn.Conv2d(features, features, 3, padding=1)
        self.inner, self.outer = nn.ReLU(), nn.ReLU()
        self.stride, self.new = stride, features - channels

    def forward(self, x):
        """As in ours."""
        y = self.second(self.inner(self.first(x)))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        shortcut = nn.functional.pad(shortcut, (0, 0, 0, 0, 0, self.new))
        return self.outer(y + shortcut)


def resnet8(arrays, count):
    """He's network of one block a stage without norm, with our weights in the order of layers."""
    width = arrays["kernel0"].shape[-1]
    model = nn.Sequential(
        nn.Conv2d(arrays["kernel0"].shape[2], width, 3, padding=1),
        nn.ReLU(),
        ResidualBlock(width, width, 1),
        ResidualBlock(width, 2 * width, 2),
        ResidualBlock(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, arrays[f"bias{count - 1}"].shape[0]),
    )
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        for i, layer in enumerate(layers):
            kernel = torch.from_numpy(arrays[f"kernel{i}"])
            layer.weight.copy_(kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T)
            layer.bias.copy_(torch.from_numpy(arrays[f"bias{i}"]))
    return model


def with_numbers(model):
    """Paddings as numbers: BackPACK's gradients are silently wrong for padding="same"."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.padding == "same":
            module.padding = tuple(size // 2 for size in module.kernel_size)
    return model


class Problem:
    """A network with our weights, its examples, and the directions."""

    def __init__(self, folder, name):
        arrays = np.load(folder / f"{name}.npz")
        kinds = json.loads(str(arrays["kinds"]))
        if kinds == ["resnet8"]:
            count = sum(key.startswith("kernel") for key in arrays.files)
            self.make = lambda: resnet8(arrays, count)
        else:
            layers = [
                (kind, *(arrays[f"{w}{i}"] for w in ("kernel", "bias") if f"{w}{i}" in arrays))
                for i, kind in enumerate(kinds)
            ]
            self.make = lambda: with_numbers(network(layers))
        x = torch.from_numpy(arrays["x"])
        self.x = x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 else x
        self.y = torch.from_numpy(arrays["y"]).long()
        self.directions = torch.from_numpy(np.load(folder / f"{name}_directions.npy"))
        self._models = {}

    def model(self, wrap):
        """The network prepared by a library, once."""
        if wrap not in self._models:
            self._models[wrap] = wrap(self.make())
        return self._models[wrap]


def plain(model):
    """As it is."""
    return model


def functorch(problem):
    """torch.func: vmap of grad of the functional network, then one product."""
    model = problem.model(plain)
    params = {name: p.detach() for name, p in model.named_parameters()}

    def loss(params, x, y):
        logits = torch.func.functional_call(model, params, (x[None],))
        return nn.functional.cross_entropy(logits, y[None])

    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(
        params, problem.x, problem.y
    )
    rows = torch.cat([g.flatten(1) for g in grads.values()], dim=1)
    return problem.directions @ rows.T


def backpack_batch_grad(problem):
    """BackPACK's BatchGrad; its gradients of a mean loss come divided by the batch size."""
    model = problem.model(backpack.extend)
    loss = backpack.extend(nn.CrossEntropyLoss())(model(problem.x), problem.y)
    with backpack.backpack(BatchGrad()):
        loss.backward()
    rows = torch.cat([p.grad_batch.flatten(1) for p in model.parameters()], dim=1)
    found = problem.directions @ rows.T * len(problem.x)
    for p in model.parameters():
        p.grad = None
        del p.grad_batch
    return found


def opacus_grad_sample(problem):
    """Opacus' GradSampleModule."""
    model = problem.model(GradSampleModule)
    nn.functional.cross_entropy(model(problem.x), problem.y).backward()
    rows = torch.cat([p.grad_sample.flatten(1) for p in model.parameters()], dim=1)
    found = problem.directions @ rows.T
    model.zero_grad()
    return found


def main(folder):
    """Answers until the input ends."""
    torch.set_num_threads(os.cpu_count())
    problems = {}
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        name = request["model"]
        if name not in problems:
            problems[name] = Problem(folder, name)
        start = time.perf_counter()
        found = globals()[request["case"]](problems[name])
        seconds = time.perf_counter() - start
        np.save(folder / "projections.npy", found.detach().numpy())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "peak_mb": peak}), file=answers, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
