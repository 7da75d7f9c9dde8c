"""Killed at any moment, out of room, refused by the disk, held by another: nothing is lost, and the end is the same bit for bit.

The machinery and the long campaign are benchmarks/survive.py; here a few moments of each job.
"""

import errno
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import nbformat
import pytest
import tiny
import torch

from workbench import __main__, experiment
from workbench.data import cohort, files
from workbench.data.files import sweep, write_atomic
from workbench.data.readers import nifti
from workbench.experiment import pipeline, table
from workbench.run import batch, tracking
from workbench.run.commands import shared
from workbench.volume import Refused

ROOT = Path(__file__).resolve().parents[1]
_spec = importlib.util.spec_from_file_location("survive", ROOT / "benchmarks" / "survive.py")
survive = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(survive)

EARLY = ("cohort", "liver")


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """Manifest of four toy patients."""
    return tiny.cohort(tmp_path_factory.mktemp("few"), 3, 1)


def early(manifest: Path):
    return survive.training(manifest, survive.brisk(6, 0.0), EARLY)


@pytest.fixture(scope="module")
def undisturbed(few, tmp_path_factory) -> dict:
    """What cohort and liver of these patients hold when nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed") / "e"
    assert survive.attempt(early(few), folder)[0] == 0, (folder.parent / "e.log").read_text()
    return survive.facts(folder)


def books(folder: Path) -> Path:
    """Two notebooks of a moment each."""
    for number in (1, 2):
        cells = [
            nbformat.v4.new_markdown_cell("How much?"),
            nbformat.v4.new_code_cell("n = 1", metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell(f"import time\ntime.sleep(0.3)\nprint({number} + 1)"),
            nbformat.v4.new_code_cell(f"time.sleep(0.3)\n{number} * 21"),
        ]
        folder.mkdir(exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"0{number}_book.ipynb")
    return folder


def phantoms(folder: Path) -> None:
    torch.set_num_threads(1)
    with patch.object(cohort, "cores", lambda: 1):
        cohort.write_phantoms(folder, 2, 3)


def batch_of(where: Path):
    def job(folder: Path) -> None:
        with patch.object(batch, "folder", lambda: where):
            assert all(o.ok for o in batch.run_all(folder, progress=survive.quiet))

    return job


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", ["training", "segment", "phantoms of the demo", "notebooks"])
def test_killed_and_gone_on_with(name, few, request, tmp_path):
    if name == "training":
        job, kills = early(few), 2
    elif name == "segment":
        nifti.write(tiny.patient(50)[0], tmp_path / "toy.nii.gz")
        job, kills = survive.segmenting(tmp_path / "toy.nii.gz", request.getfixturevalue("trained").folder), 2
    elif name == "notebooks":
        job, kills = batch_of(books(tmp_path / "books")), 2
    else:
        job, kills = phantoms, 1
    done = survive.campaign(name, job, kills, tmp_path, along=name == "notebooks")
    print(done)
    assert done["kills"] == kills and done["equal"] >= 1


def test_a_difference_would_be_seen(few, undisturbed, tmp_path):
    """Another seed, a voxel, a half file: each is told."""
    folder = tmp_path / "e"
    assert survive.attempt(survive.training(few, replace(survive.brisk(6, 0.0), seed=1), ("cohort",)), folder)[0] == 0
    assert "experiment.json" in survive.apart(undisturbed, survive.facts(folder))
    before, path = survive.facts(folder), next(folder.glob("cohort/hu/*.npy"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert survive.apart(before, survive.facts(folder)) == [f"cohort/hu/{path.name}"]
    assert survive.whole(folder) > 5
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError):
        survive.whole(folder)
    (folder / ".a.1.part").touch()
    assert survive.left_over(folder) == [".a.1.part"]


def test_what_dead_processes_left_is_swept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f".a.txt.{dead.pid}.part", f".a.txt.{os.getpid()}.part", f".b.{dead.pid}.part", "a.part"):
        (tmp_path / name).touch()
    (tmp_path / f".c.{dead.pid}.old").mkdir()
    sweep(tmp_path, "a.txt")
    assert len(list(tmp_path.iterdir())) == 4
    sweep(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {f".a.txt.{os.getpid()}.part", "a.part"}


# -- the disk ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path):
    """A file system of 96 KB, which `remount(options)` changes; skipped where none can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*words: str) -> bool:
        return subprocess.run(["mount", *words], capture_output=True).returncode == 0

    if os.geteuid() != 0 or not mount("-t", "tmpfs", "-o", "size=96k", "none", str(place)):
        pytest.skip("no file system can be mounted here")
    yield place, lambda options: mount("-o", f"remount,{options}", str(place))
    subprocess.run(["umount", "-l", str(place)], check=True)


