"""Gradient descent on any loss, with or without momentum, as a differential equation of outputs."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.ode import odeint

from poster_jax.core.checks import check_callable, check_positive, is_traced
from poster_jax.core.precision import full_precision
from poster_jax.core.typing import Array
from poster_jax.kernels._axes import as_matrix, row_shape
from poster_jax.kernels.predict.layout import Layout, check_kernels, layout_of
from poster_jax.kernels.predict.mse import check_request

__all__ = ["ODEState", "gradient_descent"]

_MAX_DOUBLINGS = 40  # of the time that is looked at for the limit of infinite time


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ODEState:
    """Outputs and their velocities at one time, or with time axes in front.

    Attributes:
      fx_train: outputs on the training set.
      fx_test: outputs on the test set, or None.
      qx_train: velocities of the training outputs under momentum, or None.
      qx_test: velocities of the test outputs under momentum, or None.
    """

    fx_train: Any = None
    fx_test: Any = None
    qx_train: Any = None
    qx_test: Any = None

    def replace(self, **changes: Any) -> "ODEState":
        """A copy with other values in the named fields."""
        return dataclasses.replace(self, **changes)

    def asdict(self) -> dict[str, Any]:
        """The fields by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def astuple(self) -> tuple[Any, ...]:
        """The fields in order."""
        return tuple(self.asdict().values())


@full_precision
def gradient_descent(
    loss: Callable[[Any, Any], Any],
    k_train_train: Any,
    y_train: Any,
    learning_rate: Any = 1.0,
    momentum: Any = None,
    trace_axes: int | Sequence[int] = (-1,),
) -> Callable[..., Any]:
    """What gradient descent on any loss has learned at any time.

    Solves `df/dt = -K grad L(f)`, time in units of the learning rate. With momentum m, in units of
    its square root: `dq/dt = (m - 1) / sqrt(lr) q - K grad L(f)`, `df/dt = q`.

    Args:
      loss: `loss(fx, y_train) -> scalar`; it treats all outputs alike.
      k_train_train: as in `gradient_descent_mse`.
      y_train: targets.
      learning_rate: the length of one step; `t` counts steps.
      momentum: None for plain gradient descent (which 0 is not: it has velocities).
      trace_axes: as in `gradient_descent_mse`.

    Returns:
      `predict_fn(t=None, fx_train_or_state_0=0., fx_test_0=None, k_test_train=None)`. `t` is an
      array of times of any shape and order; None is the limit of infinite time, found by doubling
      the time until the outputs rest. Given an `ODEState` it answers one, and goes on from its
      velocities; otherwise as `gradient_descent_mse`.

    Raises:
      ValueError: shapes do not fit, a time is negative, velocities without momentum, an `ODEState`
        beside `fx_test_0`, or no limit was reached.

    Caution:
      Integrated to 1.4e-8 relative and absolute tolerance; cross-entropy has no limit in time.

    Source: Lee et al. 2019 (arXiv 1902.06720), equation 3 and section 2.4 (momentum).

    Example:
      >>> loss = lambda fx, y: 0.5 * jnp.mean((fx - y) ** 2)
      >>> predict_fn = gradient_descent(loss, 2 * jnp.eye(2), jnp.array([[1.0], [0.0]]))
      >>> round(float(predict_fn(t=1.0)[0, 0]), 3)  # 1 - exp(-2 / 2)
      0.632
    """
    check_callable("loss", loss)
    layout = layout_of(y_train, trace_axes)
    check_kernels(layout, k_train_train)
    k_train_train, y_train = jnp.asarray(k_train_train), jnp.asarray(y_train)
    dtype = k_train_train.dtype
    rate = learning_rate if momentum is None else learning_rate**0.5
    friction = None if momentum is None else (momentum - 1.0) / rate
    descend = jax.grad(lambda fx: loss(fx, y_train))

    def velocity(k_test_train: Any) -> Callable[[ODEState, Any], ODEState]:
        def force(kernel: Array, slope: Array) -> Array:
            return layout.from_matrix(-as_matrix(kernel) @ slope, row_shape(kernel))

        def step(state: ODEState, t: Any) -> ODEState:
            slope = layout.to_matrix(descend(state.fx_train))
            train = force(k_train_train, slope)
            test = None if state.fx_test is None else force(k_test_train, slope)
            if friction is None:
                return ODEState(train, test)
            train = train + friction * state.qx_train
            test = None if test is None else test + friction * state.qx_test
            return ODEState(state.qx_train, state.qx_test, train, test)

        return step

    @full_precision
    def predict_fn(
        t: Any = None,
        fx_train_or_state_0: Any = 0.0,
        fx_test_0: Any = None,
        k_test_train: Any = None,
    ) -> Any:
        """Outputs, or the whole state, at the times `t`."""
        given = fx_train_or_state_0
        given_state = isinstance(given, ODEState)
        if given_state and fx_test_0 is not None:
            raise ValueError("fx_test_0 must be None beside an ODEState, which holds its own.")
        start = given if given_state else ODEState(given, fx_test_0)
        check_request(start.fx_train, start.fx_test, k_test_train)
        rows = None
        if k_test_train is not None:
            k_test_train = jnp.asarray(k_test_train)
            check_kernels(layout, k_train_train, k_test_train)
            rows = row_shape(k_test_train)
        start = _complete(start, layout, rows, dtype, friction is not None)
        state = _integrate(velocity(k_test_train), start, t, rate, dtype)
        if given_state:
            return state
        if fx_test_0 is None:
            return state.fx_train
        return state.fx_test if given is None else (state.fx_train, state.fx_test)

    return predict_fn


