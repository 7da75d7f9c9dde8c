import os

import pytest

from workbench import files
from workbench.files import read_json
from workbench.volume import Refused


def test_the_folder_is_made_and_the_file_whole(tmp_path):
    files.write_atomic(tmp_path / "new" / "f.txt", b"words")
    assert (tmp_path / "new" / "f.txt").read_bytes() == b"words"


def test_a_write_that_fails_leaves_the_former_file_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "f.txt"
    files.write_atomic(target, b"first")

    def full(_):
        raise OSError(28, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space") as told:
        files.write_atomic(target, b"second")
    assert told.value.filename == str(target)
    assert target.read_bytes() == b"first" and [p.name for p in tmp_path.iterdir()] == ["f.txt"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}'])
def test_json_without_what_it_must_hold_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(Refused, match="a.json"):
        read_json(tmp_path / "a.json", "a", "b")
    (tmp_path / "a.json").write_text('{"a": 1, "b": 2}')
    assert read_json(tmp_path / "a.json", "a", "b") == {"a": 1, "b": 2}
