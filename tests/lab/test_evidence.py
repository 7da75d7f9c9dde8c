"""The evidence page: verdicts by hand, every figure from the files, and nothing typed."""

import importlib.util
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from workbench.experiment import Experiment
from workbench.lab import contours, evidence, report, review
from workbench.lab.evidence import claims
from workbench.stages import forest, metrics
from workbench.stages.ledger import ABLATION, tumor_after
from workbench.volume import Refused


@pytest.fixture(scope="module")
def written(trained):
    return evidence.write(trained)


def test_verdicts_by_hand():
    assert claims.verdict(0.1, 0.3, 1) == "**supported**" and claims.verdict(-0.3, -0.1, 1) == "**contradicted**"
    assert claims.verdict(-0.3, -0.1, -1) == "**supported**" and claims.verdict(-0.1, 0.3, 1) == "not shown"
    assert claims.verdict(0.0, 0.0, 1) == "not shown" and claims.verdict(math.nan, 1, 1) == "undefined"
    assert claims.verdict(0.76, 0.9, 1, 0.75) == "**supported**" and claims.verdict(0.7, 0.9, 1, 0.75) == "not shown"


def test_a_change_needs_its_interval_and_its_test():
    row = pd.Series({"difference": 0.2, "low": 0.1, "high": 0.3, "p": 0.03, "n": 9})
    assert claims.change("", "", row, "tumor_dice").verdict == "**supported**"
    assert claims.change("", "", row, "tumor_assd_mm").verdict == "**contradicted**"
    assert claims.change("", "", row.where(row.index != "p", 0.06), "tumor_dice").verdict == "not shown"


def test_few_patients_say_nothing_and_many_claims_are_held_together():
    row = pd.Series({"difference": 0.2, "low": 0.1, "high": 0.3, "p": 0.0625, "n": 5})
    assert claims.change("", "", row, "tumor_dice").verdict == claims.TOO_FEW
    sure, likely, luck = (
        claims.change("s", f"claim {p}", row.replace({0.0625: p, 5: 20}), "tumor_dice") for p in (0.001, 0.03, 0.04)
    )
    plain, built = (
        claims.Claim("s", "by its interval", "", "**supported**"),
        claims.Claim("s", "", "", claims.BUILT_SO),
    )
    few = claims.change("s", "few", row, "tumor_dice")
    words = claims.many([luck, sure, plain, built, likely, few])
    assert (
        words.startswith("4 claims that could have failed, and 1 on too few patients") and "3 of them have a p" in words
    )
    assert words.endswith("would not be: s: claim 0.03; s: claim 0.04.")  # .03 > .05 / 2, so .04 < .05 does not matter
    assert "every supported one of them stays" in claims.many([sure, plain])
    steps = [row.replace({0.0625: p, 5: 20}) for p in (0.001, 0.02, 0.04)]  # below .05 / 3, .05 / 2 and .05: all stay
    assert "every supported" in claims.many([claims.change("s", "claim", one, "tumor_dice") for one in steps])


def test_spiegelhalter_by_hand():
    """Two scores of .8, one lesion: (.2 - .8) * -.6 over the root of 2 * .36 * .16."""
    assert claims.spiegelhalter([0.8, 0.8], [1, 0]) == pytest.approx(0.36 / math.sqrt(2 * 0.36 * 0.16))
    rng = np.random.default_rng(0)
    p = rng.random(4000)
    assert abs(claims.spiegelhalter(p, rng.random(4000) < p)) < 1.96
    assert claims.spiegelhalter(p, rng.random(4000) < p**3) > 1.96


def test_scores_that_stake_nothing_contradict_nothing():
    """Sure and right, the Brier score is 0 with an expected spread of 0; sure and wrong once, no chance explains it."""

    def said(scores, lesions):
        table = pd.DataFrame({"score": scores, "is_lesion": lesions})
        return claims.chances("", table, forest.calibration(table.score, table.is_lesion)).verdict

    assert said([0.0, 0.0, 1.0, 1.0], [False, False, True, True]) == "undefined"
    assert said([0.0, 0.0, 1.0, 1.0], [False, True, True, True]) == "**contradicted**"
    assert said([0.25, 0.25, 0.25, 0.25], [False, False, False, True]) == "not contradicted"
    assert said([0.9, 0.9, 0.9, 0.9], [False, False, False, True]) == "**contradicted**"  # z 4.3
    assert said([0.1] * 50, [False] * 50) == "**contradicted**"  # z -2.4: too good for chances


