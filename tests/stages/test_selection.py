"""Selection: intervals against pingouin and by hand, every step's reason, and that it sees only what it is given."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import sklearn.linear_model

from workbench.stages import selection
from workbench.stages.selection import (
    STEPS,
    SelectionSettings,
    icc,
    icc_table,
    mutual_information,
    nogueira,
    quantile_codes,
    rank_forest,
    rank_l1,
    rank_mutual,
    repeats_within,
    resamples,
    select,
)
from workbench.stages.selection.choice import _clusters, _medians
from workbench.volume import Refused

ICC_COLUMNS = ["icc21", "icc21_low", "icc21_high", "icc11", "icc11_low", "icc11_high"]
# Six targets and four judges of Shrout & Fleiss (1979), table 2; their table 4 gives ICC(1,1) 0.17 and ICC(2,1) 0.29.
SHROUT = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], dtype=float)
SMALL = SelectionSettings(icc_bound=0.75, keep=3, choose_from=4, trees=30, draws=10, permutations=2)


def cohort(seed=0, lesions=60, noise=6, per_patient=5):
    """Three features that tell, a double of the first, a shaky one, noise, a constant, a mostly missing one."""
    rng = np.random.default_rng(seed)
    target = rng.random(lesions) < 0.5
    columns = {f"tells{i}": rng.normal(size=lesions) + 2.2 * target for i in range(3)}
    columns["double"] = 5 * columns["tells0"] + 0.01 * rng.normal(size=lesions)
    columns["shaky"] = rng.normal(size=lesions) + 3 * target
    columns |= {f"noise{i}": rng.normal(size=lesions) for i in range(noise)}
    columns["constant"] = np.full(lesions, 7.0)
    columns["absent"] = np.where(rng.random(lesions) < 0.6, np.nan, rng.normal(size=lesions))
    features = pd.DataFrame(columns)
    error = np.full(features.shape[1], 0.05)
    error[features.columns.get_loc("double")] = 1.0  # of a spread five times as large: stable, but less than tells0
    error[features.columns.get_loc("shaky")] = 2.0
    error[features.columns.get_loc("constant")] = 0
    repeats = features.to_numpy() + rng.normal(size=(6, *features.shape)) * error
    patients = [f"p{i // per_patient}" for i in range(lesions)]
    return features, target, patients, repeats, ["systematic", "random"] * 3


# ---------------------------------------------------------------------------------------------- ICC


def test_icc_gives_the_published_values():
    found = icc(SHROUT)
    assert (round(found["icc11"], 2), round(found["icc21"], 2)) == (0.17, 0.29)
    assert found["lesions"] == 6 and found["reason"] == ""


def test_icc_by_hand():
    """Lesions 0, 2, 4 and a second repeat one higher: MSB 8, MSW 1/2, MSJ 3/2, MSE 0."""
    found = icc(np.array([[0, 1], [2, 3], [4, 5]], dtype=float))
    assert found["icc11"] == pytest.approx((8 - 0.5) / (8 + 0.5))
    assert found["icc21"] == pytest.approx(8 / (8 + 2 * 1.5 / 3))


@pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")
def test_icc_and_intervals_agree_with_pingouin():
    pingouin = pytest.importorskip("pingouin")
    rng = np.random.default_rng(3)
    values = []
    for spread, shift in ((0.1, 0), (0.5, 1), (1, 0.3), (3, 0), (0.02, 2)):  # from near 1 to below 0
        lesion = rng.normal(size=(1, 9)) * 10 + 100
        values.append(lesion + rng.normal(size=(5, 9)) * 10 * spread + rng.normal(size=(5, 1)) * shift * 10)
    values = np.stack([SHROUT.T.mean() + v for v in values], axis=-1)  # [repeat lesion feature]
    table = icc_table(values)
    lesion, repeat = np.meshgrid(np.arange(9), np.arange(5))
    pingouin.options["round.column.CI95"] = None
    try:
        for feature in range(values.shape[2]):
            long = {"lesion": lesion.ravel(), "repeat": repeat.ravel(), "value": values[..., feature].ravel()}
            theirs = pingouin.intraclass_corr(pd.DataFrame(long), "lesion", "repeat", "value").set_index("Type")
            for ours, name in (("icc21", "ICC(A,1)"), ("icc11", "ICC(1,1)")):
                expected = [theirs.loc[name, "ICC"], *theirs.loc[name, "CI95"]]
                found = table.loc[feature, [ours, f"{ours}_low", f"{ours}_high"]].tolist()
                assert found == pytest.approx(expected, abs=1e-8)
    finally:
        pingouin.set_default_options()


def test_a_shift_of_every_repeat_lowers_two_way_icc_less_than_one_way():
    shifted = np.arange(8.0)[:, None] + np.array([0, 3, 6])
    found = icc(shifted)
    assert found["icc11"] < found["icc21"] < 1


def test_exact_repeats_have_icc_one_with_a_closed_interval():
    found = icc(np.repeat(np.arange(5.0)[:, None], 3, axis=1))
    assert [found[c] for c in ICC_COLUMNS] == pytest.approx([1] * 6, abs=1e-12)


def test_a_constant_feature_and_too_few_lesions_have_a_reason_and_no_number():
    constant = icc(np.full((6, 3), 0.1))
    assert constant["reason"] == "constant over lesions and repeats" and math.isnan(constant["icc21"])
    few = icc(np.array([[1.0, 2], [np.nan, 1], [3, 4], [5, np.inf]]))
    assert few["reason"] == "2 lesions have a value in every repeat, 3 are needed" and math.isnan(few["icc11_low"])


def test_missing_lesions_are_dropped_feature_by_feature():
    rng = np.random.default_rng(1)
    whole = rng.normal(size=(3, 8, 2)) + 3 * rng.normal(size=(1, 8, 2))
    holed = whole.copy()
    holed[1, [2, 5], 0] = np.nan
    table = icc_table(holed)
    alone = icc(np.delete(whole[:, :, 0], [2, 5], axis=1).T)
    assert table.loc[0, ICC_COLUMNS].tolist() == pytest.approx([alone[c] for c in ICC_COLUMNS], abs=1e-12)
    assert table.loc[1, ICC_COLUMNS].tolist() == pytest.approx(list(icc_table(whole).loc[1, ICC_COLUMNS]), abs=1e-12)
    assert table["lesions"].tolist() == [6, 8]


def test_icc_does_not_change_with_unit_or_offset():
    expected, moved = icc(SHROUT), icc(SHROUT * 1e-6 - 1e-3)
    assert [moved[c] for c in ICC_COLUMNS] == pytest.approx([expected[c] for c in ICC_COLUMNS], abs=1e-9)


def test_one_repeat_is_refused():
    with pytest.raises(Refused, match="at least 2 repeats"):
        icc(np.arange(5.0)[:, None])


# ---------------------------------------------------------------------------------------------- relevance


def test_mutual_information_of_a_copy_is_its_entropy_and_of_independent_columns_is_none():
    one, other = np.repeat([0, 1], 50), np.tile([0, 1], 50)
    found = mutual_information(np.column_stack([one, 1 - one, other]), 2)
    assert found[0, 1] == pytest.approx(math.log(2) - 1 / 200)  # less the bias of one degree of freedom
    assert found[0, 2] == 0


def test_quantile_codes_fill_classes_evenly_and_keep_ties_together():
    assert quantile_codes(np.array([[10.0], [-5], [3], [99]]), 2).ravel().tolist() == [1, 0, 0, 1]
    assert len(set(quantile_codes(np.array([[1.0], [1], [1], [2]]), 4).ravel()[:3].tolist())) == 1


def test_every_strategy_ranks_what_tells_before_noise():
    rng = np.random.default_rng(5)
    target = np.arange(80) % 2 == 0
    values = rng.normal(size=(80, 8))
    values[:, 3] += 3 * target
    patients = np.arange(80) // 4
    assert rank_mutual(values, target, SMALL)[3] == 1
    assert rank_l1(values, target, patients, SMALL)[3] == 1
    assert rank_forest(values, target, patients, SMALL)[3] == 1


def test_what_knows_the_patient_only_is_worth_nothing_on_other_patients():
    """All candidates of a patient are of one kind: a number that names the patient tells them where that patient was seen."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(40), 6)
    target = patients % 2 == 0
    names_it = rng.permutation(40)[patients] + 0.1 * rng.random(240)
    tells = rng.normal(size=240) + target
    assert rank_forest(np.column_stack([names_it, tells]), target, patients, SMALL).tolist() == [2, 1]


