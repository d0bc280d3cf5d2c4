"""Curvature of one small network by PyHessian and curvlinops, for tests/curvature/test_peers.py.

Run in the environment of the peers: `make oracles`. Weights and data are drawn by numpy and stored
with the figures, so that the test needs neither torch nor the same random numbers.
"""

import itertools
import pathlib

import numpy as np
import torch
from curvlinops import EFLinearOperator, GGNLinearOperator, HessianLinearOperator
from pyhessian import hessian
from scipy.sparse.linalg import eigsh

SIZES = (6, 8, 5, 3)
EXAMPLES = 40

rng = np.random.default_rng(2019)
torch.manual_seed(0)
weights = {}
layers = []
for i, (fan_in, fan_out) in enumerate(itertools.pairwise(SIZES)):
    layer = torch.nn.Linear(fan_in, fan_out)
    weights[f"kernel_{i}"] = rng.normal(size=(fan_in, fan_out)) / np.sqrt(fan_in)
    weights[f"bias_{i}"] = 0.1 * rng.normal(size=fan_out)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weights[f"kernel_{i}"].T))
        layer.bias.copy_(torch.tensor(weights[f"bias_{i}"]))
    layers += [layer, torch.nn.Tanh()]
model = torch.nn.Sequential(*layers[:-1])

x = rng.normal(size=(EXAMPLES, SIZES[0]))
y = rng.integers(0, SIZES[-1], EXAMPLES)
data = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
loss = torch.nn.CrossEntropyLoss()

peer = hessian(model, loss, data=data, cuda=False)
pyhessian_top, _ = peer.eigenvalues(maxIter=5000, tol=1e-8, top_n=5)
# Its rule for stopping takes a negative running mean for convergence: no tolerance, all iterations.
pyhessian_traces = peer.trace(maxIter=4000, tol=-np.inf)

params = list(model.parameters())
options = {"check_deterministic": False}
operators = {
    "hessian": HessianLinearOperator(model, loss, params, [data], **options),
    "gauss_newton": GGNLinearOperator(model, loss, params, [data], **options),
    "empirical_fisher": EFLinearOperator(model, loss, params, [data], **options),
}
vector = rng.normal(size=operators["hessian"].shape[1])


def in_our_order(flat):
    """torch: weight (out, in), bias, layer by layer; ours: bias, kernel (in, out)."""
    parts, start = [], 0
    for fan_in, fan_out in itertools.pairwise(SIZES):
        weight = flat[start : start + fan_in * fan_out].reshape(fan_out, fan_in)
        start += fan_in * fan_out
        parts += [flat[start : start + fan_out], weight.T.reshape(-1)]
        start += fan_out
    return np.concatenate(parts)


figures = {"vector": in_our_order(vector)}
for name, operator in operators.items():
    product = operator @ torch.tensor(vector, dtype=torch.float32)
    figures[f"{name}_product"] = in_our_order(product.detach().numpy())
    matrix = (operator @ torch.eye(operator.shape[1])).detach().numpy()
    figures[f"{name}_trace"] = np.trace(matrix.astype(np.float64))
    figures[f"{name}_top"] = eigsh(matrix.astype(np.float64), k=5, which="LA")[0][::-1]

target = pathlib.Path(__file__).with_name("curvature.npz")
np.savez_compressed(
    target,
    x=x.astype(np.float32),
    y=y,
    **{name: value.astype(np.float32) for name, value in weights.items()},
    pyhessian_top=np.asarray(pyhessian_top),
    pyhessian_trace=np.mean(pyhessian_traces),
    pyhessian_trace_stderr=np.std(pyhessian_traces, ddof=1) / np.sqrt(len(pyhessian_traces)),
    **figures,
)
