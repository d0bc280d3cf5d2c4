"""The networks of `orthogonal_jacobian`, each as the layers that the penalties look at.

Activations are one function with numbers in it, so that one compiled program trains networks of all
of them: tanh, or the identity above 0 and a slope times it below.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from poster_jax.core import models
from poster_jax.core.models.layers import batch_norm, conv
from poster_jax.core.models.resnet import Block
from poster_jax.jacobian import StackedLayers, split_linen

# Whether it is tanh, and the slope below 0.
ACTIVATIONS = {"tanh": (1.0, 0.0), "leaky ReLU": (0.0, 0.2), "ReLU": (0.0, 0.0)}


class Recipe(NamedTuple):
    """How the networks of a case are trained: SGD with momentum 0.9.

    Attributes:
      rate: learning rate.
      batch_size: examples a step.
      steps: how many, or None for `epochs`.
      epochs: passes over the training examples.
      cosine: whether the rate falls to 0 along a cosine.
      clip: largest norm of a gradient; None for any.
      weight_decay: added to the gradient, times the weights.
      augment: whether images are moved by up to 4 pixels and flipped.
    """

    rate: float
    batch_size: int
    steps: int | None = None
    epochs: int = 1
    cosine: bool = False
    clip: float | None = None
    weight_decay: float = 0.0
    augment: bool = False


class Case(NamedTuple):
    """A data set and a network of the preset, with the activations that it is trained with.

    Attributes:
      dataset: name for core.data.load.
      network: one of `NETWORKS`.
      depth: layers with weights.
      width: units of a hidden layer, or channels of the first.
      activations: pairs (name, gain): weights start with standard deviation gain / sqrt(inputs).
      recipe: how it is trained.
    """

    dataset: str
    network: str
    depth: int
    width: int
    activations: tuple[tuple[str, float], ...]
    recipe: Recipe

    @property
    def title(self) -> str:
        """As pictures and claims name it."""
        return f"{self.dataset.removeprefix('tfds:')}, {self.network} of {self.depth} layers"

    @property
    def stage(self) -> str:
        """As files name it."""
        return f"{self.dataset}_{self.network}_{self.depth}".replace(":", "_").replace(" ", "_")


class Network(NamedTuple):
    """A network of one activation as pure functions; params and state are pytrees of arrays.

    Attributes:
      init: `init(key, x) -> (params, state)`; the state is BatchNorm's statistics, or ().
      layers: `layers(params, state, x) -> (layers, params)` for `network_penalty`, in training
        mode.
      train: `train(params, state, x) -> (logits, state)` in training mode.
      evaluate: `evaluate(params, state, x) -> logits`.
      kernels: `kernels(params) -> kernels` of the penalised layers; of stacked layers one array.
      select: the penalised layers, as in `network_penalty`.
      shape: the numbers of the activation.
      dense: whether the layers are dense, so that penalties have closed forms.
      coupled: whether the examples of a batch depend on each other (BatchNorm).
    """

    init: Callable[[Any, Any], tuple[Any, Any]]
    layers: Callable[[Any, Any, Any], tuple[Any, Any]]
    train: Callable[[Any, Any, Any], tuple[Any, Any]]
    evaluate: Callable[[Any, Any, Any], Any]
    kernels: Callable[[Any], list[Any]]
    select: Any
    shape: Any
    dense: bool
    coupled: bool


def activate(shape: Any, z: Any) -> Any:
    """The activation with these numbers."""
    curved, slope = shape
    return jnp.where(curved > 0, jnp.tanh(z), jnp.where(z > 0, z, slope * z))


def derivative(shape: Any, h: Any) -> Any:
    """The activation's derivative, as a function of its value h."""
    curved, slope = shape
    return jnp.where(curved > 0, 1 - h**2, jnp.where(h > 0, 1, slope).astype(h.dtype))


def dense_layer(shape: Any, params: Any, x: Any) -> Any:
    """phi(x W + b)."""
    return activate(shape, linear_layer(params, x))


def linear_layer(params: Any, x: Any) -> Any:
    """x W + b; the kernel is W (in, out)."""
    return x @ params["kernel"] + params["bias"]


def build(case: Case, shape: Any, gain: Any, num_classes: int) -> Network:
    """The network of a case; the numbers of its activation and the gain may be traced."""
    return NETWORKS[case.network](case, shape, gain, num_classes)


def _dense(case: Case, shape: Any, gain: Any, num_classes: int) -> Network:
    """The first layer, `depth - 2` hidden ones under one scan, and a linear one."""
    hidden = partial(dense_layer, shape)
    layers = (hidden, StackedLayers(hidden, case.depth - 2), linear_layer)

    def init(key: Any, x: Any) -> Any:
        def draw(key: Any, inputs: int, outputs: int) -> Any:
            # One axis: XLA compiles the same draws of a matrix for seconds longer.
            kernel = jax.random.normal(key, (inputs * outputs,)).reshape(inputs, outputs)
            return {"kernel": gain / inputs**0.5 * kernel, "bias": jnp.zeros(outputs)}

        keys = jax.random.split(key, case.depth)
        params = (
            draw(keys[0], x.shape[-1], case.width),
            jax.vmap(lambda key: draw(key, case.width, case.width))(keys[1:-1]),
            draw(keys[-1], case.width, num_classes),
        )
        return params, ()

    def apply(params: Any, x: Any) -> Any:
        for layer, own in zip(layers, params, strict=True):
            x = layer(own, x)
        return x

    return Network(
        init=init,
        layers=lambda params, state, x: (layers, params),
        train=lambda params, state, x: (apply(params, x), state),
        evaluate=lambda params, state, x: apply(params, x),
        kernels=lambda params: [params[1]["kernel"]],
        select="hidden",
        shape=shape,
        dense=True,
        coupled=False,
    )