def test_lesions_and_look_alikes_weigh_the_same_however_many_there_are():
    """Of 2 lesions and 18 look-alikes a patient, the first feature finds one lesion for sure, the second clears eight look-alikes.

    With half of the weight for each class the second is worth more; with the same for each candidate it would be the first.
    """
    at, patients = np.tile(np.arange(20), 20), np.repeat(np.arange(20), 20)
    values = np.column_stack([at == 0, at < 12]).astype(float)
    assert rank_forest(values, at < 2, patients, replace(SMALL, permutations=20)).tolist() == [2, 1]


def test_l1_models_learn_from_half_of_the_patients_with_all_their_candidates(monkeypatch):
    seen = []

    class Spy(sklearn.linear_model.LogisticRegression):
        def fit(self, x, y):
            seen.append(np.unique(x[:, 0], return_counts=True)[1].tolist())  # its first column names the patient
            return super().fit(x, y)

    monkeypatch.setattr(sklearn.linear_model, "LogisticRegression", Spy)
    patients = np.repeat(np.arange(7), 5)
    rank_l1(np.column_stack([patients, np.arange(35) % 4]), np.arange(35) % 2 == 0, patients, SMALL)
    assert seen == [[5, 5, 5, 5]] * 2 * SMALL.draws


def test_how_often_a_feature_is_used_counts_before_how_strongly(monkeypatch):
    weights = iter([[0.1, 100.0, 0.2], *[[0.1, 0.0, 0.2]] * (2 * SMALL.draws - 1)])

    class Told(sklearn.linear_model.LogisticRegression):
        def fit(self, x, y):
            self.coef_ = np.array([next(weights)])
            return self

    monkeypatch.setattr(sklearn.linear_model, "LogisticRegression", Told)
    values, patients = np.random.default_rng(0).normal(size=(40, 3)), np.repeat(np.arange(8), 5)
    assert rank_l1(values, np.arange(40) % 2 == 0, patients, SMALL).tolist() == [2, 3, 1]


