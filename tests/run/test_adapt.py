"""Adaptation to scans without known tumors, on toy patients: who learns from what, and what is refused."""

import json
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from workbench.data import files
from workbench.data.cohort import ImplantSettings
from workbench.data.files import write_table
from workbench.data.readers import nifti
from workbench.experiment import Experiment, pipeline, segmentation
from workbench.nets import fit
from workbench.nets.slabs import SlabBank
from workbench.run import adapt
from workbench.stages import candidates, domain, forest, tumor
from workbench.volume import Refused


def small(source):
    """Implants that the toy's small liver has room for."""
    kinds = ("metastasis", "cyst")
    return replace(source, implants=ImplantSettings(copies=2, count=(2, 4), kinds=kinds))


@pytest.fixture(scope="session")
def adapted(healthy, trained, tmp_path_factory):
    """The toy experiment adapted; for reading only."""
    with pytest.MonkeyPatch.context() as patch:
        own = adapt.settings_for
        patch.setattr(adapt, "settings_for", lambda s, *rest: own(small(s), *rest))
        made = adapt.begin(trained.folder, healthy, tmp_path_factory.mktemp("adapted"), "cpu", None, 0, "dice")
        adapt.run(made)
    return made


def test_copies_have_synthetic_lesions_and_stay_with_their_patient(adapted):
    table = adapted.cases()
    copies = table[table.copy_of.notna()]
    assert len(copies) == 2 * 4, "two of each scan whose tumors are not all labelled"
    of = table.set_index("case")
    for row in copies.itertuples():
        assert (row.patient, row.fold) == (of.patient[row.copy_of], of.fold[row.copy_of])
        before, after = (adapted.work(name) for name in (row.copy_of, row.case))
        drawn = after[1] == 2
        assert bool(drawn.any()) and not bool((drawn & (before[1] != 1)).any()), "in liver, clear of what is left out"
        assert torch.equal(after[0][before[1] == 0], before[0][before[1] == 0]), "nothing else is touched"
        assert torch.equal(after[1] == 3, before[1] == 3)


def test_what_is_left_out_is_neither_positive_nor_negative(adapted):
    table = adapted.table("candidates", "candidates.csv", dtype={"case": str})
    for name in adapted.cases().query("tumor_labels == 'exclude'").case:
        labels, hold = adapted.array("candidates", "labels", name), adapted.work(name)[1]
        assert bool((hold == 3).any())
        assert sorted(labels.unique().tolist())[1:] == table.candidate[table.case == name].tolist()
        inside = torch.bincount(labels[hold == 3].long(), minlength=int(labels.max()) + 1)[1:]
        voxels = torch.bincount(labels.flatten().long(), minlength=int(labels.max()) + 1)[1:]
        false = ~table.is_lesion[table.case == name].to_numpy()
        assert not bool((inside[false] >= 0.1 * voxels[false]).any())


def test_candidates_in_left_out_regions_go_unless_they_are_true_lesions():
    """Three pieces: one left out, one left out for the most part and true all the same, one elsewhere."""
    labels = torch.zeros(1, 4, 12, dtype=torch.int16)
    labels[0, :2, 0:3], labels[0, :2, 4:8], labels[0, :2, 9:11] = 1, 2, 3
    table = pd.DataFrame({"candidate": [1, 2, 3], "volume_ml": [6.0, 8.0, 4.0]})
    excluded, truth = torch.zeros(2, 1, 4, 12, dtype=torch.bool)
    excluded[0, :, 2:7], truth[0, :, 7] = True, True
    left = candidates.without(candidates.Candidates(labels, table, 0), excluded, truth)
    assert left.table.volume_ml.tolist() == [8.0, 4.0] and left.table.candidate.tolist() == [1, 2]
    assert torch.equal(left.labels > 0, labels > 1) and int(left.labels[0, 0, 9]) == 2
    assert candidates.shared_ml(left.labels, truth, (10.0, 10.0, 10.0)).tolist() == [2.0, 0.0]


