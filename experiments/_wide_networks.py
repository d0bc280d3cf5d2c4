"""Networks of a finite width beside their limit: trained ensembles, kernels, linearisations.

Every function here is of one network and pure; `Run.population` makes populations of them. The task
is small on purpose: regressions on the line, of eight functions at the same points, each learned by
networks of its own. Points of one function are strongly correlated over an ensemble; eight
functions are eight independent tests of the theory. (Eight outputs of one network would be
independent in the limit only: they move their common features, and corrections grow with their
number.)
"""

import itertools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments._program import Run
from poster_jax import kernels
from poster_jax.core import losses
from poster_jax.kernels import predict, stax

FUNCTIONS = 8
SNAPSHOTS = 16  # times at which outputs are kept, evenly spaced
TIMES = (1, 2, 4, 8, 16)  # the five of them that the claim is about
SMOOTHNESS = 0.1  # a step times the largest rate of decay: descent is then close to gradient flow
SINE = 2  # the function of which one is enough: a period of a sine
NARROW = 16  # the control: far from the limit


class Line(NamedTuple):
    """Regression data.

    Attributes:
      x: (8, 1).
      y: (8, FUNCTIONS).
      test: (21, 1).
      rate: the learning rate.
    """

    x: Any
    y: Any
    test: Any
    rate: Any


class Theory(NamedTuple):
    """The infinite ensemble at the snapshots.

    Attributes:
      mean: (SNAPSHOTS, 21, FUNCTIONS).
      variance: (SNAPSHOTS, 21), the same for every function.
      train_loss: (SNAPSHOTS,), expected mean squared error on the training points.
    """

    mean: Any
    variance: Any
    train_loss: Any


def network(width: int, *, second: int | None = None) -> Any:
    """Two hidden layers of erf units; `second` is the width of the second, 0 leaves it out."""
    second = width if second is None else second
    hidden = [stax.serial(stax.Dense(n, 1.5, 0.05), stax.Erf()) for n in (width, second) if n]
    return stax.serial(*hidden, stax.Dense(1, 1.5, 0.05))


def line(num_train: int = 8, num_test: int = 21) -> Line:
    """Sines of four frequencies and two phases at random points between -pi and pi."""
    x = np.sort(np.random.default_rng(0).uniform(-np.pi, np.pi, num_train))[:, None]
    frequency, phase = np.repeat([0.5, 1.0, 1.5, 2.0], 2), np.tile([0.0, np.pi / 2], 4)
    y = np.sin(frequency * x + phase)
    kernel = limit_ntk(x)
    rate = SMOOTHNESS * num_train / np.linalg.eigvalsh(kernel)[-1]
    return Line(*map(jnp.float32, (x, y, np.linspace(-np.pi, np.pi, num_test)[:, None], rate)))


def limit_ntk(x: Any, second: int | None = None) -> Any:
    """The NTK of the inputs at infinite width, as one program."""
    kernel_fn = network(1, second=second)[2]
    return jax.jit(lambda x: kernel_fn(x, None, "ntk"))(jnp.asarray(x))


def theory(data: Line, num_steps: int) -> Theory:
    """What the library predicts, in float64."""

    @jax.jit  # one program: operation by operation some 200 would be compiled
    def predicted(x: Any, y: Any, test: Any, rate: Any) -> Theory:
        times = jnp.arange(1, SNAPSHOTS + 1) * (num_steps // SNAPSHOTS)
        # predict takes the mean over all targets where each network has only its own.
        ensemble = predict.gradient_descent_mse_ensemble(network(1)[2], x, y, rate * FUNCTIONS)
        on_test = ensemble(times, test, "ntk", True)
        on_train = ensemble(times, None, "ntk", True)
        spread = _diagonal(on_train.covariance).mean(-1)
        loss = jnp.mean((on_train.mean - y) ** 2, axis=(1, 2)) + spread
        return Theory(on_test.mean, _diagonal(on_test.covariance), loss)

    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, predicted(*_in_float64(data)))


def ensembles_of_theory(
    data: Line, num_steps: int, num_networks: int, num_ensembles: int, seed: int
) -> np.ndarray:
    """Outputs of networks drawn from the limit: (ensembles, networks, TIMES, 21, FUNCTIONS).

    Initial functions are Gaussian with the NNGP kernel, and learn by the NTK: what the claim's rule
    makes of them says how often it turns down the truth.
    """
    n, times = len(data.x), np.asarray(TIMES) * (num_steps // SNAPSHOTS)
    columns = num_networks * FUNCTIONS

    @jax.jit
    def drawn(x: Any, y: Any, test: Any, rate: Any, keys: Any) -> Any:
        both = network(1)[2](jnp.concatenate([x, test]), None, ("nngp", "ntk"))
        values, vectors = jnp.linalg.eigh(both.nngp)
        root = vectors * jnp.sqrt(jnp.maximum(values, 0))
        targets = jnp.tile(y, (1, num_networks))
        learn = predict.gradient_descent_mse(both.ntk[:n, :n], targets, rate * columns)

        def one(key: Any) -> Any:
            start = root @ jax.random.normal(key, (len(root), columns))
            _, found = learn(times, start[:n], start[n:], both.ntk[n:, :n])
            found = found.reshape(*found.shape[:2], num_networks, FUNCTIONS)
            return found.transpose(2, 0, 1, 3).astype(jnp.float32)

        return jax.lax.map(one, keys)

    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(seed), num_ensembles)
        return np.asarray(drawn(*_in_float64(data), keys))


def weights(init_fn: Any, key: Any, shape: tuple[int, ...]) -> Any:
    """Parameters as `init_fn` of `stax` draws them: independent standard normal numbers."""
    return standard_normal(jax.eval_shape(lambda key: init_fn(key, shape)[1], key), key)