def test_mrmr_takes_a_second_opinion_before_an_echo():
    rng = np.random.default_rng(2)
    target = rng.random(400) < 0.5
    tells = rng.normal(size=400) + 2 * target
    other = rng.normal(size=400) + 1.5 * target
    values = np.column_stack([tells, tells + 0.01 * rng.normal(size=400), other])
    rank = rank_mutual(values, target, SMALL)
    assert sorted(rank.tolist()) == [1, 2, 3] and rank[2] == 2


def test_mrmr_takes_off_the_mean_of_what_is_shared_with_those_before(monkeypatch):
    """The third: 0.5 - (0.1 + 0.3) / 2 = 0.3 beside 0.33 - (0 + 0.1) / 2 = 0.28; a sum would turn them round."""
    shared = np.array([[0, 0.1, 0.1, 0], [0.1, 0, 0.3, 0.1], [0.1, 0.3, 0, 0], [0, 0.1, 0, 0]])
    tells = np.array([0.9, 0.6, 0.5, 0.33])
    known = np.block([[shared, tells[:, None]], [tells, np.zeros(1)]])
    monkeypatch.setattr(selection.relevance, "mutual_information", lambda *_: known)
    assert rank_mutual(np.zeros((8, 4)), np.zeros(8, bool), SMALL).tolist() == [1, 2, 3, 4]


# ---------------------------------------------------------------------------------------------- select


