"""BatchNorm2d, and BatchNorm-only training of a small network, by torch, for tests/batchnorm_only.

Run in the environment of the peers: `make oracles`. Inputs and weights are drawn by numpy and
stored with the figures, so that the test needs neither torch nor the same random numbers. All in
float64; images are stored channels last, kernels (height, width, in, out).
"""

import pathlib

import numpy as np
import torch

STEPS, EXAMPLES, WIDTH, CLASSES = 6, 12, 4, 3

rng = np.random.default_rng(2019)
figures = {
    "x": rng.normal(size=(EXAMPLES, 6, 6, 2)),
    "y": rng.integers(0, CLASSES, EXAMPLES),
    "kernel_0": rng.normal(size=(3, 3, 2, WIDTH)) / 3,
    "kernel_1": rng.normal(size=(3, 3, WIDTH, WIDTH)) / 6,
    "dense_kernel": rng.normal(size=(WIDTH, CLASSES)),
    "dense_bias": rng.normal(size=CLASSES),
}
for layer in range(2):
    figures[f"scale_{layer}"] = rng.uniform(size=WIDTH)
    figures[f"bias_{layer}"] = 0.1 * rng.normal(size=WIDTH)
figures["cotangent"] = rng.normal(size=(EXAMPLES, 6, 6, WIDTH))


def tensor(name):
    return torch.tensor(figures[name])


def first(x):
    """Channels last to channels first."""
    return x.permute(0, 3, 1, 2)


def network():
    layers = []
    for index, channels in enumerate((2, WIDTH)):
        conv = torch.nn.Conv2d(channels, WIDTH, 3, padding=1, bias=False).double()
        conv.weight.data = tensor(f"kernel_{index}").permute(3, 2, 0, 1).contiguous()
        norm = torch.nn.BatchNorm2d(WIDTH).double()
        norm.weight.data, norm.bias.data = tensor(f"scale_{index}"), tensor(f"bias_{index}")
        layers += [conv, norm, torch.nn.ReLU()]
    head = torch.nn.Linear(WIDTH, CLASSES).double()
    head.weight.data, head.bias.data = tensor("dense_kernel").T.contiguous(), tensor("dense_bias")
    return layers, head


# One layer: output, derivatives, running statistics.
norm = torch.nn.BatchNorm2d(WIDTH).double()
norm.weight.data, norm.bias.data = tensor("scale_0"), tensor("bias_0")
ours = rng.normal(size=(EXAMPLES, 6, 6, WIDTH)) * 2 + 1
x = first(torch.tensor(ours)).requires_grad_()
y = norm(x)
(y * first(tensor("cotangent"))).sum().backward()
figures |= {
    "layer_x": ours,
    "layer_y": y.detach().permute(0, 2, 3, 1).numpy(),
    "layer_dx": x.grad.permute(0, 2, 3, 1).numpy(),
    "layer_dscale": norm.weight.grad.numpy(),
    "layer_dbias": norm.bias.grad.numpy(),
    "layer_mean": norm.running_mean.numpy(),
    "layer_var": norm.running_var.numpy(),
}

# A network of which BatchNorm alone trains, by the authors' optimiser.
layers, head = network()
model = torch.nn.Sequential(*layers)
for module in (*model, head):
    for parameter in module.parameters():
        parameter.requires_grad = isinstance(module, torch.nn.BatchNorm2d)
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=1e-2)
losses = []
for _ in range(STEPS):
    optimizer.zero_grad()
    logits = head(model(first(tensor("x"))).mean((2, 3)))
    loss = torch.nn.functional.cross_entropy(logits, tensor("y"))
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
figures["losses"] = np.array(losses)
for layer in range(2):
    figures[f"trained_scale_{layer}"] = model[3 * layer + 1].weight.detach().numpy()
    figures[f"trained_bias_{layer}"] = model[3 * layer + 1].bias.detach().numpy()

path = pathlib.Path(__file__).with_name("batchnorm.npz")
np.savez_compressed(path, torch=torch.__version__, **figures)
print(path, losses)
