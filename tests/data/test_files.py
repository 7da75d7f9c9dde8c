import os
import subprocess
import sys

import pytest

from workbench.data import files
from workbench.data.files import read_json
from workbench.volume import Refused


def test_the_folder_is_made_and_the_file_whole(tmp_path):
    files.write_atomic(tmp_path / "new" / "f.txt", b"words")
    assert (tmp_path / "new" / "f.txt").read_bytes() == b"words"


def test_a_link_stays_one_and_what_it_points_to_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "f.txt").symlink_to(tmp_path / "there" / "f.txt")
    files.write_atomic(tmp_path / "f.txt", b"words")
    assert (tmp_path / "f.txt").is_symlink() and (tmp_path / "there" / "f.txt").read_bytes() == b"words"


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


def test_json_that_other_programs_cannot_read_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "new" / "a.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_what_a_process_that_is_no_more_left_is_swept_away_and_what_it_had_moved_comes_back(tmp_path):
    """`a`: killed between its two moves; `b`: after them, while the former was removed; `c`: before them. A live one is left alone."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    for name in (f".a.{gone.pid}.old", f".a.{gone.pid}.part", f".b.{gone.pid}.old", "c", f".c.{gone.pid}.part",
                 f".d.{os.getpid()}.part"):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text(name)
    living = subprocess.Popen(["sleep", "60"])
    for kind in ("old", "part"):
        (tmp_path / f".f.{living.pid}.{kind}").mkdir()
    for kind in ("old", "part"):  # of one whose number this process has now
        (tmp_path / f".e.{os.getpid()}.{kind}").mkdir()
    files.sweep(tmp_path)
    living.kill()
    living.wait()
    assert {p.name for p in tmp_path.glob(".f.*")} == {f".f.{living.pid}.old", f".f.{living.pid}.part"}
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".f.")) == [
        f".d.{os.getpid()}.part",
        f".e.{os.getpid()}.part",
        "a",
        "c",
        "e",
    ]
    assert (tmp_path / "a" / "f").read_text().endswith(".old")


def test_a_write_protected_folder_is_removed_and_what_a_link_leads_to_is_not(tmp_path):
    (tmp_path / "tree" / "in").mkdir(parents=True)
    (tmp_path / "tree" / "in" / "f").touch()
    (tmp_path / "kept").mkdir(mode=0o555)
    (tmp_path / "tree" / "link").symlink_to("../kept")
    (tmp_path / "tree" / "in").chmod(0o555)
    if os.getuid() == 0:  # whom no protection stops: another user's, then
        for path in (tmp_path, *tmp_path.rglob("tree"), *tmp_path.rglob("tree/in")):
            os.chown(path, 65534, 65534)
    code = "import os, pathlib; from workbench.data.files import remove; os.getuid() or os.setuid(65534); remove(pathlib.Path('tree'))"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"] and (tmp_path / "kept").stat().st_mode & 0o777 == 0o555


def test_nested_settings_in_one_dictionary():
    nested = {"a": {"b": 1, "c": {"d": "x"}}, "e": [1, 2], "f": None}
    assert files.flat(nested) == {"a.b": 1, "a.c.d": "x", "e": [1, 2], "f": None}
    assert files.flat_text(nested, "s.") == {"s.a.b": 1, "s.a.c.d": "x", "s.e": "[1, 2]", "s.f": "null"}
