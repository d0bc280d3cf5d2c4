"""Networks, and adapters that turn any library's network into the same few pure functions.

`from_linen(MLP((96, 48, 10)))` gives a `Model`: `init(key, x) -> params`, `apply_fn(params, x)`,
and for networks with BatchNorm or dropout a state and a key that ride along explicitly. The names
of leaves (`poster_jax.core.paths`) do not begin with "params": the last kernel of that MLP is
`"Dense_2/kernel"`.
"""

from poster_jax.core.models.adapters.equinox import from_equinox
from poster_jax.core.models.adapters.function import from_function
from poster_jax.core.models.adapters.haiku import from_haiku
from poster_jax.core.models.adapters.linen import from_linen
from poster_jax.core.models.adapters.nnx import from_nnx
from poster_jax.core.models.cnn import CNN
from poster_jax.core.models.imagenet_resnet import ImageNetResNet
from poster_jax.core.models.lenet import LeNet5
from poster_jax.core.models.mlp import MLP
from poster_jax.core.models.model import Model
from poster_jax.core.models.resnet import ResNet
from poster_jax.core.models.vgg import VGG16

__all__ = [
    "CNN",
    "MLP",
    "VGG16",
    "ImageNetResNet",
    "LeNet5",
    "Model",
    "ResNet",
    "from_equinox",
    "from_function",
    "from_haiku",
    "from_linen",
    "from_nnx",
]
