"""Is this the run that was interrupted? Digests of what decides the bits of a run.

A resumed run continues the interrupted one only with the same programs (loss, optimiser, metrics),
data, starting point and schedule of chunks. A program is known by the code that JAX lowers it to
and by the arrays that it closes over; its name and its source text do not matter. Another version
of JAX may lower it otherwise, and is another program: it need not end in the same bits.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

__all__ = ["check_identity", "digest_arrays", "digest_program"]


def digest_arrays(tree: Any) -> str:
    """A digest of every leaf's name, dtype, shape and bytes."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype}{leaf.shape};".encode())
        # An array that lies on several hosts is known by its shape alone.
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def digest_program(fn: Callable[..., Any], *args: Any) -> str:
    """A digest of what `fn(*args)` computes, the values of `args` aside."""
    traced = jax.jit(fn).trace(*args)
    digest = hashlib.sha256(traced.lower().as_text().encode())
    digest.update(digest_arrays(list(_constants(traced.jaxpr))).encode())
    return digest.hexdigest()


def check_identity(ours: dict[str, Any], saved: dict[str, Any], where: str) -> None:
    """ValueError, naming what differs, unless the run that starts is the one that was saved."""
    for name in ours:
        if ours[name] != saved.get(name):
            values = f" ({saved.get(name)} there, {ours[name]} here)"
            raise ValueError(
                f"{name} differs from that of the run saved in {where}"
                f"{values if isinstance(ours[name], int) else ''}: resume with the same {name}, or "
                "train into another directory."
            )


def _constants(jaxpr: Any) -> Iterator[np.ndarray]:
    """The arrays that a jaxpr and those inside it close over, in order."""
    if isinstance(jaxpr, ClosedJaxpr):
        yield from (c for c in jaxpr.consts if hasattr(c, "shape"))
        jaxpr = jaxpr.jaxpr
    for equation in jaxpr.eqns:
        for value in equation.invars:
            # A number that is no array stands in the lowered code.
            if isinstance(value, Literal) and hasattr(value.val, "shape"):
                yield value.val
        for parameter in jax.tree.leaves(equation.params, is_leaf=_is_jaxpr):
            if _is_jaxpr(parameter):
                yield from _constants(parameter)


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)
