"""Cards: what they say is what the forest and the maps give when the one thing named is changed."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from scipy import ndimage
from test_report import Page

from workbench.experiment import segmentation
from workbench.experiment.whatif import WhatIf
from workbench.lab import cards, report, results, review
from workbench.stages.forest import explain


@pytest.fixture(scope="module")
def what_if(trained):
    """The held-out case with most candidates."""
    counts = trained.table("candidates", "candidates.csv", dtype=review.AS_TEXT).groupby("case").size()
    return WhatIf(trained, counts.reindex(trained.cases("test").case).fillna(0).idxmax())


@pytest.fixture(scope="module")
def decided(what_if):
    return segmentation.decide(what_if.maps, what_if.models)


@pytest.fixture(scope="module")
def made(what_if, decided):
    return cards.make(what_if.maps, decided.pieces, decided.lesions, what_if.models, what_if.case)


def at(what_if, threshold, skip=()):
    """The candidates `[z y x]` at another threshold of the cascade, decided whole."""
    s = what_if.models.settings
    c = s.consistency
    rule = replace(c, threshold=threshold, low=min(c.low, threshold), keep=max(c.keep, threshold))
    models = replace(what_if.models, settings=replace(s, consistency=rule))
    return segmentation.decide(what_if.maps, models, skip=skip).pieces


def test_a_card_says_what_the_forest_says(what_if, decided, made):
    model, lesions = what_if.models.forest, decided.lesions
    assert [c["candidate"] for c in made["cards"]] == lesions.candidate.to_list() and len(lesions) > 2
    for card, (_, row) in zip(made["cards"], lesions.iterrows()):
        assert card["kept"] == row.kept and card["score"] == row.forest_score
        assert card["margin"] == pytest.approx(row.forest_score - model.threshold.threshold)
        assert sum(card["votes"]["shares"]) == card["votes"]["trees"] == model.settings.trees
        assert {f["name"] for f in card["features"]} == set(model.names)
        pushed = sum(f["contribution"] for f in card["features"])
        assert pushed == pytest.approx(card["score"] - card["prior"])
        assert card["words"][0].startswith("Kept" if row.kept else "Rejected")


def test_a_card_tells_of_a_candidate_larger_than_all_that_the_forest_learnt_from(what_if, decided):
    volumes = decided.lesions.volume_ml
    largest = float(volumes.sort_values().iloc[len(volumes) // 2])  # one of them: itself it is not larger
    models = replace(what_if.models, forest=replace(what_if.models.forest, largest_ml=largest))
    made = cards.make(what_if.maps, decided.pieces, decided.lesions, models, what_if.case)
    told = [any("larger than all" in line for line in card["words"]) for card in made["cards"]]
    assert told == (volumes > largest).to_list() and any(told) and not all(told)
    assert [card["beyond_ml"] for card in made["cards"]] == [largest if t else None for t in told]


def test_a_feature_alone_turns_the_verdict_where_the_card_says(what_if, decided):
    """With the threshold just above the score of the candidate that the trees agree on least, some feature alone turns it."""
    at = int((decided.lesions.forest_score - 0.5).abs().argmin())
    model, score = what_if.models.forest, decided.lesions.forest_score.iloc[at]
    model = model.with_threshold(model.threshold._replace(threshold=score + 1e-3))
    models = replace(what_if.models, forest=model)
    strict = segmentation.decide(what_if.maps, models)
    card = cards.make(what_if.maps, strict.pieces, strict.lesions, models, what_if.case)["cards"][at]
    row, turning = strict.lesions.iloc[[at]], [f for f in card["features"] if np.isfinite(f["turns_at"])]
    assert not card["kept"] and turning and f"{len(turning)} of 20 features would alone" in " ".join(card["words"])
    for feature in turning:
        moved = row[list(model.names)].assign(**{feature["name"]: feature["turns_at"]})
        score = model.score(moved)[0]
        assert score >= model.threshold.threshold and score == pytest.approx(feature["turned_score"])


def test_a_candidate_is_gone_from_the_threshold_that_its_card_names(what_if, decided, made):
    for card in made["cards"]:
        own, gone = decided.pieces == card["candidate"], card["map"]["gone_from"]
        if np.isfinite(gone):
            assert not (at(what_if, gone)[own] > 0).any()
        assert (at(what_if, (gone if np.isfinite(gone) else 1.01) - 0.01)[own] > 0).any()
        bare = segmentation.decide(what_if.maps, what_if.models, skip=("consistency",)).pieces
        assert card["map"]["without_rule"] == bool((bare[own] > 0).any())
    assert any(np.isfinite(c["map"]["gone_from"]) for c in made["cards"])


@pytest.mark.parametrize(
    "gone, median, peak, said",
    [
        (0.71, 0.4, 0.704, "would not mark it at a threshold of 0.71 or more (set: 0.30; probability 0.40, 0.70 at most)."),
        (1.0, 0.9949, 0.9987, "marks it at every threshold up to 0.99 (set: 0.30; probability 0.99, 0.999 at most)."),
        (1.0, 0.9987, 0.99999994, "marks it at every threshold up to 0.99 (set: 0.30; probability 0.999, 0.9999999 at most)."),
        (np.nan, 0.9987, 1.0, "marks it at every threshold (set: 0.30; probability 0.999, 1.00 at most)."),
    ],
)  # fmt: skip
def test_a_probability_near_one_is_not_told_as_one(gone, median, peak, said):
    at = {"gone_from": gone, "median": median, "peak": peak, "joins": [], "without_rule": True}
    card = {"votes": {"for": 1, "trees": 2}, "map": at, "margin": 0.1, "kept": True, "score": 0.5, "beyond_ml": None}
    assert f"The cascade {said}" in cards.words(card, 0.4, 0.3)


def test_lower_thresholds_join_and_add_what_the_cards_say(what_if, decided, made):
    for card in made["cards"]:
        level, joined = card["map"]["joins_at"], card["map"]["joins"]
        assert bool(joined) == np.isfinite(level)
        if joined:
            lower = at(what_if, level)
            for other in joined:
                mine, theirs = (set(lower[decided.pieces == n].tolist()) - {0} for n in (card["candidate"], other))
                assert mine & theirs
    for piece in made["appearing"]:
        place = [round(piece[f"{a}_mm"] / mm) for a, mm in zip("zyx", what_if.maps.spacing_mm)]
        around = tuple(slice(max(0, p - 1), p + 2) for p in place)
        assert (at(what_if, piece["at"])[around] > 0).any()


def test_two_made_up_pieces_join_and_a_third_appears(what_if, models):
    """Three bars in a row at .9, .9 and .2, the first two bridged at .15; the set threshold is .3."""
    liver = torch.zeros(9, 30, 60, dtype=torch.bool)
    liver[1:8, 2:28, 2:58] = True
    p = torch.zeros(liver.shape)
    p[3:6, 10:14, 5:15], p[3:6, 10:14, 25:35], p[3:6, 10:14, 15:25] = 0.9, 0.9, 0.16
    p[3:6, 20:24, 40:50] = 0.21
    hu = torch.where(liver, 110.0, -50.0) - 60 * (p > 0.5) + torch.randn(liver.shape, generator=torch.manual_seed(0))
    maps = segmentation.Maps(hu, liver.float(), liver, p, (4.0, 3.0, 3.0))
    decided = segmentation.decide(maps, models)
    assert len(decided.lesions) == 2
    made = cards.make(maps, decided.pieces, decided.lesions, models)
    assert [c["map"]["joins"] for c in made["cards"]] == [[2], [1]]
    assert [c["map"]["joins_at"] for c in made["cards"]] == [0.15, 0.15]
    assert [c["map"]["gone_from"] for c in made["cards"]] == [0.91, 0.91] or [
        c["map"]["gone_from"] for c in made["cards"]
    ] == [0.9, 0.9]  # .9 in float32 is a little under or over
    (new,) = made["appearing"]
    assert new["at"] == 0.2 and new["peak"] == pytest.approx(0.21)
    assert (new["z_mm"], new["y_mm"], new["x_mm"]) == pytest.approx((4 * 4.0, 21.5 * 3, 44.5 * 3))
    assert new["volume_ml"] == pytest.approx(3 * 4 * 10 * 0.036)


def test_held_out_patients_are_not_in_the_comparison(trained, what_if, decided, made, tmp_path):
    """Whatever the held-out rows say, the cards stay the same; and without the tables there is a card all the same."""
    copy = shutil.copytree(trained.folder, tmp_path / "copy")
    for name in ("forest/scores.csv", "radiomics/features.csv"):
        table = pd.read_csv(copy / name)
        held = table.case.isin(trained.cases("test").case)
        assert held.any()
        numbers = [c for c in table.columns if table[c].dtype == float]
        table.loc[held, numbers] = 1e9
        table.to_csv(copy / name, index=False)
    models = replace(what_if.models, folder=copy)
    again = cards.make(what_if.maps, decided.pieces, decided.lesions, models, what_if.case)
    assert json.dumps(again) == json.dumps(made)
    (copy / "forest/scores.csv").unlink()
    bare = cards.make(what_if.maps, decided.pieces, decided.lesions, models, what_if.case)
    assert bare["training"] is None and "nearest" not in bare["cards"][0]
    assert bare["cards"][0]["score"] == made["cards"][0]["score"]
    cards.draw(bare, 1, what_if.maps, decided.pieces, decided.masks[-1])


def test_neighbours_end_in_the_same_leaves(what_if, decided, made):
    model, known = what_if.models.forest, cards.Known.of(what_if.models)
    row = decided.lesions.iloc[[0]]
    mine, theirs = explain.leaves(model, row), explain.leaves(model, known.features)
    share = known.table.assign(share=(mine == theirs).float().mean(1).numpy()).set_index(["case", "candidate"])
    near = made["cards"][0]["nearest"]
    assert len(near) == 2 * cards.NEAREST
    for kind in (True, False):
        best = share[share.is_lesion == kind].share.nlargest(cards.NEAREST).to_numpy()
        assert [n["alike"] for n in near if n["is_lesion"] == kind] == pytest.approx(best)
    assert all(n["alike"] == pytest.approx(share.share[(n["case"], n["candidate"])]) for n in near)


def test_a_training_case_is_not_its_own_neighbour(trained, models, monkeypatch):
    case = trained.cases("train").case[0]
    known = cards.Known.of(models)
    assert case not in set(cards.Known.of(models, case).table.case) and case in set(known.table.case)
    other = next(name for name in known.table.case if name != case)
    patient = known.table.patient.where(
        known.table.case != other, known.table.patient[known.table.case == case].iloc[0]
    )
    monkeypatch.setattr(cards, "_known", lambda *_: replace(known, table=known.table.assign(patient=patient)))
    left = cards.Known.of(models, case)  # nor is another scan of the same patient
    assert {case, other}.isdisjoint(left.table.case) and len(left.features) == len(left.leaves) == len(left.table)


def test_the_result_folder_has_the_cards_and_its_report_shows_them(models, tmp_path):
    ct, _ = tiny.patient(50)
    result = segmentation.segment(ct, models)
    folder = results.keep(result, tmp_path / "case")
    held = json.loads((folder / "cards.json").read_text())
    drawn = sorted(p.name for p in (folder / "cards").iterdir())
    assert [f"candidate-{c['candidate']:02d}.png" for c in held["cards"]] == drawn and drawn
    page = Page(report.case_report(folder))
    assert all((folder / "cards" / name).read_bytes() in page.images for name in drawn)
    assert all(line in page.text for c in held["cards"] for line in c["words"])
    (folder / "cards" / drawn[0]).unlink()
    page = Page(report.case_report(folder))
    assert held["cards"][0]["words"][0] in page.text and len(page.images) == len(
        drawn
    )  # the preview and the other cards


def test_missed_lesions_appear_at_the_threshold_that_is_named(trained, what_if):
    """A reference lesion put where nothing is marked is lost by the cascade; where only the forest said no, by the forest."""
    table = review.missed(trained)
    scores = trained.table("forest", "scores.csv", dtype=review.AS_TEXT)
    reference = {c: review.components(trained.work(c)[1] == 2)[0] for c in trained.cases("test").case}
    found = 0
    for case, lesions in reference.items():
        pieces = trained.array("candidates", "labels", case).numpy()
        kept = np.isin(pieces, scores[(scores.case == case) & scores.kept].candidate)
        found += len(np.unique(lesions[kept & (lesions > 0)]))
    assert len(table) + found == sum(lesions.max() for lesions in reference.values())
    for row in table[table.case == what_if.case].itertuples():
        own = reference[row.case] == row.lesion
        assert row.peak == what_if.maps.p[torch.from_numpy(own)].max()
        if np.isfinite(row.appears_at):
            assert (at(what_if, row.appears_at).numpy()[own] > 0).any()


def test_a_lesion_that_only_a_lower_threshold_marks(trained, tmp_path):
    """The tumor map of a held-out case cut down to .12 over one found lesion: lost by the cascade, back at .1."""
    copy = shutil.copytree(trained.folder, tmp_path / "copy")
    made = type(trained)(copy, "cpu")
    row = next(c for c in made.cases("test").case if (made.work(c)[1] == 2).any())
    reference = review.components(made.work(row)[1] == 2)[0]
    pieces, p = made.array("candidates", "labels", row).clone(), made.array("tumor", "maps", row).clone()
    near = torch.from_numpy(ndimage.binary_dilation(reference == 1, iterations=3))
    p[near] = p[near].clamp(max=0.0)
    p[torch.from_numpy(reference == 1)] = 0.12
    pieces[near] = 0
    for name, array in (("tumor/maps", p), ("candidates/labels", pieces), ("consistency/masks", (p >= 0.3))):
        np.save(copy / name / f"{row}.npy", array.numpy())
    lost = review.missed(made).query("case == @row and lesion == 1").iloc[0]
    assert lost.lost_at == "cascade" and lost.peak == pytest.approx(0.12, abs=1e-3) and lost.appears_at == 0.1
