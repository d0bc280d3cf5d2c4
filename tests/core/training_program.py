"""A small run in a process of its own, which its test kills.

    python training_program.py WORKDIR [before_save | while_saving | never] [SECONDS_A_CHUNK]

`before_save` and `while_saving` make the process kill itself (SIGKILL) at step 60: after its rows
are written and before its checkpoint is, or when the checkpoint is about to get its final name.
"""

import os
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from poster_jax.core import checkpoints, training


def loss_fn(params, model_state, batch, key):
    """Two layers, dropout and a running mean: every part of the state moves."""
    x, y = batch
    hidden = jnp.tanh(x @ params["first"])
    model_state = 0.9 * model_state + 0.1 * hidden.mean(axis=0)
    kept = jax.random.bernoulli(key, 0.8, hidden.shape)
    outputs = jnp.where(kept, hidden - model_state, 0) @ params["second"]
    return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean(), model_state


def main(workdir: str, kill: str = "never", seconds: str = "0") -> None:
    data_key, *keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(data_key, (50, 8))
    params = {
        "first": jax.random.normal(keys[0], (8, 16)) / 3,
        "second": jax.random.normal(keys[1], (16, 3)) / 4,
    }

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    save, rename = checkpoints.save, os.rename

    def save_and_wait(directory, step, *args, **kwargs):
        if kill == "before_save" and step == 60:
            die()
        save(directory, step, *args, **kwargs)
        time.sleep(float(seconds))

    def rename_or_die(source, target, *args, **kwargs):
        if kill == "while_saving" and Path(os.fsdecode(target)).name == "60":
            die()
        rename(source, target, *args, **kwargs)

    checkpoints.save, os.rename = save_and_wait, rename_or_die
    run = training.train(
        training.stateful(loss_fn),
        params,
        (x, jnp.arange(50) % 3),
        keys[2],
        model_state=jnp.zeros(16),
        optimizer=optax.adam(optax.cosine_decay_schedule(1e-2, 200)),
        num_steps=200,
        batch_size=8,
        chunk_steps=10,
        checkpoint_every=2,
        workdir=workdir,
        metrics_fn=lambda state: {"norm": optax.tree.norm(state.params)},
    )
    state = run.state._replace(key=jax.random.key_data(run.state.key))
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    np.savez(Path(workdir) / "final.npz", *arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
