"""LiTS's measures on masks one can solve by hand, and against brute force."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from workbench.stages import metrics
from workbench.volume import Refused

SPACING = (5.0, 0.7, 0.9)


def labels(shape=(4, 5, 6), liver=(), tumor=()):
    a = np.zeros(shape, np.uint8)
    for box in liver:
        a[box] = 1
    for box in tumor:
        a[box] = 2
    return a


def balls(rng, shape=(7, 9, 8)):
    """A random lumpy mask."""
    return rng.random(shape) < rng.choice([0.05, 0.3, 0.7])


def test_two_voxels_2_mm_apart():
    a, b = np.zeros((2, 1, 3, 4), bool)
    a[0, 1, 1] = b[0, 1, 3] = True
    found = metrics.compare(a, b, (5.0, 3.0, 1.0))
    assert (found["assd_mm"], found["rmsd_mm"], found["msd_mm"]) == (2.0, 2.0, 2.0)
    assert (found["dice"], found["voe"], found["rvd"], found["surface_dice"]) == (0.0, 1.0, 0.0, 0.0)
    assert metrics.compare(a, b, (5.0, 3.0, 1.0), tolerance_mm=2.0)["surface_dice"] == 1.0


def test_each_axis_has_its_own_spacing():
    for axis, apart in enumerate(SPACING):
        a, b = np.zeros((2, 3, 3, 3), bool)
        a[0, 0, 0] = True
        b[tuple(2 if i == axis else 0 for i in range(3))] = True
        assert metrics.compare(a, b, SPACING)["msd_mm"] == pytest.approx(2 * apart)


def test_overlap_and_volume_by_hand():
    # 4 and 6 voxels, 2 in common: Dice 4/10, IoU 2/8, volume +2 of 4
    a, b = np.zeros((2, 1, 1, 8), bool)
    a[..., :4] = True
    b[..., 2:8] = True
    found = metrics.compare(a, b, (1.0, 1.0, 2.0))
    assert (found["dice"], found["voe"], found["rvd"]) == (0.4, 0.75, 0.5)
    assert (found["truth_ml"], found["prediction_ml"]) == (0.008, 0.012)
    # in one row every voxel is surface: 2 1 0 0 voxels from a to b, 0 0 1 2 3 4 back... each 2 mm
    steps = 2 * np.array([2, 1, 0, 0, 0, 0, 1, 2, 3, 4])
    assert found["assd_mm"] == pytest.approx(steps.mean())
    assert found["rmsd_mm"] == pytest.approx(np.sqrt((steps**2).mean()))
    assert found["msd_mm"] == 8.0


def test_rvd_relates_to_the_reference():
    small, large = np.zeros((2, 1, 1, 4), bool)
    small[..., :1] = large[..., :] = True
    assert metrics.compare(small, large, SPACING)["rvd"] == 3.0
    assert metrics.compare(large, small, SPACING)["rvd"] == -0.75


def test_the_inside_of_a_block_is_no_surface():
    a = np.ones((5, 5, 5), bool)
    assert len(metrics._surface(a, (1.0, 1.0, 1.0))) == 125 - 27
    # a missing corner of the 3x3x3 neighbourhood does not make a surface voxel (18 neighbours), an edge one does
    corner, edge = a.copy(), a.copy()
    corner[1, 1, 1] = edge[1, 1, 2] = False
    inner = [2.0, 2.0, 2.0]
    assert inner not in metrics._surface(corner, (1.0, 1.0, 1.0)).tolist()
    assert inner in metrics._surface(edge, (1.0, 1.0, 1.0)).tolist()


@pytest.mark.parametrize("seed", range(12))
def test_surface_distances_by_brute_force(seed):
    rng = np.random.default_rng(seed)
    a, b = balls(rng), balls(rng)
    a[3, 4, 4] = b[2, 5, 3] = True
    around = [d for d in itertools.product((-1, 0, 1), repeat=3) if 0 < sum(map(abs, d)) < 3]

    def surface(mask):
        padded = np.pad(mask, 1)
        return np.array(
            [
                np.multiply(v, SPACING)
                for v in np.argwhere(mask)
                if not all(padded[tuple(np.add(v, d) + 1)] for d in around)
            ]
        )

    one, other = surface(a), surface(b)
    distance = np.sqrt(((one[:, None] - other[None]) ** 2).sum(-1))
    both = np.concatenate([distance.min(1), distance.min(0)])
    found = metrics.surface_distances(a, b, SPACING, tolerance_mm=0.95)
    assert found["assd_mm"] == pytest.approx(both.mean())
    assert found["rmsd_mm"] == pytest.approx(np.sqrt((both**2).mean()))
    assert found["msd_mm"] == pytest.approx(both.max())
    assert found["surface_dice"] == pytest.approx((both <= 0.95).mean())
    back = metrics.surface_distances(b, a, SPACING, tolerance_mm=0.95)
    assert back == pytest.approx(found)  # symmetric


# -- the four empty cases ---------------------------------------------------------------

BOX, ELSEWHERE = np.s_[1:3, 1:3, 1:3], np.s_[1:3, 3:5, 4:6]


@pytest.mark.parametrize(
    "truth, prediction, dice, voe, rvd, distance, surface, counts",
    [
        ((), (), 1.0, 0.0, 0.0, math.nan, 1.0, (0, 0, 0)),
        ((), (BOX,), 0.0, 1.0, math.nan, math.nan, 0.0, (0, 1, 0)),
        ((BOX,), (), 0.0, 1.0, -1.0, math.nan, 0.0, (0, 0, 1)),
        ((BOX,), (BOX,), 1.0, 0.0, 0.0, 0.0, 1.0, (1, 0, 0)),
    ],
    ids=["both empty", "empty reference", "empty prediction", "neither"],
)
def test_four_empty_cases(truth, prediction, dice, voe, rvd, distance, surface, counts):
    whole = (np.s_[:],)
    case = metrics.evaluate_case(labels(liver=whole, tumor=truth), labels(liver=whole, tumor=prediction), SPACING)
    tumor = case["tumor"]
    seen = [tumor[k] for k in ("dice", "voe", "rvd", "assd_mm", "rmsd_mm", "msd_mm", "surface_dice")]
    assert seen == pytest.approx([dice, voe, rvd, distance, distance, distance, surface], nan_ok=True)
    for key in ("iou0", "iou50"):
        assert tuple(case["detection"][key][k] for k in ("tp", "fp", "fn")) == counts
    assert case["liver"]["dice"] == 1.0
    json.dumps(metrics.summarise([case]), allow_nan=False)


def test_no_case_drops_out_of_the_mean():
    whole = (np.s_[:],)
    hit = metrics.evaluate_case(labels(liver=whole, tumor=(BOX,)), labels(liver=whole, tumor=(BOX,)), SPACING, "hit")
    invented = metrics.evaluate_case(labels(liver=whole), labels(liver=whole, tumor=(BOX,)), SPACING, "invented")
    missed = metrics.evaluate_case(labels(liver=whole, tumor=(BOX,)), labels(liver=whole), SPACING, "missed")
    clean = metrics.evaluate_case(labels(liver=whole), labels(liver=whole), SPACING, "clean")
    cases = [hit, invented, missed, clean]
    tumor = metrics.summarise(cases)["tumor"]
    assert tumor["dice_per_case"] == 0.5  # 1, 0, 0, 1
    assert tumor["dice_global"] == 0.5  # 2 * 8 / 32
    assert (tumor["precision_iou0"], tumor["recall_iou0"]) == (0.5, 0.5)
    assert (tumor["voe"], tumor["assd_mm"]) == (0.0, 0.0)  # over the one detected lesion
    every = metrics.breakdown(cases)
    table = every.set_index(["structure", "measure", "over", "size"]).sort_index()
    assert not table.index.has_duplicates
    assert tuple(table.loc[("tumor", "assd_mm", "cases", "all"), ["n", "undefined"]]) == (1, 3)
    assert tuple(table.loc[("tumor", "voe", "cases", "all"), ["mean", "n"]]) == (0.5, 4)
    assert table.loc[("lesion", "assd_mm", "detected lesions", "all"), "n"] == 1
    assert tuple(table.loc[("lesion", "recall_iou0", "reference lesions", "below 10 mm"), ["mean", "n"]]) == (0.5, 2)
    assert tuple(table.loc[("lesion", "recall_iou50", "reference lesions", "all"), ["mean", "n"]]) == (0.5, 2)
    f1 = ("lesion", "f1_iou50", "reference lesions and false positives", "all")
    assert tuple(table.loc[f1, ["mean", "n"]]) == (0.5, 3)
    assert tuple(table.loc[("lesion", "false_positives_iou50", "cases", "below 10 mm"), ["mean", "n"]]) == (0.25, 4)
    assert every[every["size"] != "all"].groupby("measure")["size"].nunique().eq(3).all()


def test_what_is_undefined_for_one_case_takes_no_part_in_the_mean():
    apart = metrics.evaluate_case(labels(liver=(np.s_[0, 0, 0],)), labels(liver=(np.s_[0, 0, 2],)), (1.0, 1.0, 1.0))
    cases = [apart, metrics.evaluate_case(labels(), labels(), (1.0, 1.0, 1.0))]  # 2 mm, and no surface at all
    assert metrics.summarise(cases)["liver"]["assd_mm"] == 2.0
    table = metrics.breakdown(cases).set_index(["structure", "measure"])
    assert tuple(table.loc[("liver", "assd_mm"), ["mean", "n", "undefined"]]) == (2.0, 1, 1)


def test_the_contract_has_exactly_its_keys():
    case = metrics.evaluate_case(labels(tumor=(BOX,)), labels(liver=(BOX,)), SPACING, "a")
    found = metrics.summarise([case])
    assert set(found) == {"liver", "tumor", "tumor_burden", "cases"}
    overlap = {"dice_per_case", "dice_global", "voe", "rvd", "assd_mm", "rmsd_mm", "msd_mm"}
    assert set(found["liver"]) == overlap
    detection = {"precision_iou0", "recall_iou0", "precision_iou50", "recall_iou50"}
    assert set(found["tumor"]) == overlap | detection
    assert set(found["tumor_burden"]) == {"rmse", "max_error"}
    assert found["tumor"]["assd_mm"] is None and found["cases"][0]["tumor"]["assd_mm"] is None
    assert (found["tumor"]["precision_iou0"], found["tumor"]["recall_iou0"]) == (0.0, 0.0)  # nothing predicted
    none = metrics.summarise([metrics.evaluate_case(labels(), labels(), SPACING)])["tumor"]
    assert none["precision_iou0"] is None and none["recall_iou0"] is None and none["dice_global"] == 1.0
    with pytest.raises(Refused, match="no case"):
        metrics.summarise([])


def test_liver_is_label_1_and_2():
    truth = labels(liver=(np.s_[:, :, :4],), tumor=(np.s_[1:2, 1:3, 1:3],))
    prediction = labels(liver=(np.s_[:, :, :4],))
    case = metrics.evaluate_case(torch.from_numpy(truth), torch.from_numpy(prediction), SPACING)
    assert case["liver"]["dice"] == 1.0
    assert case["tumor_burden"] == pytest.approx({"truth": 4 / 80, "prediction": 0.0, "error": -4 / 80})
    half = metrics.evaluate_case(prediction, truth, SPACING)
    burden = metrics.summarise([case, half, metrics.evaluate_case(truth, truth, SPACING)])["tumor_burden"]
    assert burden == pytest.approx({"rmse": 0.05 * math.sqrt(2 / 3), "max_error": 0.05})  # signs do not cancel
    assert metrics.summarise([case])["tumor_burden"]["max_error"] == 0.05  # too little is an error too
    assert metrics.evaluate_case(truth, labels(), SPACING)["tumor_burden"]["prediction"] == 0.0


def test_shapes_must_agree():
    with pytest.raises(Refused, match="shape"):
        metrics.evaluate_case(labels(), labels((4, 5, 7)), SPACING)


# -- matching ---------------------------------------------------------------


def row(*runs, n=24):
    """Tumor runs (start, stop) along x."""
    return labels((1, 1, n), tumor=[np.s_[:, :, a:b] for a, b in runs])


def counts(truth, prediction, key, **settings):
    found = metrics.evaluate_case(truth, prediction, (1.0, 1.0, 1.0), **settings)["detection"][key]
    return found["tp"], found["fp"], found["fn"]


def test_one_prediction_that_joins_two_lesions_finds_both():
    truth, joined = row((0, 4), (5, 9)), row((0, 9))
    assert counts(truth, joined, "iou0") == counts(truth, joined, "iou50") == (2, 0, 0)
    case = metrics.evaluate_case(truth, joined, (1.0, 1.0, 1.0))
    (match,) = case["matches"]  # scored once, as one lesion of 8 against 9 voxels
    assert (match["lesions"], match["pieces"]) == ([1, 2], 1)
    assert (match["voe"], match["rvd"]) == (pytest.approx(1 / 9), 1 / 8)
    assert [lesion["iou"] for lesion in case["lesions"]] == [8 / 9, 8 / 9]


def test_pieces_of_one_lesion_are_one_detection():
    truth, pieces = row((0, 9)), row((0, 3), (4, 6), (7, 9))
    assert counts(truth, pieces, "iou50") == (1, 0, 0)
    # taken alone no piece reaches an IoU of 0.5
    assert all(counts(truth, row(run), "iou50") == (0, 1, 1) for run in ((0, 3), (4, 6), (7, 9)))


def test_a_lesion_goes_to_the_prediction_that_covers_most_of_it():
    # B (4 voxels) shares 1 with p1 and 3 with p2: it is not joined with A, which p1 covers
    truth, prediction = row((0, 4), (5, 9)), row((0, 6), (6 + 1, 12))
    assert counts(truth, prediction, "iou0") == (2, 0, 0)
    case = metrics.evaluate_case(truth, prediction, (1.0, 1.0, 1.0))
    assert [lesion["iou"] for lesion in case["lesions"]] == [4 / 6, pytest.approx(2 / 7)]
    assert counts(truth, prediction, "iou50") == (1, 1, 1)


def test_overlap_must_exceed_one_half():
    assert counts(row((0, 4)), row((0, 8)), "iou50") == (0, 1, 1)  # exactly 0.5
    assert counts(row((0, 5)), row((0, 8)), "iou50") == (1, 0, 0)
    assert counts(row((0, 4)), row((3, 8)), "iou0") == (1, 0, 0)  # one voxel is enough
    assert counts(row((0, 4)), row((4, 8)), "iou0") == (0, 1, 1)
    # the tumor's distances are those of detected lesions: none at 0.5, though the masks overlap
    case = metrics.evaluate_case(row((0, 4)), row((0, 8)), (1.0, 1.0, 1.0))
    assert case["matches"] == [] and case["tumor"]["msd_mm"] == 4.0
    assert [(one["piece"], one["touches_lesion"]) for one in case["false_positives"]] == [(1, True)]
    assert metrics.summarise([case])["tumor"]["msd_mm"] is None


def test_a_missed_pair_is_two_misses():
    truth, prediction = row((0, 4), (20, 24)), row((10, 12), (15, 17))
    assert counts(truth, prediction, "iou0") == (0, 2, 2)
    assert counts(row((0, 1), (2, 3)), row((0, 20)), "iou50") == (0, 1, 2)  # joined, IoU 0.1


def published(truth, prediction, least):
    """The procedure of LiTS's public scorer (`detect_lesions`), on sets of voxels: its groups of reference lesions with the IoU of each that
    some predicted lesion was given to, and the number that it calls detected; then this module's counts from the same groups."""

    def components(mask):
        numbered, n = metrics.ndimage.label(mask)
        return [{tuple(v) for v in np.argwhere(numbered == i + 1)} for i in range(n)]

    lesions, pieces = components(truth == 2), components(prediction == 2)
    touching = [p for p in pieces if any(p & g for g in lesions)]
    groups = []  # of each predicted lesion: the reference lesions that share more with it than with any other
    for p in touching:
        groups.append([n for n, g in enumerate(lesions) if p & g and max(touching, key=lambda q: len(q & g)) is p])
    groups = [group for group in groups if group]
    merged = [set.union(*(lesions[n] for n in group)) for group in groups]
    given = {n: [] for n in range(len(groups))}
    for p in touching:
        given[max(given, key=lambda n: len(p & merged[n]))].append(p)
    iou = {n: len(merged[n] & set.union(*ps)) / len(merged[n] | set.union(*ps)) for n, ps in given.items() if ps}
    detected = len(iou)  # a group counts once when it is found, and takes each of its lesions off when it is not
    for n, overlap in iou.items():
        detected -= len(groups[n]) if overlap <= least else 0
    hits = [n for n, overlap in iou.items() if overlap > least]
    tp = sum(len(groups[n]) for n in hits)
    fp = len(pieces) - sum(len(given[n]) for n in hits)
    return {tuple(groups[n]): overlap for n, overlap in iou.items()}, detected, (tp, fp, len(lesions) - tp)


