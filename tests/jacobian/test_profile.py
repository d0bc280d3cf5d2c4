"""Gradient norms at every layer against `jax.grad` layer by layer, and the bounds on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.jacobian.network import StackedLayers
from poster_jax.jacobian.profile import gradient_norm_profile, gradient_ratio, sandwich_bound


def linear(w, x):
    return x @ w


def dense(p, x):
    return jnp.tanh(x @ p["w"] + p["b"])


def split(p, x):
    """Vectors of 6 to pictures of 2 x 3."""
    return jax.nn.relu(x @ p["w"] + p["b"]).reshape(-1, 2, 3)


def flatten(p, x):
    return x.reshape(len(x), -1)


def loss_of_output(h):
    return jnp.mean(jnp.sin(h).sum(axis=1) ** 2)


def make_network(dtype=np.float64):
    """Widths 4, 6, 6, 6, 6, 6, 3: a lone layer, three in a stack, one without params, a last."""
    rng = np.random.default_rng(0)

    def params(*shape):
        return {
            "w": rng.normal(size=shape).astype(dtype) / 2,
            "b": rng.normal(size=shape[:-2] + shape[-1:]).astype(dtype) / 5,
        }

    layers = (dense, StackedLayers(dense, 3), split, flatten, dense)
    ws = (params(4, 6), params(3, 6, 6), params(6, 6), (), params(6, 3))
    return layers, ws, rng.normal(size=(5, 4)).astype(dtype)


def unstacked():
    layers, ws, x = make_network()
    alone = [jax.tree.map(lambda a: a[i], ws[1]) for i in range(3)]  # noqa: B023
    return (dense,) * 4 + layers[2:], (ws[0], *alone, *ws[2:]), x


@jax.jit
def gradients_by_hand(ws, x):
    """dLoss / dh_l as the gradient of the rest of the network, one layer after another."""
    layers = unstacked()[0]
    h, found = x, []
    for i in range(len(layers)):
        if i == 0:
            found.append(jax.grad(lambda h: rest(layers, ws, h, 0))(h))
        h = layers[i](ws[i], h)
        found.append(jax.grad(lambda h, i=i: rest(layers, ws, h, i + 1))(h))
    return found


def rest(layers, ws, h, start):
    for layer, w in zip(layers[start:], ws[start:], strict=True):
        h = layer(w, h)
    return loss_of_output(h)


def numpy_bounds(layers, ws, x):
    """Products of extreme singular values of each J_l', by `jax.jacrev` and numpy's SVD."""
    lower, upper = np.ones(len(x)), np.ones(len(x))
    for layer, w in zip(layers, ws, strict=True):
        explicit = jax.vmap(jax.jacrev(lambda h, f=layer, w=w: f(w, h[None])[0]))(x)
        num_out = int(np.prod(layer(w, x).shape[1:]))
        matrices = np.asarray(explicit).reshape(len(x), num_out, -1)
        spectra = np.linalg.svd(matrices, compute_uv=False)
        # J' of (inputs, outputs) has a null space where there are more outputs.
        least = spectra[:, -1] if num_out <= matrices.shape[2] else np.zeros(len(x))
        lower, upper = lower * least**2, upper * spectra[:, 0] ** 2
        x = layer(w, x)
    return lower, upper


def test_the_profile_is_the_gradient_by_hand_at_every_layer(x64):
    layers, ws, x = make_network()
    found = gradient_norm_profile(layers, ws, loss_of_output, x)
    _, alone, _ = unstacked()
    expected = [np.linalg.norm(g) for g in gradients_by_hand(alone, x)[1:]]
    assert found.shape == (7,)
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    np.testing.assert_allclose(
        gradient_ratio(found), np.log10(expected[0] / expected[-1]), rtol=1e-12
    )


def test_a_population_is_a_vmap_and_float32_agrees():
    layers, ws, x = make_network(np.float32)
    scales = jnp.array([0.5, 1.0])
    of_scale = lambda c: gradient_norm_profile(  # noqa: E731
        layers, jax.tree.map(lambda a: c * a, ws), loss_of_output, x
    )
    both = jax.jit(jax.vmap(of_scale))(scales)
    assert both.shape == (2, 7)
    assert both.dtype == jnp.float32
    alone = gradient_norm_profile(layers, ws, loss_of_output, x)
    np.testing.assert_allclose(both[1], alone, rtol=1e-5)
    assert float(jnp.abs(both[0] / both[1] - 1).max()) > 0.1
    np.testing.assert_allclose(gradient_ratio(both)[1], gradient_ratio(alone), atol=1e-5)


def test_gradients_too_small_to_be_squared_in_float32_keep_their_norm():
    ws = jnp.full((6, 1, 1), 1e-6, jnp.float32)
    profile = gradient_norm_profile(StackedLayers(linear, 6), ws, jnp.sum, jnp.ones((4, 1)))
    np.testing.assert_allclose(profile, 2 * 10.0 ** np.arange(-30, 1, 6), rtol=1e-5)
    np.testing.assert_allclose(gradient_ratio(profile), -30, rtol=1e-6)
    nothing = gradient_norm_profile(
        linear, jnp.ones((1, 1)), lambda h: 0 * h.sum(), jnp.ones((4, 1))
    )
    assert nothing.tolist() == [0.0]


def test_orthogonal_linear_layers_keep_the_norm(x64):
    rng = np.random.default_rng(1)
    ws = np.stack([np.linalg.qr(rng.normal(size=(6, 6)))[0] for _ in range(20)])
    x = rng.normal(size=(3, 6))
    profile = gradient_norm_profile(StackedLayers(linear, 20), ws, loss_of_output, x)
    np.testing.assert_allclose(profile, float(profile[-1]), rtol=1e-12)
    assert abs(float(gradient_ratio(profile))) < 1e-12
    bound = sandwich_bound(StackedLayers(linear, 20), ws, x)
    for value in (bound.lower, bound.upper, bound.smallest, bound.largest):
        np.testing.assert_allclose(value, 1, atol=1e-12)
    assert float(jnp.abs(bound.deviation).max()) < 1e-12


@pytest.mark.slow
def test_the_bounds_are_the_products_of_singular_values(x64):
    layers, ws, x = make_network()
    bound = sandwich_bound(layers, ws, x)
    lower, upper = numpy_bounds(*unstacked())
    np.testing.assert_allclose(bound.lower, lower, rtol=1e-8, atol=1e-30)
    np.testing.assert_allclose(bound.upper, upper, rtol=1e-12)
    # 4 inputs to 6 outputs: some gradients vanish, and eps = 1 says so
    assert float(jnp.abs(bound.smallest[0]).max()) == 0
    assert float(bound.deviation[0].min()) >= 1
    assert bound.smallest.shape == bound.deviation.shape == (7, 5)


def test_gradients_lie_between_the_bounds_which_both_are_reached(x64):
    """Near isometries: smaller than 1 the card's bounds with eps hold as well, less tightly."""
    rng = np.random.default_rng(2)
    depth, width, num = 4, 5, 6
    noise = 0.05 * rng.normal(size=(depth, width, width))
    orthogonal = np.linalg.qr(rng.normal(size=(depth, width, width)))[0]
    ws = {"w": orthogonal + noise, "b": 0.01 * rng.normal(size=(depth, width))}
    x = 0.2 * rng.normal(size=(num, width))
    layers = StackedLayers(dense, depth)
    bound = sandwich_bound(layers, ws, x)
    explicit = np.asarray(jax.vmap(jax.jacrev(lambda x: layers(ws, x[None])[0]))(x))
    ratios = np.linalg.svd(explicit, compute_uv=False) ** 2  # all that a gradient can meet
    assert (ratios >= np.asarray(bound.lower)[:, None]).all()
    assert (ratios <= np.asarray(bound.upper)[:, None]).all()
    eps = np.asarray(bound.deviation)
    assert 0 < eps.min() < eps.max() < 1
    assert (np.prod(1 - eps, axis=0) <= np.asarray(bound.lower)).all()
    assert (np.asarray(bound.upper) <= np.prod(1 + eps, axis=0)).all()
    one = jax.tree.map(lambda a: a[0], ws)
    tight = sandwich_bound(dense, one, x)
    alone = jax.vmap(jax.jacrev(lambda x: dense(one, x[None])[0]))(x)
    reached = np.linalg.svd(np.asarray(alone), compute_uv=False) ** 2
    np.testing.assert_allclose(tight.lower, reached[:, -1], rtol=1e-12)
    np.testing.assert_allclose(tight.upper, reached[:, 0], rtol=1e-12)


