import itertools
import re

import nibabel
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from workbench.data import cohort
from workbench.data.cohort import Case
from workbench.data.readers import gates
from workbench.volume import Refused


def manifest(folder, rows, columns=(*cohort.COLUMNS, "split")):
    (folder / "x.nii.gz").touch()
    pd.DataFrame(rows, columns=columns).to_csv(folder / "m.csv", index=False)
    return folder / "m.csv"


def row(case, patient="p", split="train", ct="x.nii.gz"):
    return [case, patient, ct, "x.nii.gz", split]


def test_paths_are_relative_to_the_manifest(tmp_path):
    (case,) = cohort.read_manifest(manifest(tmp_path, [row("a")]))
    assert case.ct == tmp_path / "x.nii.gz" and case.patient == "p"


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([row("a"), row("a")], "case a more than once"),
        ([row("a", split="valid")], "train or test"),
        ([row("a", ct="gone.nii")], "no file"),
        ([row("a"), row("b", split="test")], r"patient p in train and in test: a \(train\), b \(test\)"),
        ([row("../a")], r"line 2: found the case '\.\./a'; expected a name that a file can have"),
        ([row(".a")], "the case '.a'"),
        ([row("a" * 101)], "the case 'aaa"),
        ([row("a", patient="p\x07")], r"patient 'p\\x07'; expected a name without spaces around it"),
        (
            [row("a", patient="P01"), row("b", patient="p1", split="test")],
            "patient P01 in train and patient p1 in test",
        ),
        ([row("a", ct="x\0y")], "ct 'x.*expected a path"),
        ([], "no row; expected at least one case"),
    ],
)
def test_what_is_refused(tmp_path, rows, says):
    with pytest.raises(Refused, match=says):
        cohort.read_manifest(manifest(tmp_path, rows))


def test_all_train_where_no_split_is_given(tmp_path):
    (case,) = cohort.read_manifest(manifest(tmp_path, [row("a")[:4]], cohort.COLUMNS))
    assert case.split == "train" and case.field_of_view == "whole"


def test_a_cut_field_of_view_is_read_and_a_strange_one_refused(tmp_path):
    columns = (*cohort.COLUMNS, "field_of_view")
    path = manifest(tmp_path, [[*row("a")[:4], "liver box"], [*row("b")[:4], "whole"]], columns)
    assert [c.field_of_view for c in cohort.read_manifest(path)] == ["liver box", "whole"]
    with pytest.raises(Refused, match="field_of_view 'half'; expected whole or liver box"):
        cohort.read_manifest(manifest(tmp_path, [[*row("a")[:4], "half"]], columns))


def test_missing_columns_are_named(tmp_path):
    with pytest.raises(Refused, match="Add labels"):
        cohort.read_manifest(manifest(tmp_path, [["a", "p", "x.nii.gz"]], ["case", "patient", "ct"]))
    with pytest.raises(Refused, match="no such file"):
        cohort.read_manifest(tmp_path / "none.csv")


