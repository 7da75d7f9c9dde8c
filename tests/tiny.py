"""A cohort of toy patients, small enough to train every stage in a test: a ball of liver, dark balls of tumor, bright look-alikes."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from workbench import experiment
from workbench.data import files
from workbench.data.readers import nifti
from workbench.nets.fit import FitSettings
from workbench.nets.network import NetworkSettings
from workbench.stages import boundary, forest, selection
from workbench.volume import Volume, canonical_affine

SPACING = (4.0, 3.0, 3.0)
SHAPE = (14, 40, 48)


def patient(seed: int) -> tuple[Volume, Volume]:
    """CT and labels of one toy patient: liver 110 HU, five tumors at 50, three look-alikes at 80, noise of 12 HU."""
    rng = np.random.default_rng(seed)
    at = np.stack(np.meshgrid(*[np.arange(n) * s for n, s in zip(SHAPE, SPACING)], indexing="ij"), -1)
    centre = np.array([28.0, 60.0, 66.0]) + rng.normal(0, 2, 3)
    ball = lambda c, r: np.linalg.norm(at - c, axis=-1) < r
    hu = np.full(SHAPE, -90.0)
    body = np.linalg.norm((at - centre)[..., 1:] / (58, 68), axis=-1) < 1
    hu[body] = 40
    liver = np.linalg.norm((at - centre) / (24, 40, 46), axis=-1) < 1
    hu[liver] = 110
    tumor, placed = np.zeros(SHAPE, bool), []
    while len(placed) < 8:
        c = centre + rng.uniform(-1, 1, 3) * (16, 28, 34)
        r = rng.uniform(6, 9)
        if np.linalg.norm((c - centre) / (24, 40, 46)) < 0.8 and all(np.linalg.norm(c - p) > 19 for p in placed):
            placed.append(c)
            spot = ball(c, r) & liver
            hu[spot] = 50 if len(placed) <= 5 else 82
            if len(placed) <= 5:
                tumor |= spot
        elif rng.random() < 0.002:
            break
    hu += rng.normal(0, 12, SHAPE)
    affine = canonical_affine(SPACING)
    labels = liver.astype(np.uint8)
    labels[tumor] = 2
    name = f"toy-{seed:02d}"
    ct = Volume(torch.from_numpy(hu.round().astype(np.int16)), SPACING, affine, name)
    return ct, Volume(torch.from_numpy(labels), SPACING, affine, name)


def cohort(folder: Path, training: int = 8, held_out: int = 2) -> Path:
    """Manifest of toy patients written below `folder`."""
    rows = []
    for seed in range(training + held_out):
        ct, labels = patient(seed)
        place = folder / ct.name
        place.mkdir(parents=True, exist_ok=True)
        nifti.write(ct, place / "ct.nii.gz")
        nifti.write(labels, place / "labels.nii.gz")
        rows.append([ct.name, f"patient-{seed:02d}", f"{ct.name}/ct.nii.gz", f"{ct.name}/labels.nii.gz",
                     "train" if seed < training else "test"])  # fmt: skip
    pd.DataFrame(rows, columns=["case", "patient", "ct", "labels", "split"]).to_csv(
        folder / "manifest.csv", index=False
    )
    return folder / "manifest.csv"


def settings() -> experiment.Settings:
    """The demo's stages with toy nets and short training."""
    demo = experiment.demo()
    net = NetworkSettings(width=8, growth=6, layers=(1, 2, 2), stem_stride=2)
    fit = FitSettings(steps=60, batch=8, check_every=20, rate=1e-2)

    def stage(s, extra):
        slabs = replace(s.cascade.slabs, crop=(32, 32))
        return replace(s, cascade=replace(s.cascade, network=replace(net, extra=extra), slabs=slabs, fit=fit))

    return replace(
        demo,
        pixel_mm=3.0,
        folds=2,
        liver=replace(stage(demo.liver, 0), pixel_mm=3.0, minimum_ml=20.0),
        tumor=stage(demo.tumor, 1),
        selection=selection.SelectionSettings(
            min_lesions=8, min_class=2, min_repeated=4, min_patients=2, draws=6, trees=20, inner_folds=2, resamples=3
        ),
        forest=forest.ForestSettings(
            trees=30, min_candidates=4, min_class=1, leaf_choices=(3, 1), inner_folds=2, inner_trees=5
        ),
        boundary=replace(boundary.DEMO, steps=10, batch=2),
    )


def copied(made, folder: Path) -> Path:
    """A copy of an experiment, in `folder`, that finds its manifest and the experiment that it began with."""
    shutil.copytree(made.folder, folder)
    about = files.read_json(folder / "experiment.json")
    about["manifest"] = os.path.relpath(made.manifest, folder)
    about["start"] = os.path.relpath(made.start, folder) if made.start else None
    files.write_json(folder / "experiment.json", about)
    return folder
