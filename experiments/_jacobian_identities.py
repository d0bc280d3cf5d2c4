"""The autoencoder's loss and the penalty, as identities at trained dense layers, in float64.

The other side of each is written down from W and b alone, with the Jacobian J = D W explicit. With
a bias h = J x + D b, so that for any homogeneous activation

    A(x) = ||x - J'h||^2 = ||(I - J'J) x - J'D b||^2,      J'D b = J'b for ReLU, where D D = D.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments._jacobian_networks import ACTIVATIONS, dense_layer, derivative, linear_layer
from experiments._program import Run
from poster_jax import jacobian
from poster_jax.core import training

# Small enough that hardly any unit changes between active and not, large enough for float64.
NOISE = 1e-5
DRAWS = 256


def measure(run: Run, task: Any, found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Activation -> name -> (networks, layers, examples), of all trained networks of a case."""
    activations = [name for name, _ in task.case.activations]
    with jax.enable_x64(True):
        kept = jax.tree.map(
            lambda *leaves: np.concatenate(leaves, axis=1).astype(np.float64),
            *[measured["kept"] for _, _, measured in found.values()],
        )
        size = jax.tree.leaves(kept)[0].shape[:2]
        shapes = np.array([ACTIVATIONS[name] for name in activations])
        shapes = np.repeat(shapes, size[1], axis=0)
        who = (
            jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), kept),
            (shapes[:, 0], shapes[:, 1]),
            jax.random.split(jax.random.fold_in(run.key, 2), len(shapes)),
        )
        population = partial(training.map_population, of_network, group_size=1, mesh=run.mesh)
        errors = run.stage(f"identities_{task.case.stage}", population, *who)
        errors = jax.tree.map(lambda a: np.asarray(a).reshape(*size, *a.shape[1:]), errors)
    return {
        name: jax.tree.map(lambda a: a[index], errors)  # noqa: B023
        for index, name in enumerate(activations)
    }


def of_network(kept: Any, shape: Any, key: Any) -> dict[str, Any]:
    """How far apart the two sides of each identity are: name -> (layers, examples)."""
    keys = jax.random.split(key, len(kept["inputs"]))
    found = jax.vmap(partial(of_layer, shape))(kept["hidden"], kept["inputs"], keys)
    # The output layer has fewer outputs than inputs: there the offset is not zero.
    last = offset(linear_layer, kept["last"], kept["end"], jnp.ones((len(kept["end"]), 1)))
    return {**found, "offset of the last layer": last}


def of_layer(shape: Any, params: Any, x: Any, key: Any) -> dict[str, Any]:
    """The same of one layer h = phi(W x + b): name -> (examples,)."""
    layer = partial(dense_layer, shape)
    slopes = derivative(shape, layer(params, x))
    loss = partial(jacobian.tied_autoencoder_loss, layer, params)
    sizes = (x**2).sum(axis=1)

    def right_side(params: Any) -> Any:
        slopes = derivative(shape, layer(params, x))
        J = slopes[:, :, None] * params["kernel"].T
        h = jnp.einsum("bmn,bn->bm", J, x) + slopes * params["bias"]
        return ((x - jnp.einsum("bmn,bm->bn", J, h)) ** 2).sum(axis=1)

    unbiased = {**params, "bias": jnp.zeros_like(params["bias"])}
    without = jacobian.tied_autoencoder_loss(layer, unbiased, x).per_example
    by_weights = loss(x, decoder="transpose", linear_fn=linear_layer).per_example
    apart = lambda a, b: jnp.abs(a - b) / sizes  # noqa: E731
    exact, estimate = denoised(loss, slopes, params, x, key)
    # No unit may change sides within six standard deviations of the noise.
    reach = 6 * NOISE * jnp.linalg.norm(params["kernel"], axis=0)
    inside = (jnp.abs(linear_layer(params, x)) > reach).all(axis=1)
    return {
        "reconstruction": apart(loss(x).per_example, right_side(params)),
        "reconstruction without bias": apart(without, right_side(unbiased)),
        "decoded by the weights": apart(by_weights, right_side(params)),
        "offset": offset(layer, params, x, slopes),
        "noise": jnp.where(inside, estimate / exact, jnp.nan),
    }


def offset(layer: Any, params: Any, x: Any, slopes: Any) -> Any:
    """How far ||J'J - I||² - ||JJ' - I||² is from n - m, relatively: (examples,)."""
    columns = jacobian.orthogonality_penalty(layer, params, x, method="exact", side="columns")
    J = slopes[:, :, None] * params["kernel"].T
    m, n = J.shape[1:]
    rows = ((J @ jnp.swapaxes(J, 1, 2) - jnp.eye(m)) ** 2).sum(axis=(1, 2))
    return jnp.abs(columns.per_example - rows - (n - m)) / (rows + n)


def denoised(loss: Any, slopes: Any, params: Any, x: Any, key: Any) -> tuple[Any, Any]:
    """||J'J - I||², and what noise e on x adds to the loss over its variance: (examples,).

    Noise comes as e and -e, so that what is linear in it, and far larger, cancels.
    """
    J = slopes[:, :, None] * params["kernel"].T
    M = jnp.swapaxes(J, 1, 2) @ J - jnp.eye(x.shape[1])
    noise = NOISE * jax.random.normal(key, (DRAWS, *x.shape))
    moved = jnp.concatenate([x + noise, x - noise]).reshape(-1, x.shape[1])
    losses = loss(moved).per_example.reshape(2 * DRAWS, -1)
    added = (losses - loss(x).per_example).mean(axis=0)
    return (M**2).sum(axis=(1, 2)), added / NOISE**2