FORMS = {
    "semicolons": lambda text: text.replace(",", ";"),
    "tabs": lambda text: text.replace(",", "\t"),
    "a spreadsheet's line": lambda text: "sep=;\r\n" + text.replace(",", ";"),
    "spaces": lambda text: text.replace(",", " , "),
    "capitals": lambda text: text.replace("case,patient,ct,labels,split", "Case,PATIENT,Ct,Labels,Split"),
    "a mark of UTF-8 and Windows's lines": lambda text: "\ufeff" + text.replace("\n", "\r\n"),
    "quotation marks": lambda text: "\n".join(
        ",".join(f'"{cell}"' for cell in line.split(",")) for line in text.splitlines()
    ),
    "an unseen mark in a name": lambda text: text.replace("split", "\u200bspl\u00adit\u00a0"),
    "empty lines and columns": lambda text: text.replace("\n", ",,\n") + ",,,,,,\n\n",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_what_spreadsheets_write_is_the_same_manifest(tmp_path, form, encoding):
    path = manifest(tmp_path, [row("a"), row("b", "q", "test")])
    path.write_bytes(FORMS[form](path.read_text()).encode(encoding))
    with gates.heard() as said:
        assert [(c.case, c.patient, c.split) for c in cohort.read_manifest(path)] == [
            ("a", "p", "train"),
            ("b", "q", "test"),
        ]
    assert ("its column 'Split' is read as split" in "".join(said)) == (form == "capitals")


NEARLY = {
    "splits": "split", "spilt": "split", "set": "split", "subset": "split", "Partition": "split", "group": "split", "rôle": "split",
    "tumour_labels": "tumor_labels", "tumor label": "tumor_labels", "fieldofviews": "field_of_view", "fov": "field_of_view",
}  # fmt: skip


@pytest.mark.parametrize("name", NEARLY)
def test_a_column_that_is_nearly_ours_is_refused_with_the_right_name(tmp_path, name):
    value = {"split": ("Train", "held-out"), "tumor_labels": ("none", "complete"), "field_of_view": ("whole", "whole")}
    rows = [[*row(case, case)[:4], cell] for case, cell in zip("ab", value[NEARLY[name]], strict=True)]
    with pytest.raises(Refused, match=f"a column '{name}', which nothing reads; expected the name {NEARLY[name]}"):
        cohort.read_manifest(manifest(tmp_path, rows, (*cohort.COLUMNS, name)))


@pytest.mark.parametrize(
    "name", ["note", "set", "group", "fov", "slice", "spacing_mm", "patient_age", "liver", "tumor", "phase"]
)
def test_columns_of_ones_own_are_left_alone(tmp_path, name):
    rows = [[*row(case, case)[:4], value] for case, value in (("a", "LiTS"), ("b", "IRCADb"))]
    assert len(cohort.read_manifest(manifest(tmp_path, rows, (*cohort.COLUMNS, name)))) == 2


def test_a_near_miss_beside_the_right_name_is_ones_own(tmp_path):
    path = manifest(tmp_path, [[*row("a"), "test"]], (*cohort.COLUMNS, "split", "subset"))
    assert cohort.read_manifest(path)[0].split == "train"


@pytest.mark.parametrize("other", ["split", "Split", " split"])
def test_a_column_twice_is_refused(tmp_path, other):
    path = manifest(tmp_path, [[*row("a"), "test"]], (*cohort.COLUMNS, "split", other))
    with pytest.raises(Refused, match="the column split 2 times"):
        cohort.read_manifest(path)


def test_missing_columns_are_asked_for_by_what_is_there(tmp_path):
    path = manifest(tmp_path, [row("a")[:4]], ("case", "PatientID", "image", "label"))
    with pytest.raises(Refused, match="Rename PatientID to patient. Rename image to ct. Rename label to labels."):
        cohort.read_manifest(path)


def test_values_of_a_label_map_in_a_manifest_are_refused(tmp_path):
    path = manifest(tmp_path, [[*row("a")[:4], "1;3", "2"]], (*cohort.COLUMNS, "liver", "tumor"))
    with pytest.raises(
        Refused, match="'1;3' in a column liver, which a manifest does not have; .* `workbench import csv`"
    ):
        cohort.read_manifest(path)


def test_two_unicode_forms_are_one_name(tmp_path):
    composed, apart = "\u00fcber.nii.gz", "u\u0308ber.nii.gz"
    (tmp_path / apart).touch()
    path = manifest(tmp_path, [row("a", ct=composed)])
    assert cohort.read_manifest(path)[0].ct == tmp_path / apart
    path = manifest(tmp_path, [row("a", "M\u00fc"), row("b", "Mu\u0308", "test")])
    with pytest.raises(Refused, match="in train and in test"):
        cohort.read_manifest(path)
    path = manifest(tmp_path, [row("M\u00fc", "p"), row("Mu\u0308", "q")])
    with pytest.raises(Refused, match="more than once"):
        cohort.read_manifest(path)


def cases(patients):
    return [Case(f"c{i}", p, None, None, "train") for i, p in enumerate(patients)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from("abcdefgh"), min_size=12, max_size=30), st.integers(2, 4))
def test_a_patient_is_in_one_fold(patients, count):
    if len(set(patients)) < max(count, 3):
        return
    made = cases(patients)
    of = cohort.folds(made, {c.case: float(i) for i, c in enumerate(made)}, count)
    together = pd.DataFrame({"patient": patients, "fold": [of[c.case] for c in made]})
    assert together.groupby("patient").fold.nunique().max() == 1
    assert set(of.values()) == set(range(count))


