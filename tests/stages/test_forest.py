"""The forest: thresholds by hand, scikit-learn's own probabilities, stored without pickle, and out of fold."""

import hashlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from workbench.stages.forest import (
    Forest,
    ForestSettings,
    OutOfFold,
    auc,
    baselines,
    boosted,
    calibration,
    chances,
    fit,
    grouped_folds,
    importance,
    judging,
    load,
    out_of_fold,
    save,
    settled,
    threshold_for_recall,
    wilson,
)
from workbench.stages.forest.judging import again
from workbench.stages.forest.measures import areas
from workbench.volume import Refused

QUICK = ForestSettings(trees=40, folds=3)


def candidates(seed=0, rows=90, per_patient=6):
    """size and round tell a little, deep tells a lot, noise nothing."""
    rng = np.random.default_rng(seed)
    target = rng.random(rows) < 0.4
    features = pd.DataFrame(
        {
            "size": rng.lognormal(size=rows) * (1 + target),
            "round": rng.normal(size=rows) + 0.7 * target,
            "deep": rng.normal(size=rows) + 3 * target,
            "noise": rng.normal(size=rows) * 1e3,
        }
    )
    return features, target, np.array([f"p{i // per_patient}" for i in range(rows)])


@pytest.fixture(scope="module")
def fitted() -> Forest:
    features, target, _ = candidates()
    features.loc[5, "deep"] = np.nan
    return fit(features, target, QUICK)


# ---------------------------------------------------------------------------------------------- threshold


def test_threshold_by_hand():
    scores, target = [0.9, 0.8, 0.7, 0.4, 0.95, 0.1], [1, 1, 1, 1, 0, 0]
    assert threshold_for_recall(scores, target, 1.0)[:2] == (0.4, 1.0)
    assert threshold_for_recall(scores, target, 0.75)[:2] == (0.7, 0.75)
    assert threshold_for_recall(scores, target, 0.76)[:2] == (0.4, 1.0)
    assert threshold_for_recall(scores, target, 0.01)[:2] == (0.9, 0.25)


def test_lesions_that_tie_with_the_threshold_are_kept():
    found = threshold_for_recall([0.9, 0.5, 0.5, 0.5, 0.2], [1, 1, 1, 1, 0], 0.5)
    assert (found.threshold, found.recall, found.kept, found.lesions) == (0.5, 1.0, 4, 4)


def test_a_recall_that_floating_point_rounds_up_asks_for_no_lesion_more():
    """0.07 * 100 is 7.000000000000001: seven lesions are enough."""
    assert threshold_for_recall(np.arange(100) / 100, np.ones(100), 0.07).kept == 7


def test_a_lesion_in_pieces_is_kept_by_its_best():
    scores, target = [0.9, 0.1, 0.6, 0.5, 0.95], [1, 1, 1, 1, 0]
    found = threshold_for_recall(scores, target, 1.0, ["a", "a", "b", "b", "none"])
    assert (found.threshold, found.kept, found.lesions) == (0.6, 2, 2)
    assert (
        threshold_for_recall(scores, target, 0.5, ["a", "a", "b", "b", "a"]).threshold == 0.9
    )  # a false one is no piece


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_is_the_largest_that_keeps_the_recall(seed):
    rng = np.random.default_rng(seed)
    scores, target, recall = rng.integers(0, 12, 40) / 12, rng.random(40) < 0.5, rng.uniform(0.1, 1)
    found = threshold_for_recall(scores, target, recall)
    assert (scores[target] >= found.threshold).mean() == found.recall >= recall
    assert (scores[target] >= np.nextafter(found.threshold, 2)).mean() < recall


def test_wilson_against_published_values_and_at_the_ends():
    """15 of 148: 0.0624 to 0.1605 (Newcombe 1998, method 3); 0 of 20: 0 to 0.1611."""
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    low, high = wilson(50, 50)
    assert high == 1 and 0.92 < low < 0.94


