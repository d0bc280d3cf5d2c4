"""What `nongaussian_processes` measures: the prior's flow over depth, and inference with it."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _program
from poster_jax.finite_width import nongaussian as ng

ACTIVATIONS = ("tanh", "erf", "relu", "gelu", "linear")
# Those whose mean covariance has a correction at all: G1 = 0 for ReLU and linear networks.
CURVED = ("tanh", "erf", "gelu")
ORDER_DEPTH = 2
OUTPUT_WIDTH = 32
BLOCKS = 20


class Flow(NamedTuple):
    """One activation at one width, predicted and drawn; axes are (blocks,) layers, pairs.

    Attributes:
      K: (depth, P) of infinite width.
      G1: (depth, P).
      V: (depth, P, P).
      shift: (blocks, depth, P) mean of G - K.
      covariance: (blocks, depth, P, P) of G.
    """

    K: Any
    G1: Any
    V: Any
    shift: Any
    covariance: Any


class Subset(NamedTuple):
    """One set of training and test points, at every width; the first axis is the width.

    Attributes:
      exact: `ng.ExactPosterior`.
      first: mean, variance and log evidence at first order.
      zeroth: the same of infinite width.
      y_test: labels of the test points, -1 and 1.
      correction: (widths, 3) `relative_correction` of the first order.
      condition: condition number.
    """

    exact: Any
    first: Any
    zeroth: Any
    y_test: Any
    correction: Any
    condition: Any


def flows(run: _program.Run) -> dict[tuple[str, int], Flow]:
    """Every activation, at its critical variances, and every width."""
    chosen = run.settings
    x = np.random.default_rng(run.seed).normal(size=(3, 8))
    x *= np.sqrt(8) / np.linalg.norm(x, axis=1, keepdims=True)
    rows, columns = np.triu_indices(3)
    found = {}
    total = len(ACTIVATIONS) * len(chosen.flow_widths)
    with run.progress("flow over depth", total) as update:
        for name in ACTIVATIONS:
            critical = ng.critical_initialization(name)
            options = {"depth": chosen.depth, "C_W": critical.C_W, "C_b": critical.C_b}
            state = ng.layer_flow(name, x, 10 * chosen.depth, **options)
            K, G1 = (np.asarray(a)[:, rows, columns] for a in (state.K, state.G1))
            for width in chosen.flow_widths:
                update(len(found), f"{name}, width {width}")
                draw = partial(_drawn, name, width, chosen.flow_budget // (width * BLOCKS), options)
                keys = jax.random.split(jax.random.fold_in(run.key, width), BLOCKS)
                drawn = run.stage(f"flow_{name}_{width}", draw, x, state.K, keys)
                found[name, width] = Flow(K, G1, np.asarray(state.V), *map(np.asarray, drawn))
        update(total)
    return found


def _drawn(name: str, width: int, num: int, options: Any, x: Any, K: Any, keys: Any) -> Any:
    """Mean of G - K and covariance of G, of blocks of `num` networks."""
    rows, columns = np.triu_indices(x.shape[0])

    def block(key):
        G = ng.sample_flow(name, x, key, num_samples=num, widths=width, **options)
        away = (G - K)[:, :, rows, columns]
        mean = away.mean(0)
        centred = away - mean
        return mean, jnp.einsum("slp,slq->lpq", centred, centred) / (num - 1)

    return jax.lax.map(block, keys)


def orders(run: _program.Run) -> dict[str, tuple[Any, Any]]:
    """(blocks, widths, P) means of G - K of narrow networks of two layers, and G1 (P,).

    Narrow and many: what G1 leaves is of order 1 / n^2 and must stand out of the noise.
    """
    chosen = run.settings
    x = np.random.default_rng(run.seed).normal(size=(2, 8))
    rows, columns = np.triu_indices(2)
    found = {}
    with run.progress("order of the correction", len(CURVED)) as update:
        for index, name in enumerate(CURVED):
            update(index, name)
            critical = ng.critical_initialization(name)
            options = {"depth": ORDER_DEPTH, "C_W": critical.C_W, "C_b": critical.C_b}
            state = ng.layer_flow(name, x, 100, **options)
            shifts = []
            for width in chosen.order_widths:
                num = chosen.order_budget // (width * BLOCKS)
                draw = partial(_drawn, name, width, num, options)
                keys = jax.random.split(jax.random.fold_in(run.key, 1000 + width), BLOCKS)
                drawn = run.stage(f"order_{name}_{width}", draw, x, state.K, keys)
                shifts.append(np.asarray(drawn[0])[:, -1])
            found[name] = np.stack(shifts, 1), np.asarray(state.G1)[-1][rows, columns]
        update(len(CURVED))
    return found


def preactivations(run: _program.Run) -> tuple[Any, float, float, float]:
    """Outputs of narrow networks on one input, and K, G1 / n and V / n of their prior."""
    chosen, x = run.settings, np.ones((1, 8))
    options = {"widths": OUTPUT_WIDTH, "depth": ORDER_DEPTH, "C_W": 2.0}
    num = chosen.flow_budget // 4
    G = ng.sample_covariances("relu", x, run.key, num_samples=num, **options)[:, 0, 0]
    outputs = jnp.sqrt(G) * jax.random.normal(jax.random.fold_in(run.key, 1), G.shape)
    K, shift, vertex = map(float, map(jnp.squeeze, ng.finite_width_kernel("relu", x, **options)
                                      .corrections()))  # fmt: skip
    return np.asarray(outputs), K, shift, vertex


def points(run: _program.Run) -> tuple[np.ndarray, np.ndarray]:
    """Two classes of images by their leading principal components, labels -1 and 1."""
    chosen = run.settings
    dataset = run.load(chosen.dataset)
    x, y = (np.asarray(a) for a in dataset.train)
    keep = np.isin(y, chosen.classes)
    x, y = x[keep].reshape(keep.sum(), -1).astype(np.float64), y[keep]
    x = x - x.mean(0)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    z = u[:, : chosen.components] * s[: chosen.components]
    z *= np.sqrt(chosen.components / np.mean(np.sum(z**2, 1)))
    return z, np.where(y == chosen.classes[0], 1.0, -1.0)


def inference(run: _program.Run) -> tuple[list[Subset], list[Subset]]:
    """Posteriors on several subsets of the data, and with labels in random order as control."""
    chosen = run.settings
    x, y = points(run)
    size = chosen.num_train + chosen.num_test
    rng = np.random.default_rng(run.seed)
    real, control = [], []
    options = {"form": chosen.form, "num_samples": chosen.num_neurons, "rank": chosen.rank}
    with run.progress("inference", chosen.num_subsets) as update:
        for index in range(chosen.num_subsets):
            update(index, f"subset {index + 1}")
            here = rng.permutation(len(x))[:size]
            shuffled = rng.permutation(y[here])
            key = jax.random.fold_in(run.key, index)
            kernel = ng.finite_width_kernel(
                chosen.activation, x[here], chosen.prior_depth, **prior(run), **options
            )
            real.append(_subset(run, kernel, x[here], y[here], key))
            if index < chosen.num_controls:  # the same networks: labels are all that differs
                control.append(_subset(run, kernel, x[here], shuffled, key))
        update(chosen.num_subsets)
    return real, control


def prior(run: _program.Run) -> dict[str, Any]:
    """The network of the inference, as keywords."""
    chosen = run.settings
    return {"depth": chosen.prior_depth, "C_W": chosen.C_W, "C_b": chosen.C_b}


def _subset(run: _program.Run, kernel: Any, x: Any, y: Any, key: Any) -> Subset:
    chosen = run.settings
    widths, num = chosen.widths, chosen.num_train

    exact = [  # compiled once a width, for all subsets
        ng.exact_posterior(
            chosen.activation, x, y[:num], key, noise=chosen.noise, num_samples=chosen.num_samples,
            widths=width, **prior(run),
        )
        for width in widths
    ]  # fmt: skip
    expand = jax.jit(lambda kernel: ng.posterior(kernel, jnp.asarray(y[:num]), noise=chosen.noise))
    found = [expand(kernel.at_widths(width / chosen.prior_depth)) for width in widths]
    exact, found = (jax.tree.map(lambda *a: np.stack(a), *all_) for all_ in (exact, found))
    variance0 = np.diagonal(found.covariance_order0, axis1=1, axis2=2)[..., None]
    return Subset(
        exact,
        (found.mean, np.diagonal(found.covariance, axis1=2, axis2=3).swapaxes(1, 2),
         found.log_evidence),
        (found.mean_order0, variance0, found.log_evidence_order0),
        y[num:],
        found.relative_correction,
        float(found.condition_number[0]),
    )  # fmt: skip


def line_predictions(run: _program.Run) -> dict[str, Any]:
    """A toy regression along a line: exact, first and zeroth order, for the picture of bands."""
    chosen = run.settings
    grid = np.linspace(-2, 2, 41)
    where = np.array([-1.2, -0.4, 0.5, 1.1])
    targets = np.array([-0.8, 0.6, 0.9, -0.3])
    x = np.stack([np.concatenate([where, grid]), np.ones(45)], 1)
    kernel = ng.finite_width_kernel(
        "tanh", x, 16, depth=2, C_W=3.0, C_b=0.1, num_samples=chosen.num_neurons
    )
    exact = ng.exact_posterior(
        "tanh", x, targets, run.key, noise=0.01, num_samples=chosen.num_samples, widths=16,
        depth=2, C_W=3.0, C_b=0.1,
    )  # fmt: skip
    found = jax.jit(lambda k: ng.posterior(k, jnp.asarray(targets), noise=0.01))(kernel)
    zeroth = jnp.diagonal(found.covariance_order0)[:, None]
    bands = {
        "exact": (exact.mean.mean, exact.variance.mean),
        "infinite width": (found.mean_order0, zeroth),
        "first order": (found.mean, found.variance),
    }
    return {
        "grid": grid,
        "points": (where, targets),
        "ess": float(exact.effective_sample_size),
        "bands": {
            name: (np.asarray(m)[:, 0], np.sqrt(np.maximum(np.asarray(v)[:, 0], 0)))
            for name, (m, v) in bands.items()
        },
    }