@pytest.fixture
def eight():
    """Eight patients with a tumor, whose Dice rises by .1 and false positives fall by 2 from stage to stage, and a healthy one who loses."""
    cases = pd.DataFrame(
        {"stage": stage, "case": f"c{n}", "patient": f"p{n}", "tumor_dice": 0.5 + 0.1 * k if n < 8 else 1.0 - k,
         "false_positives": 9.0 - 2 * k, "recall_iou0": 0.5 + 0.1 * k if n < 8 else math.nan}
        for k, stage in enumerate(ABLATION)
        for n in range(9)
    )  # fmt: skip
    metric = ["tumor_dice", "false_positives", "tumor_assd_mm", "tumor_surface_dice", "recall_iou50"]
    told = {"difference": 0.0, "low": -1.0, "high": 1.0, "p": 1.0, "n": 9}
    steps = pd.DataFrame([{"to": to, "metric": m, **told} for to in ("forest", "boundary") for m in metric])
    return cases, steps


def said(found, words):
    (claim,) = (c for c in found if words in c.claim)
    return claim.measured, claim.verdict


def test_what_is_claimed_of_the_forest_is_of_new_patients_and_of_whole_lesions(eight):
    """Each lesion is found in two pieces, of which one is kept; a filter by size keeps every false candidate, the forest none."""
    cases, steps = eight
    held = pd.DataFrame({"case": [f"c{n // 10}" for n in range(40)], "lesion": [n // 2 for n in range(40)], "is_lesion": True,
                         "kept": [n % 2 == 0 for n in range(40)], "score": 0.9})  # fmt: skip
    filters = pd.DataFrame({"patient": [f"p{n}" for n in range(8)], "is_lesion": False, "size": True,
                            "shape and boundary": True, "selected": False})  # fmt: skip
    made = SimpleNamespace(settings=SimpleNamespace(forest=SimpleNamespace(recall=0.5)))
    chances = forest.calibration(held.score, held.is_lesion)
    found = claims.of_forest(made, steps, cases, held, held, chances, filters)
    assert said(found, "than with size alone") == ("-1.000 [-1.000, -1.000], p 0.0078, n 8", "**supported**")
    assert said(found, "it keeps 50%") == ("20 of 20 (100% [84%, 100%])", "**supported**")
    assert said(found, "patients with tumors") == ("+0.100 [+0.100, +0.100], p 0.0078, n 8", "**supported**")
    held["kept"] = False
    found = claims.of_forest(made, steps, cases, held, held, chances, filters)
    assert said(found, "it keeps 50%") == ("0 of 20 (0% [0%, 16%])", "**contradicted**")


def test_what_is_claimed_of_all_stages_runs_from_the_first_to_the_last(eight):
    found = claims.together(eight[0], pd.DataFrame({"metric": []}))
    assert said(found, "fewer false positives")[1] == "**supported**" == said(found, "more lesions found")[1]
    assert said(found, "patients with tumors")[0].startswith("+0.400 [+0.400, +0.400], p 0.0078, n 8")
    assert said(found, "fewer false positives")[0].startswith("-8.000 [-8.000, -8.000], p 0.0039, n 9")


def test_what_is_claimed_of_blurred_edges_is_of_these(eight):
    edges = pd.DataFrame({"patient": [f"p{n // 2}" for n in range(16)], "blur_mm": [0.5, 1.5] * 8, "assd_mm_before": 2.0,
                          "assd_mm_after": [3.0, 1.5] * 8, "surface_dice_before": 0.5, "surface_dice_after": [0.1, 0.6] * 8})  # fmt: skip
    found = [c for c in claims.boundary(eight[1], edges, 1.5) if "blurred" in c.claim]
    assert said(found, "distance") == ("-0.500 [-0.500, -0.500], p 0.0078, n 8", "**supported**")
    assert said(found, "Dice") == ("+0.100 [+0.100, +0.100], p 0.0078, n 8", "**supported**")


def test_smoothing_that_takes_here_and_gives_there_changes_the_volume(monkeypatch, tmp_path):
    """Two per cent either way is more than the one that is claimed, though the mean is 0; half a per cent is less."""
    made = SimpleNamespace(folder=tmp_path, cases=lambda split: pd.DataFrame({"case": ["1", "-1", "1", "-1"]}))
    for share, verdict in ((2.0, "**contradicted**"), (0.5, "**supported**")):
        info = lambda case, share=share: {"change_ml": {"smoothing": int(case) * share}, "tumor_ml": 100.0}  # noqa: E731
        monkeypatch.setattr(claims.reading, "result", lambda p, info=info: SimpleNamespace(info=info(p.name)))
        (claim,) = claims.smoothing(made)
        assert claim.measured == f"{share:.2f} % [{share:.2f}, {share:.2f}], 4 cases" and claim.verdict == verdict


def test_edges_are_those_of_the_masks_before_and_after(trained):
    """For a lesion that lies alone: the same as comparing its surroundings in both masks."""
    edges = contours.edges(trained)
    assert len(edges) == trained.cases("test").tumors.sum() and (edges.blur_mm > 0).mean() > 0.9
    checked = 0
    for case, part in edges.groupby("case"):
        ct, truth = review.original(trained, case)
        codes = review.reading.result(trained.folder / "results" / case).volume("ledger")[0]
        reference = review.components(truth.array == 2)[0]
        masks = {
            w: tumor_after(torch.from_numpy(codes.copy()), s).numpy()
            for w, s in (("before", "forest"), ("after", "boundary"))
        }
        for row in part.itertuples():
            own, measured = reference == row.lesion, {}
            for when, mask in masks.items():
                pieces = review.components(torch.from_numpy(mask))[0]
                mine = np.isin(pieces, np.unique(pieces[own & mask])) & mask
                if not mine.any() or len(np.unique(reference[mine & (reference > 0)])) > 1:
                    break  # not found, or one piece with another lesion
                measured[when] = metrics.compare(own, mine, ct.spacing_mm)
            else:
                # voxels nearer to another lesion belong to that one; none is when the numbers agree
                if all(measured[w]["dice"] == pytest.approx(getattr(row, f"dice_{w}")) for w in measured):
                    for when in measured:
                        assert getattr(row, f"assd_mm_{when}") == pytest.approx(measured[when]["assd_mm"])
                    checked += 1
    assert checked >= 2


def test_the_page_says_what_the_files_say(trained, written):
    page, pictures = written
    row = trained.table("metrics", "ablation.csv").query("stage == 'boundary' and metric == 'tumor_dice'").iloc[0]
    assert f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" in page
    for stage in (*ABLATION, "all but consistency", "all but forest", "all but boundary"):
        assert f"| {stage} |" in page
    left = trained.table("metrics", "leave_one_out.csv").query("without == 'forest' and metric == 'tumor_dice'").iloc[0]
    assert f"{left['mean']:.3f} [{left['mean_low']:.3f}, {left['mean_high']:.3f}]" in page
    held = json.loads((trained.path("selection") / "metrics.json").read_text())
    assert f"{held['nogueira']:.2f} [{held['nogueira_low']:.2f}, {held['nogueira_high']:.2f}]" in page
    kept = trained.table("selection", "table.csv").query("kept")
    assert all(f"| {name} |" in page for name in kept.name) and "| all |" in page
    scores = trained.table("forest", "scores.csv", dtype=review.AS_TEXT)
    chances = forest.calibration(*(scores[scores.split == "train"][c] for c in ("score", "is_lesion")))
    assert f"Brier {chances.brier:.3f}" in page and "2 held out" in page and "smoothing alone changes" in page
    assert all(f"pictures/evidence_{name}.png" in page for name in pictures) and "nan" not in page.replace(
        "tumor n", ""
    )


def test_a_changed_file_changes_the_page(trained, tmp_path):
    copy = shutil.copytree(trained.folder, tmp_path / "copy")
    about = json.loads((copy / "experiment.json").read_text())
    (copy / "experiment.json").write_text(json.dumps(about | {"manifest": str(trained.manifest)}))
    steps = pd.read_csv(copy / "metrics/comparisons.csv")
    on = (steps.to == "forest") & (steps.metric == "tumor_dice")
    for low, high, said in ((0.2, 0.4, "**supported**"), (-0.4, -0.2, "**contradicted**"), (-0.1, 0.4, "not shown")):
        steps.loc[on, ["difference", "low", "high", "p", "n"]] = [(low + high) / 2, low, high, 0.01, 9]
        steps.to_csv(copy / "metrics/comparisons.csv", index=False)
        page, _ = evidence.write(Experiment(copy, "cpu"))
        line = next(line for line in page.splitlines() if line.startswith("| forest | higher tumor Dice |"))
        assert said in line and f"[{low:+.3f}, {high:+.3f}]" in line


def test_an_experiment_of_an_earlier_version_is_told_what_to_run_again(trained, tmp_path):
    copy = shutil.copytree(trained.folder, tmp_path / "copy")
    held = json.loads((copy / "selection" / "metrics.json").read_text())
    (copy / "selection" / "metrics.json").write_text(json.dumps({k: v for k, v in held.items() if k != "resamples"}))
    with pytest.raises(Refused, match="earlier version, without resamples.*train all"):
        evidence.page(copy, tmp_path / "docs" / "evidence.md")
    assert not (tmp_path / "docs").exists()


def test_the_part_on_real_ct(trained, tmp_path):
    stages = [*ABLATION, "all but forest"]
    rows = [
        {"variant": "a", "stage": stage, "patient": f"p{n}", "lesions_5": int(n > 0), "tumor_dice": 0.5 + 0.1 * n + 0.01 * s if n else None,
         "recall_5": 1.0 if n else None, "false_5": 4 - s + n}
        for s, stage in enumerate(stages)
        for n in range(4)
    ]  # fmt: skip
    held = {"summary": rows, "settings": {"variants": {"a": "phantoms <only>"}}}
    words, picture = evidence._real(held)
    text = "\n".join(words)
    assert (
        "4 patients, 3 of them with tumors" in text
        and "of 3 patients cannot give a p below 0.25" in text
        and "Variant a: phantoms <only>" in text
    )
    assert f"| cascade | {0.7:.3f} [" in text and "| all but forest |" in text
    assert "| candidates → forest | +0.010 [+0.010, +0.010], p 0.25 |" in text and "all but forest → all" in text
    # the healthy one has false positives, and so its part in their mean and their test
    assert f"| {5.5:.3f} [" in text.split("| cascade |")[1].splitlines()[0] and "(4) |" in text
    assert "| cascade → all | +0.040 [+0.040, +0.040], p 0.25 |" in text and "-4.000 [-4.000, -4.000], p 0.12 |" in text
    assert "4 patients, 3 of them with tumors" in picture._suptitle.get_text() and "over the variants" not in text
    both = "\n".join(
        evidence._real({"summary": rows + [row | {"variant": "b", "false_5": row["false_5"] + 2} for row in rows]})[0]
    )
    assert "Each patient's mean over the variants" in both and both.count("| cascade → all |") == 3
    (tmp_path / "real.json").write_text(json.dumps(held))
    path = evidence.page(trained.folder, tmp_path / "docs" / "evidence.md", tmp_path / "real.json")
    page = path.read_text()
    named = {p.name for p in (path.parent / "pictures").iterdir()}
    assert "## Real CT" in page and all(f"pictures/{name}" in page for name in named) and len(named) == 6
    (tmp_path / "real.json").write_text("{}")
    with pytest.raises(Refused, match="summary"):
        evidence.page(trained.folder, tmp_path / "docs" / "evidence.md", tmp_path / "real.json")


def test_fresh_lesions_are_tested_at_the_cuts_that_were_fixed_before(trained):
    """Blurred edges gain .5 mm, those over 1.5 mm 1 mm; sharp ones lose."""
    blur = np.tile([0.8, 1.2, 2.0], 8)
    gain = np.tile([-0.5, 0.5, 1.0], 8)
    lesions = pd.DataFrame({"patient": np.repeat([f"p{n}" for n in range(8)], 3), "blur_mm": blur, "assd_mm_before": 2.0,
                            "assd_mm_after": 2.0 - gain, "surface_dice_before": 0.5, "surface_dice_after": 0.5,
                            "dice_before": 0.7, "dice_after": None, "assd_mm_redrawn": 1.8, "surface_dice_redrawn": 0.5,
                            "dice_redrawn": 0.7})  # fmt: skip
    whole = {f"{m}_{when}": 0.5 for m in ("dice", "assd_mm", "surface_dice") for when in ("before", "redrawn", "after")}
    patients = [
        {"patient": f"p{n}", "tumor": n < 8} | whole | {"dice_after": 0.6 if n < 8 else 0.0} for n in range(9)
    ]  # the last has none
    held = {
        "cut_mm": 1.05,
        "more_mm": 1.5,
        "redrawn": 0.45,
        "lesions": metrics.json_safe(lesions.to_dict("records")),
        "patients": patients,
    }
    page, pictures = evidence.write(trained, None, held)
    lines = [line for line in page.splitlines() if "fresh phantoms" in line and line.startswith("| boundary")]
    assert (
        "a patient" in lines[0] and "+0.100 [+0.100, +0.100], p 0.0078, n 8" in lines[0] and "**supported**" in lines[0]
    )
    assert "| dice | 8 | 0.500 | 0.600 |" in page
    lines = lines[3:]
    assert "-0.750 [-0.750, -0.750], p 0.0078, n 16" in lines[0] and "**supported**" in lines[0]
    assert "median patient" in lines[1] and "-0.750 [-0.750, -0.750], p 0.0078, n 8" in lines[1]
    assert "edges blurred by 1.5 mm or more" in lines[3] and "-1.000 [-1.000, -1.000]" in lines[3]
    assert (
        "edges sharper than 1.05 mm" in lines[6]
        and "+0.500 [+0.500, +0.500]" in lines[6]
        and "**contradicted**" in lines[6]
    )
    assert "own contour at 0.45, a patient" in lines[8] and "+0.100" in lines[8]
    assert "own contour at 0.45, edges blurred by 1.05 mm" in lines[9] and "-0.550 [-0.550, -0.550]" in lines[9]
    assert "not shown" in lines[2] and "fresh" in pictures and "on 8 fresh phantoms" in page
    table = evidence.edges_table(lesions.astype({"dice_after": float}), 1.05, 1.5).set_index("blur of the edge")
    assert table.lesions.tolist() == [24, 8, 16, 8] and table.loc["below 1.05 mm", "assd_mm"].startswith(
        "2.000 to 2.500: +0.500"
    )


def test_the_benchmark_measures_fresh_phantoms(trained):
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "blurred_edges.py"
    spec = importlib.util.spec_from_file_location("blurred_edges", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    table, patients = benchmark.measure(trained.folder, range(benchmark.SEED, benchmark.SEED + 2))
    assert len(patients) == 2 and patients.tumor.any() and {"dice_before", "assd_mm_after"} <= set(patients.columns)
    assert set(table.patient) <= {f"phantom-{benchmark.SEED + n}" for n in range(2)} and len(table) > 0
    assert {"blur_mm", "assd_mm_before", "assd_mm_after", "assd_mm_redrawn"} <= set(table.columns)


def test_a_scan_without_lesions_has_no_edges(trained):
    ct, truth = review.original(trained, trained.cases("test").case[0])
    healthy = truth.with_array(truth.array.clamp(max=1))
    table = contours.lesion_edges(ct, healthy, {"after": torch.zeros(ct.shape, dtype=torch.bool)})
    assert len(table) == 0 and "assd_mm_after" in table


def test_missed_lesions_are_told_in_words():
    table = pd.DataFrame(
        {"lost_at": ["cascade", "cascade", "forest"], "peak": [0.01, 0.2, 0.9], "appears_at": [math.nan, 0.1, math.nan]}
    )
    words = evidence._missed(table, 9)
    assert (
        "of the 9 that there are on the work grid, that no kept candidate touches: 3 (2 by cascade, 1 by forest)"
        in words
        and "In 1 of them" in words
        and "1 would be touched" in words
    )
    assert "0 (none)" in evidence._missed(table.head(0), 9)


def test_variants_stand_below_the_stages():
    ablation = pd.DataFrame([{"stage": "boundary", "metric": "m", "mean": 1.0, "low": 0.5, "high": 1.5, "n": 3}])
    left = pd.DataFrame([{"without": "forest", "metric": "m", "mean": 0.8, "mean_low": 0.3, "mean_high": 1.1,
                          "difference": 0.2, "low": -1.0, "high": 1.0, "p": 1.0, "n": 3}])  # fmt: skip
    both = report.variants(ablation, left)
    assert both.stage.tolist() == ["boundary", "all but forest"]
    assert both.iloc[1][["mean", "low", "high", "n"]].tolist() == [0.8, 0.3, 1.1, 3]
    assert report.variants(ablation, None) is ablation
