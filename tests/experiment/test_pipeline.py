"""The stages in order on toy patients: trained once for all tests of this file (and for the notebooks' test)."""

import json
import os
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from scipy.spatial.transform import Rotation

from workbench import experiment
from workbench.data import cohort, files
from workbench.data.readers import nifti
from workbench.data.threads import side_by_side
from workbench.experiment import Experiment, pipeline, segmentation, table
from workbench.experiment.pipeline import decisions, nets, order
from workbench.experiment.table import STAGES, before
from workbench.lab import results
from workbench.nets import cascade
from workbench.stages import boundary, candidates, forest, ledger, liver, radiomics, selection, tumor
from workbench.volume import Refused


@pytest.fixture(scope="session")
def segmented(models):
    ct, truth = tiny.patient(50)
    return segmentation.segment(ct, models), truth


def test_every_stage_leaves_its_manifest(trained):
    for stage in STAGES:
        about = json.loads((trained.path(stage) / "stage.json").read_text())
        assert about["stage"] == stage and about["outputs"], stage
        for name, digest in about["outputs"].items():
            assert files.sha256(trained.path(stage) / name) == digest


def test_the_nets_learned_something(trained):
    assert json.loads((trained.path("liver") / "metrics.json").read_text())["train_dice"] > 0.9
    assert json.loads((trained.path("tumor") / "metrics.json").read_text())["train_dice"] > 0.4


def test_maps_are_out_of_fold(trained):
    """A training case's maps come from the one net that never saw its patient; the net that did see it gives others."""
    for stage in ("liver", "tumor"):
        s = getattr(trained.settings, stage)
        nets = cascade.load(trained.path(stage), s.cascade, "cpu")
        for row in trained.cases("train").itertuples():
            hu, _, spacing = trained.work(row.case)

            def predicted(chosen, hu=hu, spacing=spacing, case=row.case, s=s, stage=stage):
                if stage == "liver":
                    return liver.probability(chosen, hu, spacing, s)
                p = trained.array("liver", "maps", case).float()
                at = tumor.box(liver.mask(p, spacing, trained.settings.liver), spacing, s)
                return tumor.probability(chosen, hu, p, at, s)

            stored = trained.array(stage, "maps", row.case).float()
            others = [net for n, net in enumerate(nets) if n != row.fold]
            assert (stored - predicted([nets[row.fold]])).abs().max() < 2e-3
            assert (stored - predicted(others)).abs().max() > 0.02


def test_a_fold_trains_on_the_other_patients_only(trained, monkeypatch, tmp_path):
    seen = {}

    def train_fold(training, held, settings, folder, fold, device, show, choosing, start):
        seen[fold] = (len(training), len(held), len(choosing))
        folder.mkdir(exist_ok=True)
        (folder / f"fold{fold}.json").write_text('{"curve": []}')

    def bank(case):
        return SimpleNamespace(case=case, bytes=0)

    monkeypatch.setattr(cascade, "train_fold", train_fold)
    nets.train_folds(trained, tmp_path, trained.settings.liver.cascade, bank)
    sizes = trained.cases("train").fold.value_counts()
    assert seen == {f: (8 - sizes[f], sizes[f], 0) for f in range(2)}
    s = trained.settings.liver.cascade
    nets.train_folds(trained, tmp_path / "chosen", replace(s, fit=replace(s.fit, inner=0.25)), bank)
    assert seen == {f: (7 - sizes[f], sizes[f], 1) for f in range(2)}


def test_the_tumor_net_learns_beside_the_liver_that_a_net_found_and_not_beside_the_reference(
    trained, monkeypatch, tmp_path
):
    seen, cases = [], trained.cases("train").case
    monkeypatch.setattr(nets, "train_folds", lambda made, folder, settings, bank, only: [bank(case) for case in cases])
    monkeypatch.setattr(tumor, "bank_case", lambda hu, labels, p, at, ignore: seen.append((p, at)))
    nets.train_tumor(trained, tmp_path)
    assert len(seen) == len(cases) == 8
    for case, (p, at) in zip(cases, seen):
        _, labels, spacing = trained.work(case)
        assert torch.equal(p, trained.array("liver", "maps", case).float()) and not torch.equal(
            p, (labels >= 1).float()
        )
        assert at == tumor.box(trained.array("liver", "masks", case), spacing, trained.settings.tumor)


def test_the_forest_knows_the_largest_candidate_it_learnt_from(trained):
    scores = trained.table("forest", "scores.csv")
    largest = scores.volume_ml[scores.split == "train"].max()
    assert forest.load(trained.path("forest")).largest_ml == pytest.approx(largest, rel=1e-9)


def test_doubt_counts_for_no_piece_beyond_what_the_forest_learnt_from(segmented, models, monkeypatch):
    """The same doubted candidates, for a forest that knows their size and for one that learnt from smaller ones only."""
    maps, cut = segmented[0].maps, models.forest.threshold._replace(threshold=0.0)
    monkeypatch.setattr(forest.Forest, "score", lambda self, table: np.full(len(table), 0.1))
    knows, small = (replace(models, forest=replace(models.forest, threshold=cut, largest_ml=v)) for v in (1e6, 1e-3))
    doubted, guessed = segmentation.decide(maps, knows), segmentation.decide(maps, small)
    undoubted = segmentation.decide(maps, small, skip=("forest",))
    assert torch.equal(guessed.masks[-1], undoubted.masks[-1]) and not torch.equal(doubted.masks[-1], guessed.masks[-1])
    assert len(doubted.lesions) and not doubted.lesions.reason.str.contains("larger").any()
    assert guessed.lesions.reason.str.endswith(
        "larger than all that the forest learned from (0.001 ml), so it is kept whatever its score"
    ).all()


