"""Telling a network whether it trains: which keyword its call takes for that."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

# The names in use, and whether each is true in training.
MODES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


def mode_kwargs(
    call: Callable[..., Any],
    train_kwargs: Mapping[str, Any] | None,
    eval_kwargs: Mapping[str, Any] | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keyword arguments of `call` in training and in evaluation mode.

    Those that the user names; else the ones of `MODES` that stand in the signature of `call`.
    """
    known = [name for name in parameters(call) if name in MODES]
    found = ({name: MODES[name] for name in known}, {name: not MODES[name] for name in known})
    return (
        found[0] if train_kwargs is None else dict(train_kwargs),
        found[1] if eval_kwargs is None else dict(eval_kwargs),
    )


def parameters(call: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the parameters of `call`; none where they cannot be read."""
    if isinstance(call, type):  # metaclasses of NNX hide what __init__ takes
        call = call.__init__
    try:
        return tuple(inspect.signature(call).parameters)
    except (TypeError, ValueError):
        return ()
