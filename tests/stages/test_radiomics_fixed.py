"""Descriptors on voxels of a fixed size: less moved by the scan's own, no lesion lost, and resolution among the perturbations."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import tiny
import torch

from workbench import experiment
from workbench.data import files, phantom
from workbench.data.files import from_dict
from workbench.experiment import Experiment, pipeline, segmentation
from workbench.experiment.table import before
from workbench.masks import numbered
from workbench.stages import radiomics
from workbench.stages.radiomics import fixed
from workbench.volume import Refused, resample, resample_labels, shape_at

GRID = radiomics.RadiomicsSettings(grid_mm=(3.0, 1.5, 1.5))


def scans(seed: int) -> list[fixed.Scan]:
    """Liver, and its tumors, of one phantom on fine and on coarse voxels."""
    made = phantom.generate(seed, "fine")
    hu, labels = made.ct.array.float(), made.labels.array
    out = []
    for mm in (made.ct.spacing_mm, (5.0, 2.4, 2.4)):
        shape = shape_at(tuple(hu.shape), made.ct.spacing_mm, mm)
        on = resample_labels(labels, shape)
        spacing = tuple(a * n / m for a, n, m in zip(made.ct.spacing_mm, hu.shape, shape))
        out.append(fixed.Scan(resample(hu, shape), numbered(on == 2), spacing, on > 0))
    return out


def test_a_lesion_on_fine_and_coarse_voxels_is_more_alike_on_a_fixed_grid():
    """Share of texture descriptors that differ by more than 20 %, of lesions that both scans hold."""
    names = radiomics.named("texture")
    apart = {"own": [], "fixed": []}
    for seed in (3, 4, 8):
        fine, coarse = scans(seed)
        coarse_at = [int(coarse.lesions[tuple(int(v) for v in p)]) for p in _middles(fine, coarse)]
        for what, settings in (("own", radiomics.RadiomicsSettings()), ("fixed", GRID)):
            one, other = (
                radiomics.steady(s.image, s.lesions, s.spacing_mm, s.liver, names, settings)[0].set_index("label")
                for s in (fine, coarse)
            )
            for label, twin in enumerate(coarse_at, 1):
                if twin and (fine.lesions == label).sum() > 200:
                    a, b = one.loc[label, list(names)].astype(float), other.loc[twin, list(names)].astype(float)
                    apart[what].append(float(((a - b).abs() > 0.2 * a.abs().clip(lower=1e-6)).mean()))
    assert len(apart["own"]) >= 3 and np.mean(apart["fixed"]) < np.mean(apart["own"]) - 0.1


def _middles(fine: fixed.Scan, coarse: fixed.Scan):
    ratio = torch.tensor([m / n for n, m in zip(fine.lesions.shape, coarse.lesions.shape)])
    for label in range(1, int(fine.lesions.max()) + 1):
        yield (((fine.lesions == label).nonzero().float().mean(0) + 0.5) * ratio).long().tolist()


def test_no_lesion_is_lost_on_a_coarser_grid():
    lesions = torch.zeros(12, 20, 20, dtype=torch.long)
    lesions[3, 4, 4], lesions[7, 11, 13], lesions[9, 2:4, 2:4] = 1, 5, 7
    scan = fixed.Scan(torch.zeros(lesions.shape), lesions, (1.0, 1.0, 1.0), None).on((3.0, 4.0, 4.0))
    assert tuple(scan.lesions.shape) == (4, 5, 5) and scan.spacing_mm == (3.0, 4.0, 4.0)
    assert sorted(set(scan.lesions.unique().tolist())) == [0, 1, 5, 7]
    assert int(scan.lesions[1, 1, 1]) == 1 and int(scan.lesions[2, 2, 3]) == 5
    both = torch.zeros(12, 20, 20, dtype=torch.long)
    both[0, 4, 4], both[2, 6, 6] = 1, 2  # the same voxel is nearest to both
    scan = fixed.Scan(torch.zeros(both.shape), both, (1.0, 1.0, 1.0), None).on((3.0, 4.0, 4.0))
    assert sorted(scan.lesions[scan.lesions > 0].tolist()) == [1, 2]


def test_without_a_grid_nothing_changes():
    fine, _ = scans(3)
    plain, values = radiomics.steady(fine.image, fine.lesions, fine.spacing_mm, fine.liver)
    again, more = radiomics.steady(
        fine.image, fine.lesions, fine.spacing_mm, fine.liver, settings=radiomics.RadiomicsSettings(), resolution=True
    )
    assert plain.equals(again) and np.array_equal(values, more[:-1], equal_nan=True) and len(more) == len(values) + 1
    assert np.isfinite(more[-1]).mean() > 0.9 and not np.allclose(more[-1], more[0], equal_nan=True)


def test_a_grid_must_have_three_positive_lengths():
    with pytest.raises(Refused, match="radiomics.grid_mm"):
        radiomics.RadiomicsSettings(grid_mm=(1.0, 0.0, 1.0))
    with pytest.raises(Refused, match="radiomics.grid_mm"):
        radiomics.RadiomicsSettings(grid_mm=(1.0, 1.0))


def test_an_experiment_on_a_fixed_grid_trains_and_segments(tmp_path):
    settings = replace(tiny.settings(), radiomics=radiomics.RadiomicsSettings((3.0, 4.0, 4.0), True))
    made = Experiment.create(tmp_path / "e", tiny.cohort(tmp_path / "c"), settings, "cpu")
    for stage in before("metrics"):
        pipeline.run(made, stage)
    case = made.cases("test").case.iloc[0]
    models = segmentation.Models.load(made.folder, "cpu")
    pieces = made.array("candidates", "labels", case)
    asked = segmentation.describe(pieces, segmentation.Maps.of(made, case), models)
    table = made.table("radiomics", "features.csv", dtype={"case": str})
    stored = table[table.case == case][list(models.forest.names)]
    assert len(stored) and np.allclose(asked.to_numpy(), stored.to_numpy(), rtol=1e-5, equal_nan=True)
    kinds = json.loads((made.path("radiomics") / "perturbations.json").read_text())
    assert kinds[-1] == {"name": "resolution", "kind": "systematic"}
    assert len(np.load(made.path("radiomics") / "repeats.npy")) == len(kinds)


def test_experiments_that_know_no_grid_keep_theiridentity(trained, tmp_path):
    """0.1.0 wrote no settings of this stage: what it finished still holds."""
    made = Experiment(tiny.copied(trained, tmp_path / "old"), "cpu")
    about = files.read_json(made.folder / "experiment.json")
    del about["settings"]["radiomics"]
    files.write_json(made.folder / "experiment.json", about)
    old = Experiment(made.folder, "cpu")
    assert old.settings.radiomics == radiomics.RadiomicsSettings()
    assert set(old.identity("radiomics")["settings"]) == {"pixel_mm", "slice_mm", "folds", "seed", "implants"}
    assert from_dict(experiment.Settings, asdict(experiment.paper())) == experiment.paper()
    assert experiment.paper().radiomics.grid_mm == (2.0, 1.0, 1.0)
