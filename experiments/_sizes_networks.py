"""What is trained at several sizes: the data sets with their views, networks and schedules."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from experiments import _photographs as photographs
from poster_jax.core import models
from poster_jax.core.models.layers import batch_norm, conv
from poster_jax.mixed_sizes import SizeMixture, resize_batch, smooth_gradients

NETWORKS = ("convolutional", "ResNet", "ImageNet ResNet")
FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # as in the authors' code


class Case(NamedTuple):
    """One data set and how networks are trained on it.

    Attributes:
      dataset: as `core.data.load` takes it.
      network: one of NETWORKS.
      depth: layers of a ResNet, 6n + 2, or of ImageNet's; a convolutional network has three
        convolutions.
      mixture: sizes, their fractions, base size and batch.
      test_sizes: sides at which networks are tested, in pixels.
      rate: first learning rate.
      steps: of the fixed size; or None.
      epochs: of the fixed size, where steps is None.
      drops: shares of training after which the rate falls tenfold.
      weight_decay: of kernels, after smoothing.
      padding: pixels by which a view may be moved.
      pad_mode: what comes in, as in `jnp.pad`.
      flip: whether half of the views are mirrored.
      passes: permutations of the training set in an epoch.
      side: of photographs, stored as squares of so many pixels: views are random parts of them, and
        tests see the centre. None takes images as they are.
      width: channels of the first stage of ImageNet's ResNet.
    """

    dataset: str
    network: str
    depth: int
    mixture: SizeMixture
    test_sizes: tuple[int, ...]
    rate: float
    steps: int | None = None
    epochs: int = 1
    drops: tuple[float, ...] = (0.6, 0.85)
    weight_decay: float = 1e-4
    padding: int = 1
    pad_mode: str = "edge"
    flip: bool = False
    passes: int = 1
    side: int | None = None
    width: int = 64


class ConvolutionalNet(nn.Module):
    """Three 3x3 convolutions of 16, 32 and 64 channels with BatchNorm, and the mean of the pixels.

    Attributes:
      num_classes: outputs.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: Any, *, train: bool = False) -> Any:
        """Logits of images of any size."""
        for features, stride in ((16, 1), (32, 2), (64, 2)):
            layer = conv(
                features, 3, strides=stride, padding=1, use_bias=False, kernel_init=FAN_OUT
            )
            x = nn.relu(batch_norm(train)(layer(x)))
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01))(x.mean((1, 2)))


def build(case: Case, num_classes: int) -> models.Model:
    """The network of a case."""
    if case.network == "convolutional":
        return models.from_linen(ConvolutionalNet(num_classes))
    if case.network == "ImageNet ResNet":
        # First weights as the authors', in `first_weights` for CIFAR's.
        module = models.ImageNetResNet(
            case.depth,
            width=case.width,
            num_classes=num_classes,
            dense_init=nn.initializers.normal(0.01),
            last_scale_init=nn.initializers.zeros,
            scan=True,
        )
        return models.from_linen(module)
    module = models.ResNet(
        num_blocks=(case.depth - 2) // 6, num_classes=num_classes, kernel_init=FAN_OUT, scan=True
    )
    return models.from_linen(module)


def first_weights(case: Case, params: Any) -> Any:
    """Weights as drawn by `build`, made those of the authors' code.

    The last scale of each block of a ResNet is 0; its dense layer has standard deviation 0.01.
    """
    if case.network != "ResNet":
        return params  # of this project, or drawn so

    def change(path: Any, leaf: Any) -> Any:
        *_, layer, kind = (entry.key for entry in path)
        if (layer, kind) == ("BatchNorm_1", "scale"):  # the second of a block
            return jnp.zeros_like(leaf)
        if (layer, kind) == ("Dense_0", "kernel"):  # FAN_OUT drew it with variance 2 / outputs
            return leaf * 0.01 / (2 / leaf.shape[-1]) ** 0.5
        return leaf

    return jax.tree_util.tree_map_with_path(change, params)


def move(case: Case, key: Any, image: Any) -> Any:
    """A stored image moved by some pixels, and perhaps mirrored: a view before it is resized."""
    pad = [(case.padding, case.padding)] * 2 + [(0, 0)]
    # One draw for all: each compiles for a second.
    *places, coin = jax.random.uniform(key, (3,))
    at = [jnp.floor(place * (2 * case.padding + 1)).astype(int) for place in places]
    moved = jax.lax.dynamic_slice(jnp.pad(image, pad, case.pad_mode), (*at, 0), image.shape)
    if not case.flip:
        return moved
    return jnp.where(coin < 0.5, moved[:, ::-1], moved)


def storage(case: Case) -> dict[str, Any]:
    """How `core.data.load` keeps the images."""
    return {} if case.side is None else {"side": case.side, "scaling": "bytes"}


def resized(case: Case, images: Any, size: int) -> Any:
    """Stored images as networks are tested on them."""
    return resize_batch(images, size) if case.side is None else photographs.centres(images, size)


def view_of(case: Case) -> Callable[[Any, Any, int], Any]:
    """`view(key, image, size)`, as `fit_mixed` takes it."""
    if case.side is not None:
        return photographs.random_view

    def view(key: Any, image: Any, size: int) -> Any:
        return resize_batch(move(case, key, image)[None], size)[0]

    return view


def optimiser(case: Case, num_steps: int, decay: Any) -> optax.GradientTransformation:
    """Smoothing (none where decay is 0), weight decay of kernels, SGD with momentum and drops."""
    drops = {round(share * num_steps): 0.1 for share in case.drops}
    rate = optax.piecewise_constant_schedule(case.rate, drops)
    return optax.chain(
        smooth_gradients(decay=decay),
        optax.add_decayed_weights(case.weight_decay, mask=_kernels),
        optax.sgd(rate, momentum=0.9),
    )


def _kernels(params: Any) -> Any:
    """True for the kernels of convolutions and dense layers, not for biases and scales."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == "kernel", params
    )
