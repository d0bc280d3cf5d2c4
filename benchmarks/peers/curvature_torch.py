"""The torch side of benchmarks/curvature.py: PyHessian, curvlinops, and the authors' own way.

    python curvature_torch.py folder

Reads a JSON request a line: {"case": a function below, "model": "cnn", ...}; the weights and data
of the model stand in folder/model.npz. Answers {"seconds": ..., ...}; vectors go to
folder/answer.npz.
"""

import json
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from curvlinops import HessianLinearOperator, hutchinson_trace, xtrace
from curvlinops.papyan2020traces.spectrum import fast_lanczos
from pyhessian import hessian
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn

warnings.filterwarnings("ignore")
CROSS_ENTROPY = nn.CrossEntropyLoss()


def network(layers):
    """A torch module of our list of ("conv", kernel, bias), ("dense", ...), ("relu",), ..."""
    modules = []
    for kind, *weights in layers:
        if kind in {"conv", "conv_valid"}:
            kernel = torch.from_numpy(weights[0]).permute(3, 2, 0, 1).contiguous()
            padding = "same" if kind == "conv" else "valid"
            module = nn.Conv2d(kernel.shape[1], kernel.shape[0], kernel.shape[2:], padding=padding)
        elif kind == "dense":
            kernel = torch.from_numpy(weights[0]).T.contiguous()
            module = nn.Linear(kernel.shape[1], kernel.shape[0])
        else:
            makers = {
                "relu": nn.ReLU,
                "pool": lambda: nn.MaxPool2d(2),
                "mean": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
                "flatten": nn.Flatten,
            }
            modules.append(makers[kind]())
            continue
        with torch.no_grad():
            module.weight.copy_(kernel)
            module.bias.copy_(torch.from_numpy(weights[1]))
        modules.append(module)
    return nn.Sequential(*modules)


class Problem:
    """A network with our weights, and its batch."""

    def __init__(self, path):
        arrays = np.load(path)
        kinds = json.loads(str(arrays["kinds"]))
        layers = [
            (kind, *(arrays[f"{name}{i}"] for name in ("kernel", "bias") if f"{name}{i}" in arrays))
            for i, kind in enumerate(kinds)
        ]
        self.model = network(layers).eval()
        x = torch.from_numpy(arrays["x"])
        # torch's fastest layout for convolutions
        self.x = x.permute(0, 3, 1, 2) if x.ndim == 4 else x
        self.y = torch.from_numpy(arrays["y"]).long()
        self.params = list(self.model.parameters())
        self._operator = self._pyhessian = None

    @property
    def operator(self):
        """curvlinops' Hessian, made once."""
        if self._operator is None:
            self._operator = HessianLinearOperator(
                self.model,
                CROSS_ENTROPY,
                self.params,
                [(self.x, self.y)],
                check_deterministic=False,
            )
        return self._operator

    def pyhessian(self):
        """PyHessian's object; it keeps the graph of one gradient for all its products."""
        return hessian(self.model, CROSS_ENTROPY, data=(self.x, self.y), cuda=False)

    def vectors_as_ours(self, rows):
        """Rows in torch's order of parameters -> a list of our kernels and biases."""
        out, start = [], 0
        for p in self.params:
            part = rows[:, start : start + p.numel()].reshape(len(rows), *p.shape)
            start += p.numel()
            if p.ndim == 4:
                part = part.transpose(0, 3, 4, 2, 1)
            elif p.ndim == 2:
                part = part.transpose(0, 2, 1)
            out.append(part)
        return out


class OneAtATime:
    """curvlinops' operator, one column at a time: it stacks all of them otherwise, which takes as
    many times the memory of a gradient, and no less time.
    """

    def __init__(self, operator):
        self.shape, self.device, self.dtype = operator.shape, operator.device, operator.dtype
        self._operator = operator

    def __matmul__(self, columns):
        return torch.stack([self._operator @ column for column in columns.T], dim=1)


def product_curvlinops(problem):
    """One product of curvlinops, forward over reverse."""
    problem.operator @ torch.randn(problem.operator.shape[1])
    return {}