def test_every_feature_has_a_row_with_its_step_and_reason():
    given = cohort()
    found = select(*given, SMALL)
    table = found.table.set_index("name")
    assert table.index.tolist() == given[0].columns.tolist() and set(table["step"]) <= set(STEPS)
    assert (table["reason"] != "").all()
    assert set(found.names) == {"tells0", "tells1", "tells2"} == set(table.index[table["kept"]])
    assert table.loc[list(found.names), "rank"].tolist() == [1, 2, 3]
    assert table.loc["constant", ["step", "reason"]].tolist() == ["undefined", "the same for all lesions"]
    assert table.loc["absent", "step"] == "undefined" and "at most 20%" in table.loc["absent", "reason"]
    assert table.loc["shaky", "step"] == "unstable" and "is under 0.75" in table.loc["shaky", "reason"]
    assert table.loc["double", "step"] == "redundant" and "says what tells0 says" in table.loc["double", "reason"]
    assert table.loc["noise0", "step"] == "less relevant" and "not among the 3 kept" in table.loc["noise0", "reason"]
    assert table.loc["double", "cluster"] == table.loc["tells0", "cluster"] != table.loc["tells1", "cluster"]
    assert found.bound == 0.75


def test_borda_adds_the_points_of_the_three_ranks():
    table = select(*cohort(), SMALL).table
    ranked = table.dropna(subset=["borda"])
    ranks = ranked[["rank_mutual", "rank_l1", "rank_forest"]].to_numpy()
    assert ranked["borda"].to_numpy() == pytest.approx(3 * len(ranked) - ranks.sum(axis=1))
    assert ranked.sort_values("rank")["borda"].is_monotonic_decreasing


def test_of_two_with_as_many_points_the_more_stable_comes_first(monkeypatch):
    for name in ("rank_mutual", "rank_l1", "rank_forest"):
        monkeypatch.setattr(selection.choice, name, lambda values, *_: np.ones(values.shape[1]))
    ranked = select(*cohort(), SMALL).table.dropna(subset=["rank"]).sort_values("rank")
    lowest = ranked[["icc21_low", "icc11_low"]].min(axis=1)
    assert len(ranked) > 3 and lowest.is_monotonic_decreasing and lowest.is_unique


def test_a_feature_needs_both_kinds_of_stability():
    """Stable under random changes, not under systematic ones, and the reverse: both leave."""
    features, target, patients, repeats, kinds = cohort()
    systematic = np.array(kinds) == "systematic"
    rng = np.random.default_rng(9)
    for name, which in (("noise0", systematic), ("noise1", ~systematic)):
        column = features.columns.get_loc(name)
        repeats[which, :, column] += rng.normal(size=(which.sum(), len(features))) * 3
    table = select(features, target, patients, repeats, kinds, SMALL).table.set_index("name")
    assert table.loc["noise0", "icc21_low"] < 0.75 < table.loc["noise0", "icc11_low"]
    assert table.loc["noise1", "icc11_low"] < 0.75 < table.loc["noise1", "icc21_low"]
    assert table.loc[["noise0", "noise1"], "step"].tolist() == ["unstable", "unstable"]
    assert "ICC(1,1)" not in table.loc["noise0", "reason"] and "ICC(2,1)" not in table.loc["noise1", "reason"]


def test_the_bound_is_lowered_when_too_few_are_left_and_that_is_recorded():
    features, target, patients, repeats, kinds = cohort()
    shaken = repeats + np.random.default_rng(4).normal(size=repeats.shape) * 0.8
    found = select(features, target, patients, shaken, kinds, SMALL)
    assert found.bound < 0.75 and len(found.names) == 3
    late = found.table.loc[found.table["kept"] & (found.table[["icc21_low", "icc11_low"]].min(axis=1) < 0.75), "reason"]
    assert len(late) and late.str.contains("stable only at the lowered bound").all()
    one = select(features, target, patients, shaken, kinds, replace(SMALL, keep=1))
    assert one.table["rank"].notna().sum() >= 4, (
        "as many as there are wanted to choose from, not only as many as are kept"
    )