@pytest.mark.parametrize("seed", range(10))
def test_matching_against_the_published_procedure(seed):
    rng = np.random.default_rng(seed)
    truth, prediction = (2 * (rng.random((4, 13, 15)) < q).astype(np.uint8) for q in (0.25, 0.3))
    prediction = np.where(rng.random(truth.shape) < 0.6, truth, prediction)
    found = metrics.match_lesions(truth == 2, prediction == 2, (1, 1, 1))
    for key, least in metrics.OVERLAPS.items():
        groups, detected, expected = published(truth, prediction, least)
        assert counts(truth, prediction, key) == expected
        # where a group has one lesion the scorer's number is the true positives; of larger ones it counts one when they are found
        # and takes all off when they are not, which the module's head names as a departure
        assert expected[0] - detected == sum(len(group) - 1 for group in groups)
    assert any(len(group) > 1 for group in groups) and len({overlap > 0.5 for overlap in groups.values()}) == 2
    assert {tuple(n - 1 for n in m["lesions"]) for m in found["matches"]} == {g for g, o in groups.items() if o > 0.5}
    for lesion in found["lesions"]:
        own = [overlap for group, overlap in groups.items() if lesion["lesion"] - 1 in group]
        assert lesion["iou"] == pytest.approx(own[0] if own else 0, abs=1e-12)


