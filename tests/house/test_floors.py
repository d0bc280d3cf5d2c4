"""Rooms stand only on rooms below, the library neither prints nor reads flags, all is said."""

import ast
import importlib
import inspect
import pathlib
import pkgutil
import statistics
import subprocess
import sys

import pytest

import poster_jax

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted((ROOT / "poster_jax").rglob("*.py"))
ENGINES = {"core": set(), "curvature": {"core"}, "kernels": {"core"}}
METHODS = {
    "feature_diversity": {"core", "curvature"},
    "finite_width": {"core", "kernels"},
    "flatness": {"core", "curvature"},
    "gradient_noise": {"core", "curvature"},
    "jacobian": {"core"},
    "batchnorm_only": {"core"},
    "learning_rate": {"core"},
    "mixed_sizes": {"core"},
}
MAY_IMPORT = ENGINES | METHODS


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module == "poster_jax":
                yield from (f"poster_jax.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""


def test_every_room_has_its_floor():
    assert set(MAY_IMPORT) == set(poster_jax.__all__)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_only_what_is_below(path):
    parts = path.relative_to(ROOT / "poster_jax").with_suffix("").parts
    room = parts[0]
    for name in _imports(path):
        top, *rest = name.split(".")
        assert top not in {"experiments", "benchmarks", "tests"}, f"{path} imports {name}"
        if top == "poster_jax" and rest and room in MAY_IMPORT:
            assert rest[0] in MAY_IMPORT[room] | {room}, f"{room} imports {rest[0]}"


def _public_functions():
    """What a user may touch: `__all__` of the rooms and of each module or package of core."""
    core = importlib.import_module("poster_jax.core")
    inside_core = {m.name for m in pkgutil.iter_modules(core.__path__, "poster_jax.core.")}
    inside_core -= {"poster_jax.core.checks"}  # for those who write rooms; each is one sentence
    rooms = [f"poster_jax.{room}" for room in poster_jax.__all__ if room != "core"]
    for room in sorted(inside_core) + rooms:
        for name in importlib.import_module(room).__all__:
            thing = getattr(importlib.import_module(room), name)
            if inspect.isfunction(thing) and not name.startswith("check_"):  # those are a sentence
                yield pytest.param(thing, id=f"{room}.{name}")


@pytest.mark.parametrize("function", list(_public_functions()))
def test_public_functions_are_documented(function):
    text = inspect.getdoc(function) or ""
    assert text, "no docstring"
    for part in ("Args:", "Returns:", "Raises:", "Source:", "Example"):
        needed = part in {"Source:", "Example"} or (
            part == "Args:" and inspect.signature(function).parameters
        )
        assert not needed or part in text, f"the docstring lacks {part}"


def _import_seconds(statement):
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    return float(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    )


def test_import_costs_under_a_fifth_of_a_second_over_jax():
    extra = [
        _import_seconds("import jax; t = time.perf_counter(); import poster_jax") for _ in range(5)
    ]
    assert statistics.median(extra) < 0.2
