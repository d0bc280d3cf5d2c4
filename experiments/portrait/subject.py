"""The networks that sit for the portrait: an MLP and a CNN, trained on the real digits."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments._program import Run
from poster_jax.core import losses, models, training
from poster_jax.core.devices import on_mesh


class Subject(NamedTuple):
    """A trained network and what the sections need to question it.

    Attributes:
      name: "MLP" or "CNN".
      module: its Flax module.
      apply_fn: `apply_fn(params, x) -> logits`.
      loss_fn: `loss_fn(params, batch)`, mean cross-entropy.
      initial: parameters before training.
      params: parameters after it.
      layers: paths of the kernels in the order in which the data meet them.
      biases: their biases.
      train: the training data (x, y).
      test: the test data (x, y).
      history: rows of the training: dicts with "step" and the metrics.
    """

    name: str
    module: Any
    apply_fn: Any
    loss_fn: Any
    initial: Any
    params: Any
    layers: tuple[str, ...]
    biases: tuple[str, ...]
    train: Any
    test: Any
    history: tuple[dict, ...]


def train_subjects(run: Run) -> tuple[Subject, ...]:
    """Trains both networks, or reads them from the workdir where that was done before."""
    digits = run.load("digits", seed=run.seed)
    options = run.settings
    networks = {
        "MLP": models.MLP((96, 48, 10)),
        "CNN": models.CNN(features=(16, 32, 32), strides=(1, 2, 1)),
    }
    steps = {"MLP": options.mlp_steps, "CNN": options.cnn_steps}
    keys = jax.random.split(run.key, 2 * len(networks)).reshape(len(networks), 2)
    return tuple(
        _train(run, name, network, digits, steps[name], init_key, fit_key)
        for (name, network), (init_key, fit_key) in zip(networks.items(), keys, strict=True)
    )


def _train(
    run: Run, name: str, network: Any, digits: Any, steps: int, init_key: Any, fit_key: Any
) -> Subject:
    model = models.from_linen(network)
    loss_fn = losses.cross_entropy(model.apply_fn)
    accuracy_fn = losses.accuracy(model.apply_fn)
    initial = model.init(init_key, digits.train[0])

    def metrics(state: training.TrainState) -> dict[str, Any]:
        return {
            f"{part}_{what}": fn(state.params, batch)
            for part, batch in (("train", digits.train), ("test", digits.test))
            for what, fn in (("loss", loss_fn), ("accuracy", accuracy_fn))
        }

    schedule = optax.cosine_decay_schedule(3e-3, steps)
    trained = training.train(
        loss_fn,
        initial,
        digits.train,
        fit_key,
        optimizer=optax.adam(schedule),
        num_steps=steps,
        batch_size=50,
        chunk_steps=max(1, steps // 20),
        metrics_fn=metrics,
        workdir=run.workdir / "training" / name.lower(),
        description=f"training the {name}",
    )
    before = jax.device_get(jax.jit(metrics)(_state_at(initial)))
    history = ({"step": 0, **before}, *trained.history)
    for row in history:
        run.log(network=name, **row)
    kind = [path for path in ("Conv", "Dense") for path in _numbered(initial, path)]
    return Subject(
        name=name,
        module=network,
        apply_fn=model.apply_fn,
        loss_fn=loss_fn,
        initial=initial,
        params=trained.params if run.mesh is None else on_mesh(trained.params, run.mesh),
        layers=tuple(f"{layer}/kernel" for layer in kind),
        biases=tuple(f"{layer}/bias" for layer in kind),
        train=jax.tree.map(jnp.asarray, digits.train),
        test=jax.tree.map(jnp.asarray, digits.test),
        history=history,
    )


def _state_at(params: Any) -> training.TrainState:
    return training.TrainState(params, (), (), jax.random.key(0), jnp.zeros((), jnp.int32))


def _numbered(params: Any, kind: str) -> list[str]:
    return sorted(name for name in params if name.startswith(kind))
