"""The tied autoencoder as what it is said to be: Hutchinson's estimator with the data as probe."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.jacobian import orthogonality_penalty, tied_autoencoder_loss


def draw(m, n, examples=6, seed=0):
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(m, n)) / n**0.5
    x = rng.normal(size=(300, n))
    return W, x[np.abs(x @ W.T).min(axis=1) > 0.1][:examples]


def linear(W, x):
    return x @ W.T


def with_slope(slope):
    return lambda W, x: jax.nn.leaky_relu(x @ W.T, slope)


def explicit(W, x, slope):
    """||(I - J'J) x||^2 of each example, J = D W."""
    out = []
    for one in x:
        J = np.where(W @ one > 0, 1, slope)[:, None] * W
        out.append(((one - J.T @ J @ one) ** 2).sum())
    return np.array(out)


def test_relu_reconstruction_is_the_deviation_of_jtj_along_the_data(x64):
    W, x = draw(5, 4)
    ask = jax.jit(partial(tied_autoencoder_loss, with_slope(0.0)))
    plain = jax.jit(
        partial(tied_autoencoder_loss, with_slope(0.0), decoder="transpose", linear_fn=linear)
    )
    for found in (ask(W, x), plain(W, x)):
        np.testing.assert_allclose(found.per_example, explicit(W, x, 0.0), rtol=1e-12)
        np.testing.assert_allclose(found.value, explicit(W, x, 0.0).mean(), rtol=1e-12)
        assert float(found.standard_error) == 0


def test_leaky_relu_needs_the_transposed_jacobian(x64):
    W, x = draw(5, 4, seed=1)
    layer = with_slope(0.2)
    found = tied_autoencoder_loss(layer, W, x)
    np.testing.assert_allclose(found.per_example, explicit(W, x, 0.2), rtol=1e-12)
    weights = tied_autoencoder_loss(layer, W, x, decoder="transpose", linear_fn=linear)
    z = x @ W.T
    expected = ((x - np.where(z > 0, z, 0.2 * z) @ W) ** 2).sum(axis=1)
    np.testing.assert_allclose(weights.per_example, expected, rtol=1e-12)
    assert np.abs(expected / explicit(W, x, 0.2) - 1).min() > 1e-3


def test_a_convolution_with_pooling_is_homogeneous_too(x64):
    rng = np.random.default_rng(2)
    kernel, x = 0.3 * rng.normal(size=(3, 3, 2, 3)), rng.normal(size=(4, 6, 6, 2))

    def layer(kernel, x):
        axes = ("NHWC", "HWIO", "NHWC")
        z = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=axes)
        z = jax.nn.leaky_relu(z, 0.1)
        return jnp.maximum(z[:, ::2, ::2], z[:, 1::2, 1::2])

    J = np.asarray(jax.vmap(jax.jacrev(lambda one: layer(kernel, one[None]).ravel()))(x))
    J, flat = J.reshape(4, -1, 72), x.reshape(4, 72)
    expected = [((v - j.T @ j @ v) ** 2).sum() for j, v in zip(J, flat, strict=True)]
    found = jax.jit(partial(tied_autoencoder_loss, layer))(kernel, x)
    np.testing.assert_allclose(found.per_example, expected, rtol=1e-12)
    for j, v, value in zip(J, flat, found.per_example, strict=True):
        deviation = j.T @ j - np.eye(72)
        assert value <= np.linalg.norm(deviation, 2) ** 2 * (v**2).sum() * (1 + 1e-12)


def test_white_data_through_a_linear_layer_give_the_penalty_of_the_columns(x64):
    W, _ = draw(3, 5, seed=3)
    Q, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(5, 5)))
    x = 5**0.5 * Q  # the mean of x x' is I
    loss = tied_autoencoder_loss(linear, W, x).value
    both = [
        orthogonality_penalty(linear, W, x, method="exact", side=side).value
        for side in ("columns", "rows")
    ]
    np.testing.assert_allclose(loss, both[0], rtol=1e-12)
    np.testing.assert_allclose(loss, both[1] + 5 - 3, rtol=1e-12)


@pytest.mark.slow
def test_noise_adds_its_variance_times_the_penalty(key, x64):
    """In a linear region E A(x + e) = A(x) + s^2 ||I - J'J||^2, by a million draws of e."""
    rng = np.random.default_rng(4)
    num = 1_000_000
    ask = jax.jit(partial(tied_autoencoder_loss, with_slope(0.0)))
    # A layer that returns x itself: A(x) = 0, so that s = 1e-4 is not lost in A(x) or its slope.
    x = rng.normal(size=4)
    V, _ = np.linalg.qr(np.column_stack([x, rng.normal(size=(4, 3))]))
    Q, _ = np.linalg.qr(np.column_stack([rng.uniform(1, 2, size=3), rng.normal(size=(3, 2))]))
    Q = Q * np.sign(Q[0, 0]) * np.sign(V[:, 0] @ x)
    exact = Q @ np.diag([1, 0.5, 1.7]) @ V[:, :3].T
    assert (exact @ x > 0.1).all()
    general, other = draw(5, 4, examples=1, seed=5)
    for W, at, s in ((exact, x, 1e-4), (general, other[0], 0.01)):
        J = W[W @ at > 0]
        expected = s**2 * ((np.eye(4) - J.T @ J) ** 2).sum()
        many = jnp.broadcast_to(at, (num, 4))
        found = ask(W, many, key, noise_std=s)
        added = np.asarray(found.per_example) - explicit(W, at[None], 0.0)
        error = added.std(ddof=1) / num**0.5
        assert abs(added.mean() - expected) < 4 * error
        assert error < 0.2 * expected
        assert np.isinf(found.standard_error)