def standard_normal(like: Any, key: Any) -> Any:
    """Standard normal numbers in the shapes of a pytree, all in one draw.

    A draw for each matrix and bias takes four times as long to compile as all that a network then
    does here.
    """
    leaves, structure = jax.tree.flatten(like)
    stops = list(itertools.accumulate(leaf.size for leaf in leaves))
    parts = jnp.split(jax.random.normal(key, (stops[-1],)), stops[:-1])
    shaped = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)


def trained(width: int, num_steps: int, data: Line, key: Any) -> dict[str, Any]:
    """One network a function under gradient descent: outputs on the test points, training loss."""
    init_fn, apply_fn, _ = network(width)

    def one(key: Any, y: Any) -> dict[str, Any]:
        params = weights(init_fn, key, data.x.shape)
        own = data._replace(y=y[:, None])
        found = descend(apply_fn, params, own, data.rate, num_steps)
        return {**found, "outputs": found["outputs"][..., 0]}

    keys = jax.random.split(key, FUNCTIONS)
    return jax.vmap(one, in_axes=(0, 1), out_axes=-1)(keys, data.y)


def descend(apply_fn: Any, params: Any, data: Line, rate: Any, num_steps: int) -> dict[str, Any]:
    """Gradient descent on `mean((f - y)^2) / 2` with y (8, 1), looked at SNAPSHOTS times."""
    loss_fn, optimizer = losses.squared_error(apply_fn), optax.sgd(rate)

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss_fn)(params, (data.x, data.y)), state)
        return (optax.apply_updates(params, updates), state), None

    def segment(carry: Any, _: Any) -> Any:
        carry, _ = jax.lax.scan(step, carry, length=num_steps // SNAPSHOTS)
        seen = apply_fn(carry[0], jnp.concatenate([data.x, data.test]))
        error = jnp.mean((seen[: len(data.x)] - data.y) ** 2)
        return carry, {"outputs": seen[len(data.x) :], "train_loss": error}

    return jax.lax.scan(segment, (params, optimizer.init(params)), length=SNAPSHOTS)[1]


def kernel_errors(width: int, second: int | None, x: Any, limit: Any, key: Any) -> dict[str, Any]:
    """How far one network's NTK is from its limit: along the limit, and in all.

    The first is `<K, L> / <L, L> - 1`, the second `|K - L|^2 / |L|^2`.
    """
    init_fn, apply_fn, _ = network(width, second=second)
    params = weights(init_fn, key, x.shape)
    ntk_fn = kernels.empirical_ntk_fn(
        apply_fn, vmap_axes=0, implementation=kernels.NtkImplementation.STRUCTURED_DERIVATIVES
    )
    kernel, norm = ntk_fn(x, None, params), jnp.sum(limit**2)
    return {
        "bias": jnp.sum(kernel * limit) / norm - 1,
        "distance": jnp.sum((kernel - limit) ** 2) / norm,
    }


def departure(width: int, num_steps: int, richly: bool, data: Line, key: Any) -> Any:
    """Root mean square distance, after training, of a network and its linearisation.

    `richly`: outputs divided by the root of the width and the rate multiplied by the width, which
    leaves the kernel as it is and makes the features move at every width.
    """
    init_fn, plain_fn, _ = network(width)
    data = data._replace(y=data.y[:, SINE : SINE + 1])
    params = weights(init_fn, key, data.x.shape)
    scale, rate = (width**-0.5, data.rate * width) if richly else (1.0, data.rate)

    def apply_fn(params: Any, x: Any) -> Any:
        return scale * plain_fn(params, x)

    true = descend(apply_fn, params, data, rate, num_steps)
    linear = descend(kernels.linearize(apply_fn, params), params, data, rate, num_steps)
    return jnp.sqrt(jnp.mean((true["outputs"][-1] - linear["outputs"][-1]) ** 2))


def measure(run: Run) -> dict[str, Any]:
    """All three studies: `ensembles`, `kernels` and `departures`, by width."""
    chosen, data = run.settings, line()
    keys = partial(jax.random.split, jax.random.fold_in(run.key, 1))
    found: dict[str, Any] = {"ensembles": {}, "kernels": {}, "departures": {}}
    total = len(chosen.ensemble_widths) + 3 * len(chosen.kernel_widths)
    total += 2 * len(chosen.linear_widths)
    with run.progress("finite networks", total) as update:

        def study(part: str, name: Any, fn: Any, shared: Any, num: int) -> None:
            words = "_".join(map(str, (part, *np.atleast_1d(name)))).replace(" ", "_")
            found[part][name] = jax.tree.map(
                np.asarray, run.population(words, fn, shared, keys(num))
            )
            update(sum(map(len, found.values())), words)

        for width in chosen.ensemble_widths:
            fn = partial(trained, width, chosen.num_steps)
            study("ensembles", width, fn, data, chosen.num_networks)
        for kind, second in (("two layers", None), ("one layer", 0), ("second narrow", NARROW)):
            x = data.x[::2]
            shared = (x, limit_ntk(x, None if second is None else min(second, 1)))
            for width in chosen.kernel_widths:
                fn = lambda shared, key: kernel_errors(width, second, *shared, key)  # noqa: B023, E731
                study("kernels", (kind, width), fn, shared, chosen.num_draws)
        for richly in (False, True):
            for width in chosen.linear_widths:
                fn = partial(departure, width, chosen.num_steps, richly)
                name = ("rich" if richly else "plain", width)
                study("departures", name, fn, data, chosen.num_linearised)
    return found


def _in_float64(data: Line) -> list[np.ndarray]:
    return [np.asarray(array, np.float64) for array in data]


def _diagonal(covariance: Any) -> Any:
    return jnp.diagonal(covariance, axis1=-2, axis2=-1)