def test_what_is_larger_than_all_that_the_forest_learned_from_is_kept(segmented, models, monkeypatch):
    """LiTS 4: a forest that knew 60 ml rejected a lesion of 968 ml, and tumor Dice fell from .91 to .03."""
    monkeypatch.setattr(forest.Forest, "score", lambda self, table: np.zeros(len(table)))
    volumes = segmentation.decide(segmented[0].maps, models).lesions.volume_ml
    middle = float(volumes.median())
    at = replace(models, forest=replace(models.forest, largest_ml=middle))
    lesions = segmentation.decide(segmented[0].maps, at).lesions
    assert lesions.kept.tolist() == (lesions.volume_ml > middle).tolist() and 0 < lesions.kept.sum() < len(lesions)


def test_a_score_that_reaches_the_threshold_is_kept(segmented, models, monkeypatch):
    monkeypatch.setattr(forest.Forest, "score", lambda self, table: np.full(len(table), 0.25))
    for threshold, kept in ((0.25, True), (0.26, False)):
        cut = models.forest.threshold._replace(threshold=threshold)
        lesions = segmentation.decide(
            segmented[0].maps, replace(models, forest=models.forest.with_threshold(cut))
        ).lesions
        assert len(lesions) and (lesions.kept == kept).all()
        assert lesions.reason.str.contains("reaches" if kept else "is below").all()


def test_the_held_out_are_nowhere_in_training(trained):
    held = set(trained.cases("test").case)
    assert held and (trained.cases("test").fold == -1).all()
    assert not held & set(trained.table("radiomics", "repeats.csv").case)
    scores = trained.table("forest", "scores.csv")
    assert set(trained.table("metrics", "cases.csv").case) == held <= set(scores[scores.split == "test"].case) | held


def test_no_selection_sees_a_held_out_patient(trained, tmp_path):
    """What the held-out patients' descriptors are changes nothing: those of the test split for no selection, those of a fold for that fold's."""
    chosen = json.loads((trained.path("selection") / "selected.json").read_text())
    folds = trained.table("selection", "folds.csv")
    rng = np.random.default_rng(0)

    def spoiled(cases: set[str], name: str) -> dict:
        made = Experiment(shutil.copytree(trained.folder, tmp_path / name), "cpu")
        features, which = (trained.table("radiomics", f"{t}.csv") for t in ("features", "repeats"))
        on = features.case.isin(cases)
        assert on.any()
        features.loc[on, list(radiomics.NAMES)] = rng.normal(size=(on.sum(), 728)) * 1e4
        features.to_csv(made.path("radiomics") / "features.csv", index=False)
        repeats = np.load(made.path("radiomics") / "repeats.npy")
        repeats[:, which.case.isin(cases)] = rng.normal(size=repeats.shape)[:, which.case.isin(cases)]
        np.save(made.path("radiomics") / "repeats.npy", repeats)
        decisions.run_selection(made, made.path("selection"))
        return json.loads((made.path("selection") / "selected.json").read_text())

    assert spoiled(set(trained.cases("test").case), "test") == chosen
    other = spoiled(set(folds.case[folds.fold == 0]), "fold")
    assert other["0"] == chosen["0"] and other["1"] != chosen["1"] and other["all"] != chosen["all"]


@pytest.fixture
def pairs(trained, tmp_path):
    """The same experiment, had the toys been two scans each of half as many patients."""
    made = Experiment(shutil.copytree(trained.folder, tmp_path / "pairs"), "cpu")
    for stage, name in (("cohort", "cases.csv"), ("candidates", "candidates.csv")):
        table = made.table(stage, name)
        table["patient"] = [f"pair-{int(case[-2:]) // 2}" for case in table.case]
        table.to_csv(made.path(stage) / name, index=False)
    return made


def test_scans_of_one_patient_stay_together(pairs, monkeypatch, tmp_path):
    """In every fold and resample of selection, in what it and the forest are told, and in what the boundary net holds out."""
    tasks, told = [], []

    def noted(make, work, given, workers):
        tasks.extend(given)
        return [SimpleNamespace(names=["a"], table=pd.DataFrame(columns=["name", "step"]))] * len(tasks)

    monkeypatch.setattr(decisions, "in_processes", noted)
    decisions.run_selection(pairs, tmp_path)
    given = decisions._given(pairs.folder, "cpu")
    people = given.table.patient.to_numpy()
    assert len(tasks) == 4 + 3 + 1 and set(people) == {f"pair-{n}" for n in range(4)}
    for use, _ in tasks:
        assert set(people[use]).isdisjoint(people[~use])
    monkeypatch.setattr(selection, "select", lambda x, y, patients, *_, **__: told.append(patients))
    decisions._selected(given, tasks[0][0])
    assert told[0].tolist() == people[tasks[0][0]].tolist()
    assert decisions.forest_rows(pairs).patients.tolist() == people.tolist()


