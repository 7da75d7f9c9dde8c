"""Labels held against their CT: a liver lies on soft tissue, whatever the headers say.

Two headers can describe the same grid and mean different sides of the body. Then labels are mirrored, and no comparison of grids sees it.
Rule: of the labelled voxels, the share with 0 to 250 HU (soft tissue, contrast in it) is measured for the labels as they lie and for each
turn of them that fits the grid. Labels are refused when a turn has a share of at least 0.9 and at least 0.05 more than the labels as they
lie. On seven scans with a known order of slices the right one has 0.931 to 0.998 and at least 0.096 more (docs/log.md, 2026-11-26).
"""

from __future__ import annotations

import itertools

import numpy as np

from workbench.data.readers import gates
from workbench.volume import Refused, Volume

SOFT_HU = (0, 250)  # empirical: log, 2026-11-26
LEAST_SHARE, LEAST_GAP = 0.9, 0.05  # empirical: log, 2026-11-26
AIR_HU = -200  # rule: no voxel of a liver is darker, but at its edge and in gas
LEAST_WARNED = 0.5  # rule: a liver with much fat, or much noise
MOST_AIR = 0.25  # rule: far above any edge
ENOUGH = 200_000  # rule: voxels that are looked at; a share of them is exact to 0.002
AXES = ("feet and head", "front and back", "left and right")


def soft(hu: np.ndarray) -> np.ndarray:
    """Where there is soft tissue."""
    return (hu >= SOFT_HU[0]) & (hu <= SOFT_HU[1])


def hold(ct: Volume, labels: Volume, subject: object) -> None:
    """Refuse labels that fit their CT when they are turned and not as they lie, tumors without a liver, and a liver in the air."""
    array, hu = labels.array.numpy(), ct.array.numpy()
    flat = np.flatnonzero(array)
    if not flat.size:
        return
    if not (array.ravel()[flat] == 1).any() and (array.ravel()[flat] == 2).any():
        ml = flat.size * labels.voxel_ml
        raise Refused(subject, f"{ml:.2f} ml of tumor (2) and no liver (1)", "a liver around the tumors",
                      "Add the liver to the labels: it would be taken for no larger than its tumors.")  # fmt: skip
    at = np.array(np.unravel_index(flat[:: -(-flat.size // ENOUGH)], array.shape))
    as_they_lie = hu[tuple(at)]
    share = float(soft(as_they_lie).mean())
    best, turn = max((float(soft(hu[tuple(turned)]).mean()), words) for words, turned in _turns(at, array.shape))
    if best >= LEAST_SHARE and best - share >= LEAST_GAP:
        raise Refused(
            subject, f"labels of which {share:.3f} lie on soft tissue ({SOFT_HU[0]} to {SOFT_HU[1]} HU), but {best:.3f} with {turn} exchanged",
            "labels that lie as their CT does",
            "The header of one of the two is wrong: copy the CT's header to the labels if their voxels agree.",
        )  # fmt: skip
    air = float((as_they_lie < AIR_HU).mean())
    if air > MOST_AIR:
        raise Refused(subject, f"{air:.3f} of the labelled voxels in air (below {AIR_HU} HU)", "a liver on soft tissue",
                      "Are these the labels of this CT? Look at both in a viewer.")  # fmt: skip
    if best - share >= LEAST_GAP or share < LEAST_WARNED:
        gates.warn(subject, f"only {share:.3f} of the labelled voxels have {SOFT_HU[0]} to {SOFT_HU[1]} HU ({best:.3f} with {turn} exchanged). "
                   "Are these the labels of this CT?")  # fmt: skip


def _turns(at: np.ndarray, shape: tuple[int, ...]):
    """Each turn that fits the grid, in words, and the voxels `[3 n]` turned so: flips of axes, and rows for columns."""
    for exchange in (False, True)[: 1 + (shape[1] == shape[2])]:
        turned = at[[0, 2, 1]] if exchange else at
        for flips in itertools.product((False, True), repeat=3):
            if not exchange and not any(flips):
                continue
            words = [AXES[axis] for axis in range(3) if flips[axis]] + ["rows and columns"] * exchange
            yield ", ".join(words), np.stack([n - 1 - i if flip else i for i, n, flip in zip(turned, shape, flips, strict=True)])
