import os

import pytest

from workbench import files


def test_the_folder_is_made_and_the_file_whole(tmp_path):
    files.write_atomic(tmp_path / "new" / "f.txt", b"words")
    assert (tmp_path / "new" / "f.txt").read_bytes() == b"words"


def test_a_write_that_fails_leaves_the_former_file_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "f.txt"
    files.write_atomic(target, b"first")

    def full(_):
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        files.write_atomic(target, b"second")
    assert target.read_bytes() == b"first" and [p.name for p in tmp_path.iterdir()] == ["f.txt"]