def test_the_boundary_net_learns_from_what_the_forest_left_of_training_cases(pairs, monkeypatch, tmp_path):
    scores, seen = pairs.table("forest", "scores.csv"), []
    scores["kept"] = scores.candidate % 2 == 1
    scores.to_csv(pairs.path("forest") / "scores.csv", index=False)
    monkeypatch.setattr(boundary, "train", lambda cases, *_: seen.extend(cases))
    decisions.train_boundary(pairs, tmp_path)
    training = pairs.cases("train")
    assert [case.patient for case in seen] == training.patient.tolist()
    for name, case in zip(training.case, seen):
        hu, labels, spacing = pairs.work(name)
        assert torch.equal(case.mask, pairs.array("candidates", "labels", name) % 2 == 1)
        assert torch.equal(case.truth, labels == 2) and torch.equal(case.image, hu.float())
        assert case.spacing_mm == spacing and torch.equal(case.liver, pairs.array("liver", "masks", name))


def test_the_forest_is_judged_on_patients_that_neither_it_nor_its_features_saw(trained):
    """Scores and threshold of the training candidates, made once more fold by fold from the other folds' rows alone."""
    names = json.loads((trained.path("selection") / "selected.json").read_text())
    x, y, patients, fold, lesions, _ = decisions.forest_rows(trained)[1:]
    scores = trained.table("forest", "scores.csv")
    stored = scores.score[scores.split == "train"].to_numpy()
    for n in range(fold.max() + 1):
        rows, own = fold != n, names[str(n)]
        assert set(patients[rows]).isdisjoint(patients[~rows])
        s, _ = forest.settled(x.loc[rows, own], y[rows], patients[rows], trained.settings.forest)
        made = forest.fit(x.loc[rows, own], y[rows], s)
        assert made.score(x[~rows]) == pytest.approx(stored[~rows], abs=1e-6)
    cut = forest.threshold_for_recall(stored, y, trained.settings.forest.recall, lesions)
    assert forest.load(trained.path("forest")).threshold == pytest.approx(cut)
    assert (scores.kept == (scores.score >= cut.threshold)).all()


def test_a_lesion_in_pieces_is_one_for_the_threshold_and_lost_only_with_its_last(trained, monkeypatch, tmp_path):
    """All true candidates of a case are made pieces of one lesion: the threshold is the lowest of the cases' best, and none is lost."""
    made = Experiment(shutil.copytree(trained.folder, tmp_path / "copy"), "cpu")
    table = made.table("candidates", "candidates.csv")
    table.assign(lesion=table.is_lesion.astype(int)).to_csv(made.path("candidates") / "candidates.csv", index=False)
    train, asked = table.split == "train", []
    y, case = table.is_lesion[train].to_numpy(), table.case[train].to_numpy()
    scores = np.random.default_rng(0).permutation(len(y)) / len(y)

    def baselines(*_, lesions, **__):
        asked.extend(lesions[y])
        return pd.DataFrame({"features": ["selected"], "threshold_low": [0.0], "threshold_high": [1.0]})

    monkeypatch.setattr(forest, "out_of_fold", lambda *_: forest.OutOfFold(scores, None, ()))
    monkeypatch.setattr(forest, "baselines", baselines)
    monkeypatch.setattr(forest, "importance", lambda *_: pd.DataFrame({"name": []}))
    told = decisions.run_forest(made, tmp_path / "forest")
    best = pd.Series(scores[y]).groupby(case[y]).max()
    assert told["threshold"] == best.min() > scores[y].min()
    assert (told["recall"], told["train_lesions"], told["train_lesions_lost"]) == (1.0, len(best), 0)
    assert len(set(asked)) == len(best)


def test_pieces_of_one_lesion_are_one_and_lesions_of_two_cases_two():
    table = pd.DataFrame({"case": ["a", "a", "b"], "lesion": [1, 1, 1]})
    assert decisions._lesions(table).tolist() == ["a/1", "a/1", "b/1"]


def test_a_finished_stage_is_not_run_again(trained, monkeypatch):
    def never(*_):
        raise AssertionError("ran again")

    for name, row in STAGES.items():
        monkeypatch.setitem(STAGES, name, replace(row, run=never))
    pipeline.train(trained)


