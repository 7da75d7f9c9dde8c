"""Claim: napari shows a result on 512 x 512 x 600 voxels in under 10 s, without a float copy of it.

The work: a made-up result folder of that size (CT int16, labels and ledger uint8, maps float32, candidates int16, gzip as the
workbench writes them), opened with the panel in a process of its own until the first picture is drawn, imports included. The peer is
what a script does without the workbench: CT, labels and one map through nibabel's `get_fdata`, which is float64. Needs a display.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch

from workbench.data.files import write_json
from workbench.data.readers import nifti
from workbench.stages import ledger
from workbench.volume import Volume, canonical_affine

SPACING = (1.0, 0.8, 0.8)
NAMES = ("labels", "ledger", "candidates", "liver_probability", "tumor_probability")


def make(folder: Path, slices: int, seed: int = 0) -> Path:
    """A noisy body with a liver and three lesions, and the result folder that a run would leave."""
    shape, rng = (slices, 512, 512), np.random.default_rng(seed)
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]

    def ball(c: tuple, r: tuple) -> np.ndarray:
        return ((z / shape[0] - c[0]) / r[0]) ** 2 + ((y / 512 - c[1]) / r[1]) ** 2 + ((x / 512 - c[2]) / r[2]) ** 2 < 1

    body, liver = ball((0.5, 0.5, 0.5), (9, 0.35, 0.45)), ball((0.5, 0.45, 0.35), (0.2, 0.2, 0.22))
    places = [((0.5, 0.45, 0.3), 0.05), ((0.55, 0.4, 0.42), 0.03), ((0.45, 0.5, 0.36), 0.015)]
    numbers = np.zeros(shape, np.int16)
    for n, (c, r) in enumerate(places, 1):
        numbers[ball(c, (r, r, r))] = n
    hu = np.where(body, np.int16(40), np.int16(-1000))
    hu[liver] = 110
    hu[numbers > 0] = 60
    for k in range(slices):
        hu[k] += rng.normal(0, 12, shape[1:]).astype(np.int16)
    codes = np.select([numbers == 3, numbers > 0, liver], [6, 2, 1], 0).astype(np.uint8)
    noise = rng.random(shape[1:], np.float32) * 0.02
    arrays = {
        "labels": np.select([(numbers > 0) & (numbers < 3), liver], [2, 1], 0).astype(np.uint8),
        "ledger": codes,
        "candidates": numbers,
        "liver_probability": np.where(liver, np.float32(0.97), noise * body),
        "tumor_probability": np.where(numbers > 0, np.float32(0.8), noise * liver),
    }
    affine = canonical_affine(SPACING)
    folder.mkdir(parents=True)
    nifti.write(Volume(torch.from_numpy(hu), SPACING, affine), folder.parent / "ct.nii.gz")
    for name in NAMES:
        nifti.write(Volume(torch.from_numpy(arrays[name]), SPACING, affine), folder / f"{name}.nii.gz")
    rows = [
        dict(candidate=n, kept=n < 3, reason="", forest_score=s, volume_ml=(r * 400) ** 3 * 4.2e-3, long_axis_mm=800 * r,
             z_mm=c[0] * slices * SPACING[0], y_mm=c[1] * 512 * SPACING[1], x_mm=c[2] * 512 * SPACING[2])
        for n, ((c, r), s) in enumerate(zip(places, (0.95, 0.6, 0.2)), 1)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "lesions.csv", index=False)
    codes_said = {str(k): v for k, v in ledger.CODES.items()}
    write_json(
        folder / "result.json", {"status": "ok", "case": "large", "input": "../ct.nii.gz", "ledger_codes": codes_said}
    )
    return folder


def peak_gib() -> float:
    """The most memory of this process: what getrusage says includes the process that began it."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20


def opened(folder: Path, peer: bool) -> dict:
    """Seconds until the first picture is drawn, and the most memory on the way, of this process."""
    os.environ["QT_API"] = "pyside6"
    began = time.monotonic()
    import napari
    from qtpy.QtWidgets import QApplication

    if peer:
        import nibabel

        viewer = napari.Viewer()
        for file in (folder.parent / "ct.nii.gz", folder / "labels.nii.gz", folder / "tumor_probability.nii.gz"):
            viewer.add_image(nibabel.load(file).get_fdata(), name=file.name)
    else:
        from workbench.lab import qa

        viewer = qa.show(folder, block=False)
    QApplication.processEvents()
    picture = viewer.screenshot(flash=False)
    took = time.monotonic() - began
    if picture[..., :3].std() < 5:
        raise SystemExit("nothing was drawn")
    used = resource.getrusage(resource.RUSAGE_SELF)
    processor = used.ru_utime + used.ru_stime
    return {
        "seconds": round(took, 1),
        "processor_seconds": round(processor, 1),
        "GiB": round(peak_gib(), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="60 slices instead of 600, without the peer")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.open:
        print(json.dumps(opened(given.open, given.peer)))
        return
    from workbench.lab.qa import why_no_window

    if why := why_no_window():
        print(f"not measured: {why}")
        return
    slices = 60 if given.quick else 600
    with TemporaryDirectory() as place:
        folder = make(Path(place) / "result", slices)
        sides = {}
        for name in ("workbench",) if given.quick else ("workbench", "peer"):
            command = [sys.executable, __file__, "--open", str(folder), *["--peer"] * (name == "peer")]
            done = subprocess.run(command, capture_output=True, text=True)
            last = done.stdout.splitlines()[-1] if done.returncode == 0 else ""
            sides[name] = json.loads(last) if last else {"failed": done.returncode, "said": done.stderr[-300:]}
            print(name, sides[name], flush=True)
    if given.json:
        write_json(given.json, {"work": f"a result of {slices} x 512 x 512 opened in napari", "device": "CPU", **sides})


if __name__ == "__main__":
    main()