def by_command(few: Path, folder: Path) -> None:
    """`workbench train cohort` with toy settings, as the command line does it."""
    made = {"toy": lambda: survive.brisk(6, 0.0)}
    with patch.object(experiment, "PRESETS", made), patch.object(tracking, "sync", lambda *_: ""):
        for stage in EARLY:
            sys.argv = ["workbench", "train", stage, "--cohort", str(few), "-o", str(folder), "--preset", "toy", "--device", "cpu"]  # fmt: skip
            try:
                __main__.main()
            except SystemExit as end:
                if end.code:
                    raise


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_and_is_gone_on_from(few, undisturbed, disk):
    place, remount = disk
    folder = place / "e"
    status, _ = survive.attempt(lambda d: by_command(few, d), folder)
    said = (place / "e.log").read_text() or "nothing could be written"
    assert status == 2 and "No space left on device" in said and "Traceback" not in said, said
    assert survive.whole(folder) >= 1 and survive.left_over(folder) == []
    assert not (folder / "cohort" / "stage.json").exists()
    remount("size=64m")
    assert survive.attempt(lambda d: by_command(few, d), folder)[0] == 0
    assert survive.apart(undisturbed, survive.facts(folder)) == []


def told(*words: object) -> tuple[int, str]:
    """Exit status and stderr of a command."""
    ran = subprocess.run(
        [sys.executable, "-m", "workbench", *map(str, words)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    return ran.returncode, ran.stderr


@pytest.mark.slow
def test_a_full_or_read_only_disk_gets_no_part_of_a_result(trained, disk, tmp_path):
    place, remount = disk
    nifti.write(tiny.patient(50)[0], tmp_path / "toy.nii.gz")
    asked = ["segment", tmp_path / "toy.nii.gz", "--models", trained.folder, "--device", "cpu", "-o", place / "out"]
    status, said = told(*asked)
    assert status == 2 and said.endswith(f"error: {place}/out/toy: No space left on device\n"), said
    assert not (place / "out").exists()
    assert remount("ro")
    status, said = told(*asked)
    assert status == 2 and "not writable (Read-only file system)" in said and len(said.splitlines()) == 1, said
    assert remount("rw,size=64m") and told(*asked)[0] == 0
    assert survive.whole(place / "out" / "toy") > 5 and survive.left_over(place) == []


@pytest.mark.slow
def test_a_notebook_on_a_full_or_read_only_disk_is_not_taken_for_done(disk, tmp_path):
    place, remount = disk
    (book, _), made = sorted(books(tmp_path / "books").iterdir()), place / "e" / "notebooks" / "01_book.ipynb"
    room = place / "room"
    room.write_bytes(bytes(92 << 10))
    status, said = told("run", book, "-o", place / "e")
    assert status == 2 and f"error: {made}: No space left on device" in said and "Traceback" not in said, said
    assert not made.exists() and not made.with_suffix(".json").exists()
    assert remount("ro")
    status, said = told("run", book, "-o", place / "e")
    assert status == 2 and "not writable (Read-only file system)" in said, said
    assert remount("rw,size=64m")
    status, said = told("run", book, "-o", place / "e")
    assert status == 0 and made.exists() and not list(made.parent.glob("*.partial.*")), said


@pytest.mark.slow
def test_a_file_too_large_for_its_quota_leaves_nothing_and_is_gone_on_from(few, undisturbed, tmp_path):
    def limited(folder: Path) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        by_command(few, folder)

    folder = tmp_path / "e"
    status, _ = survive.attempt(limited, folder)
    assert status == 2 and os.strerror(errno.EFBIG) in (tmp_path / "e.log").read_text()
    assert survive.whole(folder) >= 1 and survive.left_over(folder) == []
    assert survive.attempt(early(few), folder)[0] == 0
    assert survive.apart(undisturbed, survive.facts(folder)) == []


def test_a_read_only_file_system_is_said_at_the_start(disk):
    place, remount = disk
    assert remount("ro")
    with pytest.raises(Refused, match="not writable .Read-only file system.; expected a folder that can be written"):
        shared.writable(place / "e")


def test_a_write_that_finds_no_room_leaves_the_former_file(disk):
    place, _ = disk
    write_atomic(place / "a", b"first")
    with pytest.raises(OSError, match="No space left"):
        write_atomic(place / "a", bytes(1 << 20))
    assert (place / "a").read_bytes() == b"first" and len(list(place.iterdir())) == 1


# -- signals and a second process -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_is_told_marked_and_gone_on_from(few, undisturbed, tmp_path, number, status):
    folder, mark = tmp_path / "e", tmp_path / "e" / "liver" / "killed.json"

    def slowly(at: Path) -> None:
        row = table.STAGES["liver"]
        made = row.call("run")
        with patch.dict(table.STAGES, liver=replace(row, run=lambda *a: (time.sleep(60), made(*a)))):
            by_command(few, at)

    child = os.fork()
    if child == 0:
        os._exit(survive.attempt(slowly, folder, 0.0, 0)[0] & 255)
    os.kill(child, 0)
    deadline = time.monotonic() + 60
    while not (folder / "liver" / "started.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (worker,) = (int(p) for p in Path(f"/proc/{child}/task/{child}/children").read_text().split())
    os.kill(worker, number)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status
    said = (tmp_path / "e.log").read_text()
    assert said.rstrip().endswith("interrupted: the same command goes on from here") and "Traceback" not in said
    assert json.loads(mark.read_text())["stage"] == "liver" and not (folder / "liver" / "stage.json").exists()
    assert survive.attempt(early(few), folder)[0] == 0 and not mark.exists()
    assert survive.apart(undisturbed, survive.facts(folder)) == []


def test_a_killed_run_is_marked_in_the_store_until_it_is_gone_on_with(tmp_path):
    import fake_folders

    made = fake_folders.experiment(tmp_path / "e", results=False)
    (made / "liver" / "killed.json").write_text("{}")

    def status() -> str:
        assert tracking.sync(made, tmp_path / "mlruns").ok
        runs = tracking._Store(tmp_path / "mlruns").runs(tracking.folder_key(made))
        return next(r.info.status for r in runs if "mlflow.parentRunId" not in r.data.tags)

    assert status() == "KILLED"
    (made / "liver" / "killed.json").unlink()
    assert status() == "FINISHED"


def test_a_second_process_is_told_who_is_first(few, tmp_path):
    folder = tmp_path / "e"
    made = experiment.Experiment.create(folder, few, survive.brisk(6), "cpu", survive.quiet)
    first = os.fork()
    if first == 0:
        with files.held(folder):
            (tmp_path / "held").touch()
            time.sleep(60)
        os._exit(0)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    try:
        with pytest.raises(Refused, match=f"in use by process {first} on .*; expected an experiment that nobody else"):
            pipeline.run(made, "cohort")
        assert not (folder / "cohort").exists()
    finally:
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
    pipeline.run(made, "cohort")  # a lock dies with its holder
    assert made.finished("cohort")
