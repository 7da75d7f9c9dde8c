"""Why a forest says what it says: against scikit-learn's trees, and by hand."""

import numpy as np
import pandas as pd
import pytest
from test_forest import QUICK, candidates

from workbench.stages.forest import Forest, ForestSettings, fit, threshold_for_recall
from workbench.stages.forest.explain import alone, leaves, pushes, votes, way
from workbench.volume import Refused


@pytest.fixture(scope="module")
def fitted() -> Forest:
    features, target, _ = candidates()
    features.loc[5, "deep"] = np.nan
    return fit(features, target, QUICK)


@pytest.mark.parametrize("row", [0, 3, 5])
def test_contributions_add_up_to_the_score_less_the_prior(fitted, row):
    features, _, _ = candidates()
    features.loc[5, "deep"] = np.nan
    table = pushes(fitted, features.loc[row])
    score = fitted.score(features.loc[[row]])[0]
    assert table["contribution"].sum() == pytest.approx(score - table.attrs["prior"], abs=1e-12)
    assert table.attrs["score"] == pytest.approx(score, abs=1e-12)
    assert table["contribution"].abs().is_monotonic_decreasing
    assert table.set_index("name").loc["deep", "missing"] == (row == 5)


def test_one_split_by_hand():
    """One tree, one split at 0.5 on the only feature that varies: the whole change is that feature's."""
    features = pd.DataFrame({"flat": 0.0, "tells": [0.0] * 10 + [1.0] * 10})
    found = fit(features, [0] * 10 + [1] * 10, ForestSettings(trees=1, max_features=1.0))
    table = pushes(found, features.iloc[[19]]).set_index("name")
    assert table.loc["tells", "contribution"] == pytest.approx(1 - table.attrs["prior"])
    assert table.loc["flat", "contribution"] == 0 and table.attrs["score"] == 1
    assert table.attrs["prior"] == pytest.approx(0.5)  # balanced on the tree's own sample


def test_explain_takes_one_row(fitted):
    with pytest.raises(Refused, match="2 rows; expected one candidate"):
        pushes(fitted, candidates()[0][:2])


def test_leaves_are_scikit_learns(fitted):
    features, _, _ = candidates()
    assert np.array_equal(leaves(fitted, features).numpy(), fitted.model.apply(fitted.table(features)))


def test_votes_are_the_trees_own_and_the_way_is_one_of_them(fitted):
    features, _, _ = candidates()
    row = features.iloc[[3]]
    each = [tree.predict_proba(fitted.table(row))[0, 1] for tree in fitted.model.estimators_]
    assert votes(fitted, row) == pytest.approx(each, abs=1e-12)
    table = way(fitted, row)
    tree = table.attrs["tree"]
    assert abs(each[tree] - np.mean(each)) == np.abs(np.array(each) - np.mean(each)).min()
    nodes = fitted.model.estimators_[tree].decision_path(fitted.table(row)).indices
    own = fitted.model.estimators_[tree].tree_
    assert table["name"].tolist() == [fitted.names[own.feature[n]] for n in nodes[:-1]]
    assert table["threshold"].to_numpy() == pytest.approx(own.threshold[nodes[:-1]], rel=1e-6)
    assert (table["goes"] == "at most").tolist() == (table["value"] <= table["threshold"]).tolist()
    assert table["probability"].iloc[-1] == pytest.approx(each[tree])


@pytest.mark.parametrize("threshold", [0.0511, 0.3007, 0.6003])  # no score that a handful of trees can tie with
def test_the_nearest_value_of_one_feature_that_turns_the_verdict(fitted, threshold):
    """Against every value in turn: it turns the verdict, none nearer does, and none does where none is named."""
    features, _, _ = candidates()
    judged = fitted.with_threshold(threshold_for_recall([threshold], [1], 1.0))
    named = 0
    for row in range(0, 90, 9):
        table, x = alone(judged, features.iloc[[row]], features), judged.table(features.iloc[[row]])
        kept = judged.score(features.iloc[[row]])[0] >= judged.threshold.threshold
        for n, found in enumerate(table.itertuples()):
            values = judged.table(features)[:, n]
            cuts = np.concatenate([t.tree_.threshold[t.tree_.feature == n] for t in judged.model.estimators_])
            cuts = np.concatenate([cuts.astype(np.float32), np.nextafter(cuts.astype(np.float32), np.float32(np.inf))])
            cuts = np.concatenate([cuts, np.nextafter(cuts, np.float32(-np.inf))])
            tried = np.unique(np.concatenate([values, cuts, [x[0, n]]]).astype(np.float32))
            tried = tried[(tried >= values.min()) & (tried <= values.max())]
            rows = np.repeat(x, len(tried), axis=0)
            rows[:, n] = tried
            turned = (judged.model.predict_proba(rows)[:, 1] >= threshold) != kept
            if not turned.any():
                assert np.isnan(found.turns_at) and np.isnan(found.score)
                continue
            named += 1
            assert (found.score >= threshold) != kept
            assert abs(found.turns_at - found.value) == np.abs(tried[turned].astype(float) - found.value).min()
    assert named >= 3
    with pytest.raises(Refused, match="no threshold"):
        alone(fitted, features.iloc[[0]], features)


def test_one_split_turns_at_its_threshold():
    features = pd.DataFrame({"flat": 0.0, "tells": [0.0] * 10 + [1.0] * 10})
    found = fit(features, [0] * 10 + [1] * 10, ForestSettings(trees=1, max_features=1.0))
    judged = found.with_threshold(threshold_for_recall([0.5], [1], 1.0))
    table = alone(judged, features.iloc[[19]], features).set_index("name")
    assert table.loc["tells", "turns_at"] == 0.5 and np.isnan(table.loc["flat", "turns_at"])
    back = alone(judged, features.iloc[[0]], features).set_index("name").loc["tells", "turns_at"]
    assert back > 0.5 and back == pytest.approx(0.5)
    strict = found.with_threshold(
        threshold_for_recall([1.0], [1], 1.0)
    )  # the upper leaf's own score: what reaches it is kept
    assert alone(strict, features.iloc[[0]], features).set_index("name").loc["tells", "turns_at"] == back
