"""What the notebooks ask of an experiment: tables and words measured from what the stages left.

Chooses: every number is said with its 95 % interval and its n; a share has Wilson's interval, a mean one from patients drawn
again, a change one over pairs. Nothing here writes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from workbench.data.cohort import read_manifest
from workbench.experiment import Experiment, pipeline, reading
from workbench.experiment.segmentation import Deciders, Maps
from workbench.lab import cards
from workbench.lab.words import change, share
from workbench.lab.words import in_full as in_full
from workbench.lab.words import mean as mean
from workbench.lab.words import rounded as rounded
from workbench.masks import components
from workbench.nets import cascade, slabs
from workbench.stages import boundary, forest, liver, metrics, radiomics, selection
from workbench.stages.forest import explain
from workbench.stages.ledger import CODES
from workbench.volume import Refused, Spacing, Volume

AS_TEXT = {"case": str, "patient": str}


# --- cases -------------------------------------------------------------------------------------------------------


def shown(made: Experiment, case: str = "", split: str | None = None) -> str:
    """The case that a notebook shows: the one asked for (of a split), else the held-out one with most tumors."""
    table = made.cases(split)
    if case and case not in set(table.case):
        raise Refused("case", case, "one of " + ", ".join(table.case))
    return case or table.sort_values(["split", "tumors"], ascending=[True, False], kind="stable").case.iloc[0]


def standing(made: Experiment, case: str) -> str:
    """`held out`, or a warning that the models have learnt from the patient that is shown."""
    held = made.cases().set_index("case").split[case] == "test"
    return "held out" if held else "in training: the models have learnt from it and these numbers are too good"


def maps_of(made: Experiment, case: str) -> str:
    """Whose maps of a case the stages keep, in words: no net has seen the patient in either split."""
    held = made.cases().set_index("case").split[case] == "test"
    return "held out, mean of all nets" if held else "in training, out of fold"


def described(made: Experiment, features: pd.DataFrame, case: str = "", candidate: int = 1) -> str:
    """The case whose candidate of this number is looked at: the one asked for, else the held-out one with most tumors that has it."""
    of = features[features.case == shown(made, case)] if case else features
    if candidate not in set(of.candidate):
        there = f"1 to {of.candidate.max()}" if len(of) else "a case that has a candidate"
        raise Refused("candidate", f"no {candidate}" + f" in {case}" * bool(case), there)
    cases = made.cases().merge(of.loc[of.candidate == candidate, ["case"]])
    return str(cases.sort_values(["split", "tumors"], ascending=[True, False], kind="stable").case.iloc[0])


def labelled(made: Experiment, case: str, tumor: Tensor) -> Tensor:
    """A tumor mask of a case over the liver that the stage liver found: 1 liver, 2 tumor, on the work grid."""
    return torch.where(tumor, 2, made.array("liver", "masks", case).to(torch.uint8))


def found(folder: str | Path, case: str = "") -> reading.ResultFolder:
    """A result below `folder`/results: of the case asked for, else the one with most tumor."""
    there = {p.name: p for p in reading.results_at(folder, "results/*/")}
    if not there or (case and case not in there):
        wanted = "one of the stage metrics or of `workbench segment CT --models EXPERIMENT -o FOLDER/results`"
        raise Refused(
            Path(folder) / "results", f"no result of {case}" if there else "no result", ", ".join(there) or wanted
        )
    if case:
        return reading.result(there[case])
    return max((reading.result(p) for p in there.values()), key=lambda r: r.info.get("tumor_ml", 0.0))


def decided_by(result: reading.ResultFolder) -> pd.DataFrame:
    """What became of the voxels that were tumor after any stage: a row a history of the ledger, with its volume in ml."""
    codes, spacing_mm, _ = result.volume("ledger")
    values, counts = np.unique(codes, return_counts=True)
    rows = [(CODES[int(v)], int(n) * math.prod(spacing_mm) / 1000) for v, n in zip(values, counts) if v > 1]
    table = pd.DataFrame(rows, columns=["history", "ml"])
    return table.set_index("history").sort_values("ml", ascending=False).round(3)


def original(made: Experiment, case: str) -> tuple[Volume, Volume]:
    """CT and reference of a case on the scan's own grid."""
    return next(one for one in read_manifest(made.manifest) if one.case == case).read()


