"""The README tells the truth: its table, its commands, its ten lines."""

import importlib.util
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def _rows():
    rows = []
    for line in README.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[-1] in {"ready", "library", "planned"}:
            title, authors, experiment, room, state = cells
            rows.append((title, authors, experiment.strip("`"), room.strip("`"), state))
    return rows


ROWS = _rows()


def test_the_table_names_27_different_posters():
    assert len(ROWS) == 27
    assert len({row[0] for row in ROWS}) == 27
    assert len({row[2] for row in ROWS}) == 27


@pytest.mark.parametrize("row", ROWS, ids=[row[2] for row in ROWS])
def test_a_poster_is_ready_exactly_when_all_of_it_is_there(row):
    _, _, experiment, room, state = row
    there = {
        "room": importlib.util.find_spec(f"poster_jax.{room}") is not None,
        "experiment": (ROOT / "experiments" / f"{experiment}.py").exists(),
        "page": (ROOT / "docs" / "methods" / f"{experiment}.md").exists(),
    }
    if state == "ready":
        assert all(there.values()), there
    else:
        assert not there["experiment"], f"{experiment} is there, but the README says {state}"
        assert there["room"] == (state == "library"), there


def test_every_experiment_is_in_the_table():
    helpers = {"__init__", "demo", "posters"}
    programs = {p.stem for p in (ROOT / "experiments").glob("*.py") if not p.stem.startswith("_")}
    assert programs - helpers == {row[2] for row in ROWS if row[4] == "ready"}


def test_every_make_target_named_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in (README, (ROOT / "CONTRIBUTING.md").read_text()):
        assert set(re.findall(r"`make ([a-z]+)`", page)) <= targets


def test_every_link_and_picture_is_there():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        words = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)  # a[i](x) is no link
        for target in re.findall(r"\]\(([^)#\s]+)", words):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


def test_the_ten_lines_run(capsys):
    first, _ = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(compile(first, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "Estimate(mean=" in printed
    assert "nan" not in printed


def test_the_five_lines_of_infinite_networks_pass_through_what_they_learned():
    _, second = re.findall(r"```python\n(.*?)```", README, re.S)
    names = {}
    exec(compile(second, "README.md", "exec"), names)
    assert names["mean"].shape == (81, 1)
    at_train = names["predict_fn"](x_test=names["x_train"], get="ntk")
    assert abs(at_train - names["y_train"]).max() < 0.05