def test_nets_are_those_of_the_experiment_as_they_are(adapted, trained):
    for stage, name in (("liver", "fold0"), ("tumor", "fold1"), ("boundary", "model")):
        own, theirs = (fit.load_tensors(made.path(stage) / name)[0] for made in (adapted, trained))
        assert own.keys() == theirs.keys() and all(torch.equal(own[k], theirs[k]) for k in own)
    name = adapted.cases().case[0]
    hu, _, spacing = adapted.work(name)
    models, s = segmentation.Models.load(trained.folder, "cpu"), adapted.settings.tumor
    p, inside = adapted.array("liver", "maps", name).float(), adapted.array("liver", "masks", name)
    by_all = tumor.probability(models.tumor, hu, p, tumor.box(inside, spacing, s), s)
    assert torch.allclose(adapted.array("tumor", "maps", name).float(), by_all, atol=1e-3), "by all nets together"


def test_a_liver_that_nobody_labelled_is_found(adapted):
    name = "toy-104"
    found, truth = adapted.work(name)[1] >= 1, tiny.patient(104)[1].array >= 1
    assert pipeline.dice(found, truth) > 0.9
    assert (adapted.path("adapt") / "livers.png").stat().st_size > 10_000


def test_the_forest_is_another_one_and_its_points_are_stored(adapted, trained):
    old, new = (forest.load(made.path("forest")) for made in (trained, adapted))
    assert set(new.points) == set(forest.PURPOSES) and new.point == "dice"
    assert new.threshold == new.points["dice"] != old.threshold
    assert new.at("recall").threshold == new.points["recall"]
    with pytest.raises(Refused, match="the operating point: found best; expected recall"):
        new.at("best")
    models = segmentation.Models.load(adapted.folder, "cpu", "f1")
    assert models.forest.threshold == new.points["f1"]


def test_the_adapted_experiment_segments_and_names_where_it_came_from(adapted, trained, tmp_path, call):
    nifti.write(tiny.patient(50)[0], tmp_path / "p.nii.gz")
    words = ("segment", tmp_path / "p.nii.gz", "--models", adapted.folder, "-o", tmp_path / "r")
    assert call(*words)[0] == 0
    first = json.loads((tmp_path / "r" / "p" / "result.json").read_text())
    assert call(*words, "--keep-done", "--operating-point", "recall")[0] == 0
    second = json.loads((tmp_path / "r" / "p" / "result.json").read_text())
    assert (first["operating_point"], second["operating_point"]) == ("dice", "recall")
    assert second["forest_threshold"] == forest.load(adapted.path("forest")).points["recall"].threshold
    assert "1 of 1 results are there" in call(*words, "--keep-done", "--operating-point", "recall")[1]
    assert adapted.start == trained.folder and adapted.taken == ("boundary", "liver", "tumor")
    assert adapted.patients_learned_from() == set(trained.cases("train").patient), "its nets are those, as they are"


def test_the_held_out_are_told_of_before_and_after(adapted):
    table = adapt.before_and_after(adapted)
    assert table.stage.tolist() == ["before"] * 2 + ["after"] * 2 and set(table.case) == {"toy-105", "toy-106"}
    last = adapted.table("metrics", "cases.csv").query("stage == 'boundary'").set_index("case")
    after = table[table.stage == "after"].set_index("case")
    assert np.allclose(after.tumor_dice, last.tumor_dice[after.index])
    assert np.allclose(after.false_positives, last.false_positives[after.index])
    text = adapt.answer(adapted, table)
    assert "On **2 held-out patients** tumor Dice goes from" in text and "nan" not in text
    assert "nothing is known of real lesions" in adapt.answer(adapted, table[:0])


