"""The Python of every page of the documentation runs, top to bottom."""

import pathlib
import re

import pytest

DOCS = pathlib.Path(__file__).parents[2] / "docs"
# On guides/devices.md the lines speak of a model that the reader has.
PAGES = [p for p in sorted(DOCS.rglob("*.md")) if "```python" in p.read_text()]
FRAGMENTS = {DOCS / "guides" / "devices.md"}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_the_page_runs(page):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    code = compile("\n".join(blocks), str(page), "exec")
    if page not in FRAGMENTS:
        exec(code, {"__name__": "page"})
