"""The command line as a contract: what it writes, what it refuses, with which exit status."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version

import nibabel
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from scipy import ndimage

from workbench import __version__, experiment
from workbench.data.readers import nifti
from workbench.data.threads import in_processes
from workbench.experiment import reading
from workbench.run import batch
from workbench.run.commands import results, scans
from workbench.stages import liver, radiomics
from workbench.volume import Refused

AFFINE = np.diag([3.0, 3.0, 4.0, 1.0])


@pytest.fixture
def files(tmp_path):
    """A toy CT, its labels, and what can be wrong with them."""
    ct, labels = tiny.patient(77)
    nifti.write(ct, tmp_path / "toy.nii.gz")
    nifti.write(labels, tmp_path / "labels.nii.gz")
    whole = (tmp_path / "toy.nii.gz").read_bytes()
    (tmp_path / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.nii.gz").write_text("not an image")
    stored = nibabel.load(tmp_path / "labels.nii.gz")
    mask = np.asarray(stored.dataobj)
    nibabel.save(nibabel.Nifti1Image(mask[:-1], stored.affine), tmp_path / "other_grid.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros_like(mask), stored.affine), tmp_path / "empty.nii.gz")
    nibabel.save(
        nibabel.Nifti1Image(np.where(mask == 2, 7, mask).astype(np.uint8), stored.affine), tmp_path / "seven.nii.gz"
    )
    nibabel.save(nibabel.Nifti1Image((mask == 2).astype(np.uint8), stored.affine), tmp_path / "tumor.nii.gz")
    return tmp_path


def refused(result, *words):
    status, out, err = result
    lines = [line for line in err.strip().splitlines() if not line.startswith("warning")]
    assert status == 2 and len(lines) == 1 and lines[0].startswith("error: "), (status, err)
    assert all(w in lines[0] for w in words), lines[0]


def test_version(call):
    assert call("--version")[:2] == (0, f"workbench {__version__}\n")


def test_doctor_tells_the_device(call):
    status, out, _ = call("doctor", "--json")
    assert status == 0 and json.loads(out)["device"] in ("cpu", "cuda")
    assert "research" not in call("doctor")[1].lower()


def test_segment_writes_on_the_input_s_own_grid(call, files, trained):
    status, out, err = call(
        "segment", files / "toy.nii.gz", "--models", trained.folder, "-o", files / "out", "--device", "cpu"
    )
    assert status == 0, err
    before, after = nibabel.load(files / "toy.nii.gz"), nibabel.load(files / "out" / "toy" / "labels.nii.gz")
    assert before.shape == after.shape and np.array_equal(before.affine, after.affine)
    about = json.loads((files / "out" / "toy" / "result.json").read_text())
    assert (
        about["case"] == "toy"
        and about["status"] == "ok"
        and set(about["timings"]) >= {"liver", "tumor", "forest", "boundary"}
    )


def test_what_is_done_can_be_kept(call, files, trained, tmp_path):
    """Only of the same file, by the same models, and while neither has changed."""
    for name in ("a", "b"):
        shutil.copy(files / "toy.nii.gz", tmp_path / f"{name}.nii.gz")

    def made(*inputs, models=trained.folder):
        words = ("--models", models, "-o", tmp_path / "out", "--device", "cpu", "--keep-done")
        before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*/result.json")}
        status, out, err = call("segment", *(tmp_path / f"{name}.nii.gz" for name in inputs), *words)
        assert status == 0 and f"of {len(inputs)} results are there already" in out, err
        now = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*/result.json")}
        return {p.parent.name for p, t in now.items() if before.get(p) != t}

    assert made("a") == {"a"}
    assert made("a", "b") == {"b"} and made("a", "b") == set()
    for later in (60, -60):  # another file under the same name, newer or older
        then = (tmp_path / "a.nii.gz").stat().st_mtime + later
        os.utime(tmp_path / "a.nii.gz", (then, then))
        assert made("a", "b") == {"a"} and made("a", "b") == set()
    (tmp_path / "out" / "a" / "result.json").write_text("{")  # damaged: made anew
    assert made("a", "b") == {"a"}
    for changed in (
        lambda about: about["models"]["stages"].update(forest="0" * 64),
        lambda about: about.update(version="0.0.9"),
    ):
        about = json.loads((tmp_path / "out" / "b" / "result.json").read_text())
        changed(about)
        (tmp_path / "out" / "b" / "result.json").write_text(json.dumps(about))
        assert made("a", "b") == {"b"}


def test_a_flat_or_noisy_volume_is_no_liver_without_a_word(call, files, trained, tmp_path):
    """To a net that has seen only scans it is tissue."""
    ct, noise = tiny.patient(50)[0], np.random.default_rng(0).normal(110, 12, tiny.SHAPE)
    for name, hu in (("flat", np.full(tiny.SHAPE, 110)), ("noise", noise)):
        nifti.write(ct.with_array(torch.from_numpy(hu.astype(np.int16))), tmp_path / f"{name}.nii.gz")
    scans = [tmp_path / "flat.nii.gz", tmp_path / "noise.nii.gz", files / "toy.nii.gz"]
    status, _, err = call("segment", *scans, "--models", trained.folder, "-o", tmp_path / "out", "--device", "cpu")
    assert status == 0, err
    said = {p.parent.name: json.loads(p.read_text())["warnings"] for p in (tmp_path / "out").glob("*/result.json")}
    for name in ("flat", "noise"):
        assert re.search(
            rf"warning: {name}: a liver of \d+ ml that fills (6[1-9]|[789]\d|100)% of the scan; expected", err
        )
        assert "look at it" in said[name][0] and ("every voxel is 110 HU" in said[name][-1]) == (name == "flat")
    assert said["toy"] == [] and "toy: a liver" not in err
    small = torch.ones(10, 10, 10)
    assert liver.doubts(small, (1, 1, 1)) and not liver.doubts(torch.nn.functional.pad(small, (0, 10)), (1, 1, 1))
    assert liver.doubts(torch.nn.functional.pad(small, (0, 10)), (20, 20, 20)), "8 l of 16"


@pytest.mark.parametrize("name", ["missing.nii.gz", "truncated.nii.gz", "text.nii.gz"])
def test_segment_refuses_and_leaves_nothing(call, files, trained, name):
    refused(call("segment", files / name, "--models", trained.folder, "-o", files / "out"), name)
    assert not (files / "out").exists()


def test_processes_share_the_inputs_and_one_that_is_refused_stops_no_other(files, trained):
    """As a program of its own, since processes are begun from it; the same results as one after the other."""
    scans = []
    for seed in (77, 78, 79):
        nifti.write(tiny.patient(seed)[0], files / f"p{seed}.nii.gz")
        scans.append(files / f"p{seed}.nii.gz")
    scans.insert(1, files / "truncated.nii.gz")
    words = [
        sys.executable,
        "-m",
        "workbench",
        "segment",
        *scans,
        scans[0],
        "--models",
        trained.folder,
        "--device",
        "cpu",
    ]
    ran = {
        n: subprocess.run([*map(str, words), "-o", str(files / n), "--workers", n], capture_output=True, text=True)
        for n in ("1", "2")
    }
    names = ["p77", "p77-4", "p78", "p79"]
    for n, done in ran.items():
        assert done.returncode == 2, done.stderr
        assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["p77", "p78", "p79", "p77-4"]
        assert done.stderr.count("error: ") == 1 and "truncated.nii.gz" in done.stderr
        assert sorted(p.name for p in (files / n).iterdir()) == names
    for name in names:
        one, other = ((files / n / name / "labels.nii.gz").read_bytes() for n in ran)
        assert one == other


def test_a_process_that_ends_by_itself_is_told(files):
    with pytest.raises(Refused, match="--workers 1"):
        list(in_processes(dict, _end, [files, files], 2))


def _end(made, item):
    os._exit(9)


def test_segment_needs_models(call, files):
    refused(
        call("segment", files / "toy.nii.gz", "--models", files / "none", "-o", files / "out"), "no experiment.json"
    )
    assert not (files / "out").exists()


def test_an_output_that_cannot_be_written_is_said_at_the_start(call, files, trained):
    (files / "file").touch()
    refused(call("segment", files / "toy.nii.gz", "--models", trained.folder, "-o", files / "file"), "is a file")


def test_radiomics_splits_a_mask_of_one_value(call, files):
    status, _, err = call(
        "radiomics", files / "toy.nii.gz", files / "tumor.nii.gz", "-o", files / "x.csv", "--device", "cpu"
    )
    assert status == 0, err
    table = pd.read_csv(files / "x.csv")
    assert table.label.tolist() == list(range(1, len(table) + 1)) and 1 < len(table) <= 5
    assert set(radiomics.NAMES) <= set(table.columns)


def test_radiomics_takes_label_values_as_they_are(call, files):
    assert (
        call("radiomics", files / "toy.nii.gz", files / "seven.nii.gz", "-o", files / "x.csv", "--device", "cpu")[0]
        == 0
    )
    assert pd.read_csv(files / "x.csv").label.tolist() == [1, 7]


def test_radiomics_says_beside_its_table_what_it_was_made_from_and_how(call, files):
    where = [files / "toy.nii.gz", files / "seven.nii.gz", "-o", files / "sub" / "x.csv", "--device", "cpu"]
    status, out, _ = call("radiomics", *where)
    about = json.loads((files / "sub" / "x.json").read_text())
    assert status == 0 and str(files / "sub" / "x.json") in out
    assert about["settings"] == {"bin_width_hu": 25.0, "resampling": None}
    assert (about["radiomics"], about["engine"], about["device"]) == (__version__, "torch", "cpu")
    for part, file in (("image", "toy.nii.gz"), ("mask", "seven.nii.gz"), ("table", "sub/x.csv")):
        assert about[part]["sha256"] == hashlib.sha256((files / file).read_bytes()).hexdigest()
        assert (files / "sub" / about[part]["path"]).resolve() == (files / file).resolve()
    assert "pyradiomics" not in about["versions"]
    assert call("radiomics", *where, "--engine", "pyradiomics")[0] == 0, "its own is written anew"
    assert json.loads((files / "sub" / "x.json").read_text())["versions"]["pyradiomics"] == version("pyradiomics")
    (files / "toy.json").write_text('{"Modality": "CT"}')  # as a converter leaves it beside a scan
    assert (
        call("radiomics", *where[:3], files / "toy.csv")[0] == 0 == call("radiomics", *where[:3], files / "y.json")[0]
    )
    assert (files / "toy.json").read_text() == '{"Modality": "CT"}', "another's is left alone"
    for name in ("toy.csv", "y.json"):
        assert json.loads((files / f"{name}.json").read_text())["table"]["path"] == name and len(
            pd.read_csv(files / name)
        )
    (files / "toy.csv.json").write_text("{}")
    refused(call("radiomics", *where[:3], files / "toy.csv"), "toy.csv.json", "another kind")


def test_a_folder_of_slices_has_one_hash_of_all_its_files(tmp_path):
    (tmp_path / "scan").mkdir()
    for name in "ab":
        (tmp_path / "scan" / name).write_text(name)
    one = scans._origin(tmp_path / "scan", torch.zeros(1), tmp_path)
    (tmp_path / "scan" / "b").write_text("c")
    other = scans._origin(tmp_path / "scan", torch.zeros(1), tmp_path)
    assert one["path"] == "scan" and one["sha256"] != other["sha256"] and one["voxels_sha256"] == other["voxels_sha256"]


def test_radiomics_keeps_the_value_of_a_single_piece(call, files):
    stored = nibabel.load(files / "tumor.nii.gz")
    one = ndimage.label(np.asarray(stored.dataobj))[0] == 1
    nibabel.save(nibabel.Nifti1Image((one * 300).astype(np.int16), stored.affine), files / "m300.nii.gz")
    where = ["-o", files / "x.csv", "--device", "cpu"]
    assert call("radiomics", files / "toy.nii.gz", files / "m300.nii.gz", *where)[0] == 0
    assert pd.read_csv(files / "x.csv").label.tolist() == [300]
    assert "one value, 1, in" in call("radiomics", files / "toy.nii.gz", files / "tumor.nii.gz", *where)[2]


def test_an_input_is_never_overwritten(call, files):
    for name in ("toy", "labels"):
        before = (files / f"{name}.nii.gz").read_bytes()
        for out in (files / f"{name}.nii.gz", files / "link.csv"):
            if out.name == "link.csv":
                out.symlink_to(files / f"{name}.nii.gz")
            refused(call("radiomics", files / "toy.nii.gz", files / "labels.nii.gz", "-o", out), "one of the inputs")
            refused(call("evaluate", files / "toy.nii.gz", files / "labels.nii.gz", "-o", out), "one of the inputs")
        (files / "link.csv").unlink()
        assert (files / f"{name}.nii.gz").read_bytes() == before
    os.mkfifo(files / "pipe.json")
    refused(call("evaluate", files / "labels.nii.gz", files / "labels.nii.gz", "-o", files / "pipe.json"), "pipe")


def test_a_link_stays_a_link(call, files, trained):
    (files / "elsewhere.json").write_text("{}")
    (files / "e.json").symlink_to("elsewhere.json")
    assert call("evaluate", files / "labels.nii.gz", files / "labels.nii.gz", "-o", files / "e.json")[0] == 0
    assert (files / "e.json").is_symlink() and "liver" in (files / "elsewhere.json").read_text()
    (files / "there").mkdir()
    (files / "out").mkdir()
    (files / "out" / "toy").symlink_to("../there")
    for _ in range(2):
        status, _, err = call(
            "segment", files / "toy.nii.gz", "--models", trained.folder, "-o", files / "out", "--device", "cpu"
        )
        assert status == 0, err
    assert (files / "out" / "toy").is_symlink() and (files / "there" / "labels.nii.gz").is_file()
    assert sorted(p.name for p in (files / "out").iterdir()) == ["toy"]


@pytest.mark.parametrize(
    "names, own",
    [
        (["a", "a-1", "a"], ["a", "a-1", "a-2"]),
        (["a-2", "b", "a", "a"], ["a-2", "b", "a", "a-3"]),
        (["a", "a", "a"], ["a", "a-1", "a-2"]),
    ],
)
def test_each_input_has_a_name_of_its_own(names, own):
    assert results._each_its_own(names) == own


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "new\nline", "n" * 240])
def test_a_name_that_no_case_can_have_is_refused(call, files, trained, name):
    refused(
        call("segment", files / "toy.nii.gz", "--models", trained.folder, "-o", files / "out", "--name", name), "--name"
    )
    assert not (files / "out").exists()


def test_a_result_that_another_process_writes_is_left_to_it(call, files, trained):
    words = ["segment", files / "toy.nii.gz", "--models", trained.folder, "-o", files / "out", "--device", "cpu"]
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        (files / "out" / f".toy.{other.pid}.part").mkdir(parents=True)
        refused(call(*words), "out/toy: found in use by process", str(other.pid))
        assert [p.name for p in (files / "out").iterdir()] == [f".toy.{other.pid}.part"]
        other.communicate(b"\n")
    assert call(*words)[0] == 0  # what a process that is no more left is swept away
    assert [p.name for p in (files / "out").iterdir()] == ["toy"]


def test_a_refused_training_leaves_no_experiment(call, tmp_path, toy_cohort):
    rows = pd.read_csv(toy_cohort)
    for column in ("ct", "labels"):
        rows[column] = [str(toy_cohort.parent / path) for path in rows[column]]
    rows[rows.patient.isin(rows[rows.split == "train"].patient.unique()[:2])].to_csv(tmp_path / "two.csv", index=False)
    refused(call("train", "all", "--cohort", tmp_path / "two.csv", "-o", tmp_path / "e"), "2 training patients")
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("name", ["other_grid.nii.gz", "empty.nii.gz", "missing.nii.gz"])
def test_radiomics_refuses_and_leaves_nothing(call, files, name):
    refused(call("radiomics", files / "toy.nii.gz", files / name, "-o", files / "x.csv"))
    assert not (files / "x.csv").exists()


def test_the_catalogue_has_728_rows(call, tmp_path):
    assert call("radiomics", "--catalogue", "-o", tmp_path / "c.csv")[0] == 0
    assert len(pd.read_csv(tmp_path / "c.csv")) == 728


def test_evaluate_knows_a_perfect_prediction(call, files):
    assert call("evaluate", files / "labels.nii.gz", files / "labels.nii.gz", "-o", files / "e.json")[0] == 0
    found = json.loads((files / "e.json").read_text())
    assert found["tumor"]["dice_per_case"] == found["tumor"]["recall_iou50"] == found["liver"]["dice_per_case"] == 1
    assert found["tumor_burden"]["max_error"] == 0 and len(found["cases"]) == 1


@pytest.mark.parametrize("name", ["other_grid.nii.gz", "seven.nii.gz"])
def test_evaluate_refuses_and_leaves_nothing(call, files, name):
    refused(call("evaluate", files / "labels.nii.gz", files / name, "-o", files / "e.json"))
    assert not (files / "e.json").exists()


def test_check_exits_1_when_one_is_refused(call, files):
    assert call("check", files / "toy.nii.gz")[0] == 0
    status, out, _ = call("check", files / "toy.nii.gz", files / "truncated.nii.gz")
    assert status == 1 and out.count("REFUSED") == 1


@pytest.mark.parametrize("words", [("-p", "no_such", "1"), ("-p", "lonely"), ("--strange",)])
def test_run_refuses_parameters_that_it_does_not_know(call, tmp_path, words):
    refused(call("run", "00", *words, "-o", tmp_path / "e"))
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("bad, status", [("", 0), ("b", 1)])
def test_run_of_several_cases_goes_on_and_its_exit_status_tells(call, tmp_path, monkeypatch, bad, status):
    def run(notebook, experiment, given, **_):
        failed = given["case"] == bad
        return batch.Outcome(given["case"], tmp_path / "x", "failed" if failed else "done", error="oops" * failed)

    monkeypatch.setattr(batch, "run", run)
    for case in "bc":
        (tmp_path / "e" / "results" / case).mkdir(parents=True)
        (tmp_path / "e" / "results" / case / "result.json").touch()
    ended, out, err = call("run", "result", "-p", "case", "b", "-p", "case", "c", "-o", tmp_path / "e")
    assert ended == status and [line.split(":")[0] for line in out.splitlines()] == ["b", "c", "2 notebooks"]
    assert ("1 done, 1 failed" if bad else "2 done") in out and "[2/2] result c" in err


def test_run_all_takes_one_case_at_most(call, tmp_path):
    refused(call("run", "all", "-p", "case", "b", "-p", "case", "c", "-o", tmp_path / "e"), "2 sets", "one notebook")


def test_lineage_tells_what_it_can_without_a_store(call, trained, tmp_path):
    refused(call("lineage", tmp_path), "no result.json")
    result = reading.experiment(trained.folder).results()[0]
    status, out, err = call("lineage", result, "--store", tmp_path / "none")
    lines = out.splitlines()
    assert status == 0 and [line.split()[0] for line in lines] == ["liver", "tumor", "forest", "boundary"]
    assert reading.stage_hashes(trained.folder)["forest"][:12] in lines[2] and "no mlflow.db" in err


def test_train_refuses_what_is_not_there(call, tmp_path, toy_cohort):
    refused(call("train", "all", "--cohort", tmp_path / "none.csv", "-o", tmp_path / "e"), "no such file")
    refused(call("train", "livver", "--cohort", toy_cohort, "-o", tmp_path / "e"), "livver")
    refused(call("train", "all", "--cohort", toy_cohort, "-o", tmp_path / "e", "--resume"), "--resume")
    refused(call("train", "all", "--cohort", toy_cohort, "-o", tmp_path / "e", "--preset", "huge"), "demo or paper")
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("command", ["train", "cohort"])
def test_help_names_the_presets(call, command):
    status, out, _ = call(command, "--help")
    assert (
        status == 0
        and "demo, clinical or paper" in " ".join(out.split())
        and set(experiment.PRESETS) == {"demo", "clinical", "paper"}
    )


def test_phantom_refuses_an_unknown_preset(call, tmp_path):
    refused(call("phantom", tmp_path / "p", "--cases", "1", "--preset", "huge"), "demo or other or fine or full")
    refused(call("phantom", tmp_path / "p", "--cases", "0"), "1 or more")


def test_view_without_a_result_is_refused(call, tmp_path):
    refused(call("view", tmp_path), "no result; expected a result folder")
    refused(call("report", tmp_path, "-o", tmp_path / "r.html"))


def turned(path, code, to):
    """The same picture of the same place, stored along other axes."""
    nibabel.save(
        nibabel.as_closest_canonical(nibabel.load(path)).as_reoriented(
            nibabel.orientations.ornt_transform(
                nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(code)
            )
        ),
        to,
    )


@pytest.mark.parametrize("code", ["LPS", "SRA"])
def test_radiomics_reads_a_mask_stored_along_other_axes(call, files, code):
    turned(files / "seven.nii.gz", code, files / "mask.nii.gz")
    for mask, out in (("seven", "a.csv"), ("mask", "b.csv")):
        found = call("radiomics", files / "toy.nii.gz", files / f"{mask}.nii.gz", "-o", files / out, "--device", "cpu")
        assert found[0] == 0, found[2]
    pd.testing.assert_frame_equal(pd.read_csv(files / "a.csv"), pd.read_csv(files / "b.csv"))


def test_evaluate_names_its_cases(call, files):
    for name in ("one", "two"):
        for side in ("truth", "found"):
            (files / side).mkdir(exist_ok=True)
            (files / side / f"{name}.nii.gz").write_bytes((files / "labels.nii.gz").read_bytes())
    words = ("evaluate", files / "truth", files / "found", "-o", files / "e.json")
    assert call(*words)[0] == 0
    assert [c["case"] for c in json.loads((files / "e.json").read_text())["cases"]] == ["one", "two"]
    (files / "found" / "one.nii.gz").unlink()
    refused(call(*words), "1 truth without prediction (one)", "--common")
    status, out, err = call(*words, "--common")
    assert status == 0 and "1 cases in both; left out: 1 truth without prediction (one), 0 prediction" in err
    assert [c["case"] for c in json.loads((files / "e.json").read_text())["cases"]] == ["two"] and "1 cases ->" in out


def test_evaluate_keeps_the_table_that_it_prints_and_says_what_each_mean_is_over(call, files):
    words = ("evaluate", files / "labels.nii.gz", files / "labels.nii.gz", "-o")
    status, out, _ = call(*words, files / "e.json")
    table, scores = pd.read_csv(files / "e.csv"), json.loads((files / "e.json").read_text())
    assert status == 0 and str(files / "e.csv") in out and len(out.splitlines()) == len(table) + 3
    assert re.search(r"tumor +voe +over cases", out) and re.search(r"lesion +voe +over detected lesions", out)
    for structure, over, part in (("liver", "cases", "liver"), ("lesion", "detected lesions", "tumor")):
        rows = table[(table.structure == structure) & (table.over == over)].set_index("measure")
        assert all(rows.loc[m, "mean"] == scores[part][m] for m in ("voe", "rvd", "assd_mm")), structure
    assert call(*words, files / "e.json")[0] == 0, "its own table is written anew"
    (files / "e.csv").write_text("case,patient\n")
    assert call(*words, files / "e.json")[0] == 0 and pd.read_csv(files / "e.json.csv").equals(table)
    assert (files / "e.csv").read_text() == "case,patient\n", "another's is left alone"
    (files / "e.json.csv").write_text("case,patient\n")
    refused(call(*words, files / "e.json"), "e.json.csv", "another kind")


def test_one_bad_input_does_not_keep_the_others_back(call, files, trained):
    (files / "toy2.nii.gz").write_bytes((files / "toy.nii.gz").read_bytes())
    names = [files / f"{n}.nii.gz" for n in ("toy", "truncated", "text", "toy2")]
    status, out, err = call("segment", *names, "--models", trained.folder, "-o", files / "out", "--device", "cpu")
    assert status == 2 and err.count("error: ") == 2
    assert sorted(p.name for p in (files / "out").iterdir()) == ["toy", "toy2"]


def test_an_occupied_place_is_refused_before_the_work(call, files, trained, monkeypatch):
    from workbench.lab import results

    (files / "out" / "toy").mkdir(parents=True)
    (files / "out" / "toy" / "notes.txt").touch()
    monkeypatch.setattr(results, "segment", lambda *a: pytest.fail("worked first"))
    refused(call("segment", files / "toy.nii.gz", "--models", trained.folder, "-o", files / "out"), "no result")


def test_a_fold_that_is_missing_is_refused(call, files, trained):
    import shutil

    shutil.copytree(trained.folder, files / "models")
    (files / "models" / "tumor" / "fold1.json").unlink()
    refused(call("segment", files / "toy.nii.gz", "--models", files / "models", "-o", files / "out"), "fold1")


@pytest.mark.parametrize("name", ["experiment.json", "liver/fold0.json", "boundary/model.json"])
@pytest.mark.parametrize("text", ["{", "{}", "[1]"])
def test_damaged_json_is_refused(call, files, trained, name, text):
    import shutil

    shutil.copytree(trained.folder, files / "models")
    (files / "models" / name).write_text(text)
    refused(
        call("segment", files / "toy.nii.gz", "--models", files / "models", "-o", files / "out"), name.split("/")[-1]
    )


@pytest.mark.parametrize("device", ["foo", "cuda:x", "mps"])
def test_an_unknown_device_is_refused(call, files, trained, device):
    words = ("segment", files / "toy.nii.gz", "--models", trained.folder, "-o", files / "out", "--device", device)
    refused(call(*words), device)


@pytest.mark.parametrize("out", ["/proc/out", "a_folder", "read_only"])
def test_a_place_that_cannot_be_written_is_refused(call, files, out):
    (files / "a_folder").mkdir()
    (files / "read_only").mkdir()
    (files / "read_only").chmod(0o555)
    out = files / out / ("x.json" if out == "read_only" else "")
    for words in (("evaluate", files / "labels.nii.gz", files / "labels.nii.gz"), ("radiomics", "--catalogue")):
        refused(call(*words, "-o", out))
    assert not list((files / "a_folder").iterdir()) and not list((files / "read_only").iterdir())


def test_a_link_to_nothing_is_no_place_for_results(call, files):
    for name, to in (("nothing", files / "gone" / "e.json"), ("itself", "itself"), ("new", "e.json")):
        (files / name).symlink_to(to)
    evaluate = ("evaluate", files / "labels.nii.gz", files / "labels.nii.gz", "-o")
    for name in ("nothing", "itself"):
        for words in (("phantom", files / name), ("phantom", files / name / "below"), (*evaluate, files / name)):
            refused(call(*words), f"a link to {(files / name).readlink()}, which is not there")
    assert call(*evaluate, files / "new")[0] == 0 and (files / "new").is_symlink() and (files / "e.json").is_file()


def test_a_name_too_long_for_a_file_is_refused(call, files):
    refused(call("evaluate", files / ("n" * 300), files / "labels.nii.gz", "-o", files / "e.json"), "too long")
    status, out, _ = call("check", files / ("n" * 300), files / "toy.nii.gz")
    assert status == 1 and out.count("REFUSED") == 1 and out.count("ok ") == 1


def test_a_manifest_that_is_no_text_is_refused(call, files):
    refused(call("train", "all", "--cohort", files / "toy.nii.gz", "-o", files / "e"), "no CSV text")
    assert not (files / "e").exists()


@pytest.mark.parametrize("code", ["LPS", "SRA"])
def test_implant_writes_on_the_input_s_own_grid(call, files, code):
    turned(files / "toy.nii.gz", code, files / "ct.nii.gz")
    words = ("implant", files / "ct.nii.gz", files / "labels.nii.gz", "-o", files / "out", "--count", 2, 2)
    status, out, err = call(*words, "--kinds", "cyst,tiny", "--seed", 3)
    assert status == 0, err
    before, after = nibabel.load(files / "ct.nii.gz"), nibabel.load(files / "out" / "ct.nii.gz")
    drawn = nibabel.load(files / "out" / "labels.nii.gz")
    assert np.array_equal(before.affine, after.affine) and np.array_equal(before.affine, drawn.affine)
    turned(files / "labels.nii.gz", code, files / "turned.nii.gz")
    mask, new = np.asarray(nibabel.load(files / "turned.nii.gz").dataobj), np.asarray(drawn.dataobj)
    changed = np.asarray(before.dataobj) != np.asarray(after.dataobj)
    assert changed.any() and (mask[changed] == 1).all() and ((new != mask) <= (mask == 1)).all()
    table = pd.read_csv(files / "out" / "lesions.csv")
    assert len(table) == 2 and set(table.kind) <= {"cyst", "tiny"}
    refused(call(*words), "ct.nii.gz", "a free place")  # a second time: nothing is overwritten


@pytest.mark.parametrize(
    "labels, words, said",
    [
        ("empty", (), "no voxel of liver"),
        ("other_grid", (), "grid"),
        ("seven", (), "7"),
        ("labels", ("--kinds", "wart"), "wart"),
        ("labels", ("--count", "3", "1"), "count"),
        ("labels", ("--seed", "-1"), "seed"),
    ],
)
def test_implant_refuses_and_leaves_nothing(call, files, labels, words, said):
    refused(call("implant", files / "toy.nii.gz", files / f"{labels}.nii.gz", "-o", files / "out", *words), said)
    assert not (files / "out").exists()


def test_export_nnunet_writes_a_dataset_once(call, tmp_path, toy_cohort):
    words = ("export", "nnunet", toy_cohort, "-o", tmp_path / "raw", "--dataset", 12, "--name", "Toy", "--folds", 2)
    status, out, err = call(*words)
    assert status == 0 and out.strip() == str(tmp_path / "raw" / "Dataset012_Toy"), err
    about = json.loads((tmp_path / "raw" / "Dataset012_Toy" / "dataset.json").read_text())
    assert about["numTraining"] == 8 and len(list(tmp_path.glob("raw/*/imagesTs/*_0000.nii.gz"))) == 2
    refused(call(*words), "Dataset012_Toy", "--dataset")


def test_export_nnunet_refuses_what_is_not_there(call, tmp_path):
    refused(call("export", "nnunet", tmp_path / "none.csv", "-o", tmp_path / "raw"), "no such file")
    assert not (tmp_path / "raw").exists()


def test_a_header_is_known_with_its_data(tmp_path):
    """Of an MHD the file that it names counts too, and of a folder all files."""
    from workbench.lab.results import _state

    (tmp_path / "p.mhd").write_text("ElementDataFile = voxels.raw")
    (tmp_path / "voxels.raw").write_bytes(b"1")
    (tmp_path / "p.raw").write_bytes(b"1")
    first, folder = _state(tmp_path / "p.mhd"), _state(tmp_path)
    (tmp_path / "p.raw").write_bytes(b"12")
    assert _state(tmp_path / "p.mhd") == first and _state(tmp_path) != folder
    (tmp_path / "voxels.raw").write_bytes(b"12")
    assert _state(tmp_path / "p.mhd") != first
    (tmp_path / "p.mhd").write_text("no header")
    assert _state(tmp_path / "p.mhd") != first
