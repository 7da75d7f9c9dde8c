"""Whose result is it: a place is one CT's, told by its voxels; and what a name may be."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import fake_folders as fake
import pytest

from workbench.data import cohort, readers
from workbench.lab import results
from workbench.volume import Refused


@pytest.fixture
def segmented(monkeypatch):
    """`from_file` up to where the nets would look: what it says, or the name under which a scan got there."""

    class Looked(Exception):
        pass

    def segment(volume, *_):
        raise Looked(volume.name)

    monkeypatch.setattr(results, "segment", segment)

    def run(path: Path, folder: Path) -> str:
        try:
            return results.from_file(SimpleNamespace(phantoms=0), (path, folder))[2]
        except Looked as looked:
            return f"segmented {looked}"

    return run


def two_sites(tmp_path):
    for site, seed in (("A", 0), ("B", 5)):
        (tmp_path / site).mkdir()
        fake.write_nifti(tmp_path / site / "p1.nii.gz", fake.arrays(seed)["ct"])
    folder = fake.result(tmp_path / "out" / "p1", "p1", with_ct=False)
    return tmp_path / "A" / "p1.nii.gz", tmp_path / "B" / "p1.nii.gz", folder


@pytest.mark.parametrize("version", ["now", "0.1.0"])
def test_another_patient_of_the_same_name_does_not_take_the_place(tmp_path, segmented, version):
    a, b, folder = two_sites(tmp_path)
    about = json.loads((folder / "result.json").read_text()) | {"input": "../../A/p1.nii.gz"}
    if version == "now":
        about["voxel_hash"] = cohort.voxel_hash(readers.read(a).array.numpy())
    (folder / "result.json").write_text(json.dumps(about))
    assert segmented(a, folder) == "segmented p1"
    said = segmented(b, folder)
    assert said.startswith(f"{folder}: found a result of another CT") and str(b) in said and "--name" in said
    if version == "now":  # also where the first patient's file is gone, or another lies there
        os.replace(b, a)
        assert "found a result of another CT" in segmented(a, folder)


def test_the_same_scan_from_elsewhere_takes_its_place_again(tmp_path, segmented):
    a, b, folder = two_sites(tmp_path)
    about = json.loads((folder / "result.json").read_text())
    about |= {"input": "../../A/p1.nii.gz", "voxel_hash": cohort.voxel_hash(readers.read(a).array.numpy())}
    (folder / "result.json").write_text(json.dumps(about))
    os.replace(a, b)
    assert segmented(b, folder) == "segmented p1"


@pytest.mark.parametrize("name", [b"pat_\xe9t\xe9", b"a\nb", b"a\x1b[31mb", b"\xc2\x85"])
def test_a_name_that_no_page_takes_is_refused_before_anything_is_segmented(tmp_path, segmented, name):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name + b".nii.gz"))
    fake.write_nifti(tmp_path / "x.nii.gz", fake.arrays()["ct"])
    os.replace(tmp_path / "x.nii.gz", path)
    said = segmented(path, tmp_path / "out" / readers.case_name(path))
    assert "control characters or bytes that are no UTF-8" in said and said.isprintable() and said.encode()
    assert segmented(path, tmp_path / "out" / "p1") == "segmented p1"  # --name
    assert readers.check(path).ok


def test_one_file_that_may_not_be_read_is_one_message(tmp_path, segmented, monkeypatch):
    def denied(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(readers, "read", denied)
    says = "003.dcm: found permission denied; expected a file that can be read."
    assert says in segmented(tmp_path / "003.dcm", tmp_path / "out" / "p1")
    assert says in readers.check(tmp_path / "003.dcm").message
    monkeypatch.setattr(readers, "read", lambda path: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):  # that is no fault of this input
        segmented(tmp_path / "003.dcm", tmp_path / "out" / "p1")


def test_a_damaged_result_does_not_keep_the_lesions_of_the_others(tmp_path, call):
    places = [fake.result(tmp_path / f"r{n}", f"c{n}") for n in range(3)]
    (places[1] / "result.json").write_text("{")
    status, out, err = call("export", "lesions", *places, "-o", tmp_path / "all.csv")
    assert status == 2 and "6 candidates of 2 results" in out and err.count("error: ") == 1 and "r1" in err
    with pytest.raises(Refused):
        results.reading.result(places[1])