class Seen(NamedTuple):
    """What there is to see of a case on one grid `[z y x]`: HU, label map, reference, tumor probability, ledger."""

    ct: Tensor | np.ndarray
    spacing_mm: Spacing
    labels: Tensor | np.ndarray | None
    truth: Tensor | np.ndarray | None
    probability: Tensor | np.ndarray | None
    ledger: Tensor | np.ndarray | None
    title: str


def seen(made: Experiment, case: str) -> Seen:
    """A case with what its stages have left so far: its result on the scan's own grid where there is one, else the work grid.

    There the maps of a training case are those of the fold that has not seen it, and its tumor is what the forest kept, before
    the boundary is drawn anew.
    """
    result, split = made.folder / "results" / case, made.cases().set_index("case").split[shown(made, case)]
    if (result / "result.json").is_file():
        ct, truth = original(made, case)
        found = (reading.result(result).volume(name) for name in ("labels", "tumor_probability", "ledger"))
        labels, p, ledger = (None if volume is None else volume[0] for volume in found)
        return Seen(ct.array, ct.spacing_mm, labels, truth.array, p, ledger, f"{case} ({split}), result")
    hu, truth, spacing = made.work(case)
    p = made.array("tumor", "maps", case).float() if _ran(made, "tumor") else None
    labels = None
    if _ran(made, "liver"):
        labels = made.array("liver", "masks", case).to(torch.uint8)
        if _ran(made, "forest"):
            labels[kept(made, case) > 0] = 2
    return Seen(hu, spacing, labels, truth, p, None, f"{case} ({split}), work grid")


def _ran(made: Experiment, stage: str) -> bool:
    return (made.path(stage) / "stage.json").is_file()


def kept(made: Experiment, case: str) -> Tensor:
    """The candidates of a case that the forest kept: P(lesion) in their voxels, 0 elsewhere, `[z y x]` on the work grid."""
    scores = made.table("forest", "scores.csv", dtype=AS_TEXT)
    own = scores[(scores.case == case) & scores.kept]
    likely = forest.chances(own.score, own.volume_ml, forest.load(made.path("forest")).largest_ml)
    return boundary.chances(made.array("candidates", "labels", case), own.candidate, likely)


def lesions(made: Experiment, split: str | None = None) -> pd.DataFrame:
    """Every reference lesion on the work grid: case, patient, split, fold, lesion (its number), volume_ml."""
    rows = []
    for row in made.cases(split).itertuples():
        _, labels, spacing = made.work(row.case)
        sizes = np.bincount(components(labels == 2)[0].ravel())[1:] * math.prod(spacing) / 1000
        about = {"case": row.case, "patient": row.patient, "split": row.split, "fold": row.fold}
        rows += [{**about, "lesion": number, "volume_ml": ml} for number, ml in enumerate(sizes, 1)]
    return pd.DataFrame(rows, columns=["case", "patient", "split", "fold", "lesion", "volume_ml"])


def attenuation(made: Experiment) -> pd.DataFrame:
    """HU of liver and tumor in each case: mean and standard deviation."""
    rows = {}
    for case in made.cases().case:
        hu, labels, _ = made.work(case)
        parts = {part: hu[labels == n].double() for part, n in (("liver", 1), ("tumor", 2))}
        rows[case] = {f"{part}_{what}": float(getattr(v, what)()) if len(v) > 1 else math.nan
                      for part, v in parts.items() for what in ("mean", "std")}  # fmt: skip
    return pd.DataFrame(rows).T


# --- the cascade -------------------------------------------------------------------------------------------------