def _complete(
    state: ODEState, layout: Layout, rows: tuple[int, ...] | None, dtype: Any, momentum: bool
) -> ODEState:
    """`state` broadcast to the shapes of the sets, with zeros where nothing was given."""

    def fill(value: Any, shape: tuple[int, ...]) -> Array:
        # Outputs in float64 with a kernel in float32 stay in float64, as their sum would.
        value = jnp.zeros((), dtype) if value is None else jnp.asarray(value)
        value = value.astype(jnp.promote_types(value.dtype, dtype))
        return jnp.broadcast_to(value, shape)

    velocities = state.qx_train is not None or state.qx_test is not None
    if not momentum and velocities:
        raise ValueError("qx_train and qx_test must be None without momentum, got velocities.")
    test_shape = None if rows is None or state.fx_test is None else layout.output_shape(rows)
    return ODEState(
        fill(state.fx_train, layout.shape),
        None if test_shape is None else fill(state.fx_test, test_shape),
        fill(state.qx_train, layout.shape) if momentum else None,
        fill(state.qx_test, test_shape) if momentum and test_shape is not None else None,
    )


def _integrate(
    step: Callable[[ODEState, Any], ODEState], start: ODEState, t: Any, rate: Any, dtype: Any
) -> ODEState:
    if not is_traced(t) and (t is None or np.isinf(t).any()):
        return _with_limit(step, start, t, rate, dtype)
    if not is_traced(t):
        check_positive("t", t, zero_allowed=True)
    times = jnp.asarray(t, dtype) * rate
    order = jnp.argsort(times.ravel())
    # The solver wants to move: at time zero it interpolates within its first step.
    moments = jnp.maximum(times.ravel()[order], jnp.finfo(dtype).tiny)
    states = odeint(step, start, jnp.concatenate([jnp.zeros(1, dtype), moments]))
    back = jnp.argsort(order)
    return jax.tree.map(lambda x: x[1:][back].reshape(times.shape + x.shape[1:]), states)


def _with_limit(
    step: Callable[[ODEState, Any], ODEState], start: ODEState, t: Any, rate: Any, dtype: Any
) -> ODEState:
    """States at times some of which are infinite."""
    limit = _limit(step, start, dtype)
    if t is None:
        return limit
    t = np.asarray(t)
    finite = _integrate(step, start, np.where(np.isinf(t), 0.0, t), rate, dtype)

    def choose(value: Array, last: Array) -> Array:
        infinite = np.isinf(t).reshape(t.shape + (1,) * last.ndim)
        return jnp.where(infinite, last, value)

    return jax.tree.map(choose, finite, limit)


def _limit(step: Callable[[ODEState, Any], ODEState], start: ODEState, dtype: Any) -> ODEState:
    """The state in which the outputs rest, by integrating over ever longer times."""
    tolerance = 10 * max(1.4e-8, float(jnp.finfo(dtype).eps))

    @jax.jit
    def advance(state: ODEState, duration: Array) -> tuple[ODEState, Array]:
        times = jnp.stack([jnp.zeros_like(duration), duration])
        after = jax.tree.map(lambda x: x[-1], odeint(step, state, times, mxstep=20_000))
        moved = jnp.stack([jnp.abs(a - b).max() for a, b in _pairs(state, after)])
        scale = jnp.stack([1 + jnp.abs(a).max() for a, _ in _pairs(state, after)])
        return after, (moved / scale).max()

    state, duration = start, jnp.ones((), dtype)
    for _ in range(_MAX_DOUBLINGS):
        state, moved = advance(state, duration)
        if float(moved) < tolerance and float(duration) > 1:
            return state
        if not np.isfinite(float(moved)):
            break
        duration = 2 * duration
    raise ValueError(
        "t must be finite here: the outputs have not come to rest (a loss without minimum, such as "
        "cross-entropy, or a kernel whose eigenvalues differ too much)."
    )


def _pairs(a: ODEState, b: ODEState) -> list[tuple[Array, Array]]:
    return list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