def test_the_same_seed_gives_the_same_table():
    one, other = select(*cohort(), SMALL), select(*cohort(), SMALL)
    pd.testing.assert_frame_equal(one.table, other.table)


def test_the_order_of_rows_is_not_asked_for_stability_and_redundancy():
    features, target, patients, repeats, kinds = cohort()
    order = np.random.default_rng(0).permutation(len(features))
    turned = select(features.iloc[order], target[order], np.array(patients)[order], repeats[:, order], kinds, SMALL)
    straight = select(features, target, patients, repeats, kinds, SMALL)
    columns = [*ICC_COLUMNS, "repeated"]
    pd.testing.assert_frame_equal(turned.table[columns], straight.table[columns])
    early = ("undefined", "unstable", "redundant")
    assert (
        turned.table["step"][turned.table["step"].isin(early)].tolist()
        == straight.table["step"][straight.table["step"].isin(early)].tolist()
    )


def test_a_fold_is_selected_from_its_own_rows_only():
    """Held-out rows made into anything at all change nothing, because the fold's rows are all that is given."""
    features, target, patients, repeats, kinds = cohort(lesions=80)
    fold = np.arange(80) < 60

    def of_fold(table, truth, copies):
        rows = table.index[fold]
        inside, labels = repeats_within(copies, table.index, rows)
        return select(table.loc[rows], truth[fold], np.array(patients)[fold], inside, kinds, SMALL, repeat_rows=labels)

    spoiled, wrong, copies = features.copy(), target.copy(), repeats.copy()
    spoiled.loc[~fold] = 1e6 * wrong[~fold][:, None]
    wrong[~fold] = ~wrong[~fold]
    copies[:, ~fold] = 0
    pd.testing.assert_frame_equal(of_fold(features, target, repeats).table, of_fold(spoiled, wrong, copies).table)


def test_repeats_of_a_held_out_lesion_are_refused():
    features, target, patients, repeats, kinds = cohort(lesions=80)
    with pytest.raises(Refused, match="repeats of 20 lesions outside the table, such as 60"):
        select(features[:60], target[:60], patients[:60], repeats, kinds, SMALL, repeat_rows=features.index)


def test_repeats_may_cover_some_lesions_only():
    features, target, patients, repeats, kinds = cohort()
    some = features.index[::3]
    part, labels = repeats_within(repeats, features.index, some)
    table = select(features, target, patients, part, kinds, SMALL, repeat_rows=labels).table.set_index("name")
    assert table.loc["tells0", "repeated"] == 20
    original = features.loc[some, "tells0"].to_numpy()[None]
    column = features.columns.get_loc("tells0")
    systematic = part[np.array(kinds) == "systematic"][:, :, column]
    assert table.loc["tells0", "icc21"] == pytest.approx(icc(np.concatenate([original, systematic]).T)["icc21"])


def test_a_few_missing_values_are_survived_and_infinite_ones_count_as_missing():
    features, target, patients, repeats, kinds = cohort()
    features.loc[3, "tells1"] = np.nan
    features.loc[4, "tells1"] = np.inf
    table = select(features, target, patients, repeats, kinds, SMALL).table.set_index("name")
    assert table.loc["tells1", "kept"] and table.loc["tells1", "repeated"] == 58


@pytest.mark.parametrize("gone, step", [(12, "kept"), (13, "undefined")])
def test_a_fifth_of_the_lesions_may_lack_a_feature_and_no_more(gone, step):
    features, target, patients, repeats, kinds = cohort()
    features.loc[: gone - 1, "tells1"] = np.nan
    table = select(features, target, patients, repeats, kinds, SMALL).table.set_index("name")
    assert table.loc["tells1", "step"] == step


