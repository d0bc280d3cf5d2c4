"""What does not fit is refused in one sentence that names the layer or the argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.kernels import stax

pytestmark = pytest.mark.bad_input

DENSE, RELU = stax.Dense(4, 1.2, 0.1), stax.Relu()
FLAT, SERIES, IMAGE = jnp.ones((3, 5)), jnp.ones((2, 7, 4)), jnp.ones((2, 6, 6, 2))


def kernel(*layers):
    return stax.serial(*layers)[2]


def test_shapes_of_two_batches_must_agree():
    with pytest.raises(ValueError, match=r"x1 and x2 must agree"):
        kernel(DENSE)(FLAT, jnp.ones((3, 4)))


def test_inputs_are_arrays_with_batch_and_channels():
    with pytest.raises(ValueError, match=r"x1 must have a batch axis"):
        kernel(DENSE)(jnp.ones(3))
    with pytest.raises(TypeError, match=r"x1 must be an array"):
        kernel(DENSE)("images")


def test_inputs_must_be_finite():
    with pytest.raises(ValueError, match=r"x2 must be finite, got 1 NaN"):
        kernel(DENSE)(FLAT, FLAT.at[0, 0].set(jnp.nan))


@pytest.mark.parametrize("layer", [stax.Conv, stax.ConvLocal], ids=["Conv", "ConvLocal"])
def test_a_filter_must_fit_without_padding(layer):
    net = layer(4, (7, 3))
    with pytest.raises(ValueError, match=rf"filter_shape of {layer.__name__} must fit"):
        net[0](jax.random.key(0), (2, 6, 6, 2))
    with pytest.raises(ValueError, match=rf"filter_shape of {layer.__name__} must fit"):
        net[2](IMAGE)


def test_a_pooling_window_must_fit_without_padding():
    with pytest.raises(ValueError, match=r"window_shape of AvgPool must fit"):
        kernel(stax.AvgPool((7, 7)))(IMAGE)


def test_a_convolution_wants_as_many_axes_as_its_filter_has():
    with pytest.raises(ValueError, match="x1 must have 4 axes at least for the first layer"):
        kernel(stax.Conv(4, (3, 3)))(SERIES)
    with pytest.raises(ValueError, match=r"input of Conv with filter_shape=\(3, 3\) must have 2"):
        stax.Conv(4, (3, 3))[0](jax.random.key(0), (2, 7, 4))
    with pytest.raises(ValueError, match=r"window_shape of AvgPool .* 1 spatial axes"):
        kernel(stax.AvgPool((2, 2)))(SERIES)


@pytest.mark.parametrize(
    ("layers", "name"),
    [((RELU,), "ABRelu"), ((DENSE, RELU, RELU), "ABRelu"), ((stax.Flatten(), stax.Erf()), "Erf")],
)
def test_a_nonlinearity_needs_a_gaussian_input(layers, name):
    with pytest.raises(ValueError, match=rf"the input of {name}.* must be Gaussian"):
        kernel(*layers)(FLAT)


def test_layer_norm_needs_a_gaussian_input_and_the_channels():
    with pytest.raises(NotImplementedError, match="LayerNorm needs a Gaussian input"):
        kernel(DENSE, RELU, stax.LayerNorm())(FLAT)
    with pytest.raises(ValueError, match="axis of LayerNorm must hold the channel axis"):
        kernel(DENSE, stax.LayerNorm(1))(SERIES)


def test_a_layer_is_called_before_it_is_used():
    with pytest.raises(ValueError, match=r"layers\[1\] must be a triple .* call the layer"):
        stax.serial(DENSE, stax.Relu)
    with pytest.raises(ValueError, match="at least 1 layer"):
        stax.serial()


def test_branches_must_agree():
    two = stax.serial(stax.FanOut(2), stax.parallel(DENSE, stax.Dense(5)), stax.FanInSum())
    with pytest.raises(ValueError, match="FanInSum needs branches of equal shapes"):
        two[2](FLAT)
    relus = stax.serial(DENSE, stax.FanOut(2), stax.parallel(RELU, RELU), stax.FanInSum())
    with pytest.raises(NotImplementedError, match="FanInSum needs Gaussian branches"):
        relus[2](FLAT)
    with pytest.raises(ValueError, match=r"parallel .* 2 .* 3"):
        stax.serial(stax.FanOut(3), stax.parallel(DENSE, DENSE), stax.FanInSum())[2](FLAT)


def test_dropout_says_which_rate_and_asks_for_a_key():
    for rate in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="rate must lie above 0"):
            stax.Dropout(rate)
    with pytest.raises(ValueError, match="Dropout needs a key"):
        stax.Dropout(0.5)[1]((), FLAT)
    with pytest.raises(ValueError, match="mode must be one of"):
        stax.Dropout(0.5, "training")


def test_attention_says_what_it_cannot():
    net = stax.GlobalSelfAttention(4, 4, 4, 2, linear_scaling=False)
    with pytest.raises(NotImplementedError, match="attention_mechanism must be 'IDENTITY'"):
        net[2](SERIES)
    with pytest.raises(ValueError, match="attention_mechanism must be one of"):
        stax.GlobalSelfAttention(4, 4, 4, 2, attention_mechanism="SOFTMX")


def test_names_are_checked():
    with pytest.raises(ValueError, match=r"padding must be one of .* Did you mean 'SAME'"):
        stax.Conv(4, (3,), padding="SAMR")
    with pytest.raises(ValueError, match="parameterization must be one of"):
        stax.Dense(4, parameterization="mup")
    with pytest.raises(ValueError, match="get must name fields of Kernel"):
        kernel(DENSE)(FLAT, None, "ngnp")
    with pytest.raises(ValueError, match="get must name every kernel once"):
        kernel(DENSE)(FLAT, None, ("ntk", "ntk"))


def test_a_request_that_contradicts_a_layer_is_refused():
    pooled = kernel(stax.Conv(4, (3,)), RELU, stax.Conv(4, (3,)), stax.GlobalAvgPool())
    attention = kernel(stax.GlobalSelfAttention(4, 4, 4, 2))
    with pytest.raises(ValueError, match="diagonal_spatial=True was asked for"):
        attention(SERIES, diagonal_spatial=True)
    assert pooled(SERIES, None, "nngp").shape == (2, 2)


def test_masks_must_be_the_same_for_all_channels():
    holes = SERIES.at[0, 0, 0].set(-9)
    with pytest.raises(NotImplementedError, match="one mask for all channels"):
        kernel(stax.AvgPool((2,)))(holes, mask_constant=-9)


def test_patterns_must_fit_the_nodes():
    net = stax.Aggregate()
    with pytest.raises(ValueError, match=r"pattern must have the shape \(batch, 7, 7\)"):
        net[2](SERIES, None, pattern=(jnp.ones((2, 6, 6)),) * 2)
    with pytest.raises(NotImplementedError, match="pattern must be given for both"):
        net[2](SERIES, None, pattern=(jnp.ones((2, 7, 7)), None))


def test_indices_keep_batch_and_channels():
    with pytest.raises(NotImplementedError, match="channel"):
        kernel(DENSE, stax.Index(stax.Slice[:, :, 0]))(SERIES)
    with pytest.raises(NotImplementedError, match="batch"):
        kernel(DENSE, stax.Index(stax.Slice[0]))(SERIES)


def test_elementwise_needs_something():
    with pytest.raises(ValueError, match="fn or nngp_fn must be given"):
        stax.Elementwise()
    with pytest.raises(NotImplementedError, match="was given no nngp_fn"):
        kernel(DENSE, stax.Elementwise(jnp.tanh))(FLAT)
    with pytest.raises(NotImplementedError, match="no finite-width function"):
        stax.ExpNormalized()[1]((), np.ones(1))