def test_tumor_load_is_spread():
    made = cases("abcdef")
    of = cohort.folds(made, dict(zip([c.case for c in made], [60, 50, 40, 3, 2, 1], strict=True)), 3)
    load = [sum(ml for c, ml in zip(made, [60, 50, 40, 3, 2, 1], strict=True) if of[c.case] == f) for f in range(3)]
    assert max(load) - min(load) <= 20


def test_a_patient_written_in_two_ways_is_in_one_fold():
    made = cases(["P01", "p1", "b", "c"])
    of = cohort.folds(made, {"c0": 60.0, "c1": 50.0, "c2": 40.0, "c3": 30.0}, 2)
    assert of["c0"] == of["c1"] and len(set(of.values())) == 2


def test_each_fold_has_whole_fields_of_view():
    made = [Case(n, n, None, None, field_of_view="whole" if n in "be" else "liver box") for n in "abcdef"]
    of = cohort.folds(made, dict(zip("abcdef", [60, 50, 40, 3, 0, 1], strict=True)), 2)
    assert of["b"] != of["e"]


def test_too_few_patients_are_refused():
    load = {f"c{i}": 0.0 for i in range(3)}
    with pytest.raises(Refused, match=r"2 training patients; expected at least 3\. Add patients\.$"):
        cohort.folds(cases("aab"), load, 2)
    with pytest.raises(
        Refused, match=r"3 training patients; expected at least 4, one for each fold\. .* fewer folds\.$"
    ):
        cohort.folds(cases("abc"), load, 4)
    with pytest.raises(Refused, match="folds: found 0; expected at least 2"):
        cohort.folds(cases("abc"), load, 0)


def test_a_row_of_another_length_is_refused(tmp_path):
    path = manifest(tmp_path, [row("a")])
    whole = path.read_text()
    path.write_text(whole + "b,p,x.nii.gz\n")
    with pytest.raises(Refused, match="line 3: found no labels; expected a value for each column"):
        cohort.read_manifest(path)
    path.write_text(whole + "b,p,x.nii.gz,x.nii.gz\n")
    with pytest.raises(Refused, match="line 3: found another number of fields than columns; expected a value for each"):
        cohort.read_manifest(path)
    path.write_text("case,patient,ct,labels\na,Smith, J.,x.nii.gz,x.nii.gz\n")
    with pytest.raises(Refused, match="line 2: found another number of fields than columns; .* Put text with commas"):
        cohort.read_manifest(path)


def test_a_spreadsheets_mark_of_utf_8_is_no_part_of_a_name(tmp_path):
    path = manifest(tmp_path, [row("a")])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert cohort.read_manifest(path)[0].case == "a"


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("voxel_hash", "12ab", "voxel_hash '12ab'; expected 16 hexadecimal digits"),
        ("slices", "0", "slices '0'; expected a count"),
        ("spacing_z_mm", "-1", "expected mm"),
        ("liver_ml", "nan", "expected ml"),
    ],
)
def test_what_was_measured_has_a_form_and_may_be_empty(tmp_path, column, value, says):
    columns = (*cohort.COLUMNS, column)
    with pytest.raises(Refused, match=says):
        cohort.read_manifest(manifest(tmp_path, [[*row("a")[:4], value]], columns))
    (case,) = cohort.read_manifest(manifest(tmp_path, [[*row("a")[:4], ""]], columns))
    assert case.measured == {}


def test_a_scan_under_two_names_is_refused_naming_both(tmp_path):
    columns = (*cohort.COLUMNS, "split", "voxel_hash")
    rows = [[*row("liver_28", "p1"), "0123456789abcdef"], [*row("3Dircadb1.1", "p2", "test"), "0123456789abcdef"]]
    says = r"same voxels in cases liver_28 \(patient p1, train\) and 3Dircadb1.1 \(patient p2, test\)"
    with pytest.raises(Refused, match=says):
        cohort.read_manifest(manifest(tmp_path, rows, columns))
    rows[1][-1] = "0123456789abcdee"
    assert len(cohort.read_manifest(manifest(tmp_path, rows, columns))) == 2


# -- the same scan, however it is saved --------------------------------------------------------------------------------


def turned(array, order, signs):
    return array.transpose(order)[tuple(slice(None, None, s) for s in signs)]