def test_what_rises_or_falls_with_another_feature_says_the_same():
    """Ranks decide, not values nor signs: exp(4 x) is far from a line of x, and -x goes the other way."""
    features, target, patients, repeats, kinds = cohort()
    x = features["tells0"].to_numpy()
    features = features.assign(curved=np.exp(4 * x), mirrored=-x)
    repeats = np.concatenate([repeats, np.exp(4 * repeats[..., :1]), -repeats[..., :1]], axis=2)
    assert np.corrcoef(x, features["curved"])[0, 1] < 0.7
    table = select(features, target, patients, repeats, kinds, SMALL).table.set_index("name")
    same = table.loc[["tells0", "curved", "mirrored", "double"]]
    assert same["cluster"].nunique() == 1 and (same["step"] == "redundant").sum() == 3


@pytest.mark.parametrize("step", [1, -1])
def test_the_most_stable_of_a_cluster_stands_for_it_wherever_its_column_is(step):
    features, target, patients, repeats, kinds = cohort()
    turned = select(features.iloc[:, ::step], target, patients, repeats[:, :, ::step], kinds, SMALL).table
    assert turned.set_index("name").loc[["tells0", "double"], "step"].tolist() == ["kept", "redundant"]


def test_every_two_of_a_cluster_correlate():
    """The middle one says what either neighbour says, but those two do not say the same."""
    rho = np.array([[1, 0.96, 0.8], [0.96, 1, 0.95], [0.8, 0.95, 1]])
    first, middle, last = _clusters(rho, 0.9)
    assert first == middle != last
    assert len(set(_clusters(rho, 0.8))) == 1 and len(set(_clusters(rho, 0.97))) == 3


def test_a_missing_value_is_filled_with_the_median_of_those_that_are_there():
    nan, inf = np.nan, np.inf
    table = np.array([[20.0, 1, nan, 7], [1, nan, nan, nan], [10, 10, inf, nan], [2, 2, nan, inf]])
    assert _medians(table).tolist() == [6, 2, 0, 7]


def test_small_cohorts_and_single_classes_are_refused_with_the_minimum():
    features, target, patients, repeats, kinds = cohort()
    with pytest.raises(Refused, match="at least 20 candidates of 4 patients, 6 of each class"):
        select(features[:12], target[:12], patients[:12], repeats[:, :12], kinds, SMALL)
    with pytest.raises(Refused, match="60 lesions and 0 look-alikes"):
        select(features, np.ones(60, bool), patients, repeats, kinds, SMALL)
    with pytest.raises(Refused, match="of 1 patients"):
        select(features, target, ["p"] * 60, repeats, kinds, SMALL)
    with pytest.raises(Refused, match="11 features that are defined and vary; expected at least 40"):
        select(features, target, patients, repeats, kinds, SelectionSettings(keep=40, choose_from=40))
    with pytest.raises(Refused, match="5 lesions with repeats; expected at least 8"):
        select(features, target, patients, repeats[:, :5], kinds, SMALL, repeat_rows=features.index[:5])


def test_a_missing_or_unknown_kind_and_a_wrong_shape_are_refused():
    features, target, patients, repeats, kinds = cohort()
    with pytest.raises(Refused, match="both systematic and random"):
        select(features, target, patients, repeats, ["random"] * 6, SMALL)
    with pytest.raises(Refused, match="none"):
        select(features, target, patients, repeats, ["none", *kinds[1:]], SMALL)
    with pytest.raises(Refused, match=r"\(6, 60, 13\)"):
        select(features, target, patients, repeats[:, :, :-1], kinds, SMALL)


def test_nothing_stable_is_refused_not_filled_up():
    features, target, patients, repeats, kinds = cohort()
    shaken = repeats + np.random.default_rng(4).normal(size=repeats.shape) * 50
    with pytest.raises(Refused, match="uncorrelated features with ICC intervals from 0.00 up; expected at least 3"):
        select(features, target, patients, shaken, kinds, SMALL)