def product_double_backward(problem):
    """One product, reverse over reverse."""
    loss = CROSS_ENTROPY(problem.model(problem.x), problem.y)
    gradients = torch.autograd.grad(loss, problem.params, create_graph=True)
    torch.autograd.grad(gradients, problem.params, [torch.randn_like(p) for p in problem.params])
    return {}


def top_curvlinops(problem, k, tol):
    """scipy's ARPACK on curvlinops' operator, as its documentation shows."""
    products = [0]

    def multiply(vector):
        products[0] += 1
        return (problem.operator @ torch.from_numpy(vector.astype(np.float32))).numpy()

    counted = LinearOperator(problem.operator.shape, matvec=multiply, dtype=np.float32)
    values, vectors = eigsh(counted, k=k, which="LA", tol=tol)
    return {"values": values[::-1].tolist(), "products": products[0]}, vectors[:, ::-1].T


def top_pyhessian(problem, k):
    """Power iteration with deflation, its default tolerance."""
    values, vectors = problem.pyhessian().eigenvalues(top_n=k)
    rows = np.stack([np.concatenate([p.numpy().ravel() for p in v]) for v in vectors])
    return {"values": values}, rows


def trace_curvlinops_hutchinson(problem, num):
    """Hutchinson's estimator."""
    return {"trace": float(hutchinson_trace(OneAtATime(problem.operator), num))}


def trace_curvlinops_xtrace(problem, num):
    """XTrace."""
    return {"trace": float(xtrace(OneAtATime(problem.operator), num))}


def trace_pyhessian(problem, num):
    """Hutchinson's estimator, with all of `num` probes."""
    samples = problem.pyhessian().trace(maxIter=num, tol=-np.inf)
    return {"trace": float(np.mean(samples))}


def density_curvlinops(problem, steps):
    """Nodes and weights of Papyan's fast Lanczos (no reorthogonalisation)."""
    values, vectors = fast_lanczos(problem.operator, steps)
    return {"nodes": values.tolist(), "weights": (vectors[0] ** 2).tolist()}


def density_pyhessian(problem, steps):
    """Nodes and weights of its Lanczos with full reorthogonalisation."""
    nodes, weights = problem.pyhessian().density(iter=steps, n_v=1)
    return {"nodes": [float(v) for v in nodes[0]], "weights": [float(w) for w in weights[0]]}


def relative_flatness(problem, layer, rows):
    """The authors' way: every second derivative of one layer, a backward pass each.

    `rows` of the d m entries of the gradient are differentiated; the caller scales the time to all
    of them where they are too many. Returns kappa when all of them were, and
    the seconds of the forward pass and first gradient among its own.
    """
    weight = [m for m in problem.model if isinstance(m, nn.Linear)][layer].weight
    start = time.perf_counter()
    loss = CROSS_ENTROPY(problem.model(problem.x), problem.y)
    (first,) = torch.autograd.grad(loss, [weight], create_graph=True)
    first_s = time.perf_counter() - start
    neurons, inputs = weight.shape
    blocks = torch.zeros(neurons, neurons) if rows == weight.numel() else None
    for index in range(rows):
        s, t = divmod(index, inputs)
        (second,) = torch.autograd.grad(first[s, t], [weight], retain_graph=True)
        if blocks is not None:
            blocks[s] += second[:, t]
    found = {"first_s": first_s}
    if blocks is not None:
        found["kappa"] = float((blocks * (weight @ weight.T)).sum())
    return found


def _eig(matrix, eigenvectors=True):
    """torch removed `torch.eig`, which PyHessian's density calls; the matrix is symmetric."""
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([values, torch.zeros_like(values)], 1), vectors


def main(folder):
    """Answers until the input ends."""
    torch.set_num_threads(os.cpu_count())
    torch.eig = _eig
    problems = {}
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        name = request.pop("model")
        case = globals()[request.pop("case")]
        if name not in problems:
            problems[name] = Problem(folder / f"{name}.npz")
        problem = problems[name]
        torch.manual_seed(0)
        start = time.perf_counter()
        found = case(problem, **request)
        seconds = time.perf_counter() - start
        if isinstance(found, tuple):
            found, rows = found
            parts = problem.vectors_as_ours(np.ascontiguousarray(rows))
            np.savez(folder / "answer.npz", **{str(i): part for i, part in enumerate(parts)})
        print(json.dumps({"seconds": seconds, **found}), file=answers, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
