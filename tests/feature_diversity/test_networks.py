"""How ConstNet and LeakyNet start, and what their first steps move."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.signal

from poster_jax import feature_diversity as fd
from poster_jax.core import losses, models, training


@pytest.fixture(scope="module")
def images():
    x = jax.random.normal(jax.random.key(1), (6, 8, 8, 3))
    return x, jnp.arange(6) % 3


def layers_of(module, params, state, x, **options):
    return module.apply({"params": params, **dict(state)}, x, with_layers=True, **options)


def test_const_net_starts_as_the_mean_of_the_colours_and_moves_layer_by_layer(images):
    """Logits exactly 0; the first step moves the dense layer alone, the second the convolutions."""
    x, _ = images
    module = fd.ConstNet((4, 4, 8), num_blocks=1, num_classes=3)
    model = models.from_linen(module)
    key = jax.random.key(0)
    loss_fn = training.model_loss(model, losses.softmax_cross_entropy)

    @jax.jit
    def look(params, state):
        logits, layers = layers_of(module, params, state, x)
        fit = training.fit(
            loss_fn, params, images, key, optimizer=optax.sgd(0.5), num_steps=2, model_state=state,
            metrics_fn=lambda state: state.params, metrics_steps=(1, 2),
        )  # fmt: skip
        return logits, layers, fit.metrics

    params, state = model.init(key, x), model.init_state(key, x)
    logits, layers, after = look(params, state)
    first, second = (jax.tree.map(lambda a, i=i: a[i], after) for i in (0, 1))
    assert (logits == 0).all()
    mean = np.asarray(x, float).mean(-1, keepdims=True)
    eps = 1 / np.sqrt(1 + 1e-5)  # batch norm in evaluation: statistics 0 and 1
    expected = [mean, mean, mean[:, ::2, ::2] * eps]
    for layer, image in zip(layers, expected, strict=True):
        np.testing.assert_allclose(layer, np.broadcast_to(image, layer.shape), atol=1e-6)
        assert (layer == layer[..., :1]).all()
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), first, params)
    assert moved.pop("Dense_0")["kernel"] > 1e-3
    assert max(jax.tree.leaves(moved)) == 0
    kernel = first["Dense_0"]["kernel"]
    np.testing.assert_allclose(kernel, np.broadcast_to(kernel[:1], kernel.shape), atol=1e-7)
    for block in ("Block_0", "Block_1"):
        assert jnp.abs(second[block]["Conv_0"]["kernel"]).max() > 1e-5
    assert float(fd.symmetry_leak(second, inputs="Conv_0", outputs="Dense_0")) < 1e-5


def test_the_random_counterpart_has_the_authors_variances(images):
    module = fd.const_net(depth=7, widen=4, noise=1.0)
    params = models.from_linen(module).init(jax.random.key(0), images[0])
    cases = {
        "Block_2/Conv_0": 2 / (9 * 256),
        "Block_1/Conv_0": 2 / (9 * 128),
        "Block_2/Conv_1": 1 / 256,
        "Conv_0": 1 / (9 * 16),
    }
    for path, variance in cases.items():
        leaf = params
        for name in path.split("/"):
            leaf = leaf[name]
        kernel = np.asarray(leaf["kernel"], float)
        assert abs(kernel.var() / variance - 1) < 4 * np.sqrt(2 / kernel.size)
    assert not np.any(params["Dense_0"]["kernel"])
    assert params["Block_0"]["Conv_1"]["kernel"].shape == (1, 1, 16, 64)


def test_a_block_is_what_the_paper_draws(images):
    """By scipy: batch norm's output goes to the convolution through ReLU, to the shortcut as is."""
    x, _ = images
    module = fd.ConstNet((2, 3), num_blocks=1, num_classes=3, noise=0.5)
    model = models.from_linen(module)
    params = model.init(jax.random.key(2), x)
    state = model.init_state(jax.random.key(2), x)
    logits, (stem, block) = jax.jit(lambda p, s: layers_of(module, p, s, x))(params, state)

    def convolve(x, kernel):
        out = np.zeros((*x.shape[:3], kernel.shape[-1]))
        for n, i, o in np.ndindex(len(x), *kernel.shape[2:]):
            out[n, ..., o] += scipy.signal.correlate2d(x[n, ..., i], kernel[..., i, o], "same")
        return out

    conv = jax.tree.map(lambda a: np.asarray(a, float), params)
    first = convolve(np.asarray(x, float), conv["Conv_0"]["kernel"])
    np.testing.assert_allclose(stem, first, atol=1e-5)
    a = first / np.sqrt(1 + 1e-5)
    second = convolve(np.maximum(a, 0), conv["Block_0"]["Conv_0"]["kernel"])
    second += convolve(a, conv["Block_0"]["Conv_1"]["kernel"])
    np.testing.assert_allclose(block, second, atol=1e-5)
    assert (logits == 0).all()