def test_a_threshold_needs_lesions_scores_and_a_share():
    for scores, target, recall, word in (
        ([0.1], [0], 0.9, "no true lesion"),
        ([np.nan], [1], 0.9, "not finite"),
        ([0.1], [1], 0, "recall of 0"),
        ([0.1, 0.2], [1], 0.5, "one score"),
    ):
        with pytest.raises(Refused, match=word):
            threshold_for_recall(scores, target, recall)


# ---------------------------------------------------------------------------------------------- fitting, scoring


def test_scores_tell_lesions_and_do_not_depend_on_column_order_or_extra_columns(fitted):
    features, target, _ = candidates(seed=1)
    scores = fitted.score(features)
    assert auc(scores, target) > 0.9 and scores.min() >= 0 and scores.max() <= 1
    turned = features[["noise", "deep", "size", "round"]].assign(other="text")
    assert np.array_equal(scores, fitted.score(turned))


def test_a_missing_or_infinite_value_scores_as_the_training_median(fitted):
    row = candidates(seed=1)[0].iloc[[0]]
    expected = fitted.score(row.assign(deep=fitted.medians[2]))
    for value in (np.nan, np.inf, -np.inf, 1e300):
        assert np.array_equal(fitted.score(row.assign(deep=value)), expected)
    training = candidates()[0]["deep"].drop(5)
    assert fitted.medians[2] == np.float32(training.astype(np.float32).median())


def test_the_same_seed_gives_the_same_forest_and_another_seed_another():
    features, target, _ = candidates()
    one, same = fit(features, target, QUICK), fit(features, target, QUICK)
    other = fit(features, target, ForestSettings(trees=40, seed=1))
    assert np.array_equal(one.score(features), same.score(features))
    assert not np.array_equal(one.score(features), other.score(features))


@pytest.mark.parametrize("make", [fit, boosted])
def test_lesions_and_look_alikes_weigh_the_same_however_many_there_are(make):
    """What tells nothing leaves even odds, not the share of lesions; a leaf holds as many as the settings ask for."""
    flat, target = pd.DataFrame({"flat": np.zeros(100)}), [1] * 10 + [0] * 90
    made = make(flat, target, replace(QUICK, min_leaf=7))
    assert made.score(flat) == pytest.approx(np.full(100, 0.5), abs=1e-3) and made.model.min_samples_leaf == 7


def test_an_empty_table_has_no_scores(fitted):
    assert fitted.score(candidates()[0].iloc[:0]).shape == (0,)


def test_a_table_without_a_feature_is_refused_by_name(fitted):
    with pytest.raises(Refused, match="no column round, deep; expected its 4 features"):
        fitted.score(candidates()[0].drop(columns=["deep", "round"]))


def test_small_cohorts_and_single_classes_are_refused_with_the_minimum():
    features, target, _ = candidates()
    with pytest.raises(Refused, match="at least 20 candidates, 5 of each class"):
        fit(features[:10], target[:10])
    with pytest.raises(Refused, match="90 lesions and 0 look-alikes"):
        fit(features, np.ones(90))
    with pytest.raises(Refused, match="neither true nor false"):
        fit(features, np.full(90, 2))