ORIENTATIONS = [(o, s) for o in itertools.permutations(range(3)) for s in itertools.product((1, -1), repeat=3)]
VOXELS = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.int16, shape, elements=st.integers(-3, 3))  # few values: profiles tie often
)


@settings(max_examples=150, deadline=None)
@given(VOXELS, st.sampled_from(ORIENTATIONS), st.sampled_from([np.int8, np.int32, np.float32, np.float64, ">i2"]))
def test_the_voxel_hash_survives_turns_and_types(array, orientation, dtype):
    again = turned(array, *orientation).astype(dtype)
    assert cohort.voxel_hash(again) == cohort.voxel_hash(array)


@settings(max_examples=150, deadline=None)
@given(VOXELS, st.data())
def test_other_voxels_have_another_hash(array, data):
    """One voxel changed, or two exchanged: the same only where some turn makes it the same image."""
    other = array.copy().reshape(-1)
    i, j = (data.draw(st.integers(0, array.size - 1)) for _ in range(2))
    if data.draw(st.booleans()):
        other[i], other[j] = other[j], other[i]
    else:
        other[i] += 1
    other = other.reshape(array.shape)
    same = any(np.array_equal(turned(other, *o), array) for o in ORIENTATIONS)
    assert (cohort.voxel_hash(other) == cohort.voxel_hash(array)) == same


def test_every_orientation_of_a_scan_has_one_hash(small_phantom):
    hu = small_phantom.ct.array.numpy()[:, 10:40, 20:55]
    assert len(set(hu.shape)) == 3
    assert len({cohort.voxel_hash(turned(hu, *o)) for o in ORIENTATIONS}) == 1


def test_padding_and_rounding_do_not_hide_a_scan_and_a_crop_is_another():
    hu = np.random.default_rng(0).integers(-1024, 3071, (5, 6, 7)).astype(np.int16)
    hu[0, 0, :3] = -1024
    padded = np.where(hu == -1024, -3024, hu).astype(np.float32) + np.float32(0.25)
    assert cohort.voxel_hash(padded) == cohort.voxel_hash(hu)
    assert cohort.voxel_hash(hu[1:]) != cohort.voxel_hash(hu) != cohort.voxel_hash(hu + 1)
    assert cohort.voxel_hash(np.zeros((2, 3, 4))) != cohort.voxel_hash(np.zeros((2, 2, 6)))


# -- the whole manifest, looked at -------------------------------------------------------------------------------------


@pytest.fixture
def imported(tmp_path):
    """A manifest of two scans with all that is measured."""
    rows = []
    for case, shape in (("a", (4, 5, 6)), ("b", (4, 6, 5))):
        affine = np.diag([-0.7, -0.9, 2.5, 1])
        hu = np.random.default_rng(len(rows)).normal(60, 40, shape).round().astype(np.int16)
        labels = np.zeros(shape, np.uint8)
        labels[:2], labels[0, 0] = 1, 2
        for name, array in ((f"{case}.nii.gz", hu), (f"{case}-labels.nii.gz", labels)):
            nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / name)
        one = Case(case, case, tmp_path / f"{case}.nii.gz", tmp_path / f"{case}-labels.nii.gz")
        rows.append({"case": case, "patient": case, "ct": one.ct.name, "labels": one.labels.name})
        rows[-1] |= cohort.measure(*one.read())
    pd.DataFrame(rows).to_csv(tmp_path / "m.csv", index=False)
    return tmp_path / "m.csv"


def test_what_is_measured(imported):
    measured = cohort.read_manifest(imported)[0].measured
    assert (measured["slices"], measured["rows"], measured["columns"]) == ("6", "5", "4")
    assert [measured[f"spacing_{axis}_mm"] for axis in "zyx"] == ["2.5", "0.9", "0.7"]
    assert float(measured["liver_ml"]) == pytest.approx(2 * 5 * 6 * 0.7 * 0.9 * 2.5 / 1000, abs=1e-4)
    assert float(measured["tumor_ml"]) == pytest.approx(6 * 0.7 * 0.9 * 2.5 / 1000, abs=1e-4)


def test_a_manifest_that_holds(imported):
    *verdicts, last = cohort.check(imported)
    assert [v.ok for v in verdicts] == [True, True] and last.ok
    assert last.message == "2 of 2 cases read, of 2 patients, each scan once"