def attention(made: Experiment, case: str, at: int) -> tuple[Tensor, list[Tensor]]:
    """One slice HU `[y x]` as the liver's net of fold 0 sees it, and what its gates let through, `[h w]` each, finest first."""
    hu, _, spacing = made.work(case)
    settings, small = made.settings.liver, liver.to_grid(hu, spacing, made.settings.liver)
    net = cascade.load(made.path("liver"), settings.cascade, "cpu", [0])[0]
    half, multiple = net.settings.slices // 2, net.settings.multiple
    stack = small[torch.arange(at - half, at + half + 1).clamp(0, len(small) - 1)]
    h, w = stack.shape[1:]
    x = slabs.normalise(stack, settings.cascade.slabs.window_hu)
    x = functional.pad(x, (0, -w % multiple, 0, -h % multiple), value=-1.0)
    with torch.inference_mode():
        gates = net(x[None], attention=True)[1]
    scale = [gate.shape[-2] / x.shape[-2] for gate in gates]
    return small[at], [g[0].mean(0)[: math.ceil(h * s), : math.ceil(w * s)] for g, s in zip(gates, scale)]


def cascade_reports(made: Experiment) -> list[dict]:
    """`metrics.evaluate_case` of every held-out case, for the cascade's tumor mask on the work grid."""
    reports = []
    for case in made.cases("test").case:
        _, labels, spacing = made.work(case)
        found = made.array("tumor", "maps", case).float() >= made.settings.consistency.threshold
        reports.append(metrics.evaluate_case(labels, torch.where(found, 2, labels.clamp(max=1)), spacing, case))
    return reports


def consistency(made: Experiment) -> pd.DataFrame:
    """The consistency stage's cases.csv with `slices`: thin where the rule may clear, else thick; and `changed` voxels."""
    table = made.table("consistency", "cases.csv", dtype=AS_TEXT).merge(made.cases()[["case", "work_z_mm"]], on="case")
    thin = table.work_z_mm.map(made.settings.consistency.clears)
    return table.assign(slices=np.where(thin, "thin", "thick")).eval("changed = restored + suppressed")


def changes(table: pd.DataFrame) -> pd.DataFrame:
    """Voxels restored and suppressed, right and wrong, in thin and thick slices, from the table of `consistency`."""
    rows = {}
    for (slices, split), part in table.groupby(["slices", "split"], sort=False):
        for what in ("restored", "suppressed"):
            right, done = part[f"{what}_right"].sum(), part[what].sum()
            if done:
                rows[f"{what}, {slices}, {'held out' if split == 'test' else 'out of fold'}"] = [right, done - right]
    return pd.DataFrame.from_dict(rows, "index", columns=["right", "wrong"]).sort_index()


def three_slices(held: pd.DataFrame) -> str:
    """The measured answer of notebook 04: held-out cases of the table of `consistency`, thin and thick slices apart."""
    lines = []
    for slices, part in held.groupby("slices", sort=False):
        right = [
            f"{part[f'{what}_right'].sum():.0f} of {total:.0f} {what} voxels are right"
            if (total := part[what].sum())
            else f"no voxel is {what}"
            for what in ("restored", "suppressed")
        ]
        lines.append(
            f"- **{slices} slices** ({part.work_z_mm.min():.1f} to {part.work_z_mm.max():.1f} mm, {part.patient.nunique()} held-out "
            f"patients): {', '.join(right)}. **Tumor Dice changes by "
            f"{change(part.dice_before, part.dice_after, part.patient, '+.4f')}** (95 % interval over patients)."
        )
    return "\n".join([*lines, "", "On the work grid. Restored is right inside the reference, suppressed outside it."])


# --- candidates --------------------------------------------------------------------------------------------------


