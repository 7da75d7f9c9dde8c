"""Who is trusted with what: no pickle, archives contained, servers on loopback with their token, no patient named anywhere."""

import ast
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pydicom
import pytest
import test_faults
import tiny
from test_batch import notebook

from workbench import __main__, experiment
from workbench.run import batch, tracking
from workbench.volume import Refused

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "workbench").rglob("*.py"))

# -- no door for a pickle ---------------------------------------------------------------------------------------------

FORBIDDEN = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch.load", "torch.jit.load",
    "torch.hub", "pd.read_pickle", "pandas.read_pickle", "yaml.load", "yaml.unsafe_load", "eval", "exec", "compile",
    "numpy.load", "np.load", "os.system", "extractall", "extract", "shutil.unpack_archive",
}  # fmt: skip


def doors(source: str) -> list[str]:
    """Imports and calls by which a file could run code or be unpacked; np.load counts unless it forbids pickles."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in FORBIDDEN]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in FORBIDDEN:
            found.append(node.module)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            plain = (
                name
                if name in FORBIDDEN
                else name.split(".")[-1]
                if name.split(".")[-1] in ("extractall", "extract")
                else ""
            )
            safe = any(k.arg == "allow_pickle" and ast.unparse(k.value) == "False" for k in node.keywords)
            if plain and not (plain in ("np.load", "numpy.load") and safe):
                found.append(ast.unparse(node)[:80])
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_package_has_no_door_for_a_pickle(path):
    assert doors(path.read_text()) == []


def test_notebooks_have_none_either():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
        assert doors("\n".join(re.sub(r"^[%!].*$", "", "".join(c["source"]), flags=re.M) for c in cells)) == []


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from joblib import load", "torch.load(p)", "np.load(p)", "np.load(p, allow_pickle=x)", "yaml.load(f)",
     "pd.read_pickle(p)", "eval(text)", "archive.extractall(place)"],
)  # fmt: skip
def test_a_door_would_be_found(source):
    assert doors(source) and not doors("np.load(p, allow_pickle=False)")


class Bomb:
    """What a pickle would do to whoever loads it."""

    def __reduce__(self):
        return os.mkdir, (os.environ["BOMB"],)


@pytest.mark.parametrize("kind", ["weights", "forest", "array"])
def test_a_malicious_file_does_nothing(tmp_path, monkeypatch, kind):
    import pickle

    went_off = tmp_path / "it ran"
    monkeypatch.setenv("BOMB", str(went_off))
    data = pickle.dumps(Bomb())
    (tmp_path / "bomb").write_bytes(data)
    subprocess.run([sys.executable, "-m", "pickle", tmp_path / "bomb"], check=True, capture_output=True)  # it is a bomb
    assert went_off.exists()
    went_off.rmdir()
    with pytest.raises((Refused, ValueError)):
        if kind == "weights":
            test_faults.net_in(tmp_path, lambda _: data)
            test_faults.load_net(tmp_path)
        elif kind == "forest":
            test_faults.strange_forest(data)(tmp_path, None)
        else:
            (tmp_path / "liver" / "maps").mkdir(parents=True)
            np.save(tmp_path / "liver" / "maps" / "c.npy", np.array([Bomb()], dtype=object))
            experiment.Experiment.array(type("E", (), {"path": lambda _, s: tmp_path / s})(), "liver", "maps", "c")
    assert not went_off.exists()


def test_weights_cannot_name_a_file_elsewhere(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    held = test_faults.net_in(folder)
    held = held.rename(tmp_path / "elsewhere.safetensors")
    about = json.loads((folder / "fold0.json").read_text()) | {"file": "../elsewhere.safetensors"}
    (folder / "fold0.json").write_text(json.dumps(about))
    with pytest.raises(Refused, match="no file"):
        test_faults.load_net(folder)


# -- servers ----------------------------------------------------------------------------------------------------------


def recipe(target: str) -> str:
    """What `make TARGET` would do."""
    return subprocess.run(["make", "-n", "-o", ".venv", "-o", ".venv/.installed", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout  # fmt: skip


def test_the_words_of_the_servers():
    lab, store = recipe("lab"), recipe("mlflow")
    assert re.search(r"jupyter lab --ip 127\.0\.0\.1 ", lab) and "--host 127.0.0.1 " in store
    for word in ("0.0.0.0", "token", "password", "allow_origin", "disable_check_xsrf", "allow_remote_access"):
        assert word not in lab + store, f"{word}: the defaults are kept"
    for path in [*MODULES, ROOT / "Makefile"]:
        assert "0.0.0.0" not in path.read_text()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def listening(port: int) -> set[str]:
    """The addresses, as the kernel writes them, on which a port is listened to."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == "0A" and int(local.split(":")[1], 16) == port:
                found.add(local.split(":")[0])
    return found


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("target", ["lab", "mlflow"])
def test_a_started_server_is_alone_with_this_machine(target, tmp_path):
    port = free_port()
    words = recipe(target)
    words = words[words.index(".venv/bin/jupyter" if target == "lab" else ".venv/bin/mlflow") :].strip()
    words = re.sub(r"--port \d+", f"--port {port}", words).replace(str(ROOT / "mlruns"), str(tmp_path))
    words += " --no-browser" if target == "lab" else ""
    env = os.environ | {"HOME": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path / "run")}
    server = subprocess.Popen(
        ["bash", "-c", f"exec {words}"], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 200
        while not listening(port):
            assert server.poll() is None and time.monotonic() < deadline, server.stdout.read().decode()[-2000:]
            time.sleep(0.2)
        assert listening(port) == {"0100007F"}  # 127.0.0.1 and no other
        if target == "lab":
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/contents", timeout=60)
            assert refused.value.code == 403, "without its token nothing is shown"
    finally:
        os.killpg(server.pid, 15)
        server.wait(60)


# -- patients ---------------------------------------------------------------------------------------------------------

IDENTITY = {
    "PatientName": "Quatermain^Allan", "PatientID": "PID-90210-X", "PatientBirthDate": "19010203", "PatientAddress": "Durban Road 7",
    "AccessionNumber": "ACC-556677", "InstitutionName": "St Marys Infirmary", "ReferringPhysicianName": "Goodcaptain^John",
    "OtherPatientIDs": "OTH-31337", "PatientComments": "Allans comment", "StudyDescription": "Liver of Quatermain",
    "SeriesDescription": "portal Quatermain", "StudyID": "STU-4242", "PatientTelephoneNumbers": "0031-555-0199",
}  # fmt: skip


def dicom_of(ct, folder: Path) -> Path:
    """A toy CT as a DICOM series whose headers name a patient in every way."""
    array = ct.array.numpy()
    z, y, x = ct.spacing_mm
    folder.parent.mkdir(parents=True)
    return test_faults.series(
        folder, len(array), z,
        ImagePositionPatient=lambda k: [0, 0, z * k], Rows=array.shape[1], Columns=array.shape[2], PixelSpacing=[y, x],
        PixelData=lambda k: (array[k] + 1024).astype(np.uint16).tobytes(), **IDENTITY,
    )  # fmt: skip


def secrets() -> list[bytes]:
    words = {w for value in IDENTITY.values() for w in (value, *value.split("^"))} | {"Quatermain"}
    return [w.encode() for w in words if len(w) > 5]


def told_in(folder: Path) -> list[str]:
    """Files below a folder that hold a word of the identity, also inside gzip and in UTF-16."""
    import gzip

    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        found += [
            f"{path.name}: {s.decode()}" for s in secrets() if s in data or s.decode().encode("utf-16-le") in data
        ]
    return found


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_no_patient_is_named_anywhere(trained, tmp_path, capfd, monkeypatch):
    """check, segment, a cohort of DICOM, its notebook, MLflow and the reports."""
    scan = dicom_of(tiny.patient(50)[0], tmp_path / "case7" / "dicom")
    assert pydicom.dcmread(scan / "0.dcm").PatientName == IDENTITY["PatientName"] and told_in(scan)
    out = tmp_path / "out"

    def call(*words) -> None:
        monkeypatch.setattr(sys, "argv", ["workbench", *map(str, words)])
        try:
            __main__.main()
        except SystemExit as end:
            assert not end.code, capfd.readouterr()

    call("check", scan)
    call("segment", scan, "--models", trained.folder, "-o", out, "--device", "cpu")
    call("report", out / "case7", "-o", out / "again.html")
    from workbench.data.readers import nifti

    rows = []
    for n in range(3):
        ct, labels = tiny.patient(n)
        dicom_of(ct, tmp_path / "cohort" / f"c{n}" / "dicom")
        nifti.write(labels, tmp_path / "cohort" / f"c{n}" / "labels.nii.gz")
        rows.append([f"c{n}", f"p{n}", f"c{n}/dicom", f"c{n}/labels.nii.gz"])
    manifest = test_faults.manifest(tmp_path / "cohort", *rows, columns=("case", "patient", "ct", "labels"))
    with (
        patch.dict(experiment.PRESETS, toy=tiny.settings),
        patch.object(tracking, "default_store", lambda: out / "mlruns"),
    ):
        call("train", "cohort", "--cohort", manifest, "-o", out / "e", "--preset", "toy", "--device", "cpu")
        book = notebook(
            tmp_path / "01_look.ipynb",
            "from workbench.data import readers\nfrom workbench.experiment import Experiment\n"
            "e = Experiment(experiment, 'cpu')\nv = readers.read(e.manifest.parent / 'c0' / 'dicom')\nprint(v, v.name)\ne.cases()",
        )
        outcome = batch.run(book, out / "e")
        assert outcome.ok, outcome.error
        assert tracking.sync(out / "e").ok
    call("report", out / "e", "-o", out / "e" / "report.html")
    (tmp_path / "cohort" / "c1" / "dicom" / "3.dcm").unlink()
    with pytest.raises(AssertionError):  # and what is refused
        call("check", tmp_path / "cohort" / "c1" / "dicom")
    said = capfd.readouterr()
    (out / "said.txt").write_text(said.out + said.err)
    assert (out / "mlruns" / "mlflow.db").is_file() and (out / "case7" / "report.html").is_file()
    assert told_in(out) == []
