"""500 trained networks against the mean and the covariance that `predict` says, at three times.

The closed form is of infinite width, and at a finite one its error is real: here 118 deviations of
an output over the width at the worst point, an extrapolation (0.46 at width 256). So the width is
such that this is below the error of 500 networks, and that it falls as one over the width is
measured in the same run.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax.core import training
from poster_jax.kernels import predict, stax

X = np.array([-2.0, -1.2, -0.3, 0.5, 1.1, 1.9])[:, None]
Y = np.sin(2 * X)
X_TEST = np.array([-2.6, -1.6, -0.7, 0.1, 0.8, 1.5, 2.6])[:, None]
TIMES = np.array([20, 80, 400])
SMOOTHNESS = 0.05  # a step times the fastest rate of decay: descent is near the flow of the theory
WIDE, NUM_WIDE = 4096, 500
NARROW, NUM_NARROW = (128, 256), 2000


class Moments(NamedTuple):
    """Mean (times, points) and covariance (times, points, points) of the outputs."""

    mean: np.ndarray
    covariance: np.ndarray


def network(width):
    return stax.serial(stax.Dense(width, 1.5, 0.3), stax.Erf(), stax.Dense(1, 1.5, 0.3))


def learning_rate():
    kernel = np.asarray(network(1)[2](X, None, "ntk"))
    return SMOOTHNESS * len(X) / np.linalg.eigvalsh(kernel)[-1]


def theory(get="ntk", faster=1.0):
    with jax.enable_x64(True):
        ensemble = predict.gradient_descent_mse_ensemble(
            network(1)[2], X, Y, faster * learning_rate()
        )
        mean, covariance = ensemble(TIMES, X_TEST, get, True)
    return Moments(np.asarray(mean)[..., 0], np.asarray(covariance))


def train(width, rate, key):
    """One network's outputs (times, points), by plain gradient descent."""
    init_fn, apply_fn, _ = network(width)
    x, y, x_test = (jnp.asarray(a, jnp.float32) for a in (X, Y, X_TEST))

    def step(params, _):
        slope = jax.grad(lambda p: jnp.mean((apply_fn(p, x) - y) ** 2) / 2)(params)
        return jax.tree.map(lambda p, s: p - rate * s, params, slope), None

    params, outputs = init_fn(key, x.shape)[1], []
    for num_steps in np.diff(TIMES, prepend=0):
        params, _ = jax.lax.scan(step, params, length=int(num_steps))
        outputs.append(apply_fn(params, x_test)[:, 0])
    return jnp.stack(outputs)


def ensemble(width, num_networks):
    keys = jax.random.split(jax.random.key(width), num_networks)
    fn = partial(train, width, jnp.float32(learning_rate()))
    outputs = np.asarray(training.map_population(fn, keys, group_size=20), np.float64)
    centred = outputs - outputs.mean(0)
    covariance = np.einsum("nti,ntj->tij", centred, centred) / (num_networks - 1)
    return Moments(outputs.mean(0), covariance)


def scores(found, known, num_networks):
    """The distance of both moments in standard errors of Gaussian ensembles."""
    variance = np.diagonal(known.covariance, axis1=1, axis2=2)
    of_mean = np.sqrt(variance / num_networks)
    products = variance[:, :, None] * variance[:, None, :]
    of_covariance = np.sqrt((products + known.covariance**2) / num_networks)
    return Moments(
        (found.mean - known.mean) / of_mean,
        (found.covariance - known.covariance) / of_covariance,
    )


@pytest.fixture(scope="module")
def wide():
    return ensemble(WIDE, NUM_WIDE)


@pytest.fixture(scope="module")
def corrections():
    """Width -> how far its mean is from the theory, in deviations of an output."""
    known = theory()
    return {
        width: scores(ensemble(width, NUM_NARROW), known, NUM_NARROW).mean / NUM_NARROW**0.5
        for width in NARROW
    }


@pytest.mark.slow
def test_mean_and_covariance_are_those_of_500_trained_networks(wide):
    # 21 means and 84 covariances: the largest of as many normal numbers is below 4.5 in all but
    # one of 1,000 runs, and their mean square, correlated as they are, is near 1.
    found = scores(wide, theory(), NUM_WIDE)
    for z in found:
        assert np.abs(z).max() < 4.5
        assert np.mean(z**2) < 3


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [{"get": "nngp"}, {"faster": 1.5}], ids=["nngp", "rate"])
def test_another_kernel_or_rate_is_told_from_it(wide, wrong):
    for z in scores(wide, theory(**wrong), NUM_WIDE):
        assert np.abs(z).max() > 10
        assert np.mean(z**2) > 20


@pytest.mark.slow
def test_corrections_of_the_width_fall_as_its_inverse_below_the_error_of_sampling(corrections):
    first, second = (width * corrections[width] for width in NARROW)
    error = np.hypot(*NARROW) / NUM_NARROW**0.5
    worst = max(np.abs(first).max(), np.abs(second).max())
    # Times the width the same at both widths; a correction that stays would differ by `worst`.
    assert np.abs(first - second).max() < 4.5 * error < worst
    assert worst / WIDE < NUM_WIDE**-0.5