def homes(made: Experiment) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Candidates, and the reference lesions, `touched` by one of them or not."""
    shared = pd.concat([_touched(made, case) for case in made.cases().case])
    found = lesions(made).merge(shared.assign(touched=True), how="left", on=["case", "lesion"])
    table = made.table("candidates", "candidates.csv", dtype=AS_TEXT)
    return table, found.fillna({"touched": False}).astype({"touched": bool})


def _touched(made: Experiment, case: str) -> pd.DataFrame:
    """The reference lesions that share a voxel with a candidate."""
    reference = components(made.work(case)[1] == 2)[0]
    on = made.array("candidates", "labels", case).numpy() > 0
    return pd.DataFrame({"case": case, "lesion": np.unique(reference[on & (reference > 0)]).astype(int)})


def froc_table(table: pd.DataFrame, split: str, score: str) -> pd.DataFrame:
    """The candidates of a split for `figures.froc`: true ones by the lesion they lie in, the others false."""
    return table[table.split == split].assign(score=table[score])


# --- radiomics ---------------------------------------------------------------------------------------------------


class Repeats(NamedTuple):
    """The descriptors of the training candidates under each perturbation, `values [repeat candidate 728]`; `changes`: name and
    kind of each repeat, the first unperturbed; `rows`: case, candidate, patient, is_lesion."""

    values: np.ndarray
    changes: pd.DataFrame
    rows: pd.DataFrame


def repeats(made: Experiment) -> Repeats:
    """What the radiomics stage measured for the stability of its descriptors."""
    rows = made.table("radiomics", "repeats.csv", dtype=AS_TEXT)
    about = made.table("candidates", "candidates.csv", dtype=AS_TEXT)[["case", "candidate", "patient", "is_lesion"]]
    changes = pd.DataFrame(json.loads((made.path("radiomics") / "perturbations.json").read_text()))
    values = np.load(made.path("radiomics") / "repeats.npy", allow_pickle=False)
    return Repeats(values, changes, rows.merge(about, how="left", validate="one_to_one"))


def agreement(values: np.ndarray, changes: pd.DataFrame) -> pd.DataFrame:
    """ICC of one descriptor, `values [repeat candidate]`, between each perturbation and the unperturbed value: change, kind, icc,
    low, high. ICC(2,1) of a systematic change, ICC(1,1) of a random one, as the selection asks of all of them together."""
    rows, kinds = [], {"systematic": "icc21", "random": "icc11"}
    for row, moved in zip(changes[1:].itertuples(), values[1:]):
        found, icc = selection.icc(np.stack([values[0], moved], axis=1)), kinds[row.kind]
        rows.append([row.name, row.kind, *(found[f"{icc}{end}"] for end in ("", "_low", "_high"))])
    return pd.DataFrame(rows, columns=["change", "kind", "icc", "low", "high"])


def steadiest(made: Experiment) -> pd.DataFrame:
    """The descriptors: name, group, kept. The kept ones first, by rank; then the steadier first, by the lower of both lower ends
    of their ICCs. In the order of the catalogue as long as nothing is selected."""
    if not _ran(made, "selection"):
        return radiomics.CATALOGUE[["name", "group"]].assign(kept=False)
    table = made.table("selection", "table.csv")
    table = table.assign(lowest=table[["icc21_low", "icc11_low"]].min(axis=1), after=table["rank"].where(table.kept))
    order = ["kept", "after", "lowest"]
    table = table.sort_values(order, ascending=[False, True, False], kind="stable", ignore_index=True)
    return table[["name", "group", "kept"]]


def perturbation_spread(made: Experiment) -> pd.DataFrame:
    """How far each perturbation moves the descriptors of a group: median change in sd between candidates."""
    own, *moved = (found := repeats(made)).values
    sd = pd.DataFrame(own).std().where(lambda s: s > 0).to_numpy()
    moved = [pd.DataFrame(np.abs(one - own)).median().to_numpy() / sd for one in moved]
    moved = pd.DataFrame(moved, index=found.changes.name[1:], columns=radiomics.NAMES)
    group = radiomics.CATALOGUE.set_index("name").group
    return moved.T.groupby(group).median().T[list(radiomics.GROUPS)]


# --- the forest --------------------------------------------------------------------------------------------------


def nearest(scores: pd.DataFrame, is_lesion: bool, threshold: float) -> pd.Series:
    """The rejected candidate of a kind that came nearest to the threshold; the nearest kept one where none was rejected."""
    of = scores[scores.is_lesion == is_lesion]
    if not len(of):
        raise Refused("scores", f"no candidate with is_lesion {is_lesion}", "at least one", "Show another split.")
    return of.assign(apart=(of.score - threshold).abs()).sort_values(["kept", "apart"], kind="stable").iloc[0]


def verdicts(scores: pd.DataFrame) -> str:
    """What the forest removed and what it lost, in words."""
    false, found = scores[~scores.is_lesion], scores[scores.is_lesion].groupby(["case", "lesion"]).kept.any()
    removed, lost = share((~false.kept).sum(), len(false)), share((~found).sum(), len(found))
    return f"removes {removed} false positives and loses {lost} lesions"


class Decision(NamedTuple):
    """One candidate as the forest saw it, in the order of `figures.decision`: (HU, mask, labels `[z y x]`, spacing_mm), the
    probability that each tree gave, what each descriptor contributed, its neighbours among the training candidates."""

    candidate: tuple
    votes: np.ndarray
    contributions: pd.DataFrame
    alike: list[tuple]


class Decisions:
    """The held-out candidates, `table` from the highest score down; called with a place in it: that `Decision`."""

    def __init__(self, made: Experiment, neighbours: int = 5):
        self.made, self.neighbours, self.model = made, neighbours, forest.load(made.path("forest"))
        scores = made.table("forest", "scores.csv", dtype=AS_TEXT)
        self.threshold = self.model.cut
        self.features = made.table("radiomics", "features.csv", dtype=AS_TEXT).set_index(["case", "candidate"])
        self.known = scores[scores.split == "train"].reset_index(drop=True)
        held = scores[scores.split == "test"].sort_values("score", ascending=False, kind="stable", ignore_index=True)
        if not len(held):
            fix = "Hold patients out: `split` of the manifest."
            raise Refused(made.folder, "no held-out candidate", "at least one", fix)
        self.table, self.patients = held, made.cases("test").patient.nunique()
        self.lesions = len(lesions(made, "test"))

    def __call__(self, place: int) -> Decision:
        one = self.table.iloc[place]
        row = self.features.loc[[(one.case, one.candidate)]]
        rows = self.features.loc[pd.MultiIndex.from_frame(self.known[["case", "candidate"]])]
        own, others = explain.leaves(self.model, row)[0], explain.leaves(self.model, rows)
        share, near = (others == own).double().mean(1).numpy(), []
        for at in np.argsort(-share, kind="stable")[: self.neighbours]:
            other, alike = self.known.iloc[at], share[at]
            words = f"{other.case}, candidate {other.candidate}\n{'lesion' if other.is_lesion else 'false positive'}, alike {alike:.2f}"
            near.append((self._seen(other), bool(other.is_lesion), words))
        votes = self.model.flat.value[torch.arange(len(own)), own].numpy()
        return Decision(self._seen(one), votes, explain.pushes(self.model, row), near)

    def _seen(self, row: pd.Series) -> tuple:
        hu, labels, spacing = self.made.work(row.case)
        return hu, self.made.array("candidates", "labels", row.case) == row.candidate, labels, spacing


def filters_held_out(made: Experiment) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The forest on simpler sets of descriptors, on the selected and on all of them, and gradient boosting on the selected: fitted on all training
    candidates, each at its own out-of-fold threshold. Counts on the held-out patients, a row a filter; and the held-out candidates (case, patient,
    is_lesion, lesion) with a column for each filter, whether it keeps them."""
    scores = made.table("forest", "scores.csv", dtype=AS_TEXT)
    features = made.table("radiomics", "features.csv", dtype=AS_TEXT)
    x = scores[["case", "candidate"]].merge(features, how="left", validate="one_to_one")
    chosen = json.loads((made.path("selection") / "selected.json").read_text())["all"]
    sets = pipeline.simpler() | {"selected": chosen, "all": list(radiomics.NAMES), "boosting": chosen}
    train, test = ((scores.split == split).to_numpy() for split in ("train", "test"))
    y, rows = scores.is_lesion.to_numpy(), []
    held = scores.loc[test, ["case", "patient", "is_lesion", "lesion"]].reset_index(drop=True)
    for row in made.table("forest", "baselines.csv").itertuples():
        given, settings = (x[train][sets[row.features]], y[train]), made.settings.forest
        make = forest.boosted if row.features == "boosting" else forest.fit
        if row.features == "selected":
            model = forest.load(made.path("forest"))
        else:
            model = make(*given, forest.settled(*given, scores.patient[train], settings, make)[0])
        score = model.score(x[test])
        kept, truth = score >= row.threshold, y[test]
        found = held[truth].assign(kept=kept[truth]).groupby(["case", "lesion"]).kept.any()
        counts = {"false_positives": (~truth).sum(), "removed": (~kept & ~truth).sum(), "lesions": len(found),
                  "lost": (~found).sum(), "auc": forest.auc(score, truth)}  # fmt: skip
        rows.append({"features": row.features, "columns": len(sets[row.features]), **counts})
        held[row.features] = kept
    return pd.DataFrame(rows).set_index("features"), held


