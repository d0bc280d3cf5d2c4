"""Inside `shard_map` an array's type says along which mesh axes it varies; operands must agree."""

import jax

from poster_jax.core.typing import Array


def vary_alike(*arrays: Array) -> tuple[Array, ...]:
    """The arrays, each typed as varying along every mesh axis that one of them varies along."""
    axes = frozenset().union(*map(_axes, arrays))
    missing = [tuple(axes - _axes(x)) for x in arrays]
    return tuple(
        jax.lax.pcast(x, new, to="varying") if new else x
        for x, new in zip(arrays, missing, strict=True)
    )


def _axes(x: Array) -> frozenset:
    return frozenset(getattr(getattr(jax.typeof(x), "mat", None), "varying", ()))