@pytest.mark.parametrize(
    "wrong", [{"keep": 0}, {"choose_from": 5}, {"rho": 1.2}, {"icc_step": 0}, {"icc_bound": -0.1}, {"resamples": 1}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(Refused, match=next(iter(wrong))):
        SelectionSettings(**wrong)


# ---------------------------------------------------------------------------------------------- Nogueira


def test_the_same_selection_every_time_has_index_one():
    assert nogueira([["a", "b"]] * 4, 10) == pytest.approx((1, 1, 1))


def test_nogueira_by_hand():
    """Two selections {a, b} and {a, c} of 4: s2 = (0, 1/2, 1/2, 0), so 1 - (1/4) / (1/2 * 1/2) = 0."""
    assert nogueira([["a", "b"], ["a", "c"]], 4).value == pytest.approx(0)
    assert nogueira([["a", "b"], ["c", "d"]], 4).value == pytest.approx(-1)


def test_nogueira_of_chance_is_near_zero_and_its_interval_holds_it():
    rng = np.random.default_rng(0)
    found = nogueira([rng.choice(100, 20, replace=False).astype(str) for _ in range(60)], 100)
    assert abs(found.value) < 0.02 and found.low < 0 < found.high


def test_nogueira_interval_against_the_formula_term_by_term():
    """Corollary 9 written as loops."""
    chosen, d = [["a", "b"], ["a"], ["a", "b", "c"]], 6
    z = np.array([[n in s for n in "abcdef"] for s in chosen], dtype=float)
    m, share = 3, 6 / 3 / d
    index = 1 - np.mean([m / (m - 1) * p * (1 - p) for p in z.mean(axis=0)]) / (share * (1 - share))
    terms = []
    for row in z:
        overlap = sum(row[f] * z[:, f].mean() for f in range(d)) / d
        k = row.sum()
        correction = index / 2 * (2 * k * 2 / d**2 - k / d - 2 / d + 1)
        terms.append((overlap - k * 2 / d**2 + correction) / (share * (1 - share)))
    half = 1.959963984540054 * math.sqrt(4 / m**2 * sum((t - np.mean(terms)) ** 2 for t in terms))
    assert nogueira(chosen, d) == pytest.approx((index, index - half, index + half))


def test_resamples_take_patients_whole_and_are_large_enough():
    patients = np.repeat([f"p{n}" for n in range(30)], 4)
    truth = np.tile([True, True, True, False], 30)
    drawn = resamples(truth, patients, replace(SMALL, resamples=12))
    assert len(drawn) == 12 and len({tuple(use) for use in drawn}) == 12
    for use in drawn:
        inside = set(patients[use])
        assert inside.isdisjoint(patients[~use]) and 14 <= len(inside) <= 24  # 63 % of 30 in the mean
    again = resamples(truth, patients, replace(SMALL, resamples=12))
    assert all(np.array_equal(a, b) for a, b in zip(drawn, again))
    few = replace(SMALL, resamples=12, min_class=18)  # most draws are too small, some are not
    assert all((~truth[use]).sum() >= 18 for use in resamples(truth, patients, few)) and resamples(truth, patients, few)
    assert resamples(truth, patients, replace(SMALL, min_patients=31)) == []
    assert resamples(truth, patients, replace(SMALL, resamples=0)) == []


def test_nogueira_without_a_choice_is_nan_and_one_selection_is_refused():
    assert math.isnan(nogueira([["a"], ["a"]], 1).value)
    with pytest.raises(Refused, match="at least 2"):
        nogueira([["a"]], 3)
    with pytest.raises(Refused, match="at most n_features"):
        nogueira([["a", "b"], ["c"]], 2)


def test_an_unperturbed_repeat_stands_for_the_table():
    """Features that are averages of repeats are not a repeat themselves: the lesion's own values come with the repeats."""
    features, target, patients, repeats, kinds = cohort()
    own = features.to_numpy()[None]
    shifted = features + 1000  # ranks and spreads stay, agreement with the repeats would not
    plain = select(features, target, patients, repeats, kinds, SMALL).table
    beside = select(shifted, target, patients, np.concatenate([own, repeats]), ["unperturbed", *kinds], SMALL).table
    for column in ("icc21_low", "icc11_low", "kept"):
        assert beside[column].equals(plain[column])
    with pytest.raises(Refused, match="at most one unperturbed"):
        twice = np.concatenate([own, own, repeats])
        select(features, target, patients, twice, ["unperturbed", "unperturbed", *kinds], SMALL)