def _linen(
    module: nn.Module,
    boundary: Any,
    select: tuple[int, ...],
    kernels: Callable[[Any], list[Any]],
    *,
    shape: Any,
    coupled: bool,
) -> Network:
    model = models.from_linen(module)
    mode = {"train": True} if coupled else {}

    def layers(params: Any, state: Any, x: Any) -> tuple[Any, Any]:
        found = split_linen(module, params, x, boundary=boundary, state=state, **mode)
        return found, (params,) * len(found)

    def init(key: Any, x: Any) -> tuple[Any, Any]:
        return model.init(key, x), model.init_state(key, x)

    return Network(
        init=init,
        layers=layers,
        # No layer draws anything: any key does.
        train=lambda params, state, x: model.apply_train(params, state, x, jax.random.key(0)),
        evaluate=model.apply_eval,
        kernels=kernels,
        select=select,
        shape=shape,
        dense=False,
        coupled=coupled,
    )


def _initialiser(gain: Any) -> Any:
    def init(key: Any, shape: Any, dtype: Any = jnp.float32) -> Any:
        fan_in = shape[0] if len(shape) == 2 else shape[0] * shape[1] * shape[2]
        return gain / fan_in**0.5 * jax.random.normal(key, shape, dtype)

    return init


def _plain(case: Case, shape: Any, gain: Any, num_classes: int) -> Network:
    """He et al.'s plain network for CIFAR without BatchNorm: three stages of 3x3 convolutions."""
    num = (case.depth - 2) // 3
    widths = [case.width] * (case.depth - 1 - 2 * num) + [2 * case.width] * num
    widths += [4 * case.width] * num
    strides = [1] + [1 + (now != before) for before, now in pairwise(widths)]
    module = models.CNN(
        tuple(widths), tuple(strides), num_classes, partial(activate, shape), _initialiser(gain)
    )
    # The last convolution's layer ends in the mean over all pixels; it is left out.
    last = len(widths) - 1
    return _linen(
        module,
        (nn.Conv, nn.Dense),
        tuple(range(1, last)),
        lambda params: [params[f"Conv_{i}"]["kernel"] for i in range(1, last)],
        shape=shape,
        coupled=False,
    )


class ResNet18(nn.Module):
    """ResNet-18 as used on CIFAR: a 3x3 stem, four stages of two blocks, BatchNorm.

    Attributes:
      width: channels of the first stage.
      blocks: blocks a stage.
      num_classes: outputs.
      activation: of every block.
      kernel_init: how kernels are drawn.

    Source: He, Zhang, Ren, Sun, arXiv 1512.03385; the stem as usual for images of 32 pixels.
    """

    width: int
    blocks: tuple[int, ...]
    num_classes: int
    activation: Any
    kernel_init: Any

    @nn.compact
    def __call__(self, x: Any, *, train: bool = False) -> Any:
        """Logits (examples, num_classes) of `x` (examples, height, width, channels)."""
        stem = conv(self.width, 3, padding=1, use_bias=False, kernel_init=self.kernel_init)
        x = self.activation(batch_norm(train)(stem(x)))
        for stage, count in enumerate(self.blocks):
            for block in range(count):
                x = Block(
                    features=self.width * 2**stage,
                    stride=2 if stage and not block else 1,
                    norm="batch",
                    projection=True,
                    activation=self.activation,
                    kernel_init=self.kernel_init,
                )(x, train=train)
        return nn.Dense(self.num_classes, kernel_init=self.kernel_init)(x.mean((1, 2)))


def _resnet(case: Case, shape: Any, gain: Any, num_classes: int) -> Network:
    """Layers are whole blocks, as no cut may pass a shortcut by; the first and last are left out.

    `depth` counts the stem, two convolutions a block and the dense layer.
    """
    count = (case.depth - 2) // 2
    blocks = (2,) * (count // 2) or (count,)
    module = ResNet18(case.width, blocks, num_classes, partial(activate, shape), _initialiser(gain))
    last = sum(blocks) - 1
    return _linen(
        module,
        Block,
        tuple(range(1, last)),
        lambda params: [
            leaf
            for i in range(1, last)
            for leaf in jax.tree.leaves(params[f"Block_{i}"])
            if leaf.ndim == 4
        ],
        shape=shape,
        coupled=True,
    )


NETWORKS: dict[str, Callable[..., Network]] = {
    "dense network": _dense,
    "plain CNN": _plain,
    "ResNet": _resnet,
}
