"""Each of the 707 standard descriptors against PyRadiomics 3.0.1, float64 on the CPU, over varied and real regions.

Relative difference at most 1e-6. Where PyRadiomics has a value and the engine has none, or the reverse, they differ.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from test_radiomics import STANDARD, blobs

from workbench.stages import radiomics
from workbench.stages.radiomics import compiled

pytest.importorskip("radiomics")
TOLERANCE = 1e-6


def apart(image, labels, spacing, bin_width=25.0) -> pd.DataFrame:
    """Relative differences `[region, descriptor]`, the larger of those with compiled loops and with torch's own."""

    def values(engine):
        return radiomics.describe(image, labels, spacing, engine=engine, bin_width=bin_width)[STANDARD].to_numpy()

    with pytest.MonkeyPatch.context() as without:
        without.setattr(compiled, "library", lambda: None)
        own = values("torch")
    theirs = values("pyradiomics")
    return pd.concat([compared(ours, theirs) for ours in (own, values("torch"))]).groupby(level=0).max()


def compared(ours, theirs) -> pd.DataFrame:
    difference = np.abs(ours - theirs) / np.maximum(np.abs(theirs), 1e-8)
    difference = np.where(np.isnan(ours) & np.isnan(theirs), 0, difference)
    return pd.DataFrame(np.nan_to_num(difference, nan=np.inf), columns=STANDARD)


def spheres(diameters, spacing, seed):
    """One region of each diameter (mm) in correlated noise, some cut by the volume's border."""
    reach = [int(max(diameters) / 2 / s) + 6 for s in spacing]
    shape = (2 * reach[0], 2 * reach[1], 2 * reach[2] * len(diameters))
    draw = np.random.default_rng(seed)
    image = 90 + 40 * ndimage.gaussian_filter(draw.normal(size=shape), (0.6, 0.8, 0.8))
    labels = np.zeros(shape, np.int32)
    z, y, x = (np.arange(n) * s for n, s in zip(shape, spacing))
    for k, diameter in enumerate(diameters):
        centre = [reach[0] * spacing[0], reach[1] * spacing[1], (2 * k + 1) * reach[2] * spacing[2]]
        if k % 3 == 2:
            centre[0] = diameter / 4
        square = (z - centre[0])[:, None, None] ** 2 + (y - centre[1])[:, None] ** 2 + (x - centre[2]) ** 2
        labels[square <= (diameter / 2 + 0.1) ** 2] = k + 1
    return torch.from_numpy(image), torch.from_numpy(labels), spacing


@pytest.fixture(scope="module")
def made_up():
    """Blobs and spheres: 2 voxels to 80 mm, anisotropic, at the border, bins of 5 to 60 HU."""
    parts = [apart(*blobs(seed, dtype)) for seed, dtype in enumerate(("i2", "f4", "f8", "i2"))]
    parts += [apart(*blobs(10 + k, "f8", regions=4), bin_width=width) for k, width in enumerate((5.0, 10.0, 60.0))]
    parts.append(apart(*spheres((4, 8, 12, 20, 30), (2.0, 1.0, 1.1), 1)))
    parts.append(apart(*spheres((80,), (3.0, 2.0, 2.0), 2)))
    line = torch.zeros((9, 11, 10), dtype=torch.int64)
    line[4, 5, 4:6] = 1  # 1 mm: two voxels of half a millimetre
    image = 50 + 30 * torch.randn(line.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    parts.append(apart(image, line, (0.5, 0.5, 0.5)))
    table = pd.concat(parts)
    assert len(table) >= 30
    return table


@pytest.fixture(scope="module")
def real(realdata):
    """The tumors of four real patients: at most four a scan, the largest of under 30 ml and three smaller ones."""
    nib = pytest.importorskip("nibabel")
    parts = []
    for row in pd.read_csv(realdata / "cohort.csv").itertuples():
        if row.tumors == 0 or not row.ct.endswith(".nii.gz"):
            continue
        ct, truth = (nib.load(realdata / path) for path in (row.ct, row.labels))
        spacing = tuple(float(s) for s in ct.header.get_zooms()[::-1])
        pieces, _ = ndimage.label((np.asarray(truth.dataobj) == 2).T, np.ones((3, 3, 3)))
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        wanted = [k for k in np.argsort(-sizes) if 3 <= sizes[k] and sizes[k] * np.prod(spacing) < 30_000]
        if not wanted:  # only large ones: minutes in PyRadiomics
            continue
        chosen = wanted[:: max(1, len(wanted) // 4)][:4]
        box = tuple(
            slice(max(0, s.start - 12) // 2 * 2, s.stop + 12)
            for s in ndimage.find_objects(np.isin(pieces, chosen).astype(int))[0]
        )
        labels = np.where(np.isin(pieces, chosen), pieces, 0)[box].astype(np.int32)
        parts.append(
            apart(
                torch.from_numpy(np.ascontiguousarray(np.asarray(ct.dataobj).T[box])), torch.from_numpy(labels), spacing
            )
        )
    table = pd.concat(parts)
    assert len(table) >= 10
    return table


@pytest.mark.parametrize("name", STANDARD)
def test_on_made_up_regions(made_up, name):
    assert made_up[name].max() <= TOLERANCE


@pytest.mark.realdata
@pytest.mark.parametrize("group", ["intensity", "texture", "shape", "wavelet"])
def test_on_real_regions(real, group):
    names = radiomics.CATALOGUE[radiomics.CATALOGUE.group == group]["name"]
    worst = real[names].max()
    assert not len(worst[worst > TOLERANCE])
