"""Connected pieces against connected-components-3d, label for label up to numbering."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from workbench import masks


def numbered(values: np.ndarray) -> np.ndarray:
    """Pieces of equal value (0 is background) by `masks.pieces`, as numbers on the grid."""
    padded = torch.from_numpy(np.pad(values, 1))[None]
    at = masks.true_at((padded > 0).flatten())
    ahead, _ = masks.neighbours(padded > 0, at)
    level = torch.cat([padded.flatten()[at], torch.zeros(1, dtype=padded.dtype)])
    piece, voxel = masks.pieces(torch.stack([(level[a] == level[:-1])[None] for a in ahead]), ahead)
    assert torch.equal(piece[0][voxel[piece[0].long()].long()], piece[0])  # a piece's own voxel belongs to it
    out = torch.zeros(padded.numel(), dtype=torch.int64)
    out[at] = piece[0].long() + 1
    return out.view(padded.shape)[0, 1:-1, 1:-1, 1:-1].numpy()


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = np.unique(np.stack([a.ravel(), b.ravel()], 1), axis=0)
    return len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1])) == len(pairs)


@pytest.mark.parametrize("levels, share", [(1, 0.08), (1, 0.3), (2, 0.5), (3, 0.9), (6, 1.0), (12, 0.7)])
def test_pieces_equal_connected_components_3d(levels, share):
    """Sparse, percolating and full; many seeds, since a wrong shortcut shows in rare shapes only."""
    cc3d = pytest.importorskip("cc3d")
    for seed in range(12):
        draw = np.random.default_rng(seed)
        values = draw.integers(1, levels + 1, (9, 11, 13)) * (draw.random((9, 11, 13)) < share)
        if values.any():
            theirs = cc3d.connected_components(values.astype(np.int32), connectivity=26)
            assert same_partition(numbered(values), theirs), seed


def test_a_winding_line_is_one_piece():
    """A path that turns at every step: far apart in the raster, joined only through all of it."""
    values = np.zeros((3, 40, 40), np.int64)
    for row in range(0, 40, 2):
        values[1, row, :] = 1
        values[1, row + 1, -1 if row % 4 == 0 else 0] = 1
    assert len(np.unique(numbered(values))) == 2


def test_several_images_share_the_voxels_and_not_the_pieces():
    inside = torch.nn.functional.pad(torch.ones((1, 2, 2, 3)), (1, 1, 1, 1, 1, 1)) > 0
    at = masks.true_at(inside.flatten())
    ahead, _ = masks.neighbours(inside, at)
    joined = torch.stack([torch.stack([a < at.numel(), torch.zeros_like(a, dtype=torch.bool)]) for a in ahead])
    piece, _ = masks.pieces(joined, ahead)
    assert (
        len(piece[0].unique()) == 1
        and len(piece[1].unique()) == 12
        and not set(piece[0].tolist()) & set(piece[1].tolist())
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_labels_of_a_mask_are_scipys(device, gpu):
    for seed, share in enumerate((0.0, 0.05, 0.1, 0.3, 1.0)):
        mask = np.random.default_rng(seed).random((7, 12, 9)) < share
        theirs, many = ndimage.label(mask, np.ones((3, 3, 3)))
        ours, count = masks.label(torch.from_numpy(mask).to(device))
        assert count == many and np.array_equal(ours.cpu().numpy(), theirs)