def test_lesions_of_corners_count_once_with_26_neighbours():
    truth = labels(tumor=(np.s_[0, 0, 0], np.s_[1, 1, 1]))
    assert counts(truth, truth, "iou0") == (2, 0, 0)
    assert counts(truth, truth, "iou0", neighbours=26) == (1, 0, 0)


def test_diameter_classes():
    # a cube of n mm has the volume of a ball of 1.2407 n mm
    for edge, size in ((8, "below 10 mm"), (9, "10 to 20 mm"), (16, "10 to 20 mm"), (17, "above 20 mm")):
        found = metrics._size(edge**3 / 1000)
        assert found["diameter_mm"] == pytest.approx(1.2407 * edge, rel=1e-4)
        assert found["size"] == size


# -- intervals, paired tests, FROC ---------------------------------------------------------------


def test_bootstrap_interval():
    rng = np.random.default_rng(0)
    values = rng.normal(0.7, 0.1, 60)
    mean, low, high = metrics.bootstrap(values)
    half = 1.96 * values.std() / math.sqrt(60)
    assert mean == pytest.approx(values.mean())
    assert (mean - low, high - mean) == pytest.approx((half, half), rel=0.15)
    assert metrics.bootstrap(values) == (mean, low, high)  # the seed is fixed
    for one in ([0.4], [0.4, math.nan]):  # one patient says nothing of others
        assert metrics.bootstrap(one)[0] == 0.4 and all(math.isnan(v) for v in metrics.bootstrap(one)[1:])
    assert all(math.isnan(v) for v in metrics.bootstrap([math.nan]))


