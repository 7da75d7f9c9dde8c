"""The engine's compiled loops against torch's own: the same counts, and the same descriptors to the last digits."""

import numpy as np
import pytest
import torch
from test_radiomics import blobs

from workbench import masks
from workbench.stages import radiomics
from workbench.stages.radiomics import compiled, discretise, glcm, ragged, texture, wavelet
from workbench.stages.radiomics.texture import Cells

pytestmark = pytest.mark.skipif(compiled.library() is None, reason="the loops are not compiled here: no C compiler")


@pytest.fixture
def by_torch(monkeypatch):
    def run(work):
        with monkeypatch.context() as without:
            without.setattr(compiled, "library", lambda: None)
            return work()

    return run


def levels_of(image, labels, spacing, bin_width):
    found = ragged.find(labels)
    extent = (found.high - found.low + 1).amax(0).tolist()
    boxes = ragged.crop(image, labels, None, spacing, found, list(range(found.labels.numel())), extent)
    values = boxes.hu.flatten()[boxes.voxels.at]
    images = torch.stack([values, values.flip(0), torch.full_like(values, 7.0)])
    return discretise.discretise(images, boxes.voxels, torch.zeros(boxes.count), bin_width)


def filled(cells: Cells) -> dict:
    keys = zip(*(v.tolist() for v in (cells.owner, cells.i, cells.j)))
    return dict(zip(keys, cells.p.tolist()))


def fresh(levels):
    return discretise.Levels(levels.voxels, levels.level, levels.top, levels.constant, levels.beyond)


@pytest.mark.parametrize("bin_width", [0.2, 5.0, 25.0, 500.0])
def test_counts_are_the_same(by_torch, bin_width):
    levels = levels_of(*blobs(3, "f8"), bin_width)
    assert (levels.level.dtype == torch.int16) == (bin_width < 1)  # two bytes a level are read, too
    theirs = fresh(levels)

    def counted():
        runs = texture.runs(theirs)
        zones = Cells.of(theirs, *texture.zones(theirs))
        dependences = Cells.of(theirs, theirs.row.flatten(), texture.dependences(theirs).flatten())
        return runs, filled(zones), filled(dependences), texture.distances(theirs), theirs.paired

    runs, zones, dependences, distance, paired = by_torch(counted)
    tally = levels.tally
    assert torch.equal(tally.runs, runs.int())
    assert filled(Cells.of(levels, tally.zone_row, tally.zone_size)) == zones
    assert filled(Cells.counted(levels, tally.dependences[:, None])) == dependences
    assert torch.equal(tally.paired, paired)
    np.testing.assert_allclose(tally.distance, distance, rtol=1e-12)


def test_pairs_are_the_same_in_all_groups_of_segments(by_torch, monkeypatch):
    monkeypatch.setattr(discretise, "TABLE", 2_000)  # several groups
    levels = levels_of(*blobs(4, "f8"), 10.0)
    groups = list(levels.groups(13))
    assert len(groups) > 1
    tables = by_torch(lambda: [glcm.matrices(fresh(levels), group) for group in groups])
    for group, table in zip(groups, tables):
        assert torch.equal(glcm.matrices(levels, group), table.int())