def test_a_region_can_be_left_out_afterwards_once_and_by_a_name_that_stays(adapted, tmp_path):
    made = Experiment(tiny.copied(adapted, tmp_path / "e"), "cpu")
    table = made.table("candidates", "candidates.csv", dtype={"case": str})
    false = table[table.case.isin(adapt.scans(made).case) & ~table.is_lesion]
    case = false.case.value_counts().idxmax()
    first, second = (f"{case}/{n}" for n in false.number[false.case == case].iloc[:2])
    before, numbers = len(table[table.case == case]), set(table.number[table.case == case])
    assert made.finished("candidates")
    assert "are left out of training" in adapt.exclude(made, [first])[0]
    assert not made.finished("candidates") and made.finished("tumor")
    assert adapt.exclude(made, [first]) == [f"{first}: is left out of training already"], "also before it has run again"
    pipeline.run(made, "candidates", retrain="candidates")
    adapt.exclude(made, [first])
    assert made.finished("candidates"), "the same name leaves nothing else out"
    again = made.table("candidates", "candidates.csv", dtype={"case": str})
    assert len(again[again.case == case]) == before - 1
    assert numbers - set(again.number[again.case == case]) == {int(first.rpartition("/")[2])}
    copies = made.cases().query("copy_of == @case").case
    where = torch.from_numpy(np.load(made.path("exclusions") / f"{case}.npy"))
    for name in [case, *copies]:
        own = again[(again.case == name) & ~again.is_lesion].candidate
        inside = made.array("candidates", "labels", name)[where]
        assert not set(inside.unique().tolist()) & set(own), name
    adapt.exclude(made, [first, second])
    pipeline.run(made, "candidates", retrain="candidates")
    assert (made.table("candidates", "candidates.csv").case == case).sum() == before - 2
    lesion = table[table.is_lesion & table.case.isin(adapt.scans(made).case)].iloc[0]
    for wrong in ("nobody/1", f"{case}/0", f"{case}/999", "x", f"{lesion.case}/{lesion.number}"):
        with pytest.raises(Refused, match="--exclude"):
            adapt.exclude(made, [wrong])


def test_suspects_are_false_ones_of_scans_as_they_are(adapted):
    table = pd.read_csv(adapted.path("adapt") / "suspects.csv")
    scores = adapted.table("forest", "scores.csv").set_index(["case", "candidate"])
    assert set(table.case) <= set(adapt.scans(adapted).case)
    for row in table.itertuples():
        assert scores.kept[row.case, row.candidate] and not scores.is_lesion[row.case, row.candidate]
        assert (adapted.path("adapt") / f"suspect-{row.case}-{row.number}.png").is_file()
    text = adapt.words(adapted)
    assert "5 scans of 5 patients, 8 copies" in text and ("look like tumors" in text) == bool(len(table))


def test_a_tuned_tumor_net_sees_no_slice_that_is_left_out(healthy, trained, tmp_path):
    made = adapt.begin(trained.folder, healthy, tmp_path / "e", "cpu", 1, 4)
    assert made.taken == ("boundary", "liver") and made.settings.tumor.cascade.fit.steps == 4
    for stage in ("cohort", "liver", "tumor"):
        pipeline.run(made, stage)
    assert made.patients_learned_from() == set(trained.cases("train").patient) | set(made.cases("train").patient)
    own, theirs = (fit.load_tensors(m.path("tumor") / "fold0")[0] for m in (made, trained))
    assert any(not torch.equal(own[k], theirs[k]) for k in own)
    name = made.cases().query("tumor_labels == 'exclude'").case.iloc[0]
    hu, labels, spacing = made.work(name)
    at = tumor.box(made.array("liver", "masks", name), spacing, made.settings.tumor)
    out = (labels[at] == 3).flatten(1).any(1)
    bank = SlabBank([tumor.bank_case(hu, labels, made.array("liver", "maps", name).float(), at, out)], "cpu")
    assert bool(out.any()) and torch.equal(bank.plain == 0, out)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t[:2], "2 training patients; expected at least 3"),
        (lambda t: t.assign(tumor_labels="complete", labels=t.labels.mask(t.labels == "", t.labels[0])), "no scan whose tumor_labels"),
        (lambda t: t.assign(tumor_labels=["healthy", *t.tumor_labels[1:]]), "tumor_labels 'healthy'.*complete or none or exclude"),
        (lambda t: t.assign(tumor_labels=["none", *t.tumor_labels[1:]]), "label 2 .tumor.; expected none of it"),
        (lambda t: t.assign(split=["test", *["train"] * 4]), "tumor_labels exclude of a held-out case"),
        (lambda t: t.assign(patient=["patient-00", *t.patient[1:]]), "nets that learnt from 1 patients"),
    ],
)  # fmt: skip
def test_what_cannot_be_adapted_to_is_refused_in_one_message(change, said, healthy, trained, tmp_path):
    table = pd.read_csv(healthy, dtype=str, keep_default_na=False)
    table = table[table.split == "train"]
    for column in ("ct", "labels"):
        table[column] = [str(healthy.parent / p) if p else "" for p in table[column]]
    change(table).to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(Refused, match=said):
        made = adapt.begin(trained.folder, tmp_path / "m.csv", tmp_path / "e", "cpu")
        pipeline.run(made, "cohort")