def card(made: Experiment, case: str, candidate: int) -> Figure:
    """The card of a candidate, as the stages up to the forest have it, with the reference."""
    model, maps = forest.load(made.path("forest")), Maps.of(made, case)
    models = Deciders.of(made)
    pieces, features = made.array("candidates", "labels", case), made.table("radiomics", "features.csv", dtype=AS_TEXT)
    table = features.loc[features.case == case, ["case", "candidate", *model.names]].reset_index(drop=True)
    score, found = model.score(table), made.table("candidates", "candidates.csv", dtype=AS_TEXT)
    volume_ml = table[["case", "candidate"]].merge(found, how="left", validate="one_to_one").volume_ml
    table = table.assign(forest_score=score, kept=model.keeps(score, volume_ml))
    kept = torch.isin(pieces, torch.as_tensor(table.candidate[table.kept].to_list(), dtype=pieces.dtype))
    one = cards.make(maps, pieces, table[table.candidate == candidate], models, case)
    return cards.draw(one, candidate, maps, pieces, kept, truth=made.work(case)[1] == 2)


def missed(made: Experiment) -> pd.DataFrame:
    """Held-out reference lesions (work grid) that no kept candidate touches: case, lesion, volume_ml, lost_at (the first stage that leaves
    nothing of it), peak (the highest tumor probability in it), appears_at (the highest threshold of the cascade, below the
    own one and in steps of `cards.STEP`, at which a candidate touches it; NaN for none)."""
    scores, models, rows = made.table("forest", "scores.csv", dtype=AS_TEXT), Deciders.of(made), []
    for case in made.cases("test").case:
        maps, pieces = Maps.of(made, case), made.array("candidates", "labels", case)
        kept = scores[(scores.case == case) & scores.kept].candidate.to_list()
        masks = {
            "cascade": maps.p >= made.settings.consistency.threshold,
            "consistency": made.array("consistency", "masks", case).bool(),
            "candidates": pieces > 0,
            "forest": torch.isin(pieces, torch.as_tensor(kept, dtype=pieces.dtype)),
        }
        reference, count = components(made.work(case)[1] == 2)
        lost = [n for n in range(1, count + 1) if not bool(masks["forest"][torch.from_numpy(reference == n)].any())]
        atlas = cards.Atlas(maps, models) if lost else None
        lower = atlas.lower() if lost else []
        for number in lost:
            own = torch.from_numpy(reference == number)
            levels = [level for level, found in lower if bool((found.labels[own[atlas.box]] > 0).any())]
            about = {"case": case, "lesion": number, "volume_ml": int(own.sum()) * math.prod(maps.spacing_mm) / 1000}
            at = next(stage for stage, mask in masks.items() if not bool(mask[own].any()))
            about |= {"lost_at": at, "peak": float(maps.p[own].max()), "appears_at": max(levels, default=math.nan)}
            rows.append(about)
    return pd.DataFrame(rows, columns=["case", "lesion", "volume_ml", "lost_at", "peak", "appears_at"])


# --- the end -----------------------------------------------------------------------------------------------------


def by_size(made: Experiment) -> pd.DataFrame:
    """Held-out lesions found (IoU above 0, above 0.5) by diameter class, after the cascade and in the end."""
    rows, stages = [], ("cascade", "boundary")
    for stage in stages:
        reports = json.loads((made.path("metrics") / f"{stage}.json").read_text())["cases"]
        rows += [{"stage": stage, **lesion} for report in reports for lesion in report["lesions"]]
    table = pd.DataFrame(rows).groupby(["stage", "size"])
    counts = table.agg(lesions=("iou", "size"), found=("detected_iou0", "sum"), found_well=("detected_iou50", "sum"))
    return counts.reindex(pd.MultiIndex.from_product([stages, metrics.SIZES])).fillna(0).astype(int)