def swapped(folder):
    for name in ("{}.nii.gz", "{}-labels.nii.gz"):
        (folder / name.format("a")).replace(folder / "c")
        (folder / name.format("b")).replace(folder / name.format("a"))
        (folder / "c").replace(folder / name.format("b"))


def copied(folder):
    """The scan of a, flipped and as float, under the name of b, whose row tells of no hash."""
    image = nibabel.load(folder / "a.nii.gz")
    array = np.asarray(image.dataobj)[::-1, :, ::-1].astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([0.7, -0.9, -2.5, 1])), folder / "b.nii.gz")
    labels = nibabel.Nifti1Image(np.ones(array.shape, np.uint8), np.diag([0.7, -0.9, -2.5, 1]))
    nibabel.save(labels, folder / "b-labels.nii.gz")
    table = pd.read_csv(folder / "m.csv", dtype=str)
    table.loc[table.case == "b", list(cohort.MEASURED)] = ""
    table.to_csv(folder / "m.csv", index=False)


def one_label(folder):
    nibabel.save(nibabel.Nifti1Image(np.full((4, 5, 6), 7, np.uint8), np.diag([-0.7, -0.9, 2.5, 1])),
                 folder / "a-labels.nii.gz")  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (swapped, "case a: found slices 5; expected 6, as the manifest says"),
        (copied, r"the same voxels in cases a \(patient a, train\) and b \(patient b, train\)"),
        (one_label, "label values 7; expected only 0, 1, 2"),
        (lambda d: (d / "a.nii.gz").unlink(), "a.nii.gz: found no such file"),
        (lambda d: (d / "a.nii.gz").write_bytes(b"x"), "not gzip"),
    ],
)
def test_a_manifest_that_does_not_hold(imported, fault, says):
    fault(imported.parent)
    verdicts = list(cohort.check(imported))
    assert not all(v.ok for v in verdicts) and re.search(says, " ".join(v.message for v in verdicts if not v.ok))


def test_the_last_line_says_how_many_cases_were_read(imported):
    one_label(imported.parent)
    *_, last = cohort.check(imported)
    assert not last.ok and last.message == "1 of 2 cases read, of 1 patients, each scan once"


def test_voxels_that_changed_since_the_import_are_seen(imported):
    case = cohort.read_manifest(imported)[0]
    ct, _ = case.read()
    assert case.identify(ct) == case.measured["voxel_hash"]
    with pytest.raises(Refused, match="has changed since it was imported"):
        case.identify(ct.with_array(ct.array + 1))


def test_phantoms_are_kept_and_held_out(tmp_path):
    told = []
    path = cohort.write_phantoms(tmp_path, 3, 5, progress=lambda *a: told.append(a))
    first = {f.name: f.stat().st_mtime_ns for f in tmp_path.glob("*/ct.nii.gz")}
    table = pd.read_csv(path)
    assert table.split.tolist() == ["train", "train", "test"] and len(told) == 3
    read = cohort.read_manifest(path)
    ct, labels = read[0].read()
    assert ct.shape == labels.shape and set(labels.array.unique().tolist()) <= {0, 1, 2}
    cohort.write_phantoms(tmp_path, 3, 5)
    assert {f.name: f.stat().st_mtime_ns for f in tmp_path.glob("*/ct.nii.gz")} == first


def test_a_phantom_of_another_seed_preset_or_format_is_made_anew(tmp_path, monkeypatch, small_phantom):
    made = []
    monkeypatch.setattr(cohort.phantom, "generate", lambda *of: made.append(of) or small_phantom)
    for seed, preset, number in [(7, "demo", 1), (7, "demo", 1), (8, "demo", 1), (8, "fine", 1), (8, "fine", 2)]:
        monkeypatch.setattr(cohort.phantom, "FORMAT", number)
        cohort._write_phantom(None, (tmp_path / "p", seed, preset, "cpu"))
    assert made == [(7, "demo", "cpu"), (8, "demo", "cpu"), (8, "fine", "cpu"), (8, "fine", "cpu")]
    (tmp_path / "p" / cohort.PHANTOM).unlink()  # as where it was cut off
    cohort._write_phantom(None, (tmp_path / "p", 8, "fine", "cpu"))
    assert len(made) == 5