def test_a_scan_without_a_liver_is_refused_by_name(healthy, trained, tmp_path):
    table = pd.read_csv(healthy, dtype=str, keep_default_na=False)
    table = table[table.split == "train"]
    for column in ("ct", "labels"):
        table[column] = [str(healthy.parent / p) if p else "" for p in table[column]]
    air = tiny.patient(9)[0]
    nifti.write(air.with_array(torch.full_like(air.array, -1000)), tmp_path / "air.nii.gz")
    table.loc[4, ["case", "ct"]] = "air", str(tmp_path / "air.nii.gz")
    table.to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(Refused, match="case air: found no liver"):
        pipeline.run(adapt.begin(trained.folder, tmp_path / "m.csv", tmp_path / "e", "cpu"), "cohort")


def test_another_phase_is_told_of(adapted, tmp_path):
    assert adapt.phases(adapted) == []
    made = Experiment(tiny.copied(adapted, tmp_path / "copy"), "cpu")
    table = made.table("liver", domain.DOMAIN)
    write_table(
        made.path("liver") / domain.DOMAIN, table.assign(liver_hu=table.liver_hu - 60 * (table.case == "toy-103"))
    )
    (line,) = adapt.phases(made)
    assert line.startswith("toy-103: the liver's median is 50 HU; the model learned from") and "phase" in line


def test_nets_of_phantoms_stay_so_when_the_forest_is_adapted(adapted, trained, tmp_path):
    made = Experiment(tiny.copied(adapted, tmp_path / "adapted"), "cpu")
    source = Experiment(tiny.copied(trained, tmp_path / "trained"), "cpu")
    for folder, start in ((source.folder, None), (made.folder, source.folder)):
        about = files.read_json(folder / "experiment.json")
        files.write_json(folder / "experiment.json", about | {"start": str(start) if start else None})
    table = source.cases()
    write_table(source.path("cohort") / "cases.csv", table.assign(phantom=True))
    made = Experiment(made.folder, "cpu")
    assert made.of_nets().folder == source.folder and source.of_nets().folder == source.folder
    assert segmentation.Models.load(made.folder, "cpu").phantoms == len(source.cases("train"))
    assert segmentation.Models.load(adapted.folder, "cpu").phantoms == 0


def test_points_by_hand():
    """Six candidates of two cases; lesion x lies in two pieces. By hand: from which score each purpose is served best."""
    scores = np.array([0.9, 0.7, 0.6, 0.5, 0.3, 0.2])
    truth = np.array([True, True, False, True, False, False])
    lesions = np.array(["x", "x", "-", "y", "-", "-"])
    volumes = pd.DataFrame(
        {"case": list("aaaabb"), "volume_ml": [8.0, 1, 20, 1, 9, 9], "shared_ml": [8.0, 1, 0, 1, 0, 0]}
    )
    points = forest.operating_points(scores, truth, lesions, 1.0, volumes, pd.Series({"a": 10.0, "b": 0.0}))
    assert points["recall"].threshold == 0.5 and points["recall"].recall == 1
    assert points["f1"].threshold == 0.5, "2 of 2 lesions and one false: .8; above .6 1 of 2 and none false: .67"
    assert points["dice"].threshold == 0.7, "9 of 10 ml and nothing else: .95; with the false one of 20 ml .63"
    assert points["dice"].recall == 0.5 and points["dice"].lesions == 2
    assert set(forest.operating_points(scores, truth, lesions, 1.0)) == {"recall", "f1"}


