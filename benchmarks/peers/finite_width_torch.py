"""The torch side of benchmarks/finite_width.py: {"width": ..., "networks": ...} a line in.

O_4 of one input by torch.func, each order a gradient of the order before: as one writes it.
"""

import json
import os
import sys
import time

import torch
from torch.func import grad


def draw(width: int, depth: int) -> tuple[torch.Tensor, ...]:
    """All weights standard normal."""
    shapes = [(2, width), *[(width, width)] * (depth - 1), (width,)]
    return tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes)


def output(params: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The network of the poster at the input (0.6, 0.8)."""
    first, *others, last = params
    hidden = torch.tanh(torch.tensor([0.6, 0.8], dtype=torch.float64) @ first)
    for weights in others:
        hidden = torch.tanh(hidden @ weights / len(last) ** 0.5)
    return hidden @ last / len(last) ** 0.5


def raised(operator):
    """The next order of the hierarchy."""

    def along(params):
        pairs = zip(grad(operator)(params), grad(output)(params), strict=True)
        return sum((a * b).sum() for a, b in pairs)

    return along


def main() -> None:
    """Answers until the input ends."""
    torch.set_num_threads(os.cpu_count())
    o4 = raised(raised(raised(output)))
    for line in sys.stdin:
        asked = json.loads(line)
        start = time.perf_counter()
        values = [float(o4(draw(asked["width"], asked["depth"]))) for _ in range(asked["networks"])]
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "mean": sum(values) / len(values)}), flush=True)


if __name__ == "__main__":
    main()