def test_intervals_of_few_patients_are_students_and_hold_what_they_say():
    """Five patients: by hand, and in 2,000 draws the mean lies in 95 % of them (percentiles of resampled patients: 82 %)."""
    values = np.array([0.2, 0.4, 0.5, 0.7, 0.9])
    half = stats.t.ppf(0.975, 4) * values.std(ddof=1) / math.sqrt(5)
    assert metrics.bootstrap(values) == pytest.approx((0.54, 0.54 - half, 0.54 + half))
    assert metrics.bootstrap(values.repeat(3), groups=np.arange(5).repeat(3)) == pytest.approx(
        metrics.bootstrap(values)
    )
    rng = np.random.default_rng(0)
    inside = [low <= 0 <= high for _, low, high in (metrics.bootstrap(rng.normal(size=5)) for _ in range(2000))]
    assert 0.935 < np.mean(inside) < 0.965


def test_bootstrap_over_patients_is_wider():
    rng = np.random.default_rng(1)
    patient = np.repeat(np.arange(15), 4)
    values = rng.normal(size=15)[patient] + 0.05 * rng.normal(size=60)
    _, low, high = metrics.bootstrap(values)
    _, low_p, high_p = metrics.bootstrap(values, groups=[f"p{i}" for i in patient])
    assert 1.5 < (high_p - low_p) / (high - low) < 2.5  # 4 equal scans are about one: twice as wide


