"""What a layer needs to be told: which covariances it can do without.

A network computes as little as possible: only equal positions when no layer mixes positions, and
only an example's own variance beside the cross covariance. Each layer says what it needs
(`requires`), `serial` composes the statements from input to output, `parallel` joins them.
"""

import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import Any

__all__ = [
    "DEFAULTS",
    "Bool",
    "Diagonal",
    "fuse",
    "requirements_of",
    "requires",
    "set_requirements",
]

_ATTRIBUTE = "input_requirements"

DEFAULTS = {
    "diagonal_batch": True,
    "diagonal_spatial": False,
    "batch_axis": 0,
    "channel_axis": -1,
    "mask_constant": None,
}


class Bool(enum.IntEnum):
    """Three-valued logic: NO, MAYBE, YES; `&` is the smaller one."""

    NO = 0
    MAYBE = 1
    YES = 2

    def __and__(self, other: Any) -> "Bool":
        return Bool(min(int(self), int(other)))

    __rand__ = __and__


@dataclasses.dataclass(frozen=True)
class Diagonal:
    """Whether covariances between different positions (or examples) may be left out.

    Attributes:
      input: of this layer's input. YES: they may. MAYBE: only when they are zero anyway. NO: they
        are needed.
      output: of everything from this layer's output on. YES: nothing after it can ask for them (the
        positions are gone, say). MAYBE: they are zero here, later layers decide. NO: not decided by
        this layer.

    Example:
      >>> pool_after_dense = Diagonal() >> Diagonal(input=Bool.MAYBE)
      >>> bool(pool_after_dense)
      False
    """

    input: Bool = Bool.YES
    output: Bool = Bool.NO

    def __rshift__(self, other: "Diagonal") -> "Diagonal":
        """What `other(self(.))` needs."""
        if self.output == Bool.YES:
            return self
        if self.output == Bool.MAYBE and other.input != Bool.NO:
            needed = self.input
        elif self.output == Bool.NO and other.input != Bool.YES:
            needed = Bool.NO
        else:
            needed = self.input & other.input
        return Diagonal(needed, other.output)

    def __lshift__(self, other: "Diagonal") -> "Diagonal":
        """What `self(other(.))` needs."""
        return other >> self

    def __and__(self, other: "Diagonal") -> "Diagonal":
        """What both need, side by side."""
        return Diagonal(self.input & other.input, self.output & other.output)

    __rand__ = __and__

    def __bool__(self) -> bool:
        return self.input == Bool.YES and self.output != Bool.NO


def requires(**static_reqs: Any) -> Callable[[Any], Any]:
    """States what a layer's `kernel_fn` needs of its input, for authors of layers.

    Args:
      **static_reqs: any of `diagonal_batch`, `diagonal_spatial` (a bool or a `Diagonal`),
        `batch_axis`, `channel_axis` (None: any).

    Returns:
      A decorator; the decorated `kernel_fn(kernel, **kwargs)` refuses a kernel that falls short.

    Raises:
      ValueError: (the decorated function) the kernel lacks entries or has other axes.

    Source: this library.

    Example:
      >>> @requires(batch_axis=0, diagonal_spatial=Diagonal())
      ... def kernel_fn(k, **kwargs):
      ...     return k * 2.0
      >>> requirements_of(kernel_fn)["batch_axis"]
      0
    """

    def decorate(kernel_fn):
        def checked(k, **kwargs):
            if hasattr(k, "nngp"):  # fan-in layers take lists and check for themselves
                _check(k, fuse(static_reqs, {}, kwargs))
            return kernel_fn(k, **kwargs)

        checked.__name__ = getattr(kernel_fn, "__name__", "kernel_fn")
        set_requirements(checked, static_reqs)
        return checked

    return decorate


def requirements_of(kernel_fn: Any) -> Mapping[str, Any]:
    """What `kernel_fn` was said to need; empty when nothing was."""
    return getattr(kernel_fn, _ATTRIBUTE, {})


def set_requirements(kernel_fn: Any, reqs: Mapping[str, Any]) -> None:
    """Writes down what `kernel_fn` needs."""
    setattr(kernel_fn, _ATTRIBUTE, dict(reqs))


def fuse(
    static: Mapping[str, Any], defaults: Mapping[str, Any], asked: Mapping[str, Any]
) -> dict[str, Any]:
    """The layer's needs, overridden by what the user asked for, completed by defaults.

    Raises:
      ValueError: the user asked to leave out what a layer needs.
    """
    fused = dict(static)
    for name, value in asked.items():
        if value is None:
            continue
        if value is True and _needs_everything(static.get(name)):
            raise ValueError(
                f"{name}=True was asked for, but a layer of this network needs all entries "
                f"({name}={static[name]}): leave {name} out or pass False."
            )
        fused[name] = value
    return {**defaults, **fused}


def _needs_everything(need: Any) -> bool:
    return need is False or (isinstance(need, Diagonal) and need.input == Bool.NO)


def _check(kernel: Any, needs: Mapping[str, Any]) -> None:
    for name in ("diagonal_batch", "diagonal_spatial"):
        if getattr(kernel, name) is True and _needs_everything(needs.get(name)):
            raise ValueError(
                f"the input kernel must hold all entries for this layer ({name}={needs[name]}), "
                f"but has {name}=True: compute it again with {name}=False."
            )
    for name in ("batch_axis", "channel_axis"):
        need = needs.get(name)
        if need is not None and getattr(kernel, name) != need % len(kernel.shape1):
            raise ValueError(
                f"the input kernel must have {name}={need % len(kernel.shape1)} for this layer, "
                f"but has {name}={getattr(kernel, name)}: the infinite limit is then not defined."
            )