def test_a_changed_input_runs_the_stage_again(trained, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(trained.folder, copy)
    about = json.loads((copy / "experiment.json").read_text())
    about["manifest"] = str(trained.manifest)
    (copy / "experiment.json").write_text(json.dumps(about))
    other = Experiment(copy, "cpu")
    assert all(other.finished(s) for s in STAGES)
    (copy / "tumor" / "stage.json").write_text((copy / "tumor" / "stage.json").read_text() + " ")
    assert other.finished("liver") and other.finished("tumor") and not other.finished("consistency")
    about["settings"]["consistency"]["low"] = 0.3
    (copy / "experiment.json").write_text(json.dumps(about))
    assert not Experiment(copy, "cpu").finished("consistency")


def test_a_stage_without_one_of_its_files_is_not_finished_nor_one_that_is_begun_again(trained, tmp_path):
    copy = shutil.copytree(trained.folder, tmp_path / "copy")
    about = json.loads((copy / "experiment.json").read_text()) | {"manifest": str(trained.manifest)}
    (copy / "experiment.json").write_text(json.dumps(about))
    other = Experiment(copy, "cpu")
    (copy / "boundary" / "curves.csv").unlink()
    assert other.finished("forest") and not other.finished("boundary")
    order.begin(other, "boundary")
    left = {p.name for p in (copy / "boundary").iterdir()}
    assert "stage.json" not in left and "metrics.json" in left, "what is there may be gone on from"
    about["settings"]["boundary"]["threshold"] = 0.45
    (copy / "experiment.json").write_text(json.dumps(about))
    order.begin(Experiment(copy, "cpu"), "boundary")
    assert [p.name for p in (copy / "boundary").iterdir()] == ["started.json"]


def _written_by_0_1_0(folder):
    """Records as version 0.1.0 wrote them: the package's version, no format; what rests on a record names its hash."""
    for stage in STAGES:
        for name in ("started.json", "stage.json"):
            file = folder / stage / name
            about = json.loads(file.read_text())
            about.pop("format")
            needs = {n: files.sha256(folder / n / "stage.json") for n in table.STAGES[stage].needs}
            files.write_json(file, about | {"version": "0.1.0", "inputs": needs or about["inputs"]})


def test_another_version_of_the_package_deletes_no_trained_stage(trained, tmp_path, monkeypatch):
    folder = tiny.copied(trained, tmp_path / "e")
    _written_by_0_1_0(folder)
    before = {stage: (folder / stage / "stage.json").read_bytes() for stage in STAGES}
    monkeypatch.setattr("workbench.__version__", "9.0.0")
    made = Experiment(folder, "cpu")
    assert all(made.finished(stage) for stage in STAGES)
    pipeline.train(made)
    assert before == {stage: (folder / stage / "stage.json").read_bytes() for stage in STAGES}
    segmentation.Models.load(folder, "cpu")


def test_another_version_goes_on_with_a_stage_that_is_half_done(trained, tmp_path, monkeypatch):
    folder = tiny.copied(trained, tmp_path / "e")
    _written_by_0_1_0(folder)
    (folder / "tumor" / "stage.json").unlink()
    net = (folder / "tumor" / "fold0.json").stat().st_mtime_ns
    monkeypatch.setattr("workbench.__version__", "9.0.0")
    monkeypatch.setattr(cascade, "train_fold", lambda *a, **k: pytest.fail("a net was trained again"))
    pipeline.run(Experiment(folder, "cpu"), "tumor")
    assert (folder / "tumor" / "fold0.json").stat().st_mtime_ns == net


def test_an_earlier_stage_is_asked_for(tmp_path, toy_cohort):
    fresh = Experiment.create(tmp_path, toy_cohort, tiny.settings(), "cpu")
    with pytest.raises(Refused, match="Run notebook 01"):
        pipeline.run(fresh, "liver")
    with pytest.raises(Refused, match="expected cohort, liver"):
        pipeline.run(fresh, "livver")


def test_another_cohort_or_settings_are_refused(trained, toy_cohort):
    with pytest.raises(Refused, match="other settings"):
        Experiment.create(trained.folder, toy_cohort, experiment.demo(), "cpu")


def test_two_on_one_experiment(tmp_path):
    with files.held(tmp_path), pytest.raises(Refused, match="in use by process"), files.held(tmp_path):
        pass


def test_settings_survive_json():
    for make in (experiment.demo, experiment.paper, tiny.settings):
        from dataclasses import asdict

        stored = json.loads(json.dumps(asdict(make())))
        assert files.from_dict(experiment.Settings, stored) == make()


def test_settings_that_a_stored_experiment_does_not_name_yet_are_at_their_defaults(tmp_path, toy_cohort):
    made = Experiment.create(tmp_path, toy_cohort, tiny.settings(), "cpu")
    about = json.loads((tmp_path / "experiment.json").read_text())
    del about["settings"]["liver"]["cascade"]["fit"]["ema"], about["settings"]["boundary"]["ema"]
    (tmp_path / "experiment.json").write_text(json.dumps(about))
    assert Experiment.create(tmp_path, toy_cohort, tiny.settings(), "cpu").settings == made.settings
    about["settings"]["liver"]["cascade"]["fit"]["ema"] = 0.5
    (tmp_path / "experiment.json").write_text(json.dumps(about))
    again = Experiment.create(tmp_path, toy_cohort, tiny.settings(), "cpu")
    assert again.settings == made.settings and "ema" not in again.about["settings"]["boundary"], (
        "left as it was written"
    )


def test_ledger_adds_up(segmented, models):
    result, _ = segmented
    masks = {s: ledger.tumor_after(result.ledger, s) for s in ledger.ABLATION}
    final = masks["cascade"].clone()
    codes = result.ledger
    for code, (_, history) in ledger.HISTORY.items():
        if history[0] != history[-1]:
            final[codes == code] = bool(history[-1])
    assert torch.equal(final, result.labels == 2)
    assert torch.equal(
        masks["cascade"], result.tumor_probability >= models.settings.consistency.threshold
    )  # the toys' grid is the work grid
    assert set(codes.unique().tolist()) <= set(ledger.CODES)
    assert ((result.labels == 1) <= result.liver).all()


def test_a_new_patient_is_segmented(segmented, models):
    result, truth = segmented
    assert result.status == "ok"
    both = (result.labels > 0) & (truth.array > 0)
    assert 2 * both.sum() / ((result.labels > 0).sum() + (truth.array > 0).sum()) > 0.9
    assert {"candidate", "kept", "reason", "forest_score", "volume_ml", "long_axis_mm"} <= set(result.lesions.columns)
    assert len(result.lesions.columns) == 12 + 20
    assert result.lesions.kept.equals(result.lesions.forest_score >= models.forest.threshold.threshold)


CPU = torch.device("cpu")


def test_folds_side_by_side_tell_their_progress_in_the_callers_thread():
    from threading import get_ident

    before, told, threads = torch.get_num_threads(), [], set()

    def work(item, progress):
        threads.add(get_ident())
        for step in range(3):
            progress(f"fold{item}", step + 1, 3, {"threads": torch.get_num_threads()})

    def show(name, done, total, row):
        told.append((name, done, get_ident()))

    torch.set_num_threads(2)
    try:
        side_by_side(work, [0, 1, 2], show, CPU)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert sorted(t[:2] for t in told) == [(f"fold{n}", step) for n in range(3) for step in (1, 2, 3)]
    assert {t[2] for t in told} == {get_ident()} and get_ident() not in threads


def test_an_error_in_one_fold_stops_the_others():
    begun, stopped = Event(), []

    def work(item, progress):
        if item == 0:
            begun.wait(10)
            raise Refused("fold 0", "an error", "none")
        begun.set()
        try:
            for step in range(10_000):
                progress("fold1", step, 10_000, {})
                time.sleep(0.001)
        except InterruptedError:
            stopped.append(item)
            raise

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(Refused, match="fold 0"):
            side_by_side(work, [0, 1], lambda *_: None, CPU)
    finally:
        torch.set_num_threads(before)
    assert stopped == [1]


def test_places_are_those_of_the_volumes_own_grid(models):
    """Told from the first voxel's centre: with pixels cut in four, the same place is a quarter of the old pixel on."""
    ct, truth = tiny.patient(50)
    liver_mask, z, y, x = truth.array >= 1, *ct.spacing_mm
    pieces = candidates.find(truth.array == 2, (truth.array == 2).float(), liver_mask, ct.spacing_mm)
    maps = segmentation.Maps(ct.array.float(), liver_mask.float(), liver_mask, liver_mask.float(), ct.spacing_mm)
    judged = (
        segmentation._judge(pieces, maps, own, models, segmentation.Memory())[["z_mm", "y_mm", "x_mm"]]
        for own in (ct.spacing_mm, (z, y / 2, x / 2))
    )
    coarse, fine = (table.to_numpy() for table in judged)
    assert len(coarse) > 0 and np.allclose(coarse, pieces.table[["z_mm", "y_mm", "x_mm"]])
    assert np.allclose(fine - coarse, [0, y / 4, x / 4], atol=1e-9)


def test_a_result_folder_is_whole(segmented, tmp_path):
    import nibabel

    result, _ = segmented
    folder = results.keep(result, tmp_path / "case")
    assert {p.name for p in folder.iterdir()} == {
        "labels.nii.gz", "liver_probability.nii.gz", "tumor_probability.nii.gz", "ledger.nii.gz", "candidates.nii.gz",
        "lesions.csv", "result.json", "preview.png", "report.html", "cards.json", "cards",
    }  # fmt: skip
    labels = nibabel.load(folder / "labels.nii.gz")
    assert labels.get_data_dtype() == np.uint8
    about = json.loads((folder / "result.json").read_text())
    assert about["status"] == "ok" and str(int(result.ledger.max())) in about["ledger_codes"]
    assert len(pd.read_csv(folder / "lesions.csv")) == len(result.lesions)
    added, removed = (
        sum(
            int((result.ledger == code).sum())
            for code, (_, (*_, forest, edge)) in ledger.HISTORY.items()
            if (forest, edge) == both
        )
        for both in ((0, 1), (1, 0))
    )
    assert added + removed > 0
    assert about["change_ml"]["boundary"] == pytest.approx((added - removed) * result.volume.voxel_ml, abs=1e-6)
    assert set(about["change_ml"]) == {"boundary", "smoothing"}


def test_lesions_lie_where_a_viewer_shows_them(models, tmp_path):
    """On a grid that is turned about two axes; by nibabel and, in LPS, by SimpleITK: the mean of a candidate's voxels there."""
    import nibabel
    import SimpleITK as sitk

    ct, _ = tiny.patient(50)
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xz", [17, -25], degrees=True).as_matrix()
    turn[:3, 3] = 30, -210, 1400
    volume = replace(ct, affine=turn @ ct.affine)
    folder = results.keep(segmentation.segment(volume, models), tmp_path / "case")
    table = pd.read_csv(folder / "lesions.csv")
    assert len(table) > 1
    image, by_itk = nibabel.load(folder / "candidates.nii.gz"), sitk.ReadImage(str(folder / "candidates.nii.gz"))
    for row in table.itertuples():
        at = np.argwhere(np.asarray(image.dataobj) == row.candidate).mean(0)
        ras = np.array([row.r_mm, row.a_mm, row.s_mm])
        assert np.allclose(nibabel.affines.apply_affine(image.affine, at), ras, atol=1e-3)
        assert np.allclose(
            by_itk.TransformContinuousIndexToPhysicalPoint(at.tolist()) * np.array([-1, -1, 1]), ras, atol=1e-3
        )


def test_a_result_that_fails_leaves_nothing(segmented, tmp_path, monkeypatch):
    monkeypatch.setattr(results.report, "case_report", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        results.keep(segmented[0], tmp_path / "case")
    assert list(tmp_path.iterdir()) == []


def test_a_former_result_makes_room_and_other_folders_do_not(segmented, tmp_path):
    result, _ = segmented
    first = results.keep(result, tmp_path / "case")
    stale = [first / name for name in ("layers.png", "cards/candidate-99.png", ".report.html.99999999.part")]
    for file in stale:
        file.write_text("of the former result")
    results.keep(result, tmp_path / "case")
    assert not any(file.exists() for file in stale) and [p.name for p in tmp_path.iterdir()] == ["case"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "scan.dcm").write_text("precious")
    with pytest.raises(Refused, match="no result"):
        results.keep(result, tmp_path / "mine")
    assert (tmp_path / "mine" / "scan.dcm").read_text() == "precious"


def mine(folder):
    """What a user puts into a result folder; as path and content, a link as what it says."""
    (folder / "mine" / "deep").mkdir(parents=True)
    (folder / "mine" / "labels.nii.gz").write_bytes(b"drawn by hand")
    (folder / "mine" / "empty").mkdir()
    for name in ("notes.txt", "labels_fixed_in_slicer.nii.gz", ".hidden", "cards/candidate-01-seen.txt", "mine/deep/a"):
        (folder / name).write_text(name)
    for name, to in (("ct", "../elsewhere"), ("mine/up", "../notes.txt"), ("nowhere", "/no/such/place")):
        (folder / name).symlink_to(to)
    (folder.parent / "elsewhere").mkdir(exist_ok=True)
    (folder.parent / "elsewhere" / "scan.dcm").write_text("precious")


def users(folder):
    found = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*"))}
    return {
        name: str(p.readlink()) if p.is_symlink() else p.read_bytes() if p.is_file() else None
        for name, p in found.items()
        if not results.OWN.fullmatch(name)
    }


@pytest.mark.parametrize("links", [True, False])
def test_a_users_own_files_stay_when_a_result_is_made_anew(segmented, tmp_path, monkeypatch, links):
    folder = results.keep(segmented[0], tmp_path / "case")
    assert users(folder) == {}, "all that the workbench writes is known"
    mine(folder)
    before = users(folder)
    assert len(before) == 12
    if not links:  # a file system without hard links
        monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(PermissionError(1, "no links")))
    for _ in range(2):
        results.keep(segmented[0], folder)
        assert users(folder) == before
    assert (tmp_path / "elsewhere" / "scan.dcm").read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["case", "elsewhere"]


@pytest.mark.parametrize("moves", [0, 1])
def test_a_users_own_files_stay_when_it_is_interrupted(segmented, tmp_path, monkeypatch, moves):
    """Before either move, and between the two: by an exception, and by a kill after which the next call finds what is left."""
    folder = results.keep(segmented[0], tmp_path / "case")
    mine(folder)
    before = users(folder)
    real, done = os.replace, []

    def stop(source, to):
        if Path(to) in (folder, tmp_path / f".case.{os.getpid()}.old"):
            if len(done) == moves:
                done.append("stopped")
                raise KeyboardInterrupt
            done.append("moved")
        real(source, to)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            results.keep(segmented[0], folder)
    assert users(folder) == before and (folder / "labels.nii.gz").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["case", "elsewhere"]
    if moves:
        gone = subprocess.Popen(["true"])
        gone.wait()
        folder.rename(tmp_path / f".case.{gone.pid}.old")
        (tmp_path / f".case.{gone.pid}.part").mkdir()
        with results.claimed(folder):
            assert users(folder) == before
        assert sorted(p.name for p in tmp_path.iterdir()) == ["case", "elsewhere"]


def test_air_is_no_liver(models):
    ct, _ = tiny.patient(50)
    empty = segmentation.segment(ct.with_array(torch.full_like(ct.array, -1000)), models)
    assert empty.status == "no liver" and int(empty.labels.max()) == 0 and len(empty.lesions) == 0


def test_a_scan_cut_to_the_liver_is_given_its_liver(models, segmented):
    result, truth = segmented
    given = segmentation.segment(result.volume, models, liver_given=truth.array >= 1)
    assert bool((given.liver == (truth.array >= 1)).float().mean() > 0.995)
    assert not bool((given.liver_probability[truth.array == 0] > 0.5).float().mean() > 0.005)


@pytest.fixture(scope="module")
def cut_cohort(toy_cohort, tmp_path_factory):
    """Five toy patients without a split: two whole scans, three cut to the liver's box."""
    table = pd.read_csv(toy_cohort).head(5).drop(columns="split")
    table["field_of_view"] = ["whole", "liver box", "liver box", "whole", "liver box"]
    table["patient"] = [f"new-{p}" for p in table.patient]  # nobody whom another experiment learnt from
    for column in ("ct", "labels"):
        table[column] = [toy_cohort.parent / p for p in table[column]]
    path = tmp_path_factory.mktemp("cut") / "manifest.csv"
    table.to_csv(path, index=False)
    return path


def test_scans_cut_to_the_liver_train_no_liver_net(cut_cohort, trained, tmp_path, monkeypatch):
    seen = []
    real = liver.bank_case
    monkeypatch.setattr(liver, "bank_case", lambda *a: seen.append(1) or real(*a))
    made = Experiment.create(tmp_path, cut_cohort, tiny.settings(), "cpu", start=trained.folder)
    for stage in ("cohort", "liver"):
        pipeline.run(made, stage)
    assert len(seen) == 2
    table = pd.read_csv(tmp_path / "liver" / "cases.csv").set_index("case")
    cut = made.cases().field_of_view != "whole"
    assert table.dice.isna().tolist() == cut.tolist()
    for case in made.cases().case[cut]:
        assert torch.equal(made.array("liver", "maps", case).float(), (made.work(case)[1] >= 1).float())


def test_nets_begin_with_those_of_another_experiment(cut_cohort, trained, tmp_path):
    still = tiny.settings()
    still = replace(still, liver=replace(still.liver, cascade=replace(still.liver.cascade, fit=replace(still.liver.cascade.fit, steps=1, rate=0.0))))  # fmt: skip
    made = Experiment.create(tmp_path, cut_cohort, still, "cpu", start=trained.folder)
    for stage in ("cohort", "liver"):
        pipeline.run(made, stage)
    for fold in range(2):
        ours, theirs = (
            dict(cascade.load_fold(e.path("liver"), still.liver.cascade, fold, "cpu").named_parameters())
            for e in (made, trained)
        )
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    with pytest.raises(Refused, match="other start"):
        Experiment.create(tmp_path, cut_cohort, still, "cpu")
    with pytest.raises(Refused, match="no experiment.json"):
        Experiment.create(tmp_path / "other", cut_cohort, still, "cpu", start=tmp_path / "none")


def test_a_stage_is_known_by_the_net_that_its_own_began_with(trained, tmp_path):
    copy = shutil.copytree(trained.folder, tmp_path / "copy")
    about = json.loads((copy / "experiment.json").read_text()) | {"start": os.path.relpath(trained.folder, copy)}
    (copy / "experiment.json").write_text(json.dumps(about))
    made = Experiment(copy, "cpu")
    began = {stage: made.identity(stage)["inputs"].get("start") for stage in table.names()[1:]}
    own = {stage: files.sha256(trained.path(stage) / "stage.json") for stage in ("liver", "tumor", "boundary")}
    assert {stage: sha for stage, sha in began.items() if sha} == own


def test_nets_that_learnt_from_a_patient_are_not_begun_with(toy_cohort, cut_cohort, trained, tmp_path):
    with pytest.raises(Refused, match="nets that learnt from [0-9]+ patients of .*toy"):
        Experiment.create(tmp_path / "same", toy_cohort, tiny.settings(), "cpu", start=trained.folder)
    table = pd.read_csv(cut_cohort)
    table.loc[0, "patient"] = trained.cases("train").patient[0]
    table.to_csv(tmp_path / "one.csv", index=False)
    with pytest.raises(Refused, match=f"1 patients of .*{table.patient[0]}"):
        Experiment.create(tmp_path / "one", tmp_path / "one.csv", tiny.settings(), "cpu", start=trained.folder)
    assert not (tmp_path / "same").exists() and not (tmp_path / "one").exists()
    table.loc[0, "patient"] = trained.cases("test").patient[0]  # whom it never learnt from
    table.to_csv(tmp_path / "held.csv", index=False)
    Experiment.create(tmp_path / "held", tmp_path / "held.csv", tiny.settings(), "cpu", start=trained.folder)


def test_a_fold_without_a_whole_scan_is_refused(cut_cohort, tmp_path):
    table = pd.read_csv(cut_cohort).assign(field_of_view=["whole"] + ["liver box"] * 4)
    table.to_csv(tmp_path / "manifest.csv", index=False)
    made = Experiment.create(tmp_path / "e", tmp_path / "manifest.csv", tiny.settings(), "cpu")
    pipeline.run(made, "cohort")
    with pytest.raises(Refused, match="liver net of fold 0"):
        pipeline.run(made, "liver")


def test_one_scan_under_two_names_is_not_both_learnt_from_and_held_out(tmp_path):
    """In a manifest that tells of no hashes: the voxels themselves say so."""
    path = tiny.cohort(tmp_path / "toys", 3, 1)
    shutil.copytree(tmp_path / "toys" / "toy-00", tmp_path / "toys" / "other")
    path.write_text(path.read_text() + "other,somebody,other/ct.nii.gz,other/labels.nii.gz,test\n")
    made = Experiment.create(tmp_path / "made", path, tiny.settings(), "cpu")
    with pytest.raises(Refused, match=r"same voxels in cases toy-00 \(patient patient-00, train\) and other"):
        nets.run_cohort(made, tmp_path / "made" / "cohort")


def test_a_cohort_that_selection_would_refuse_in_the_end_is_refused_before_anything_is_trained(cut_cohort, tmp_path):
    """Of five patients selection leaves one out at a time, of seven two, of six with three folds two."""
    s = tiny.settings()
    for n, (limits, asked) in enumerate(
        [
            ({"min_patients": 5}, "7 with 2"),
            ({"min_patients": 4, "folds": 3}, "6 with 2"),
            ({"min_class": 26}, "3 with 26"),
        ]
    ):
        few = replace(s, selection=replace(s.selection, **limits))
        made = Experiment.create(tmp_path / str(n), cut_cohort, few, "cpu")
        with pytest.raises(Refused, match=f"found 5 training patients with 25 lesions; expected at least {asked}, for"):
            pipeline.run(made, "cohort")
        assert not (made.path("cohort") / "stage.json").exists()
    just = replace(s, selection=replace(s.selection, min_patients=4), forest=replace(s.forest, min_class=25))
    assert pipeline.run(Experiment.create(tmp_path / "just", cut_cohort, just, "cpu"), "cohort")
    with pytest.raises(Refused, match="at least 3 with 26"):
        more = replace(s, forest=replace(s.forest, min_class=26))
        pipeline.run(Experiment.create(tmp_path / "more", cut_cohort, more, "cpu"), "cohort")


def test_without_held_out_cases_the_last_stage_is_left_out(cut_cohort, tmp_path, monkeypatch, capsys):
    made = Experiment.create(tmp_path, cut_cohort, tiny.settings(), "cpu")
    ran = []
    monkeypatch.setattr(order, "run", lambda experiment, stage, *others: ran.append(stage))
    pipeline.train(made)
    assert ran == list(before("metrics")) and "holds no case out" in capsys.readouterr().out


def test_a_single_slice_is_refused(models):
    ct, _ = tiny.patient(50)
    with pytest.raises(Refused, match="at least 3"):
        segmentation.segment(replace(ct, array=ct.array[:1]), models)


def test_a_scan_too_large_for_the_device_is_refused_and_the_next_one_goes_on(models, monkeypatch):
    def full(*given):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    ct = replace(tiny.patient(50)[0], name="patient7")
    with (
        monkeypatch.context() as patched,
        pytest.raises(Refused, match="patient7: found no memory left on cpu in boundary; .*--device cpu"),
    ):
        patched.setattr(boundary, "relabel", full)
        segmentation.segment(ct, models)
    assert segmentation.segment(ct, models).status == "ok"


def test_an_interrupted_stage_goes_on(tmp_path, toy_cohort, monkeypatch):
    """Fold 0 is done, fold 1 is cut: the second run trains fold 1 only, and ends in the same weights as a whole run."""
    made = Experiment.create(tmp_path / "cut", toy_cohort, tiny.settings(), "cpu")
    pipeline.run(made, "cohort")
    real, calls, whole = cascade.train_fold, [], Event()

    def cut(*args):
        calls.append(args[4])
        if args[4] == 1 and calls.count(1) == 1:
            assert whole.wait(60)
            raise KeyboardInterrupt
        real(*args)
        whole.set()

    monkeypatch.setattr(cascade, "train_fold", cut)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(made, "liver")
    assert not (made.path("liver") / "stage.json").exists()
    pipeline.run(made, "liver")
    assert calls == [0, 1, 1]


def test_models_of_phantoms_alone_say_so_of_a_scan(models, trained, tmp_path):
    (tmp_path / "scan").mkdir()
    ct = tmp_path / "scan" / "ct.nii.gz"
    nifti.write(tiny.patient(50)[0], ct)
    assert models.phantoms == 0 and not trained.cases().phantom.any()
    said, line, error = results.from_file(replace(models, phantoms=12), (ct, tmp_path / "out" / "a"))
    words = "learned from 12 phantoms and no patient"
    assert "a: ok" in line and not error and words in said[0]
    about = json.loads((tmp_path / "out" / "a" / "result.json").read_text())
    assert words in about["warnings"][0] and words in (tmp_path / "out" / "a" / "report.html").read_text()
    assert not any(words in s for s in results.from_file(models, (ct, tmp_path / "out" / "b"))[0])
    (ct.parent / cohort.PHANTOM).write_text("{}")  # of a phantom it need not be said
    assert not any(words in s for s in results.from_file(replace(models, phantoms=12), (ct, tmp_path / "out" / "c"))[0])


def test_a_cohort_of_phantoms_is_known_as_one(trained, tmp_path, monkeypatch):
    copy = shutil.copytree(trained.folder, tmp_path / "copy")
    table = pd.read_csv(copy / "cohort" / "cases.csv")
    for whole, counted in ((table.split == "train", table.split.eq("train").sum()), (table.case == table.case[0], 0)):
        table.assign(phantom=whole).to_csv(copy / "cohort" / "cases.csv", index=False)
        assert segmentation.Models.load(copy, "cpu").phantoms == counted


def test_a_kept_candidate_that_no_mask_shows_is_told_of(models, monkeypatch):
    whole = segmentation.segment(tiny.patient(50)[0], models)
    kept = whole.lesions[whole.lesions.kept]
    assert len(kept) and not any("too small" in line for line in whole.warnings)
    numbers = segmentation._numbers_on
    gone = int(kept.candidate.iloc[-1])
    monkeypatch.setattr(segmentation, "_numbers_on", lambda *a: (found := numbers(*a)) * (found != gone))
    said = [line for line in segmentation.segment(tiny.patient(50)[0], models).warnings if "too small" in line]
    assert len(said) == 1 and said[0].startswith(f"candidate {gone} (")