def test_negative_factors_would_not_bound(x64):
    """Two layers with eps > 1: the product of (1 - eps) is positive, yet the gradient may be 0."""
    ws = jnp.asarray(np.stack([np.diag([2.0, 0.0])] * 2))
    bound = sandwich_bound(StackedLayers(linear, 2), ws, jnp.ones((1, 2)))
    assert float(jnp.prod(1 - bound.deviation)) > 1
    assert float(bound.lower[0]) == 0
    assert float(bound.upper[0]) == 16


W = jnp.eye(3)
X = jnp.ones((2, 3))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gradient_norm_profile((), (), jnp.sum, X), ValueError, "at least 1, got 0 layers"),
        (
            lambda: gradient_norm_profile((linear,) * 2, (W,), jnp.sum, X),
            ValueError,
            "as many.* got 2 layers and 1 params",
        ),
        (lambda: sandwich_bound((linear,), W, X), TypeError, "params must be a tuple.* got"),
        (lambda: sandwich_bound(3, W, X), TypeError, "layers must be a tuple.* got int"),
        (lambda: sandwich_bound((linear, 3), (W, W), X), TypeError, r"layers\[1\] must be a func"),
        (lambda: sandwich_bound(linear, W, jnp.ones((2, 3), int)), TypeError, "x must be a float"),
        (lambda: sandwich_bound(linear, W, X.at[0, 0].set(jnp.nan)), ValueError, "x must be fini"),
        (lambda: sandwich_bound((linear,) * 2, (W, W[:2]), X), ValueError, r"layers\[1\]\(params"),
        (lambda: sandwich_bound(linear, W * jnp.inf, X), ValueError, "params must be finite"),
        (
            lambda: sandwich_bound(StackedLayers(linear, 2), W[None], X),
            ValueError,
            "leading axis of num_layers=2, got 1",
        ),
        (
            lambda: sandwich_bound(StackedLayers(linear, 2), jnp.ones((2, 3, 4)), X),
            ValueError,
            r"layers\[0\], a stack, must keep the shape",
        ),
        (lambda: gradient_norm_profile(linear, W, 3, X), TypeError, "loss_of_output must be a fun"),
        (
            lambda: gradient_norm_profile(linear, W, lambda h: h, X),
            ValueError,
            "loss_of_output must return one floating point scalar",
        ),
        (lambda: gradient_ratio(jnp.ones(())), ValueError, r"\(..., layers\), got \(\)"),
        (lambda: gradient_ratio([1.0]), TypeError, "profile must be a floating point array"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, error, message):
    with pytest.raises(error, match=message):
        call()
