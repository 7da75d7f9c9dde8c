"""Evaluation by LiTS's definitions, with its traps closed.

States (the LiTS benchmark, Bilic et al. 2023, and its public scorer): liver is every label of at least 1, tumor is
label 2; Dice per case and over all voxels of all cases; lesions are face-connected components; reference lesions that
one predicted lesion joins are merged before matching, as are predicted pieces of one reference lesion; a lesion is
detected when its IoU exceeds 0 or 0.5; VOE, RVD and surface distances of tumors are means over *detected* lesions
(IoU above 0.5); a case without tumor in both masks has Dice 1; surfaces are voxels with a background voxel in their
18-neighbourhood.

Chooses, where the scorer's code departs from its definitions:
- RVD is (prediction - reference) / reference; the scorer swaps the two.
- Counts are those of the unmerged lesions: a joined pair that is found counts as two true positives, one that is
  missed as two misses (the scorer counts one and takes off two); a predicted piece is a false positive when its (merged) match fails or it
  touches no lesion.
- Lesions are face-connected as the scorer has them; on LiTS's own references that makes lesions of single voxels that
  hang on by an edge (LiTS 4: 34, with corners 5), so `neighbours=26` counts as the candidates stage does.
- Nothing undefined becomes 9001 or 0: it is NaN here and null in JSON, and every mean has its count beside it
  (`breakdown`). A prediction without any lesion where there are some has precision 0, as in the scorer; recall is
  undefined without reference lesions.
- The tumor burden error is absolute before its maximum is taken; a prediction without liver has burden 0.
- A case also gets its whole-mask measures (`tumor` in `evaluate_case`), which need no matching. For two empty masks:
  Dice 1, VOE 0, RVD 0; for one empty mask: Dice 0, VOE 1, RVD -1 (missed) or NaN (nothing to relate to). Distances are
  defined where both masks hold something.
- Diameter classes use the diameter of the ball of a lesion's volume: below 10, 10 to 20, above 20 mm.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Shaped
from numpy.typing import ArrayLike
from scipy import ndimage, spatial, special

from workbench.volume import Refused, Spacing

MEASURES = ("voe", "rvd", "assd_mm", "rmsd_mm", "msd_mm")
OVERLAPS = {"iou0": 0.0, "iou50": 0.5}  # fixed: LiTS
SIZES = ("below 10 mm", "10 to 20 mm", "above 20 mm")  # rule: LiTS's small, medium, large, by diameter
NEIGHBOURS = {6: ndimage.generate_binary_structure(3, 1), 26: ndimage.generate_binary_structure(3, 3)}
FACES_AND_EDGES = ndimage.generate_binary_structure(3, 2)
DRAWS, FLIPS = 2000, 10_000  # a choice: of cases or patients drawn again, and of signs; always the same ones
FEW = 15  # rule: below as many patients intervals are Student's
EXACT_PAIRS = 12  # rule: up to here all sign flips are tried, 4096 at most


def evaluate_case(
    truth: Shaped[torch.Tensor, "z y x"] | Shaped[np.ndarray, "z y x"],
    prediction: Shaped[torch.Tensor, "_ _ _"] | Shaped[np.ndarray, "_ _ _"],
    spacing_mm: Spacing,
    name: str = "case",
    tolerance_mm: float = 1.0,
    neighbours: int = 6,
) -> dict:
    """Every measure of one case from two label maps `[z y x]` (0, 1 liver, 2 tumor).

    `liver` and `tumor` compare whole masks; `detection` counts lesions (6- or 26-connected). `lesions` lists the
    reference lesions, `matches` the detected (merged) ones with measures of their own, `false_positives` the predicted
    ones that are none; both at IoU 0.5.
    """
    t, p = _labels(truth, name), _labels(prediction, name)
    if t.shape != p.shape:
        raise Refused(name, f"a prediction of shape {p.shape}", f"{t.shape}, the reference's")
    box = _box(t.astype(bool) | p.astype(bool))
    t, p = t[box], p[box]
    liver = compare(t >= 1, p >= 1, spacing_mm, tolerance_mm)
    tumor = compare(t == 2, p == 2, spacing_mm, tolerance_mm)
    burden = [_share(m) for m in (t, p)]
    found = match_lesions(t == 2, p == 2, spacing_mm, neighbours, tolerance_mm)
    return {
        "case": name,
        "liver": liver,
        "tumor": tumor,
        "detection": found["detection"],
        "lesions": found["lesions"],
        "matches": found["matches"],
        "false_positives": found["false_positives"],
        "tumor_burden": {"truth": burden[0], "prediction": burden[1], "error": burden[1] - burden[0]},
    }


def compare(
    truth: Bool[np.ndarray, "z y x"],
    prediction: Bool[np.ndarray, "z y x"],
    spacing_mm: Spacing,
    tolerance_mm: float = 1.0,
) -> dict:
    """Overlap, volume and surface measures of two bool masks `[z y x]`."""
    t, p, both = int(truth.sum()), int(prediction.sum()), int((truth & prediction).sum())
    ml = math.prod(spacing_mm) / 1000
    return {
        "dice": 2 * both / (t + p) if t + p else 1.0,
        "voe": 1 - both / (t + p - both) if t + p else 0.0,
        "rvd": (p - t) / t if t else (math.nan if p else 0.0),
        **surface_distances(truth, prediction, spacing_mm, tolerance_mm),
        "truth_ml": t * ml,
        "prediction_ml": p * ml,
        "truth_voxels": t,
        "prediction_voxels": p,
        "common_voxels": both,
    }


def surface_distances(
    truth: Bool[np.ndarray, "z y x"],
    prediction: Bool[np.ndarray, "z y x"],
    spacing_mm: Spacing,
    tolerance_mm: float = 1.0,
) -> dict[str, float]:
    """ASSD, RMSD and maximum symmetric surface distance in mm, and surface Dice at a tolerance.

    Distances run between the centres of surface voxels, anisotropic spacing included, in both directions together. NaN
    when one of the masks is empty, where surface Dice is 0 (1 when both are).
    """
    a, b = (_surface(m, spacing_mm) for m in (truth, prediction))
    if not len(a) or not len(b):
        empty = 1.0 if len(a) == len(b) else 0.0
        return {"assd_mm": math.nan, "rmsd_mm": math.nan, "msd_mm": math.nan, "surface_dice": empty}
    # a k-d tree of surface points, not a distance transform of the box: seconds become tenths for a liver
    apart = np.concatenate([spatial.cKDTree(b).query(a)[0], spatial.cKDTree(a).query(b)[0]])
    return {
        "assd_mm": float(apart.mean()),
        "rmsd_mm": float(np.sqrt((apart**2).mean())),
        "msd_mm": float(apart.max()),
        "surface_dice": float((apart <= tolerance_mm + 1e-9).mean()),
    }


def match_lesions(
    truth: Bool[np.ndarray, "z y x"],
    prediction: Bool[np.ndarray, "z y x"],
    spacing_mm: Spacing,
    neighbours: int = 6,
    tolerance_mm: float = 1.0,
    measured: bool = True,
) -> dict:
    """Reference and predicted lesions matched as the LiTS scorer does; `detection` has tp, fp, fn at each overlap.

    `measured`: whether `matches` have measures of their own, which take most of the time.
    """
    joined = NEIGHBOURS[neighbours]
    t, n_t = ndimage.label(truth, joined)
    p, n_p = ndimage.label(prediction, joined)
    table = np.bincount(p.ravel().astype(np.int64) * (n_t + 1) + t.ravel(), minlength=(n_p + 1) * (n_t + 1))
    table = table.reshape(n_p + 1, n_t + 1)
    common, size_t, size_p = table[1:, 1:], table[:, 1:].sum(0), table[1:].sum(1)

    # reference lesions whose largest share lies in one predicted lesion are one group
    keeper = np.where(common.any(0), common.argmax(0), -1) if n_p else np.full(n_t, -1)
    groups = [np.flatnonzero(keeper == k) for k in np.unique(keeper[keeper >= 0])]
    shared = np.stack([common[:, g].sum(1) for g in groups], 1) if groups else np.zeros((n_p, 0), int)
    # each predicted lesion goes to the group it shares most with, and is merged with the others that do
    home = np.where(shared.any(1), shared.argmax(1), -1) if groups else np.full(n_p, -1)

    best = np.zeros(n_t)
    pieces_of, matches = {}, []
    for g, members in enumerate(groups):
        pieces = np.flatnonzero(home == g)
        inside = int(shared[pieces, g].sum())
        union = int(size_t[members].sum() + size_p[pieces].sum()) - inside
        best[members] = inside / union
        pieces_of[g] = pieces
        if inside / union > OVERLAPS["iou50"]:
            measures = {}
            if measured:
                one, other = np.isin(t, members + 1), np.isin(p, pieces + 1)
                box = _box(one | other)
                measures = compare(one[box], other[box], spacing_mm, tolerance_mm)
            matches.append({"lesions": [int(m) + 1 for m in members], "pieces": len(pieces), **measures})

    detection, lost = {}, {}
    for key, least in OVERLAPS.items():
        found = best > least
        missed = [pieces_of[g] for g, members in enumerate(groups) if not found[members[0]]]
        lost[key] = np.concatenate([np.flatnonzero(home < 0), *missed]).astype(int)
        tp, fp, fn = int(found.sum()), len(lost[key]), int((~found).sum())
        detection[key] = {"tp": tp, "fp": fp, "fn": fn, **_rates(tp, fp, fn)}
    ml = math.prod(spacing_mm) / 1000
    return {
        "detection": detection,
        "lesions": [
            {"lesion": i + 1, **_size(size_t[i] * ml), "iou": float(best[i])}
            | {f"detected_{key}": bool(best[i] > least) for key, least in OVERLAPS.items()}
            for i in range(n_t)
        ],
        "matches": matches,
        "false_positives": [
            {"piece": int(i) + 1, **_size(size_p[i] * ml), "touches_lesion": bool(home[i] >= 0)} for i in lost["iou50"]
        ],
    }


def summarise(cases: list[dict]) -> dict:
    """The measures of a set of cases, JSON-safe: undefined ones are None. `breakdown` has the counts behind means."""
    if not cases:
        raise Refused("evaluation", "no case", "at least one")
    pooled = {key: _pooled(cases, key) for key in OVERLAPS}
    errors = [abs(c["tumor_burden"]["error"]) for c in cases]
    matches = [m for c in cases for m in c["matches"]]
    summary = {
        "liver": {
            "dice_per_case": _mean(c["liver"]["dice"] for c in cases),
            "dice_global": _global_dice(cases, "liver"),
            **{m: _mean(c["liver"][m] for c in cases) for m in MEASURES},
        },
        "tumor": {
            "dice_per_case": _mean(c["tumor"]["dice"] for c in cases),
            "dice_global": _global_dice(cases, "tumor"),
            **{m: _mean(match[m] for match in matches) for m in MEASURES},
            **{f"{rate}_{key}": pooled[key][rate] for key in OVERLAPS for rate in ("precision", "recall")},
        },
        "tumor_burden": {"rmse": math.sqrt(np.mean(np.square(errors))), "max_error": max(errors)},
        "cases": cases,
    }
    return json_safe(summary)


def breakdown(cases: list[dict]) -> pd.DataFrame:
    """Every mean with what it is a mean of: `structure, measure, over, size, mean, n, undefined`; `n` counts what it is over.

    Whole-mask measures over cases, LiTS's over detected lesions, detection rates in all and by diameter class (where
    false positives have no class of their own: they are counted by their own size).
    """
    rows = []

    def row(structure: str, measure: str, over: str, values: list[float], size: str = "all") -> None:
        undefined = sum(map(math.isnan, values))
        rows.append((structure, measure, over, size, _mean(values), len(values) - undefined, undefined))

    for structure in ("liver", "tumor"):
        for measure in ("dice", *MEASURES, "surface_dice"):
            row(structure, measure, "cases", [c[structure][measure] for c in cases])
    for measure in ("dice", *MEASURES, "surface_dice"):
        row("lesion", measure, "detected lesions", [m[measure] for c in cases for m in c["matches"]])
    for key in OVERLAPS:
        counts = _pooled(cases, key)
        found, false, lesions = counts["tp"], counts["fp"], counts["tp"] + counts["fn"]
        for rate, over, n in (
            ("precision", "found lesions and false positives", found + false),
            ("recall", "reference lesions", lesions),
            ("f1", "reference lesions and false positives", lesions + false),
        ):
            rows.append(("lesion", f"{rate}_{key}", over, "all", counts[rate], n, 0))
        for size in SIZES:
            mine = [float(r[f"detected_{key}"]) for c in cases for r in c["lesions"] if r["size"] == size]
            row("lesion", f"recall_{key}", "reference lesions", mine, size)
    for size in SIZES:
        mine = [float(sum(r["size"] == size for r in c["false_positives"])) for c in cases]
        row("lesion", "false_positives_iou50", "cases", mine, size)
    return pd.DataFrame(rows, columns=["structure", "measure", "over", "size", "mean", "n", "undefined"])


def bootstrap(values: ArrayLike, groups: ArrayLike | None = None) -> tuple[float, float, float]:
    """Mean with its 95 % interval over cases, or over `groups` (patients) as a whole.

    Percentiles of resampled groups; below `FEW` groups Student's t of the mean's linearised error, since percentiles of so few
    cover 73 to 86 % (docs/log.md, 2026-11-30). Undefined values (NaN) are left out: their number belongs beside the mean. All NaN when none is
    defined, the ends NaN when only one group is.
    """
    values = np.asarray(values, float)
    keep = ~np.isnan(values)
    group = np.arange(len(values)) if groups is None else pd.factorize(np.asarray(groups))[0]
    if not keep.any():
        return math.nan, math.nan, math.nan
    group = pd.factorize(group[keep])[0]
    total = np.bincount(group, values[keep])
    count = np.bincount(group).astype(float)
    mean, n = float(values[keep].mean()), len(total)
    if n < FEW:
        if n < 2:
            return mean, math.nan, math.nan
        error = (total - mean * count) / count.mean()
        half = float(special.stdtrit(n - 1, 0.975)) * float(error.std(ddof=1)) / math.sqrt(n)
        return mean, mean - half, mean + half
    draw = np.random.default_rng(0).integers(0, n, (DRAWS, n))
    means = total[draw].sum(1) / count[draw].sum(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return mean, float(low), float(high)


def paired(a: ArrayLike, b: ArrayLike, groups: ArrayLike | None = None) -> dict:
    """b against a on the same cases: mean difference with its interval, p of a sign-flip permutation test, n.

    Two-sided, exact up to 12 pairs (or patients, with `groups`). Pairs with an undefined value are left out and `n`
    says how many remain. p is never below one over the number of flips.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape:
        raise Refused("paired test", f"{a.size} and {b.size} values", "pairs")
    difference = b - a
    keep = ~np.isnan(difference)
    difference = difference[keep]
    if not len(difference):
        return {"difference": math.nan, "low": math.nan, "high": math.nan, "p": math.nan, "n": 0}
    group = np.arange(len(difference)) if groups is None else pd.factorize(np.asarray(groups)[keep])[0]
    mean, low, high = bootstrap(difference, groups=group)
    total = np.bincount(group, difference)  # a patient's cases keep their sign together
    if len(total) <= EXACT_PAIRS:
        signs = np.array(list(itertools.product((-1, 1), repeat=len(total))))
    else:
        signs = np.random.default_rng(0).choice((-1, 1), (FLIPS, len(total)))
        signs[0] = 1  # the observed one is among them
    flipped = np.abs(signs @ total)
    p = float((flipped >= abs(total.sum()) - 1e-12 * np.abs(total).sum()).mean())
    return {"difference": mean, "low": low, "high": high, "p": p, "n": len(difference)}


