"""Networks against numpy written from the papers, and the papers' parameter counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from poster_jax.core import models, paths
from tests.core import reference_networks as reference

KEY = jax.random.key(0)


def _count(module, shape):
    model = models.from_linen(module)
    shapes = jax.eval_shape(model.init, KEY, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("module", "shape", "parameters"),
    [
        (models.MLP((96, 48, 10)), (8, 8, 1), 64 * 96 + 96 + 96 * 48 + 48 + 48 * 10 + 10),
        (models.LeNet5(), (32, 32, 1), 61_706),  # LeCun et al. with full connections
        (models.LeNet5(), (32, 32, 3), 62_006),
        (models.CNN(), (32, 32, 3), 66_218),  # 65,568 in the convolutions, 650 in the head
        (models.ResNet(num_blocks=3), (32, 32, 3), 269_722),  # He et al., table 6: 0.27M
        (models.ResNet(num_blocks=5), (32, 32, 3), 464_154),  # 0.46M
        (models.ResNet(num_blocks=9), (32, 32, 3), 853_018),  # 0.85M
        (models.ResNet(num_blocks=18), (32, 32, 3), 1_727_962),  # 1.7M
        (models.ResNet(num_blocks=3, projection=True), (32, 32, 3), 272_474),
        (models.VGG16(), (32, 32, 3), 14_719_818),
        (models.VGG16(norm="batch"), (32, 32, 3), 14_728_266),
        # Simonyan and Zisserman, table 2: 138 million; torchvision's vgg16 and vgg16_bn to the unit
        (models.VGG16(1000, hidden=(4096, 4096)), (224, 224, 3), 138_357_544),
        (models.VGG16(1000, "batch", hidden=(4096, 4096)), (224, 224, 3), 138_365_992),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_published_numbers_of_parameters(module, shape, parameters):
    assert _count(module, shape) == parameters


def test_resnet_without_norm_has_biases_in_place_of_norms():
    # A norm has a scale and a shift a channel, a bias only the latter: 688 channels in all.
    channels = 16 + 6 * (16 + 32 + 64)
    with_norm, without = (_count(models.ResNet(norm=n), (32, 32, 3)) for n in ("batch", None))
    assert with_norm - without == channels


CASES = {
    "MLP": (models.MLP((12, 7, 5)), (8, 8, 1), reference.mlp),
    "LeNet5": (models.LeNet5(), (17, 16, 2), reference.lenet5),
    "LeNet5 same, mean": (
        models.LeNet5(padding="SAME", pool=nn.avg_pool),
        (8, 8, 1),
        lambda p, s, x: reference.lenet5(p, s, x, padding=2, pool=np.mean),
    ),
    "CNN": (models.CNN(features=(4, 5), strides=(1, 2)), (7, 8, 3), reference.cnn),
    "ResNet": (models.ResNet(num_blocks=2, width=4), (9, 8, 3), reference.resnet),
    "ResNet projection": (
        models.ResNet(num_blocks=1, width=4, projection=True),
        (8, 8, 1),
        reference.resnet,
    ),
    "ResNet no norm": (
        models.ResNet(num_blocks=1, norm=None, width=4),
        (8, 8, 1),
        reference.resnet,
    ),
    "VGG16": (
        models.VGG16(stages=((4, 4), (6,)), hidden=(8,), dropout_rate=0.5),
        (9, 8, 3),
        reference.vgg,
    ),
    "VGG16 norm": (models.VGG16(norm="batch", stages=((4,), (6,))), (8, 8, 1), reference.vgg),
}


def _drawn(like, seed):
    """Positive and negative numbers in place of zeros and ones, so that no term is idle."""
    leaves, treedef = jax.tree.flatten(like)
    rng = np.random.default_rng(seed)
    drawn = [rng.normal(size=leaf.shape) * 0.3 for leaf in leaves]
    return jax.tree.unflatten(treedef, [np.float32(leaf) for leaf in drawn])


@pytest.mark.parametrize("name", CASES)
def test_evaluation_is_the_papers_network_in_numpy(name):
    module, shape, network = CASES[name]
    model = models.from_linen(module)
    x = np.random.default_rng(1).normal(size=(3, *shape)).astype(np.float32)
    params = _drawn(jax.eval_shape(model.init, KEY, x), 2)
    state = _drawn(jax.eval_shape(model.init_state, KEY, x), 3)
    state = jax.tree.map(lambda v: np.abs(v) + np.float32(0.5), state)  # variances among them
    got = jax.jit(model.freeze(state))(params, x)
    want = network(*(jax.tree.map(np.float64, tree) for tree in (params, state)), x.astype(float))
    # Twenty float32 layers of sums of up to 100 terms.
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


# Compiling the gradients of a dozen convolutions takes most of a minute on a busy core.
COMPILES_LONG = [pytest.param(name, marks=pytest.mark.slow) for name in CASES if "Res" in name]


@pytest.mark.parametrize("name", ["MLP", "LeNet5", "VGG16 norm", *COMPILES_LONG])
def test_a_population_is_a_vmap(name):
    module, shape, _ = CASES[name]
    model = models.from_linen(module)
    x, keys = jnp.ones((2, *shape)), jax.random.split(KEY, 3)
    params, state = (
        _drawn(jax.eval_shape(jax.vmap(f, (0, None)), keys, x), 5)
        for f in (model.init, model.init_state)
    )

    def loss(params, state, key):
        outputs, new = model.apply_train(params, state, x, key)
        return (outputs**2).sum(), new

    grads, new = jax.jit(jax.vmap(jax.grad(loss, has_aux=True)))(params, state, keys)
    one = jax.tree.map(lambda a: a[1], (params, state))
    alone, new_alone = jax.jit(jax.grad(loss, has_aux=True))(*one, keys[1])
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(alone))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-3, atol=1e-4 * scale),
        (grads, new),
        (alone, new_alone),
    )


def test_names_of_leaves_do_not_begin_with_params():
    def init(module, x):
        return jax.eval_shape(models.from_linen(module).init, KEY, x)

    params = init(models.MLP((4, 3, 2)), jnp.ones((1, 5)))
    assert paths.leaf_paths(params)[-1] == "Dense_2/kernel"
    params = init(models.ResNet(num_blocks=1), jnp.ones((1, 8, 8, 1)))
    assert paths.get_path(params, "Block_2/Conv_1/kernel").shape == (3, 3, 64, 64)


def test_resnet_without_norm_starts_as_its_shortcuts():
    """The last convolution of each block is zero; all others are drawn as asked."""
    module = models.ResNet(num_blocks=1, norm=None, kernel_init=nn.initializers.ones)
    params = models.from_linen(module).init(KEY, jnp.ones((1, 8, 8, 1)))
    for path in paths.leaf_paths(params):
        if path.endswith("kernel"):
            value = 0 if path.startswith("Block") and "Conv_1" in path else 1
            assert (paths.get_path(params, path) == value).all(), path


@pytest.mark.parametrize(
    ("module", "calls"),
    [
        (models.MLP((5, 4, 3)), 2),
        (models.LeNet5(), 4),
        (models.CNN(), 4),
        (models.ResNet(num_blocks=2), 1 + 2 * 6),
        (models.VGG16(hidden=(7,)), 13 + 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_activation_is_an_argument_wherever_there_is_one(module, calls):
    seen = []

    def activation(x):
        seen.append(x.shape)
        return jnp.tanh(x)

    model = models.from_linen(module.clone(activation=activation))
    x = jax.ShapeDtypeStruct((2, 32, 32, 1), jnp.float32)
    params, state = (jax.eval_shape(f, KEY, x) for f in (model.init, model.init_state))
    seen.clear()
    jaxpr = jax.make_jaxpr(model.apply_eval)(params, state, x)
    assert len(seen) == calls
    assert str(jaxpr).count(" tanh ") == calls
    assert "relu" not in str(jaxpr)


def test_float64_throughout(x64):
    model = models.from_linen(models.CNN(features=(3,), strides=(1,)))
    x = jnp.ones((2, 4, 4, 1), jnp.float64)
    params = jax.tree.map(lambda p: p.astype(jnp.float64), model.init(KEY, x))
    assert model.apply_fn(params, x).dtype == jnp.float64


IMAGE = np.zeros((1, 8, 8, 1), np.float32)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("module", "x", "error", "message"),
    [
        (models.LeNet5(), IMAGE, ValueError, "at least 16x16 .* got 8x8. LeNet5.padding='SAME'"),
        (models.LeNet5(padding="SAME"), IMAGE[:, :3], ValueError, "at least 4x4 .* got 3x8"),
        (models.LeNet5(padding="FULL"), IMAGE, ValueError, "padding must be one of"),
        (models.VGG16(), IMAGE, ValueError, "at least 32x32 .* got 8x8. Leave out stages"),
        (models.VGG16(norm="layer"), IMAGE, ValueError, "norm must be one of"),
        (models.VGG16(stages=((0,),)), IMAGE, ValueError, "stages must be integers of at least 1"),
        (models.VGG16(stages=(), hidden=(0,)), IMAGE, ValueError, "hidden must be integers"),
        (models.VGG16(stages=(), dropout_rate=2.0), IMAGE, ValueError, "dropout_rate must lie"),
        (models.CNN(), IMAGE[0], ValueError, "x must be images of shape"),
        (models.CNN(features=(3,)), IMAGE, ValueError, "strides must be one a convolution"),
        (models.ResNet(), IMAGE.astype(int), TypeError, "floating point array for ResNet, got int"),
        (models.ResNet(norm="group"), IMAGE, ValueError, "norm must be one of"),
        (models.ResNet(num_blocks=0), IMAGE, ValueError, "num_blocks must be at least 1"),
        (models.ResNet(), IMAGE[:, :0], ValueError, "at least 1 value for ResNet"),
        (models.MLP(()), IMAGE, ValueError, "features must be integers"),
        (models.MLP((3, 0)), IMAGE, ValueError, "features must be integers"),
        (models.MLP(), IMAGE[0, 0, 0], ValueError, "leading example axis .* for MLP"),
        (models.MLP(), [1.0], TypeError, "floating point array for MLP, got"),
    ],
)
def test_inputs_and_attributes_that_do_not_fit(module, x, error, message):
    with pytest.raises(error, match=message):
        module.init(KEY, x)
    if not isinstance(x, list):
        with pytest.raises(error, match=message):
            models.from_linen(module).init(KEY, x)
