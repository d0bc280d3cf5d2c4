"""Nothing public of neural-tangents 0.6.5 is missing: names, arguments, defaults, and the table."""

import importlib.util
import json
import pathlib
import re

import pytest

from poster_jax import kernels

ROOT = pathlib.Path(__file__).parents[2]
ORACLES = ROOT / "tests" / "oracles"
THEIRS = json.loads((ORACLES / "surface.json").read_text())
PAGE = ROOT / "docs" / "guides" / "neural_tangents.md"
STATES = {"same", "same, and more", "a sentence"}


@pytest.fixture(scope="module")
def ours():
    spec = importlib.util.spec_from_file_location("surface", ORACLES / "make_surface.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return json.loads(json.dumps(program.surface(kernels)))


@pytest.mark.parametrize("name", THEIRS)
def test_a_program_of_the_original_finds_the_name(ours, name):
    theirs, here = THEIRS[name], ours[name]
    assert here["kind"] == theirs["kind"]
    assert here.get("members") == theirs.get("members")
    assert here.get("fields") == theirs.get("fields")
    for method, arguments in theirs.get("methods", {}).items():
        assert here["methods"][method] == arguments
    for given, wanted in zip(here.get("arguments", ()), theirs.get("arguments", ()), strict=True):
        # A default where the original has none refuses no program.
        assert given == wanted or given.split("=")[0] == wanted


def table():
    rows = re.findall(r"^\| `([\w.]+)` \| ([^|]+) \| ([^|]*)\|$", PAGE.read_text(), re.M)
    return {name: (state.strip(), remark.strip()) for name, state, remark in rows}


def test_the_table_lists_every_name_with_its_state(ours):
    listed = table()
    public = {name for name in THEIRS if not name.endswith("()")}
    assert public == set(listed)
    for name, (state, remark) in listed.items():
        assert state in STATES, name
        assert remark or state == "same", f"{name}: the table must say in what it differs"
    refused = {name for name, (state, _) in listed.items() if state == "a sentence"}
    assert refused == {"experimental.empirical_ntk_fn_tf", "experimental.get_apply_fn_and_params"}


def test_what_needs_tensorflow_says_so():
    for fn in (
        kernels.experimental.empirical_ntk_fn_tf,
        kernels.experimental.get_apply_fn_and_params,
    ):
        with pytest.raises(NotImplementedError, match="f must be a JAX function"):
            fn(None)


def test_nothing_else_of_ours_hides(ours):
    more = {name for name in ours if name not in THEIRS}
    text = PAGE.read_text()
    assert [name for name in sorted(more) if name not in text] == []