def paired_median(a: ArrayLike, b: ArrayLike, groups: ArrayLike | None = None) -> dict:
    """b against a for the typical patient: the median over patients of their mean difference, its interval, p of Wilcoxon's signed
    ranks (two-sided), n patients.

    Beside `paired` where a mean may hang on one value, as surface distances do. Pairs with an undefined value are left out.
    """
    from scipy import stats  # slow to import

    difference = np.asarray(b, float) - np.asarray(a, float)
    keep = ~np.isnan(difference)
    names = np.arange(len(difference)) if groups is None else np.asarray(groups)
    of_patients = pd.Series(difference[keep]).groupby(names[keep]).mean().to_numpy()
    if not len(of_patients):
        return {"difference": math.nan, "low": math.nan, "high": math.nan, "p": math.nan, "n": 0}
    drawn = np.random.default_rng(0).integers(0, len(of_patients), (DRAWS, len(of_patients)))
    low, high = np.percentile(np.median(of_patients[drawn], axis=1), [2.5, 97.5])
    p = float(stats.wilcoxon(of_patients).pvalue) if of_patients.any() else 1.0
    return {
        "difference": float(np.median(of_patients)),
        "low": float(low),
        "high": float(high),
        "p": p,
        "n": len(of_patients),
    }


def froc(
    scores: ArrayLike,
    is_lesion: ArrayLike,
    lesions_total: int,
    cases: int,
    lesion_ids: ArrayLike | None = None,
) -> pd.DataFrame:
    """Sensitivity against false positives per case as the threshold on candidates falls.

    `lesion_ids` (any value where `is_lesion`) lets several candidates of one lesion count once; without it each true
    candidate is a lesion of its own. `lesions_total` includes those that no candidate touches.
    """
    scores, hit = np.asarray(scores, float), np.asarray(is_lesion, bool)
    if cases < 1 or lesions_total < 0:
        raise Refused("FROC", f"{cases} cases and {lesions_total} lesions", "at least one case")
    order = np.argsort(-scores, kind="stable")
    scores, hit = scores[order], hit[order]
    new = hit.copy()
    if lesion_ids is not None:
        again = pd.Series(np.asarray(lesion_ids, object)[order]).where(hit).duplicated().to_numpy()
        new &= ~again
    if new.sum() > lesions_total:
        raise Refused("FROC", f"{int(new.sum())} lesions found", f"at most the {lesions_total} that there are",
                      "Give lesion_ids where several candidates lie in one lesion.")  # fmt: skip
    last = np.append(np.diff(scores) != 0, True)[: len(scores)]  # equal scores pass a threshold together
    table = pd.DataFrame(
        {
            "threshold": scores[last],
            "sensitivity": np.cumsum(new)[last] / lesions_total if lesions_total else math.nan,
            "false_positives_per_case": np.cumsum(~hit)[last] / cases,
        }
    )
    nothing = pd.DataFrame(
        {
            "threshold": [math.inf],
            "sensitivity": [0.0 if lesions_total else math.nan],
            "false_positives_per_case": [0.0],
        }
    )
    return pd.concat([nothing, table], ignore_index=True)