def test_dropout_waits_for_the_convolutions_and_behind_the_stem_acts_at_once(images):
    x, _ = images
    key = jax.random.key(0)
    for place in ("dropout", "stem_dropout"):
        module = fd.ConstNet((4, 4), num_blocks=1, num_classes=3, **{place: 0.5})
        model = models.from_linen(module)
        params, state = model.init(key, x), model.init_state(key, x)
        noisy = {"train": True, "rngs": {"dropout": key}, "mutable": ["batch_stats"]}
        (_, layers), _ = jax.jit(lambda p, s, m=module, n=noisy: layers_of(m, p, s, x, **n))(
            params, state
        )
        broken = float(fd.feature_diversity(layers[-1])) > 0.01
        assert broken == (place == "stem_dropout")


def test_twelve_leaky_layers_are_the_identity(images):
    """Pairs turn the sign twice: the output is the downsampled stem, and each pair an isometry."""
    x, _ = images
    module = fd.LeakyNet("i_iiii_iiii_iiii", (3, 3, 6, 6), num_classes=3, norm=None)
    params = models.from_linen(module).init(jax.random.key(0), x)
    _, layers = jax.jit(lambda p: layers_of(module, p, (), x))(params)
    np.testing.assert_array_equal(layers[0], x)
    np.testing.assert_allclose(layers[2], -x, rtol=1e-6)
    expected = np.tile(np.asarray(x)[:, ::4, ::4], 2)
    np.testing.assert_allclose(layers[12], expected, rtol=1e-6)
    pair = fd.LeakyNet("i_ii", (3, 3), num_classes=3, norm=None)
    params = models.from_linen(pair).init(jax.random.key(0), x)
    image = x[0, :3, :3].ravel()

    def last(image):
        return layers_of(pair, params, (), image.reshape(1, 3, 3, 3))[1][-1].ravel()

    values = np.linalg.svd(jax.jacobian(last)(image), compute_uv=False)
    np.testing.assert_allclose(values, 1, rtol=1e-6)


def test_averaging_layers_erase_what_differs(images):
    x, _ = images
    module = fd.LeakyNet("i_ii_ii", (3, 3, 6), num_classes=3)  # one program for both patterns
    look = jax.jit(lambda p, s: layers_of(module, p, s, x)[1])
    for pattern, erased in (("i_ii_ii", False), ("i_ii_11", True)):
        model = models.from_linen(module.clone(pattern=pattern))
        params, state = model.init(jax.random.key(0), x), model.init_state(jax.random.key(0), x)
        layers = look(params, state)
        assert (float(fd.feature_diversity(layers[4])) == 0) == erased
        assert float(fd.feature_diversity(layers[2])) > 0.5


def test_random_letters_have_the_authors_variance_or_hes(images):
    for random_init, gain in (("authors", 2**0.5 * 1.2), ("he", 2 / 1.04)):
        module = fd.LeakyNet("1_h_h_h", (8, 64, 64, 8), slope=0.2, random_init=random_init)
        params = models.from_linen(module).init(jax.random.key(0), images[0])
        kernel = np.asarray(params["Conv_2"]["kernel"], float)
        assert abs(kernel.var() * 9 * 64 / gain - 1) < 4 * np.sqrt(2 / kernel.size)
    assert not params["Dense_0"]["kernel"].any()
    whole = models.from_linen(module.clone(pattern="h_h_h_h")).init(jax.random.key(0), images[0])
    readout = np.abs(whole["Dense_0"]["kernel"])
    assert 0.9 < readout.max() * 8**0.5 < 1


@pytest.mark.bad_input
def test_bad_input_is_refused_in_one_sentence(images):
    key = jax.random.key(0)

    def start(module):
        models.from_linen(module).init(key, images[0])

    with pytest.raises(ValueError, match=r"depth must be 7, 10, 13, 16, \.\.\., got 12"):
        fd.const_net(depth=12)
    with pytest.raises(ValueError, match=r"noise must lie between 0 and 1, got 2\.0"):
        start(fd.ConstNet(noise=2.0))
    with pytest.raises(ValueError, match="pattern must consist of the letters i, 1 and h, got"):
        start(fd.LeakyNet("1_aaa"))
    with pytest.raises(ValueError, match="pattern must have one letter for the stem and as many"):
        start(fd.LeakyNet("1_iiii"))
    with pytest.raises(ValueError, match="at least as many outputs as inputs for identity_init"):
        start(fd.LeakyNet("i_i_i_i", (2, 4, 4, 4)))
    with pytest.raises(ValueError, match="phase must be one of"):
        fd.averaging_init(phase=2)
    with pytest.raises(ValueError, match=r"shape must be \(window..., inputs, outputs\), got \(3,"):
        fd.averaging_init()(key, (3,))