def test_a_drawn_patient_brings_all_its_values_and_one_without_any_is_not_drawn():
    """Twenty patients, one of them with five values of 1 and the others with one 0 each: drawn j times of 20 it makes the mean
    5 j / (5 j + 20 - j). It is drawn 4 times or more in under 2 % of the draws and 3 times or more in 8 %: the upper end is j = 3."""
    groups = [*"aaaaa", *"bcdefghijklmnopqrst"]
    assert metrics.bootstrap([1.0] * 5 + [0.0] * 19, groups=groups) == (5 / 24, 0.0, 15 / 32)
    two = metrics.bootstrap([0.2, 0.6], groups=["b", "c"])
    assert two == metrics.bootstrap([math.nan, 0.2, 0.6], groups=["a", "b", "c"])


def test_paired_by_hand_and_against_scipy():
    # three pairs that all rise: 2 of 8 sign patterns are as extreme
    found = metrics.paired([0.1, 0.2, 0.3], [0.2, 0.4, 0.6])
    assert (found["difference"], found["p"], found["n"]) == (pytest.approx(0.2), 0.25, 3)
    half = stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3)
    assert (found["low"], found["high"]) == pytest.approx((0.2 - half, 0.2 + half))
    rng = np.random.default_rng(2)
    for n in (10, 30):
        a = rng.normal(size=n)
        b = a + 0.3 + rng.normal(size=n)
        reference = stats.permutation_test(
            (b - a,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(3)
        )
        assert metrics.paired(a, b)["p"] == pytest.approx(reference.pvalue, abs=0.01)
    assert metrics.paired(a, a)["p"] == 1.0
    assert metrics.paired([1.0, math.nan], [2.0, 3.0])["n"] == 1
    assert metrics.paired([], [])["n"] == 0
    assert metrics.paired(np.zeros(30), np.ones(30))["p"] == 1e-4  # never 0: the observed signs are one of 10,000
    # two patients of five equal cases each are two pairs, whatever the number of cases
    assert metrics.paired([0.0] * 10, [1.0] * 10, groups=[0] * 5 + [1] * 5)["p"] == 0.5


def test_the_median_patient_is_tested_by_signed_ranks():
    """One patient far off moves the mean and not the median; a patient's lesions are averaged first."""
    before, after = np.zeros(40), np.r_[np.full(39, -0.1) - np.arange(39) / 1000, 25.0]
    found = metrics.paired_median(before, after)
    assert found["p"] == pytest.approx(stats.wilcoxon(after).pvalue) and found["p"] < 1e-6
    assert found["difference"] == np.median(after) and found["low"] < found["difference"] < found["high"] < 0
    assert metrics.paired(before, after)["p"] > 0.05
    lesions = metrics.paired_median([0.0, 0, 0, 0], [3.0, 1, -1, math.nan], groups=["a", "a", "b", "b"])
    assert lesions["n"] == 2 and lesions["difference"] == 0.5
    skewed = metrics.paired_median([0.0] * 5, [math.nan, 3, 1, 2, 9], groups=["a", "a", "b", "b", "b"])
    assert (
        skewed["n"] == 2 and skewed["difference"] == 3.5
    )  # means of 3 and 4; the value that is not there moves no name
    assert metrics.paired_median([1.0, 2], [1.0, 2])["p"] == 1.0 and metrics.paired_median([], [])["n"] == 0


def test_froc_by_hand():
    table = metrics.froc([0.9, 0.8, 0.8, 0.4], [True, False, True, False], lesions_total=4, cases=2)
    assert table["threshold"].tolist() == [math.inf, 0.9, 0.8, 0.4]
    assert table["sensitivity"].tolist() == [0.0, 0.25, 0.5, 0.5]
    assert table["false_positives_per_case"].tolist() == [0.0, 0.0, 0.5, 1.0]
    # two candidates in one lesion find it once
    once = metrics.froc([0.9, 0.8, 0.1], [True, True, False], 1, 1, lesion_ids=["a:1", "a:1", None])
    assert once["sensitivity"].tolist() == [0.0, 1.0, 1.0, 1.0]
    # one that shares too little with a lesion to find it does not stand in the way of one that does
    grazed = metrics.froc([0.9, 0.8], [False, True], 1, 1, lesion_ids=["a:1", "a:1"])
    assert grazed["sensitivity"].tolist() == [0.0, 0.0, 1.0]
    with pytest.raises(Refused, match="lesion_ids"):
        metrics.froc([0.9, 0.8], [True, True], 1, 1)
    assert metrics.froc([], [], 3, 2)["sensitivity"].tolist() == [0.0]
