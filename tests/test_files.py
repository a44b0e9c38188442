import json

import pytest

from stvid.files import replacing, write_json


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"accuracy": 0.5, "name": "é"})
    with pytest.raises(ZeroDivisionError), replacing(path) as partial:
        partial.write_text(f"half, then {1 / 0}")
    assert json.loads(path.read_text(encoding="utf-8")) == {"accuracy": 0.5, "name": "é"}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_file_names_that_are_not_utf_8_come_back(tmp_path):
    content = {"path": "b\udce9ta.mp4", "é": 1}
    write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == content
