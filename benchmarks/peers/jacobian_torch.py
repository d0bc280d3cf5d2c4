"""The torch side of benchmarks/jacobian.py: penalties of Jacobians and of weights.

    python jacobian_torch.py folder

Reads a JSON request a line: {"case": a function below, ...}; weights and data of a model stand in
folder/model.npz, kernels in folder/kernels.npz. Answers {"seconds": ..., "value": ...}: the time of
the penalty and of its gradient by all weights.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from curvature_torch import network
from torch import nn


class Problem:
    """A network with our weights, and its examples."""

    def __init__(self, path):
        arrays = np.load(path)
        layers = [
            (kind, *(arrays[f"{w}{i}"] for w in ("kernel", "bias") if f"{w}{i}" in arrays))
            for i, kind in enumerate(json.loads(str(arrays["kinds"])))
        ]
        self.model = network(layers)
        x = torch.from_numpy(arrays["x"])
        self.x = x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 else x


def jacobian_norm(problem, num_projections):
    """Hoffman's (1/2) |J|^2, one backward pass a projection; 0 of them takes all unit vectors."""
    x = problem.x.detach().requires_grad_()
    outputs = problem.model(x)
    size, classes = outputs.shape
    number = num_projections or classes
    total = 0.0
    for k in range(number):
        if num_projections:
            v = nn.functional.normalize(torch.randn(size, classes), dim=1)
        else:
            v = torch.zeros(size, classes)
            v[:, k] = 1
        # The graph stays for the next projection, and is itself differentiated in the end.
        (pulled,) = torch.autograd.grad(outputs, x, v, retain_graph=True, create_graph=True)
        total = total + pulled.square().sum()
    value = total * classes / (2 * number * size)
    value.backward()
    problem.model.zero_grad()
    return value


def smaller_gram(kernel):
    """W W' - I or W'W - I of a kernel (out, in, ...), the smaller."""
    rows = kernel.flatten(1)
    if rows.shape[0] > rows.shape[1]:
        rows = rows.T
    return rows @ rows.T - torch.eye(rows.shape[0])


def soft_orthogonality(kernels):
    """Sum over kernels of |W'W - I|_F^2, up to the constants of the side."""
    value = sum(smaller_gram(kernel).square().sum() for kernel in kernels)
    value.backward()
    return value


def spectral_restricted_isometry(kernels):
    """Sum over kernels of the two-step power method, in the form that its authors run."""
    value = 0.0
    for kernel in kernels:
        gram = smaller_gram(kernel)
        u = gram @ torch.rand(len(gram), 1)
        value = value + (gram @ (u / u.norm())).norm() ** 2
    value.backward()
    return value


def best_threads(case, subject, request):
    """1 or all cores, whichever is faster here: threads of small products wait for each other."""
    seconds = {}
    for threads in (1, os.cpu_count()):
        torch.set_num_threads(threads)
        case(subject, **request)
        start = time.perf_counter()
        case(subject, **request)
        seconds[threads] = time.perf_counter() - start
    return min(seconds, key=seconds.get)


def main(folder):
    """Answers until the input ends."""
    problems, kernels, threads = {}, None, {}
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        case = globals()[request.pop("case")]
        if "model" in request:
            name = request.pop("model")
            if name not in problems:
                problems[name] = Problem(folder / f"{name}.npz")
            subject = problems[name]
        else:
            if kernels is None:
                arrays = np.load(folder / "kernels.npz")
                kernels = [torch.from_numpy(arrays[k]).requires_grad_() for k in arrays.files]
            subject = kernels
            for kernel in kernels:
                kernel.grad = None
        if line not in threads:
            threads[line] = best_threads(case, subject, request)
        torch.set_num_threads(threads[line])
        start = time.perf_counter()
        value = case(subject, **request)
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "value": float(value)}), file=answers, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
