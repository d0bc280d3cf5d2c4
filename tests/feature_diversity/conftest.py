"""A two-layer ReLU classifier in numpy: outputs, gradients and training, by hand."""

import numpy as np
import pytest


class TwoLayers:
    """Params are (kernel, bias, readout, output bias), layouts (inputs, outputs)."""

    @staticmethod
    def forward(params, x):
        kernel, bias, readout, shift = params
        hidden = x @ kernel + bias
        return hidden, np.maximum(hidden, 0) @ readout + shift

    @classmethod
    def gradients(cls, params, x, y):
        hidden, logits = cls.forward(params, x)
        p = np.exp(logits - logits.max(1, keepdims=True))
        g = p / p.sum(1, keepdims=True) - np.eye(logits.shape[1])[y]
        g = g / len(x)
        back = (g @ params[2].T) * (hidden > 0)
        return [x.T @ back, back.sum(0), np.maximum(hidden, 0).T @ g, g.sum(0)]

    @classmethod
    def train(cls, params, batches, *, multipliers, rate, momentum=0.0, decay=0.0):
        params = [np.array(p) for p in params]
        velocity = [np.zeros_like(p) for p in params]
        for x, y in batches:
            found = cls.gradients(params, x, y)
            for i, (g, m) in enumerate(zip(found, multipliers, strict=True)):
                velocity[i] = momentum * velocity[i] + m * g + decay * params[i]
                params[i] = params[i] - rate * velocity[i]
        return params


@pytest.fixture(scope="session")
def two_layers():
    return TwoLayers


@pytest.fixture(scope="session")
def examples():
    """48 examples of 5 numbers in 3 classes that depend on them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(48, 5))
    return x, (x[:, :3] + 0.3 * rng.normal(size=(48, 3))).argmax(1)
