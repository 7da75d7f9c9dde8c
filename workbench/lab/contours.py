"""The contour before and after the boundary stage: of whole masks on the work grid, and of each lesion on the scan's own grid."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from torch import Tensor

from workbench.experiment import Experiment, reading
from workbench.lab.review import kept, original
from workbench.masks import bounding_box, components
from workbench.stages import boundary, metrics, radiomics
from workbench.stages.ledger import tumor_after
from workbench.volume import Volume


class Redrawn(NamedTuple):
    """A held-out case's kept candidates (bool `[z y x]`), and what the boundary stage made of them."""

    before: Tensor
    edge: boundary.Relabelled


def redrawn(made: Experiment) -> dict[str, Redrawn]:
    """The boundary stage on every held-out case, on the work grid."""
    model = boundary.load(made.path("boundary"), made.settings.boundary, made.device)
    out = {}
    for case in made.cases("test").case:
        (hu, _, spacing), chance = made.work(case), kept(made, case)
        inside = made.array("liver", "masks", case)
        p = made.array("tumor", "maps", case).float()
        edge = boundary.relabel(model, hu.float(), p, chance, inside, spacing, made.settings.boundary)
        out[case] = Redrawn(chance > 0, edge)
    return out


def compared(made: Experiment, cases: dict[str, Redrawn]) -> pd.DataFrame:
    """Whole-mask measures of each held-out case before (stage forest) and after (stage boundary)."""
    rows, of = [], made.cases().set_index("case").patient
    for case, (before, edge) in cases.items():
        _, labels, spacing = made.work(case)
        for stage, mask in (("forest", before), ("boundary", edge.mask)):
            found = metrics.compare((labels == 2).numpy(), mask.numpy(), spacing)
            rows.append({"stage": stage, "case": case, "patient": of[case], **found})
    return pd.DataFrame(rows)


def edges(made: Experiment) -> pd.DataFrame:
    """Held-out reference lesions, their contour before (stage forest) and after the boundary stage, on the scan's own grid.

    Columns case, patient and those of `lesion_edges`.
    """
    tables = []
    for row in made.cases("test").itertuples():
        ct, truth = original(made, row.case)
        codes = reading.result(made.folder / "results" / row.case).volume("ledger")[0]
        codes = torch.from_numpy(np.ascontiguousarray(codes))
        masks = {when: tumor_after(codes, stage) for when, stage in (("before", "forest"), ("after", "boundary"))}
        found = lesion_edges(ct, truth, masks)
        tables.append(found.assign(case=row.case, patient=row.patient))
    return pd.concat(tables, ignore_index=True)


def lesion_edges(ct: Volume, truth: Volume, masks: dict[str, Tensor]) -> pd.DataFrame:
    """Each reference lesion of a scan and its contour in some tumor masks (bool `[z y x]`, by name).

    Columns lesion, volume_ml, blur_mm (of the reference's own edge, as the descriptor boundary_blur_median has it), and dice,
    assd_mm and surface_dice, each with _ and the mask's name; NaN where nothing touches the lesion. A piece that touches several
    lesions is shared out, each voxel to the nearest.
    """
    columns = ["lesion", "volume_ml", "blur_mm"]
    columns += [f"{m}_{name}" for m in ("dice", "assd_mm", "surface_dice") for name in masks]
    around = bounding_box(truth.array == 2, ct.spacing_mm, 30)
    if around is None:
        return pd.DataFrame(columns=columns)
    masks = {name: mask[around] for name, mask in masks.items()}
    reference = components(truth.array[around] == 2)[0]
    inside, hu = truth.array[around] >= 1, ct.array[around].float()
    regions, names = torch.from_numpy(reference).long(), ["boundary_blur_median"]
    blur = radiomics.describe(hu, regions, ct.spacing_mm, inside, names=names).set_index("label").boundary_blur_median
    nearest = ndimage.distance_transform_edt(reference == 0, ct.spacing_mm, return_distances=False, return_indices=True)
    owner, rows = reference[tuple(nearest)], []
    for lesion in range(1, reference.max() + 1):
        own = reference == lesion
        found = {"lesion": lesion, "volume_ml": own.sum() * ct.voxel_ml, "blur_mm": blur.get(lesion, math.nan)}
        for when, mask in masks.items():
            pieces = components(mask)[0]
            part = np.isin(pieces, np.unique(pieces[own & (pieces > 0)])) & (pieces > 0) & (owner == lesion)
            measured = metrics.compare(own, part, ct.spacing_mm)
            for name in ("dice", "assd_mm", "surface_dice"):
                found[f"{name}_{when}"] = measured[name] if part.any() else math.nan
        rows.append(found)
    return pd.DataFrame(rows, columns=columns)