def test_smooth_activations_agree_to_third_order(x64):
    W, x = draw(4, 4, seed=6)
    gaps = []
    ask = jax.jit(partial(tied_autoencoder_loss, lambda W, x: jnp.tanh(x @ W.T)))
    for scale in (0.02, 0.01):
        J = (1 - np.tanh(scale * x @ W.T) ** 2)[:, :, None] * W
        residual = scale * x - np.einsum("bmi,bmj,bj->bi", J, J, scale * x)
        gaps.append(np.asarray(ask(W, scale * x).per_example) - (residual**2).sum(axis=1))
    # a residual of order t changes by order t^3, its square by t^4
    np.testing.assert_allclose(gaps[0] / gaps[1], 16, rtol=0.02)


def test_orthogonal_layers_return_their_input(x64):
    Q, _ = np.linalg.qr(np.random.default_rng(7).normal(size=(5, 5)))
    assert float(tied_autoencoder_loss(linear, Q, np.ones((3, 5))).value) < 1e-28


def test_relative_loss_has_no_scale_and_no_zero_to_divide_by(x64):
    W, x = draw(5, 4, seed=8)
    x[1] = 0
    layer = with_slope(0.0)

    @jax.jit
    def ask(x, W):
        value = lambda x, W: tied_autoencoder_loss(  # noqa: E731
            layer, W, x, relative=True, stop_gradient_input=False
        )
        found = value(x, W)
        return found, jax.grad(lambda x, W: value(x, W).value, argnums=(0, 1))(x, W)

    found, gradients = ask(x, W)
    expected = explicit(W, x, 0.0)
    size = (x**2).sum(axis=1)
    np.testing.assert_allclose(found.per_example[0], expected[0] / size[0], rtol=1e-12)
    assert float(found.per_example[1]) == 0
    np.testing.assert_allclose(ask(3 * x, W)[0].per_example, found.per_example, rtol=1e-12)
    assert all(np.isfinite(g).all() for g in gradients)


def test_the_input_is_detached_unless_asked_and_seeds_are_a_vmap():
    W, x = (a.astype(np.float32) for a in draw(5, 4, seed=9))
    layer = with_slope(0.1)

    @jax.jit
    def by_x(x):
        def ask(x, stop):
            return tied_autoencoder_loss(layer, W, x, stop_gradient_input=stop).value

        return [jax.grad(ask)(x, stop) for stop in (True, False)]

    detached, attached = by_x(x)
    assert np.abs(detached).max() == 0
    assert np.abs(attached).max() > 0.01
    stds, keys = jnp.array([0.0, 0.1]), jax.random.split(jax.random.key(0), 2)
    one = lambda key, std: tied_autoencoder_loss(layer, W, x, key, noise_std=std)  # noqa: E731
    found = jax.jit(jax.vmap(one))(keys, stds)
    assert found.value.dtype == jnp.float32
    np.testing.assert_allclose(found.per_example[0], explicit(W, x, 0.1), rtol=1e-5)
    np.testing.assert_allclose(found.value[1], jax.jit(one)(keys[1], stds[1]).value, rtol=1e-6)
    assert abs(float(found.value[1] / found.value[0]) - 1) > 1e-3


@pytest.mark.bad_input
def test_bad_input(key):
    W, x = (a.astype(np.float32) for a in draw(3, 4))
    with pytest.raises(ValueError, match="decoder must be one of"):
        tied_autoencoder_loss(linear, W, x, decoder="weights")
    with pytest.raises(ValueError, match="linear_fn must be given for decoder='transpose'"):
        tied_autoencoder_loss(linear, W, x, decoder="transpose")
    with pytest.raises(ValueError, match=r"linear_fn must return .* of shape \(6, 3\)"):
        tied_autoencoder_loss(linear, W, x, decoder="transpose", linear_fn=lambda W, x: x)
    with pytest.raises(ValueError, match="noise_std must be finite and at least 0"):
        tied_autoencoder_loss(linear, W, x, key, noise_std=-1.0)
    with pytest.raises(TypeError, match=r"key must be a PRNG key .* for noise"):
        tied_autoencoder_loss(linear, W, x, noise_std=0.1)
    with pytest.raises(TypeError, match="layer_fn must be a function"):
        tied_autoencoder_loss(None, W, x)