def test_the_best_dice_is_taken_with_the_most_sensitive_threshold_that_does_as_well():
    """Dice 1, 1, .6, .6 at .9, and about .8, .8, .52, .52 at .2: .14 less, which is within one standard error of two patients (.2), not of four (.115)."""
    scores, truth = np.tile([0.9, 0.2], 4), np.tile([True, False], 4)
    volumes = pd.DataFrame({"case": list("aabbccdd"), "volume_ml": [10, 5.0, 10, 5, 10, 3.08, 10, 3.08]})
    volumes["shared_ml"] = [10, 0, 10, 0, 6.0, 0, 6, 0]
    reference, lesions = pd.Series(10.0, list("abcd")), np.array(["a", "-", "b", "-", "c", "-", "d", "-"])
    of = pd.Series({"a": "p", "b": "p", "c": "q", "d": "q"})
    two, four = (forest.operating_points(scores, truth, lesions, 1.0, volumes, reference, w) for w in (of, None))
    assert (two["dice"].threshold, four["dice"].threshold) == (0.2, 0.9)


def test_the_point_for_false_positives_by_hand():
    """Two scans, a copy that is no scan, and false candidates: .8 and .6 and .4 count; .9 of the copy and .7 of 0.05 ml do not."""
    scores = np.array([0.95, 0.9, 0.8, 0.7, 0.6, 0.4, 0.3])
    truth = np.array([True, False, False, False, False, False, True])
    volumes = pd.DataFrame(
        {"case": list("acababa"), "volume_ml": [1, 1, 1, 0.05, 1, 1, 1.0], "shared_ml": [1, 0, 0, 0, 0, 0, 1.0]}
    )
    lesions, reference = np.array(list("x-----y")), pd.Series({"a": 2.0, "b": 0.0, "c": 0.0})
    at = lambda limit: forest.operating_points(scores, truth, lesions, 1.0, volumes, reference, None, {"c"}, limit)[
        "fp"
    ]
    assert at(0).threshold == 0.9 and at(0.5).threshold == 0.7 and at(1).threshold == 0.6 and at(1.5).threshold == 0.3
    assert at(1.5).recall == 1 and at(1).recall == 0.5


def test_own_features_by_hand():
    """A liver 4 voxels wide of 2 mm: depth 2 at its surface, 4 inside, 0 outside."""
    liver = torch.zeros(9, 9, 12, dtype=torch.bool)
    liver[:, :, 2:6] = True
    labels, p = torch.zeros(9, 9, 12, dtype=torch.int16), torch.zeros(9, 9, 12)
    labels[4, 4, 2:4], labels[4, 4, 8] = 1, 2
    p[4, 4, 2], p[4, 4, 3], p[4, 4, 8] = 0.5, 0.9, 0.25
    table = candidates.own_features(labels, p, liver, (20.0, 20.0, 2.0))
    assert table.own_depth.tolist() == [3.0, 0.0] and table.own_mean_probability.round(6).tolist() == [0.7, 0.25]
    assert table.own_peak_probability.round(6).tolist() == [0.9, 0.25]
    assert not len(candidates.own_features(torch.zeros_like(labels), p, liver, (1.0, 1.0, 1.0)))


