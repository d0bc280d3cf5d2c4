"""Bad input is refused in one sentence that names the argument, before anything is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.finite_width import nongaussian as ng
from poster_jax.kernels import stax

pytestmark = pytest.mark.bad_input
X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
NET = {"widths": 20, "depth": 2, "C_W": 1.5}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"phi": "tanhh"}, ValueError, r"activation must be one of .* Did you mean 'tanh'\?"),
        ({"phi": 3}, TypeError, "activation must be a function, got 3"),
        ({"widths": 0}, ValueError, "widths must be at least 1, got 0"),
        ({"widths": (20,)}, ValueError, "one for each of the 2 hidden layers"),
        ({"widths": 2.5}, ValueError, "widths must be one number or one for each"),
        ({"widths": None}, ValueError, "widths must be given"),
        ({"widths": 1}, ValueError, "widths must be larger .* at most 1, got 2"),
        ({"widths": (1, 9)}, ValueError, "widths must be larger"),
        ({"depth": 0}, ValueError, "depth must be at least 1, got 0"),
        ({"depth": None}, ValueError, "depth must be given"),
        ({"C_W": 0.0}, ValueError, "C_W must be finite and above 0"),
        ({"C_W": np.ones(2)}, ValueError, r"C_W must be one number or have shape \(depth \+ 1,\)"),
        ({"C_b": -1.0}, ValueError, "C_b must be finite and at least 0"),
        ({"x": X[0]}, ValueError, r"x must have shape \(inputs, features\)"),
        ({"x": X * np.nan}, ValueError, "x must be finite"),
        ({"form": "sparse"}, ValueError, "form must be one of"),
        ({"fourth": "closed"}, ValueError, "closed four-point function, got 'tanh'"),
        ({"num_samples": 7}, ValueError, "num_samples must be even"),
        ({"rank": 0}, ValueError, "rank must be at least 1"),
        ({"degree": 2}, ValueError, "degree must be at least 8"),
    ],
)
def test_finite_width_kernel(options, error, message):
    options = {"phi": "tanh", "x": X} | NET | options
    phi, x = options.pop("phi"), options.pop("x")
    with pytest.raises(error, match=message):
        ng.finite_width_kernel(phi, x, **options)


def test_a_network_has_its_own_depth_and_variances():
    net = ng.network("relu", depth=2, C_W=2.0)
    with pytest.raises(ValueError, match="depth, C_W and C_b must be left out"):
        ng.finite_width_kernel(net, X, 20, depth=2)
    with pytest.raises(ValueError, match="widths must be given: phi names none"):
        ng.finite_width_kernel(net, X)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((stax.Dense(3), stax.Relu()), "in turn, from Dense to Dense, got 2"),
        ((stax.Dense(3), stax.Relu(), stax.Relu()), r"layers\[2\] must be Dense"),
        ((stax.Dense(3), stax.Dense(3), stax.Dense(3)), "pointwise and without parameters"),
        ((stax.Dense(3), stax.LayerNorm(), stax.Dense(3)), "each entry alone"),
        ((stax.Dense, stax.Relu(), stax.Dense(3)), r"layers\[0\] must be a triple"),
    ],
)
def test_from_stax(layers, message):
    with pytest.raises(ValueError, match=message):
        ng.from_stax(*layers)


def test_posterior():
    kernel = ng.finite_width_kernel("linear", X, 20, depth=1)
    for y, options, message in (
        (np.ones(4), {}, r"y must have shape \(D,\) or \(D, k\) with 1 to 3"),
        (np.ones(0), {}, "y must have shape"),
        ([1.0, 2.0], {}, "y must have shape .* got list"),
        (np.full(2, np.nan), {}, "y must be finite"),
        (np.ones(2), {"noise": 0.0}, "noise must be finite and above 0"),
        (np.ones(2), {"resummation": "all"}, "resummation must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            ng.posterior(kernel, y, **({"noise": 0.1} | options))


def test_sampling():
    key = jax.random.key(0)
    with pytest.raises(TypeError, match="key must be a PRNG key"):
        ng.sample_covariances("relu", X, 0, num_samples=2, **NET)
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        ng.sample_covariances("relu", X, key, num_samples=0, **NET)
    with pytest.raises(ValueError, match="num_samples must be at least 2"):
        ng.exact_posterior("relu", X, np.ones(1), key, noise=0.1, num_samples=1, **NET)
    with pytest.raises(ValueError, match="G must have shape"):
        ng.weighted_posterior(jnp.eye(2), np.ones(1), noise=0.1)


def test_susceptibilities():
    with pytest.raises(ValueError, match="K must be finite and above 0"):
        ng.susceptibilities("tanh", jnp.zeros(2), C_W=1.0)
