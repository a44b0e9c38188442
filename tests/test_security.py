"""What SECURITY.md promises is held by tests that exist."""

import re

from conftest import ROOT

TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_every_test_that_is_named_exists():
    names = set(re.findall(r"`(?:tests/)?(test_\w+|fuzz)(?:\.py)?`", TEXT))
    assert len(names) > 5
    assert {name for name in names if not (ROOT / "tests" / f"{name}.py").is_file()} == set()


def test_every_row_names_a_test():
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and "held by" not in line]
    assert [row for row in rows if not re.search(r"`(tests/)?(test_\w+)`", row.split("|")[3])] == []
