"""Writes surface.json: every public name of neural-tangents 0.6.5 with its arguments and defaults.

    VENV_NT/bin/python tests/oracles/make_surface.py

in an environment with neural-tangents==0.6.5, jax==0.5.3, jaxlib==0.5.3 and scipy. Beside what the
modules hold, the functions that they return are asked for their arguments too. `describe` is shared
with the test, which applies it to poster_jax.
"""

import dataclasses
import enum
import inspect
import json
import pathlib
import types


def describe(thing):
    """What a caller sees of a public name, in words that compare between libraries."""
    if isinstance(thing, types.ModuleType):
        return {"kind": "module"}
    if isinstance(thing, type) and issubclass(thing, enum.Enum):
        return {"kind": "enum", "members": {m.name: m.value for m in thing}}
    if isinstance(thing, type) and dataclasses.is_dataclass(thing):
        fields = [f.name for f in dataclasses.fields(thing)]
        return {"kind": "dataclass", "fields": fields, "methods": _methods(thing)}
    if isinstance(thing, type):
        fields = list(getattr(thing, "_fields", ()))
        return {"kind": "class", "fields": fields}
    if callable(thing):
        return {"kind": "function", "arguments": arguments(thing)}
    return {"kind": "value"}


def arguments(function):
    """`name`, `name=default`, `*`, `**` and a bare `*,` before keywords, in order."""
    found, by_keyword = [], False
    for p in inspect.signature(function).parameters.values():
        if p.kind == p.KEYWORD_ONLY and not by_keyword:
            found.append("*,")
            by_keyword = True
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            found.append("*" if p.kind == p.VAR_POSITIONAL else "**")
        else:
            found.append(p.name + ("" if p.default is p.empty else f"={_said(p.default)}"))
    return found


def _methods(thing):
    found = {}
    for name, value in inspect.getmembers(thing, callable):
        if not name.startswith("_"):
            # chex's dataclasses let `asdict` and `astuple` build other containers; nobody does.
            found[name] = [] if name in ("asdict", "astuple") else arguments(value)[1:]
    return found


def _said(default):
    if isinstance(default, enum.Enum):
        return f"{type(default).__name__}.{default.name}"
    if isinstance(default, types.FunctionType):
        return "a function"
    if isinstance(default, int) and not isinstance(default, bool):
        return repr(float(default))  # 1 and 1.0 are the same default
    return repr(default)


def surface(package):
    """Every public name of `package` and its public modules, and of the functions they return."""
    found = {}
    for path in ("", "stax", "predict", "experimental"):
        module = getattr(package, path) if path else package
        for name in sorted(getattr(module, "__all__", None) or vars(module)):
            # `_src` and the package that only holds experimental's files are no names of users.
            if not name.startswith("_") and name != "empirical_tf":
                found[f"{path}.{name}".strip(".")] = describe(getattr(module, name))
    for name, function in _returned(package).items():
        found[f"{name}()"] = {"kind": "function", "arguments": arguments(function)}
    return found


def _returned(nt):
    import jax
    import numpy as np

    x, y = np.eye(2), np.ones((2, 1))
    f = lambda p, x: x @ p  # noqa: E731
    _, _, kernel_fn = nt.stax.Dense(1)
    init_fn, apply_fn, _ = nt.stax.Dense(1)
    key = jax.random.PRNGKey(0)
    return {
        "empirical_kernel_fn": nt.empirical_kernel_fn(f),
        "empirical_nngp_fn": nt.empirical_nngp_fn(f),
        "empirical_ntk_fn": nt.empirical_ntk_fn(f),
        "empirical_ntk_vp_fn": nt.empirical_ntk_vp_fn(f, x, None, y),
        "linearize": nt.linearize(f, y),
        "taylor_expand": nt.taylor_expand(f, y, 2),
        "monte_carlo_kernel_fn": nt.monte_carlo_kernel_fn(init_fn, apply_fn, key, 1),
        "stax.Dense.init_fn": init_fn,
        "stax.Dense.kernel_fn": kernel_fn,
        "stax.serial.kernel_fn": nt.stax.serial(nt.stax.Dense(1))[2],
        "predict.gp_inference": nt.predict.gp_inference(x, y),
        "predict.gradient_descent": nt.predict.gradient_descent(lambda f, y: 0.0, x, y),
        "predict.gradient_descent_mse": nt.predict.gradient_descent_mse(x, y),
        "predict.gradient_descent_mse_ensemble": nt.predict.gradient_descent_mse_ensemble(
            kernel_fn, x, y
        ),
    }


if __name__ == "__main__":
    import neural_tangents

    path = pathlib.Path(__file__).with_name("surface.json")
    lines = [f"{json.dumps(n)}: {json.dumps(v)}" for n, v in surface(neural_tangents).items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