def json_safe(value: Any) -> Any:
    """The same with plain Python numbers, and None for what is not finite."""
    if isinstance(value, dict):
        return {str(k): json_safe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(v) for v in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def _labels(array: torch.Tensor | np.ndarray, name: str) -> np.ndarray:
    array = array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)
    if array.ndim != 3:
        raise Refused(name, f"a label map of {array.ndim} dimensions", "3 (z y x)")
    return array


def _box(mask: np.ndarray) -> tuple[slice, slice, slice]:
    """The box around a mask; one voxel when it is empty, so that later steps need no case of their own."""
    found = ndimage.find_objects(mask.astype(np.uint8), max_label=1)[0]
    return found if found is not None else (slice(0, 1),) * 3


def _surface(mask: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """Positions [n 3] in mm of the voxels that have background in their 18-neighbourhood; the outside is background."""
    box = _box(mask)
    inside = mask[box].astype(bool)
    edge = inside & ~ndimage.binary_erosion(inside, FACES_AND_EDGES, border_value=0)
    return (np.argwhere(edge) + [axis.start for axis in box]) * np.asarray(spacing_mm, float)


def _share(labels: np.ndarray) -> float:
    liver = int((labels >= 1).sum())
    return int((labels == 2).sum()) / liver if liver else 0.0


def _size(ml: float) -> dict:
    diameter = (6000 * float(ml) / math.pi) ** (1 / 3)
    size = SIZES[0] if diameter < 10 else SIZES[1] if diameter <= 20 else SIZES[2]
    return {"volume_ml": float(ml), "diameter_mm": diameter, "size": size}


def _rates(tp: int, fp: int, fn: int) -> dict[str, float]:
    precision = tp / (tp + fp) if tp + fp else (0.0 if fn else math.nan)
    recall = tp / (tp + fn) if tp + fn else math.nan
    f1 = 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else math.nan
    return {"precision": precision, "recall": recall, "f1": f1}


def _pooled(cases: list[dict], key: str) -> dict:
    tp, fp, fn = (sum(c["detection"][key][count] for c in cases) for count in ("tp", "fp", "fn"))
    return {"tp": tp, "fp": fp, "fn": fn, **_rates(tp, fp, fn)}


def _global_dice(cases: list[dict], structure: str) -> float:
    common = sum(c[structure]["common_voxels"] for c in cases)
    size = sum(c[structure]["truth_voxels"] + c[structure]["prediction_voxels"] for c in cases)
    return 2 * common / size if size else 1.0


def _mean(values) -> float:
    good = [v for v in values if not math.isnan(v)]
    return float(np.mean(good)) if good else math.nan