@pytest.mark.parametrize("wrong", [{"trees": 0}, {"min_leaf": 0}, {"recall": 0.0}, {"recall": 1.1}, {"folds": 1}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(Refused, match=next(iter(wrong))):
        ForestSettings(**wrong)


# ---------------------------------------------------------------------------------------------- folds


def test_no_patient_is_in_two_folds_and_every_row_has_one():
    _, target, patients = candidates()
    fold = grouped_folds(target, patients, 4)
    assert set(fold) == {0, 1, 2, 3}
    assert all(len(set(fold[patients == p])) == 1 for p in set(patients))


def test_out_of_fold_scores_come_from_forests_that_never_saw_the_patient():
    """With labels that only the patient tells, in-sample scores are perfect and out-of-fold ones are chance."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(60), 4)
    target = rng.random(60)[patients] < 0.5
    features = pd.DataFrame({"patient": rng.permutation(60)[patients] + 0.001 * rng.random(240)})
    inside = fit(features, target, ForestSettings(trees=40, min_leaf=1)).score(features)
    outside = out_of_fold(features, target, patients, settings=ForestSettings(trees=40, min_leaf=1))
    assert auc(inside, target) > 0.99
    assert 0.3 < auc(outside.scores, target) < 0.7
    for number, forest in enumerate(outside.forests):
        held = outside.fold == number
        assert np.array_equal(outside.scores[held], forest.score(features[held]))


def test_selection_inside_the_fold_gets_training_rows_only():
    features, target, patients = candidates()
    seen = []

    def choose(rows):
        seen.append(rows)
        return ["deep", "size"] if len(seen) == 1 else ["deep"]

    found = out_of_fold(features, target, patients, choose, QUICK)
    for number, rows in enumerate(seen):
        assert not set(patients[rows]) & set(patients[found.fold == number])
        assert len(rows) + (found.fold == number).sum() == len(features)
    assert [f.names for f in found.forests] == [("deep", "size"), ("deep",), ("deep",)]


def test_a_patient_in_two_folds_and_too_few_patients_are_refused():
    features, target, patients = candidates()
    with pytest.raises(Refused, match="patient p0 in several folds"):
        out_of_fold(features, target, patients, settings=QUICK, fold=np.arange(90) % 3)
    with pytest.raises(Refused, match="2 patients; expected at least 3"):
        grouped_folds(target, np.arange(90) % 2, 3)


# ---------------------------------------------------------------------------------------------- tensors


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_tensors_give_scikit_learns_probabilities(fitted, device, gpu):
    rng = np.random.default_rng(4)
    table = rng.normal(size=(500, 4)) * [3, 2, 3, 1e3]
    table[rng.random(table.shape) < 0.1] = np.nan
    table[7] = np.inf
    ours = fitted.flat.to(device)(torch.from_numpy(table).to(device)).cpu().numpy()
    theirs = fitted.score(pd.DataFrame(table, columns=fitted.names))
    assert np.abs(ours - theirs).max() < 1e-6


def test_tensors_decide_like_scikit_learn_at_and_beside_every_threshold():
    """The split thresholds themselves, and the float32 numbers on both sides of each."""
    features, target, _ = candidates()
    found = fit(features[["deep"]], target, ForestSettings(trees=20, min_leaf=1))
    cuts = np.concatenate([e.tree_.threshold[e.tree_.feature >= 0] for e in found.model.estimators_]).astype(np.float32)
    near = np.concatenate([cuts, np.nextafter(cuts, np.float32(9)), np.nextafter(cuts, np.float32(-9))])[:, None]
    assert np.abs(found.flat(torch.from_numpy(near)).numpy() - found.model.predict_proba(near)[:, 1]).max() < 1e-12


def test_tensors_of_another_width_are_refused(fitted):
    with pytest.raises(Refused, match=r"expected \(candidate, 4\)"):
        fitted.flat(torch.zeros(3, 5))


# ---------------------------------------------------------------------------------------------- judging


def test_importance_finds_what_tells_and_gives_noise_nothing():
    features, target, patients = candidates(seed=1)
    found = out_of_fold(features, target, patients, None, ForestSettings(trees=40, folds=3, leaf_choices=(3,)))
    table = importance(found, features, target, patients, repeats=10).set_index("name")
    assert table.index[0] == "deep" and table.loc["deep", "low"] > 0.05 and (table["forests"] == 3).all()
    assert abs(table.loc["noise", "drop"]) < 0.02 and table.loc["noise", "low"] < 0 < table.loc["noise", "high"]
    assert (table["low"] <= table["drop"]).all() and (table["drop"] <= table["high"]).all()
    with pytest.raises(Refused, match="both classes"):
        importance(found, features, np.zeros(90), patients)


def test_weighted_areas_are_those_of_rows_repeated():
    rng = np.random.default_rng(2)
    scores, target, weights = rng.integers(0, 6, 40) / 6, rng.random(40) < 0.4, rng.integers(0, 4, (5, 40))
    expected = [auc(np.repeat(scores, w), np.repeat(target, w)) for w in weights]
    assert areas(scores, target, weights.astype(float)) == pytest.approx(expected, abs=1e-12)


def test_importance_by_hand():
    """Ten folds of a lesion and a look-alike: a shuffle swaps the two or not, so half of the lesions change places."""
    features = pd.DataFrame({"tells": [0.0, 1.0] * 10, "other": 0.0})
    target, patients, fold = [0, 1] * 10, np.repeat([f"p{i}" for i in range(10)], 2), np.repeat(range(10), 2)
    settings = ForestSettings(trees=5, leaf_choices=(1,), max_features=1.0)
    found = out_of_fold(features, target, patients, lambda rows: ["tells"] if 0 in rows else ["other"], settings, fold)
    table = importance(found, features, target, patients, repeats=30).set_index("name")
    assert table.loc["tells", "forests"] == 9 and table.loc["other", "forests"] == 1
    assert table.loc["other", "drop"] == 0 and table.loc["other", ["low", "high"]].eq(0).all()
    assert 0.3 < table.loc["tells", "drop"] < 0.6 and table.loc["tells", "high"] > table.loc["tells", "drop"]


# ---------------------------------------------------------------------------------------------- baselines


def test_auc_is_scikit_learns_with_ties():
    rng = np.random.default_rng(0)
    scores, target = rng.integers(0, 5, 50), rng.random(50) < 0.5
    assert auc(scores, target) == pytest.approx(roc_auc_score(target, scores), abs=1e-12)
    assert math.isnan(auc(scores, np.ones(50)))


def test_baselines_stand_beside_the_selected_features_on_the_same_rows():
    features, target, patients = candidates()
    table = baselines(
        features,
        target,
        patients,
        {"size": ["size"], "shape": ["size", "round"]},
        lambda rows: ["deep"],
        ForestSettings(trees=40, folds=3, recall=0.9),
        draws=50,
    ).set_index("features")
    assert table.index.tolist() == ["size", "shape", "selected", "all", "boosting"]
    assert table["columns"].tolist() == [1, 2, 1, 4, 1]
    assert table.loc["selected", "auc"] > table.loc["size", "auc"]
    assert table.loc["selected", "removed"] > table.loc["size", "removed"]
    assert (table["recall"] >= 0.9).all() and (table["false_positives"] == (~target).sum()).all()
    assert (table["removed_share"] == table["removed"] / table["false_positives"]).all()
    for column in ("auc", "removed_share", "recall"):
        assert (table[f"{column}_low"] <= table[column]).all() and (table[column] <= table[f"{column}_high"]).all()
    assert table.loc["selected", ["auc_gain", "auc_gain_low", "auc_gain_high", "removed_gain"]].eq(0).all()
    size = table.loc["size"]
    assert size.auc_gain == pytest.approx(table.loc["selected", "auc"] - size.auc) and size.auc_gain_low > 0
    assert size.auc_gain_high - size.auc_gain_low < (size.auc_high - size.auc_low) + 0.1  # pairs, not two intervals


def test_a_draw_of_patients_chooses_its_own_threshold():
    """As if the drawn patients' candidates were written down as often as they were drawn, and all of it done anew."""
    rng = np.random.default_rng(5)
    truth, patients = rng.random(90) < 0.6, rng.integers(0, 12, 90)
    scores = np.round(np.clip(rng.normal(0.35 + 0.3 * truth, 0.2), 0, 1), 2)  # with ties
    lesions = np.array([f"{p}/{n % 4}" for n, p in enumerate(patients)])  # some in several pieces
    drawn = rng.integers(0, 12, (40, 12))
    weights = np.stack([np.bincount(row, minlength=12) for row in drawn])[:, patients].astype(float)
    found = again(scores, truth, lesions, 0.93, weights)
    for row, (area, share, threshold) in zip(drawn, found.T):
        at = [(i, copy) for copy, p in enumerate(row) for i in np.flatnonzero(patients == p)]
        rows, names = [i for i, _ in at], [f"{lesions[i]} {copy}" for i, copy in at]
        assert threshold == threshold_for_recall(scores[rows], truth[rows], 0.93, names).threshold
        assert share == pytest.approx((scores[rows][~truth[rows]] < threshold).mean(), abs=1e-12)
        assert area == pytest.approx(roc_auc_score(truth[rows], scores[rows]), abs=1e-12)
    assert len(np.unique(found[2])) > 3


def test_one_low_lesion_is_felt_in_the_interval_of_what_is_removed():
    """The threshold hangs on one lesion of sixty; draws without its patient choose a higher one and remove more."""
    truth, patients = np.repeat([True, False], 60), np.tile(np.arange(60), 2)
    scores = np.r_[0.1, np.full(59, 0.8), np.linspace(0, 0.7, 60)]
    found = OutOfFold(scores, patients % 3, (SimpleNamespace(names=["a"]),))
    table = baselines(pd.DataFrame({"a": scores}), truth, patients, {}, ["a"], QUICK, patients % 3, 400, known=found)
    row = table.set_index("features").loc["selected"]
    assert row.threshold == row.threshold_low == 0.1 and row.threshold_high == 0.8
    assert row.removed_share < 0.2 and row.removed_share_high == 1


def test_intervals_are_of_patients_drawn_whole(monkeypatch):
    """Ten lesions of one patient score nothing, the lesion of each of five others all: without the one, in a third of the draws,
    the area is 1; drawn candidate by candidate it would never be."""
    truth, patients = np.repeat([True, False], [15, 5]), [*"aaaaaaaaaabcdef", *"bcdef"]
    scores, features = np.r_[np.zeros(10), np.ones(5), np.full(5, 0.5)], pd.DataFrame({"a": np.zeros(20)})
    even = lambda copies: np.full(len(copies), 0.5)  # shuffled, all are alike
    forest = SimpleNamespace(names=["a"], table=lambda part: part.to_numpy(), judge=even)
    found = OutOfFold(scores, np.zeros(20, int), (forest,))
    monkeypatch.setattr(judging, "out_of_fold", lambda *_: found)
    row = baselines(features, truth, patients, {}, ["a"], QUICK, found.fold).set_index("features").loc["selected"]
    assert row.auc == pytest.approx(1 / 3) and row.auc_high == 1
    assert importance(found, features, truth, patients, repeats=2).high[0] == 0.5


def test_a_gain_is_that_of_the_same_draws(monkeypatch):
    """One filter ranks the lesions of one patient first and those of the other last, another does the reverse: in a draw of one patient
    alone one area is 1 and the other 0, though both areas are spread alike."""
    truth, patients = np.tile([True, False], 10), np.repeat(["a", "b"], 10)
    scores = np.where(truth, patients == "a", 0.5)
    one, other = (OutOfFold(s, np.zeros(20, int), (SimpleNamespace(names=["a"]),)) for s in (scores, 1 - scores))
    monkeypatch.setattr(judging, "out_of_fold", lambda *_: other)
    given = pd.DataFrame({"a": scores}), truth, patients, {"size": ["a"]}, ["a"], QUICK, one.fold
    size = baselines(*given, known=one).set_index("features").loc["size"]
    assert (size.auc_gain, size.auc_gain_low, size.auc_gain_high) == (0, -1, 1)


def test_every_filter_is_measured_on_the_given_folds_and_lesions(monkeypatch):
    """Sixty true candidates are the pieces of thirty lesions; of sixty look-alikes the highest scores as the threshold."""
    truth, patients = np.repeat([True, False], 60), np.tile(np.arange(60), 2)
    fold, seen = patients % 3, []
    scores = np.r_[np.full(30, 0.1), np.full(30, 0.8), np.linspace(0, 0.8, 60)]

    def noted(features, target, patients, columns, settings, fold, make):
        seen.append(fold)
        return OutOfFold(scores, fold, (SimpleNamespace(names=["a"]),))

    monkeypatch.setattr(judging, "out_of_fold", noted)
    given = (
        pd.DataFrame({"a": scores}),
        truth,
        patients,
        {"size": ["a"]},
        ["a"],
        QUICK,
        fold,
        50,
        np.tile(np.arange(30), 4),
    )
    table = baselines(*given)
    assert len(seen) == 4 and all(used is fold for used in seen)
    assert (table.lesions == 30).all() and (table.threshold == 0.8).all() and (table.removed == 59).all(), (
        "one ties with the threshold"
    )


def test_the_leaf_size_is_chosen_by_unseen_patients_of_the_given_rows():
    """Each patient's lesions have a level of their own, so leaves of single rows learn patients by heart; large ones do not."""
    rng = np.random.default_rng(3)
    target, patients = rng.random(240) < 0.5, np.repeat([f"p{i}" for i in range(24)], 10)
    features = pd.DataFrame({"tells": target + rng.normal(0, 1.2, 240), "noise": rng.normal(size=240)})
    settings = ForestSettings(trees=40, folds=3, leaf_choices=(1, 20), inner_trees=40)
    own, tried = settled(features, target, patients, settings)
    assert own.min_leaf == 20 == tried.min_leaf[tried.auc.idxmax()] and len(tried) == 2
    fold = grouped_folds(target, patients, 3)
    for n, area in zip(tried.min_leaf, tried.auc):
        scores = np.full(240, np.nan)
        for held in range(3):
            model = fit(features[fold != held], target[fold != held], ForestSettings(trees=40, min_leaf=int(n)))
            scores[fold == held] = model.score(features[fold == held])
        assert area == pytest.approx(auc(scores, target))
    assert settled(features, target, patients, ForestSettings(leaf_choices=(5,)))[0].min_leaf == 5
    fixed, tried = settled(features, target, patients, replace(settings, min_leaf=7))
    assert fixed.min_leaf == 7 and tried.min_leaf.tolist() == [7]
    assert (
        settled(features[:20], target[:20], patients[:20], settings)[0].min_leaf == 1
    )  # two patients: none to leave out


def test_the_choice_is_nested(monkeypatch):
    """The forest of a fold settles on the rows of the other patients: what the held-out ones are changes nothing."""
    features, target, patients = candidates()
    settings = ForestSettings(trees=10, folds=3, leaf_choices=(1, 6), inner_trees=10)
    fold = grouped_folds(target, patients, 3)
    spoiled, wrong = features.copy(), target.copy()
    spoiled[fold == 0], wrong[fold == 0] = 1e6, ~target[fold == 0]
    whole, other = (
        out_of_fold(x, y, patients, None, settings, fold) for x, y in ((features, target), (spoiled, wrong))
    )
    assert whole.forests[0].settings == other.forests[0].settings
    assert np.array_equal(whole.forests[0].score(features), other.forests[0].score(features))
    seen = []
    monkeypatch.setattr(
        "workbench.stages.forest.fitting.settled", lambda x, y, p, s, make: seen.append(set(p)) or (s, None)
    )
    out_of_fold(features, target, patients, None, settings, fold)
    assert sorted(map(sorted, seen)) == sorted(
        sorted(set(patients[fold != n])) for n in range(3)
    )  # folds run in threads


def test_boosting_is_scikit_learns_and_learns_from_the_other_patients_only():
    features, target, patients = candidates()
    features.iloc[3, 0] = np.nan
    settings = ForestSettings(folds=3, min_leaf=3)
    found = out_of_fold(features, target, patients, None, settings, make=boosted)
    model = HistGradientBoostingClassifier(
        class_weight="balanced", min_samples_leaf=3, early_stopping=False, random_state=0
    )
    train = found.fold != 1
    model.fit(features[train].to_numpy(np.float32), target[train])
    expected = model.predict_proba(features[~train].to_numpy(np.float32))[:, 1]
    assert np.array_equal(found.scores[~train], expected) and auc(found.scores, target) > 0.8


def test_calibration_by_hand():
    found = calibration([0.1, 0.2, 0.8, 0.9], [0, 1, 1, 1], bins=2)
    assert found.bins.score.tolist() == pytest.approx([0.15, 0.85]) and found.bins.share.tolist() == [0.5, 1.0]
    assert found.error == pytest.approx((0.35 + 0.15) / 2)
    assert found.brier == pytest.approx((0.01 + 0.64 + 0.04 + 0.01) / 4)
    assert (found.bins.low < found.bins.share).all() and found.bins.n.tolist() == [2, 2]
    turned = calibration(
        [0.9, 0.2, 0.1, 0.8, 0.7], [1, 1, 0, 1, 0], bins=2
    )  # bins of 3 and 2, in the order of the scores
    assert turned.bins.score.tolist() == pytest.approx([1 / 3, 0.85])
    assert turned.bins.share.tolist() == pytest.approx([1 / 3, 1]) and turned.error == pytest.approx(0.15 * 2 / 5)
    with pytest.raises(Refused, match="finite score"):
        calibration([0.5, math.nan], [0, 1])


def test_calibrated_scores_have_no_error():
    rng = np.random.default_rng(0)
    scores = rng.random(20_000)
    assert calibration(scores, rng.random(20_000) < scores).error < 0.02
    assert calibration(scores**3, rng.random(20_000) < scores).error > 0.15


# ---------------------------------------------------------------------------------------------- on disk


def test_a_saved_forest_comes_back_the_same(fitted, tmp_path):
    features, target, _ = candidates(seed=1)
    chosen = fitted.with_threshold(threshold_for_recall(fitted.score(features), target))
    chosen = replace(chosen, largest_ml=12.5)
    save(chosen, tmp_path / "stage")
    back = load(tmp_path / "stage")
    assert np.allclose(back.score(features), chosen.score(features), rtol=0, atol=1e-12)
    for name, part in vars(chosen.flat).items():
        own = getattr(back.flat, name)
        assert torch.equal(own, part) if isinstance(part, torch.Tensor) else own == part
    for name in ("names", "settings", "threshold", "largest_ml"):
        assert getattr(back, name) == getattr(chosen, name)
    assert np.array_equal(back.medians, chosen.medians)
    assert sorted(p.name for p in (tmp_path / "stage").iterdir()) == ["forest.json", "forest.safetensors"]
    info = json.loads((tmp_path / "stage" / "forest.json").read_text())
    assert set(info) >= {"names", "threshold", "recall", "settings", "versions", "sha256"}


def test_a_forest_that_states_no_largest_candidate_doubts_every_size(fitted, tmp_path):
    save(fitted, tmp_path)
    info = json.loads((tmp_path / "forest.json").read_text())
    assert info.pop("largest_ml") is None
    (tmp_path / "forest.json").write_text(json.dumps(info))  # as an earlier version wrote it
    for of in (fitted, load(tmp_path)):
        assert chances([0.2, 0.7], [1.0, 1e6], of.largest_ml).tolist() == [0.2, 0.7]
    assert chances([0.2, 0.3], [5.0, 5.1], 5.0).tolist() == [0.2, 1.0]


@pytest.mark.parametrize("odd", [0, -1.0, math.nan, math.inf, True, "3", [1]])
def test_a_largest_candidate_that_is_no_volume_is_refused(fitted, tmp_path, odd):
    save(fitted, tmp_path)
    info = json.loads((tmp_path / "forest.json").read_text())
    (tmp_path / "forest.json").write_text(json.dumps(info | {"largest_ml": odd}))
    with pytest.raises(Refused, match=r"forest\.json.*description of a forest"):
        load(tmp_path)


def test_a_flipped_bit_is_a_checksum_error(fitted, tmp_path):
    save(fitted, tmp_path)
    data = bytearray((tmp_path / "forest.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "forest.safetensors").write_bytes(data)
    with pytest.raises(Refused, match="checksum"):
        load(tmp_path)


def restate(folder, data, name="forest.safetensors"):
    """What a stranger would do: another model file, and the checksum that fits it."""
    (folder / name).write_bytes(data)
    info = json.loads((folder / "forest.json").read_text())
    info["sha256"][name] = hashlib.sha256(data).hexdigest()
    (folder / "forest.json").write_text(json.dumps(info))


def test_the_second_file_of_0_1_0_is_not_read(fitted, tmp_path):
    """It wrote the trees twice: with skops too, whose checksum its forest.json states."""
    save(fitted, tmp_path)
    features = candidates(seed=1)[0]
    restate(tmp_path, b"anything", "forest.skops")
    assert np.allclose(load(tmp_path).score(features), fitted.score(features), rtol=0, atol=1e-12)
    (tmp_path / "forest.skops").unlink()
    assert load(tmp_path).names == fitted.names


def test_a_forest_that_was_read_is_not_written(fitted, tmp_path):
    save(fitted, tmp_path)
    with pytest.raises(Refused, match="expected one that was fitted here"):
        save(load(tmp_path), tmp_path / "other")


def test_a_pickle_is_refused(fitted, tmp_path):
    save(fitted, tmp_path)
    restate(tmp_path, b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93\x94.")
    with pytest.raises(Refused, match="forest.safetensors: found no trees"):
        load(tmp_path)


def test_a_forest_that_no_longer_gives_its_scores_is_refused(fitted, tmp_path):
    """As another version of a library might read it."""
    save(fitted, tmp_path)
    info = json.loads((tmp_path / "forest.json").read_text())
    info["probe"]["scores"][0] += 0.01
    (tmp_path / "forest.json").write_text(json.dumps(info))
    with pytest.raises(Refused, match="scores that differ by 0.01"):
        load(tmp_path)


@pytest.mark.parametrize("what", ["back", "beyond", "column", "kind", "lacking", "bytes"])
def test_trees_that_would_lead_nowhere_are_refused(fitted, tmp_path, what):
    """A child before its parent makes a way without an end; one beyond the nodes, or a feature beyond the columns, reads elsewhere."""
    save(fitted, tmp_path)
    held = safetensors.torch.load_file(tmp_path / "forest.safetensors")
    inner = (held["left"] != torch.arange(held["left"].shape[1])).nonzero()[1].tolist()  # not the first node
    name, value = {"back": ("left", 0), "beyond": ("right", held["left"].shape[1]), "column": ("feature", 99)}.get(
        what, (None, 0)
    )
    if name:
        held[name][tuple(inner)] = value
    elif what == "kind":
        held["value"] = held["value"].float()
    elif what == "lacking":
        del held["left"]
    restate(tmp_path, b"no tensors" if what == "bytes" else safetensors.torch.save(held))
    with pytest.raises(Refused, match="forest.safetensors: found (loose ends in tree|no trees)"):
        load(tmp_path)


def test_a_score_asks_for_nothing_heavy(fitted, tmp_path):
    """To import scikit-learn takes longer than to judge a case."""
    save(fitted, tmp_path)
    script = "import sys; from workbench.experiment import segmentation; from workbench.stages import forest; forest.load(sys.argv[1]); print({'sklearn', 'scipy.stats', 'mlflow'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


def test_a_missing_file_and_a_broken_description_are_refused(fitted, tmp_path):
    with pytest.raises(Refused, match="no file"):
        load(tmp_path)
    save(fitted, tmp_path)
    (tmp_path / "forest.json").write_text("{}")
    with pytest.raises(Refused, match="no threshold, sha256, probe"):
        load(tmp_path)


def test_an_interrupted_save_leaves_the_previous_forest(fitted, tmp_path, monkeypatch):
    save(fitted, tmp_path)

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        save(fit(*candidates(seed=2)[:2], QUICK), tmp_path)
    monkeypatch.undo()
    assert load(tmp_path).names == fitted.names
    assert sorted(p.name for p in tmp_path.iterdir()) == ["forest.json", "forest.safetensors"]