def test_own_features_may_be_chosen_and_then_score(adapted, tmp_path):
    made = Experiment(tiny.copied(adapted, tmp_path / "e"), "cpu")
    s = made.settings
    wanted = replace(
        s, selection=replace(s.selection, own_features=True, keep=700, choose_from=700, rho=1.0, icc_bound=0.0)
    )
    files.write_json(made.folder / "experiment.json", made.about | {"settings": json.loads(json.dumps(asdict(wanted)))})
    made = Experiment(made.folder, "cpu")
    for stage in ("selection", "forest", "boundary"):
        pipeline.run(made, stage, retrain="selection")
    table = made.table("selection", "table.csv").set_index("name")
    assert set(table.index[table.group == "candidate"]) == set(candidates.OWN)
    model = forest.load(made.path("forest"))
    assert set(candidates.OWN) & set(model.names)
    lesions = segmentation.segment(tiny.patient(50)[0], segmentation.Models.load(made.folder, "cpu")).lesions
    for name in set(candidates.OWN) & set(model.names):
        assert np.isfinite(lesions[name]).all() and lesions.columns.is_unique


def test_training_itself_uses_scans_without_known_tumors(healthy, tmp_path):
    """Copies by default, none where they are turned off; a scan without labels needs nets that find its liver."""
    table = pd.read_csv(healthy, dtype=str, keep_default_na=False)
    for column in ("ct", "labels"):
        table[column] = [str(healthy.parent / p) if p else "" for p in table[column]]
    table.to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(Refused, match="case toy-104: found no labels; expected a mask of the liver, or --start"):
        pipeline.run(Experiment.create(tmp_path / "a", tmp_path / "m.csv", small(tiny.settings()), "cpu"), "cohort")
    table[table.labels != ""].to_csv(tmp_path / "m.csv", index=False)
    for copies, expected in ((2, 6), (0, 0)):
        s = small(tiny.settings())
        s = replace(s, implants=replace(s.implants, copies=copies))
        made = Experiment.create(tmp_path / f"e{copies}", tmp_path / "m.csv", s, "cpu")
        pipeline.run(made, "cohort")
        found = made.cases()
        assert found.copy_of.notna().sum() == expected and not found[found.split == "test"].copy_of.notna().any()
    with pytest.raises(Refused, match="implants.kinds: found gallstone"):
        ImplantSettings(kinds=("gallstone",))


def test_the_command_adapts_names_suspects_and_a_refused_one_leaves_nothing(
    healthy, trained, tmp_path, call, monkeypatch
):
    own = adapt.settings_for
    monkeypatch.setattr(adapt, "settings_for", lambda s, *rest: own(small(s), *rest))
    table = pd.read_csv(healthy, dtype=str, keep_default_na=False)
    for column in ("ct", "labels"):
        table[column] = [str(healthy.parent / p) if p else "" for p in table[column]]
    table.assign(tumor_labels=["none", *table.tumor_labels[1:]]).to_csv(tmp_path / "m.csv", index=False)
    words = ("adapt", trained.folder, "--cohort", tmp_path / "m.csv", "-o", tmp_path / "e", "--device", "cpu")
    status, _, error = call(*words)
    assert status == 2 and "expected none of it" in error and not (tmp_path / "e").exists()
    table[table.split == "train"].to_csv(tmp_path / "m.csv", index=False)
    status, text, _ = call(*words)
    assert status == 0 and "5 scans of 5 patients, 8 copies" in text and "in use: dice" in text
    stamp = (tmp_path / "e" / "forest" / "stage.json").stat().st_mtime_ns
    assert call(*words)[0] == 0 and (tmp_path / "e" / "forest" / "stage.json").stat().st_mtime_ns == stamp, "resumes"
    candidates_of = pd.read_csv(tmp_path / "e" / "candidates" / "candidates.csv")
    one = candidates_of[candidates_of.case == "toy-103"].iloc[0]
    status, text, _ = call(*words, "--exclude", f"toy-103/{one.number}")
    assert status == 0 and "are left out of training" in text
    left = pd.read_csv(tmp_path / "e" / "candidates" / "candidates.csv")
    assert (left.case == "toy-103").sum() == (candidates_of.case == "toy-103").sum() - 1
