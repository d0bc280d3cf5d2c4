"""Pytrees of arrays on disk, whole or not at all.

Orbax writes a checkpoint into a temporary directory and renames it when every byte is there, so
that a process killed half-way leaves nothing that reads as a checkpoint. Beside the arrays stands a
small JSON object for what a program wants to know before it reads them.
"""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from poster_jax.core.checks import check_count

__all__ = ["latest", "restore", "save"]


def save(
    directory: str | Path, step: int, tree: Any, *, metadata: dict | None = None, keep: int = 3
) -> None:
    """Writes `tree` as the checkpoint of `step`, and drops all but the newest `keep`.

    Args:
      directory: where checkpoints of one run lie; made when missing.
      step: the name of the checkpoint; larger than those already there.
      tree: pytree of arrays, PRNG keys included; sharded arrays are written from where they lie.
      metadata: a JSON object kept beside the arrays.
      keep: how many checkpoints stay.

    Raises:
      ValueError: step is negative or not above the latest one, keep is below 1.
      TypeError: a leaf is no array.

    Source: orbax.checkpoint.

    Example:
      >>> import tempfile
      >>> directory = tempfile.mkdtemp()
      >>> save(directory, 10, {"w": jnp.ones(3)}, metadata={"note": "first"})
      >>> latest(directory)
      (10, {'note': 'first'})
    """
    check_count("step", step, minimum=0)
    check_count("keep", keep)
    leaves = _named_leaves(tree)
    newest = _newest(directory)
    if newest is not None and step <= newest:
        raise ValueError(f"step must be above {newest}, the latest in {directory}, got {step}.")
    ocp = _orbax()
    _clear_away_broken(directory)
    with _manager(directory, keep) as manager:
        manager.save(
            step,
            force=True,
            args=ocp.args.Composite(
                leaves=ocp.args.StandardSave(_with_entries(leaves)),
                about=ocp.args.JsonSave({"leaves": _kinds(leaves), "metadata": metadata or {}}),
            ),
        )


def latest(directory: str | Path) -> tuple[int, dict] | None:
    """Which complete checkpoint is the newest: its step and its metadata, or None.

    Args:
      directory: as in `save`; it need not exist.

    Returns:
      `(step, metadata)`, or None when there is no complete checkpoint.

    Source: orbax.checkpoint.

    Example:
      >>> latest("/nowhere/at/all") is None
      True
    """
    step = _newest(directory)
    if step is None:
        return None
    with _manager(directory) as manager:
        return step, _about(manager, step)["metadata"]


def restore(directory: str | Path, like: Any, *, step: int | None = None) -> Any:
    """The pytree that `save` wrote, to the bit.

    Args:
      directory: as in `save`.
      like: pytree of the structure, shapes and dtypes that were saved; where its leaves are arrays,
        the result lies on the same devices.
      step: which checkpoint; None takes the newest.

    Returns:
      A pytree like `like`.

    Raises:
      ValueError: no such checkpoint, or its leaves do not fit `like`.

    Source: orbax.checkpoint.

    Example:
      >>> import tempfile
      >>> directory = tempfile.mkdtemp()
      >>> save(directory, 1, {"w": jnp.arange(3)})
      >>> restore(directory, {"w": jnp.zeros(3, int)})["w"].tolist()
      [0, 1, 2]
    """
    steps = _steps(directory)
    step = max(steps, default=None) if step is None else step
    if step not in steps:
        raise ValueError(f"no checkpoint of step {step} in {directory}; there are {sorted(steps)}.")
    leaves = _named_leaves(like)
    ocp = _orbax()
    with _manager(directory) as manager:
        _check_fit(_kinds(leaves), _about(manager, step)["leaves"], directory, step)
        wanted = {name: _target(leaf) for name, leaf in _with_entries(leaves).items()}
        args = ocp.args.Composite(leaves=ocp.args.StandardRestore(wanted))
        found = manager.restore(step, args=args).leaves
    values = [
        found[name] if name in found else jnp.zeros(leaf.shape, leaf.dtype)
        for name, leaf in leaves.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), values)


def _named_leaves(tree: Any) -> dict[str, Any]:
    leaves = {}
    for index, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(tree)):
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise TypeError(
                f"tree{jax.tree_util.keystr(path)} must be an array, got {type(leaf).__name__}."
            )
        # The number keeps apart two leaves whose paths print alike.
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        leaves[f"{index:05d}.{name}".replace("/", "|")] = leaf
    return leaves


def _with_entries(leaves: dict[str, Any]) -> dict[str, Any]:
    # Orbax refuses arrays without entries, and nothing is lost without them.
    return {name: leaf for name, leaf in leaves.items() if leaf.size}


def _kinds(leaves: dict[str, Any]) -> dict[str, str]:
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves.items()}


def _about(manager: Any, step: int) -> dict:
    args = _orbax().args
    return manager.restore(step, args=args.Composite(about=args.JsonRestore())).about


def _check_fit(
    wanted: dict[str, str], saved: dict[str, str], directory: str | Path, step: int
) -> None:
    for name in sorted(wanted.keys() | saved.keys()):
        if wanted.get(name) != saved.get(name):
            raise ValueError(
                f"like does not fit the checkpoint of step {step} in {directory}: at {name!r} the "
                f"checkpoint holds {saved.get(name, 'nothing')}, like {wanted.get(name, 'nothing')}"
                "."
            )


def _target(leaf: Any) -> Any:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) and isinstance(leaf, jax.Array):
        return leaf
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _newest(directory: str | Path) -> int | None:
    return max(_steps(directory), default=None)


def _steps(directory: str | Path) -> set[int]:
    """Steps of the complete checkpoints: orbax renames a directory last, and marks it inside."""
    path = Path(directory)
    if not path.is_dir():
        return set()
    found = (entry for entry in path.iterdir() if entry.name.isdigit())
    return {int(entry.name) for entry in found if (entry / "_CHECKPOINT_METADATA").is_file()}


def _clear_away_broken(directory: str | Path) -> None:
    """Removes numbered directories that are not whole: orbax would count them as checkpoints."""
    path = Path(directory)
    if path.is_dir() and jax.process_index() == 0:
        whole = _steps(path)
        for entry in path.iterdir():
            if entry.name.isdigit() and int(entry.name) not in whole:
                shutil.rmtree(entry)


def _manager(directory: str | Path, keep: int | None = None) -> Any:
    ocp = _orbax()
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=True, enable_async_checkpointing=False
    )
    return ocp.CheckpointManager(Path(directory).absolute(), options=options)


def _orbax() -> Any:
    # A third of a second to import, for those who train only.
    import orbax.checkpoint

    return orbax.checkpoint