def test_wider_matrices_as_on_a_gpu_give_the_same_descriptors(by_torch, monkeypatch):
    image, labels, spacing = blobs(5, "f8")
    parts = []
    monkeypatch.setattr(glcm, "features", lambda n, *rest, of=glcm.features: parts.append(n.shape[-1]) or of(n, *rest))
    narrow, widths = by_torch(lambda: radiomics.describe(image, labels, spacing, bin_width=9.0)), set(parts)
    parts.clear()
    monkeypatch.setitem(discretise.PADDING, "cpu", discretise.PADDING["cuda"])
    wide = by_torch(lambda: radiomics.describe(image, labels, spacing, bin_width=9.0))
    assert set(parts) < widths and max(parts) == max(widths)
    np.testing.assert_allclose(wide[list(radiomics.NAMES)], narrow[list(radiomics.NAMES)], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("at_once", [1, 5_000])
def test_directions_in_parts_give_the_same_descriptors(by_torch, monkeypatch, at_once):
    """One direction after another, and some together, as with lesions too large for all at once."""
    image, labels, spacing = blobs(6, "f8")
    whole = by_torch(lambda: radiomics.describe(image, labels, spacing, bin_width=9.0))
    sizes = []
    monkeypatch.setitem(masks.AT_ONCE, "cpu", at_once)
    monkeypatch.setattr(texture, "_runs", lambda n, d, *rest, of=texture._runs: sizes.append(len(d)) or of(n, d, *rest))
    parts = by_torch(lambda: radiomics.describe(image, labels, spacing, bin_width=9.0))
    assert len(sizes) > 1 and sum(sizes) % 13 == 0
    assert parts.equals(whole)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", ["i2", "f4", "f8"])
def test_descriptors_are_the_same(by_torch, seed, dtype):
    image, labels, spacing = blobs(seed + 20, dtype)
    labels = labels.clone()
    labels[0, 0, 0] = labels.max() + 1  # a single voxel at the border
    ours = radiomics.describe(image, labels, spacing)
    theirs = by_torch(lambda: radiomics.describe(image, labels, spacing))
    assert ours["reason"].equals(theirs["reason"])
    names = list(radiomics.NAMES)
    np.testing.assert_allclose(ours[names].to_numpy(), theirs[names].to_numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_some_descriptors_are_those_of_all(by_torch, seed):
    """Whatever is left out, image, family or part, changes nothing of what is asked; nothing else is given."""
    image, labels, spacing = blobs(seed + 30, "f4")
    whole = radiomics.describe(image, labels, spacing)
    names = [str(n) for n in np.random.default_rng(seed).choice(radiomics.NAMES, (1, 3, 20)[seed % 3], replace=False)]
    names.append(("shape_maximum_diameter", "wavelet_hhl_glcm_mcc", "boundary_gradient_sd")[seed % 3])
    for some in (
        radiomics.describe(image, labels, spacing, names=names),
        by_torch(lambda: radiomics.describe(image, labels, spacing, names=names)),
    ):
        assert set(some.columns) == {"label", *names, "reason"}
        np.testing.assert_allclose(some[names].to_numpy(), whole[names].to_numpy(), rtol=1e-12, atol=1e-12)
    table, values = radiomics.steady(image, labels, spacing, names=names)
    all_of_it, _ = radiomics.steady(image, labels, spacing)
    np.testing.assert_allclose(table[names].to_numpy(), all_of_it[names].to_numpy(), rtol=1e-12, atol=1e-12)
    assert np.isnan(np.delete(values, [radiomics.NAMES.index(n) for n in names], axis=2)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_filter_is_the_same_to_the_last_bit(by_torch, dtype, axis):
    image = torch.randn((2, 9, 11, 13), dtype=dtype).transpose(2, 3)  # not contiguous
    ours = wavelet.filtered(image, "HL", axis)
    assert torch.equal(ours, by_torch(lambda: wavelet.filtered(image, "HL", axis)))


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_smoothing_is_the_same_to_the_last_bit_and_the_lesions_own(by_torch, axis):
    volume = torch.randn((5, 7, 21, 19), generator=torch.Generator().manual_seed(1)).transpose(2, 3)
    taps = [0.3, 0.2, 0.1, 0.04, 0.01, 0.003, 0.001, 0.0003, 0.0001]  # further than the shortest axis
    ours = ragged.smoothed(volume, taps, axis)
    assert torch.equal(ours, by_torch(lambda: ragged.smoothed(volume, taps, axis)))
    assert torch.equal(ours[3:4], ragged.smoothed(volume[3:4], taps, axis))


def test_distances_of_long_and_flat_regions(by_torch):
    """Lines and plates: hulls of one or two points, and points on one line."""
    labels = torch.zeros((12, 40, 40), dtype=torch.int64)
    labels[2, 3, 2:38] = 1
    labels[5, 2:38, 2:38] = 2
    labels[9, torch.arange(2, 38), torch.arange(2, 38)] = 3
    labels[7, 20, 20] = 4
    image = torch.randn(labels.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    names = [n for n in radiomics.NAMES if "diameter" in n] + ["shape_surface_area", "shape_mesh_volume"]
    ours = radiomics.describe(image, labels, (2.0, 0.7, 0.9))
    theirs = by_torch(lambda: radiomics.describe(image, labels, (2.0, 0.7, 0.9)))
    np.testing.assert_allclose(ours[names].to_numpy(float), theirs[names].to_numpy(float), rtol=1e-12)


def test_built_from_other_source_is_not_used(monkeypatch):
    monkeypatch.setattr(compiled, "VERSION", compiled.VERSION + 1)
    assert compiled.library.__wrapped__() is None
