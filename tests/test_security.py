"""What SECURITY.md and docs/reliability.md promise is held by tests that exist."""

import re

import pytest
from conftest import ROOT

PAGES = {page: (ROOT / page).read_text(encoding="utf-8") for page in ("SECURITY.md", "docs/reliability.md")}


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_is_named_exists(page):
    names = set(re.findall(r"`(?:tests/)?(test_\w+|fuzz)(?:\.py)?`", PAGES[page]))
    assert len(names) > 5
    assert {name for name in names if not (ROOT / "tests" / f"{name}.py").is_file()} == set()


def test_every_row_names_a_test():
    rows = [line for line in PAGES["SECURITY.md"].splitlines() if line.startswith("| ") and "held by" not in line]
    assert [row for row in rows if not re.search(r"`(tests/)?(test_\w+)`", row.split("|")[3])] == []
