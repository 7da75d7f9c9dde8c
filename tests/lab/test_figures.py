"""Figures: where voxels land in mm, what the words say, and that colours can be told apart."""

import io
import json

import fake_folders as fake
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from workbench.lab import figures
from workbench.lab.figures import decisions, descriptors, slices
from workbench.nets.network import NetworkSettings, SlabNet
from workbench.stages import selection
from workbench.stages.ledger import CODES
from workbench.volume import Refused

CONTRIBUTIONS = pd.DataFrame({"name": ["a", "b"], "value": [3.0, 4.0], "contribution": [0.1, -0.2]})
A, MM, T = fake.arrays(), fake.SPACING, fake.tables()


def words(figure: Figure) -> str:
    texts = [figure._suptitle] + [t for ax in figure.axes for t in (ax.title, ax.xaxis.label, ax.yaxis.label)]
    return " | ".join(t.get_text() for t in texts if t is not None)


def picture(data: bytes) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(data))[..., :3]


def contour_box(ax, colour) -> tuple[float, float, float, float]:
    """Extent (left, right, top, bottom in mm) of the contours of a colour."""
    paths = [
        p.vertices
        for c in ax.collections
        if np.allclose(c.get_edgecolor()[0][:3], to_rgb(colour))
        for p in c.get_paths()
    ]
    points = np.concatenate(paths)
    return (*(points[:, 0].min(), points[:, 0].max()), points[:, 1].min(), points[:, 1].max())


@pytest.mark.parametrize("plane, at, down, across", [("axial", 2, 1, 2), ("coronal", 3, 0, 2), ("sagittal", 4, 0, 1)])
def test_voxels_lie_in_mm(plane, at, down, across):
    labels = np.zeros((5, 8, 11), np.uint8)
    labels[1:4, 2:6, 3:9] = 1
    figure = figures.slice_view(torch.zeros(5, 8, 11), (4.0, 2.0, 0.5), at, torch.from_numpy(labels), plane=plane)
    low = [(1, 4), (2, 6), (3, 9)]
    mm = (4.0, 2.0, 0.5)
    edges = [[(a - 0.5) * s, (b - 0.5) * s] for (a, b), s in zip(low, mm)]
    # a contour at one half runs halfway between a voxel inside and its neighbour outside: exactly on the voxels' edges
    assert contour_box(figure.axes[0], figures.LIVER_COLOUR) == pytest.approx((*edges[across], *edges[down]), abs=1e-5)
    top_first = figure.axes[0].yaxis_inverted()
    assert top_first == (plane == "axial"), "axial: front at the top; coronal and sagittal: head at the top"
    assert f"{plane} slice {at} ({at * mm[figures.AXES[plane]]:.0f} mm)" in words(figure)


def test_picture_is_not_flipped():
    """Bright voxel at the front right of the patient (small y, small x): top left of an axial picture."""
    ct = np.full((3, 6, 6), -500)
    ct[1, 0, 0] = 500
    ax = figures.slice_view(ct, (1, 1, 1), 1).axes[0]
    image = ax.images[0]
    assert image.get_array()[0, 0] == 500 and image.origin == "upper" and image.get_extent() == [-0.5, 5.5, 5.5, -0.5]


def test_window_presets_and_own_windows():
    for window, limits in (("liver", (-115, 235)), ((0, 10), (-5, 5))):
        image = figures.slice_view(A["ct"], MM, 7, window=window).axes[0].images[0]
        assert image.get_clim() == limits
    with pytest.raises(IndexError, match="axial slice 14 of 14"):
        figures.slice_view(A["ct"], MM, 14)


def test_box_and_slice_helpers():
    mask = np.zeros((4, 10, 10), bool)
    mask[2, 3:5, 6] = True
    assert figures.slice_with_most(mask) == 2 and figures.slice_with_most(mask, "sagittal") == 6
    assert figures.slice_with_most(mask & False) == 2
    assert figures.box_around(mask, (5.0, 2.0, 1.0), 4) == (slice(1, 4), slice(1, 7), slice(2, 10))
    assert figures.box_around(mask & False, (1, 1, 1)) is None
    assert slices._spread(np.array([0, 5, 9, 8, 1, 0]), 3) == [1, 2, 3] and slices._spread(np.zeros(5), 3) == [2]


def test_colours_can_be_told_apart_also_without_red_or_green():
    """Ledger colours stay apart under simulated deuteranopia and protanopia (Machado et al. 2009, severity 1)."""
    deuteranopia = np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    )
    protanopia = np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    )
    assert set(figures.LEDGER_COLOURS) == set(figures.LEDGER_MEANINGS) == set(CODES) - {0}
    assert figures.LEDGER_COLOURS[1] == figures.LIVER_COLOUR and figures.LEDGER_COLOURS[2] == figures.TUMOR_COLOUR
    colours = np.array([to_rgb(c) for c in figures.LEDGER_COLOURS.values()])
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    for seen in (np.eye(3), deuteranopia, protanopia):
        rgb = np.clip(linear @ seen.T, 0, 1)
        rgb = np.where(rgb <= 0.0031308, rgb * 12.92, 1.055 * rgb ** (1 / 2.4) - 0.055)
        apart = np.linalg.norm(rgb[:, None] - rgb[None], axis=-1)[~np.eye(len(rgb), dtype=bool)]
        assert apart.min() > 0.09, apart.min()


def test_ledger_legend_has_the_codes_that_occur_with_their_ml():
    codes = np.zeros((2, 10, 10), np.uint8)
    codes[0, :5], codes[0, 0, :4], codes[1, 9, 9] = 1, 22, 77
    ct, mm = np.zeros_like(codes, np.int16), (10.0, 1.0, 1.0)
    own = figures.preview(ct, ledger=codes, spacing_mm=mm, meanings={"77": "something new"})
    for figure, new in ((figures.ledger(ct, codes, mm, 0), "unknown"), (own, "something new")):
        labels = [t.get_text() for t in figure.legends[0].get_texts()]
        assert labels == [f"1 {CODES[1]} (0.46 ml)", f"22 {CODES[22]} (0.04 ml)", f"77 {new} (0.01 ml)"]


def test_before_and_after_say_how_much_changed():
    before = np.zeros((5, 9, 9), bool)
    before[2, 4, 4:6] = True
    after = before.copy()
    after[2, 4, 5], after[3, 2, 2:5] = False, True
    ct = np.zeros(before.shape)
    assert "0.03 ml restored, 0.01 ml suppressed" in words(figures.consistency(ct, before, after, (10, 1, 1)))
    assert "0.03 ml added, 0.01 ml removed" in words(figures.boundary_change(ct, before, after, (10, 1, 1)))
    assert "0 ml restored, 0 ml suppressed" in words(figures.consistency(ct, before, before, (10, 1, 1)))
    first = before & False
    first[0, 4, 4] = True  # the slice below it is outside
    lowest = figures.consistency(ct, first, first & False, (10, 1, 1))
    assert "0 ml restored, 0.01 ml suppressed" in words(lowest) and len(picture(figures.png(lowest)))
    assert len(figures.png(figures.boundary_change(ct, before & False, before & False, (10, 1, 1))))


def test_what_a_threshold_buys_by_hand():
    table = pd.DataFrame(
        {
            "case": ["a", "a", "b", "b", "b"],
            "patient": ["p", "p", "q", "q", "q"],
            "lesion": [1, 1, 1, 0, 0],
            "is_lesion": [1, 1, 1, 0, 0],
            "score": [0.9, 0.6, 0.4, 0.5, 0.1],
        }
    )
    levels, true, false = decisions._at_thresholds(table)
    assert list(zip(levels, true, false)) == [
        (np.inf, 0, 0),
        (0.9, 1, 0),
        (0.6, 2, 0),
        (0.5, 2, 1),
        (0.4, 3, 1),
        (0.1, 3, 2),
    ]
    figure = figures.what_if(table, 0.45)
    assert "1 of 2 lesions and 1 of 2 false positives kept (2 patients)" in words(figure)
    label = figures.tradeoff(table, 0.45).axes[1].get_legend().get_texts()[0].get_text()
    assert (
        "50% of false positives removed" in label and "50.0% of true lesions kept" in label
    )  # two candidates lie in one lesion
    assert "area 0.750" in words(figures.tradeoff(table))
    # of 4 reference lesions two have candidates (one has two): at 0.1 half are found, with 1 false positive each
    line = figures.froc(table, lesions=4, patients=2).axes[0].lines[0]
    assert (line.get_xdata()[-1], line.get_ydata()[-1]) == (1.0, 0.5)


def test_ablation_draws_every_mean_interval_and_patient():
    figure = figures.ablation(T["ablation"], T["cases"])
    ax = figure.axes[0]
    patients = [line for line in ax.lines if len(line.get_xdata()) == 4]
    means = [float(line.get_ydata()[0]) for line in ax.lines if line.get_marker() == "o"]
    expected = T["ablation"].query("metric == 'tumor_dice'")["mean"]
    assert len(patients) == 4 and means == pytest.approx(list(expected))
    assert "4 patients" in words(figure) and "n = 4 |  | mean surface distance (mm)" in words(figure)
    of_forest = {figures.stage_colour(stage) for stage in ("forest", "all but forest", "a: forest")}
    assert of_forest == {figures.STAGE_COLOURS["forest"]}
    assert "mean change -1 (n = 4)" in words(figures.paired(T["cases"], "forest", "boundary", ["tumor_assd_mm"]))
    assert "no metric" in str([t.get_text() for t in figures.ablation(T["ablation"].head(0)).axes[0].texts])


CARD = {
    "candidate": 2, "kept": False, "score": 0.1, "votes": {"trees": 10, "for": 1, "shares": [9, 0, 0, 0, 0, 0, 0, 0, 0, 1]},
    "features": [{"name": name, "contribution": push} for name, push in (("a", 0.1), ("b", -0.2))],
    "way": {"tree": 3, "splits": []}, "words": ["Rejected: so it is.", "", "Nothing would have changed it."],
}  # fmt: skip
ABOUT = {"case": "c1", "threshold": 0.4, "training": None}
EDGES = pd.DataFrame(
    {"patient": ["a", "a", "b"], "blur_mm": [0.8, np.nan, 2.0], "assd_mm_before": 1.0, "assd_mm_after": 0.5,
     "surface_dice_before": 0.5, "surface_dice_after": 0.6}
)  # fmt: skip


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: figures.curves(T["curves"]), "2 folds"),
        (lambda: figures.curves(T["curves"].drop(columns=["fold", "dice"])), "1 run"),
        (lambda: figures.cohort(T["cohort"]), "12 patients, 12 cases"),
        (
            lambda: figures.lesions(T["cohort"].rename(columns={"tumor_ml": "volume_ml"}), "split"),
            "12 patients, 12 lesions",
        ),
        (lambda: figures.lesions(T["cohort"].head(0).rename(columns={"tumor_ml": "volume_ml"}), "split"), "0 lesions"),
        (
            lambda: figures.icc_forest(pd.concat([T["selection"]] * 3, ignore_index=True), 0.75, 12),
            "12 patients, 40 of 60 features",
        ),
        (
            lambda: figures.importance(
                pd.DataFrame({"name": ["a", "b"], "drop": [0.1, -0.1], "low": [0, np.nan], "high": [1, 1]}), 9
            ),
            "9 patients",
        ),
        (
            lambda: figures.probability(A["ct"], A["tumor_probability"].astype(np.float16), MM, truth=A["labels"]),
            "tumor probability",
        ),
        (
            lambda: figures.probability(A["ct"], torch.from_numpy(A["liver_probability"]), MM, which="liver"),
            "liver probability",
        ),
        (lambda: figures.montage(A["ct"], MM, A["labels"], slices=5, title="m"), "axial slice 13"),
        (lambda: figures.montage(A["ct"], MM, slices=3), "axial slice 0"),
        (lambda: figures.case_montage([("c1", A["ct"], A["labels"], MM)] * 2), "c1: axial slice 7"),
        (
            lambda: figures.lesion_card(
                CARD, ABOUT, A["ct"], MM, A["labels"] == 2, A["tumor_probability"], A["candidates"] == 2, MM
            ),
            "candidate 2",
        ),
        (lambda: figures.edge_gain(EDGES, 1.0), "2 patients, 2 lesions"),
        (lambda: figures.timings({"liver": 1.0, "tumor": 2.5}), "3.5 s in all"),
    ],
)
def test_figures_draw_and_say_what_they_rest_on(make, says):
    figure = make()
    assert says in words(figure), words(figure)
    shown = picture(figures.png(figure, 50))
    assert shown.std() > 0.02
    for ax in figure.axes:
        if ax.axison and (ax.lines or ax.patches or ax.images):
            assert ax.get_xlabel() or ax.get_ylabel() or len(ax.get_xticks()) == 0, "an axis without a name"


@pytest.mark.parametrize(
    "make",
    [
        lambda: figures.parity(v := np.r_[-9, -0.5, 0, 0.5, 10.0 ** np.arange(9)], v, ["shape"] * len(v)),
        lambda: _reasons(0.1),
        lambda: _reasons(0.0019),
    ],
)
def test_no_label_of_an_x_axis_lies_on_another(make):
    figure = make()
    figures.png(figure)
    axis = figure.axes[0].xaxis
    low, high = sorted(axis.get_view_interval())
    drawn = [t.label1.get_window_extent() for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
    assert len(drawn) > 2 and all(one.x1 < other.x0 for one, other in zip(drawn, drawn[1:]))


def test_an_axis_is_logarithmic_only_where_one_lesion_would_hide_the_others():
    for worst, scale in ((2.5, "linear"), (40.0, "symlog")):
        distance, dice = figures.edge_gain(EDGES.assign(assd_mm_after=[0.5, 1.0, worst]), 1.0).axes
        assert distance.get_yscale() == scale and dice.get_yscale() == "linear"
        assert ("logarithmic" in distance.get_ylabel()) == (scale == "symlog")
        assert distance.get_ylabel().startswith("change of mean surface distance (mm)")


def _reasons(most: float) -> Figure:
    """The axis of reasons, about as narrow as in the decision explorer."""
    figure = decisions.Picture(4.6, 3)
    decisions._draw_reasons(figure.subplots(), pd.Series([-most, most / 3], index=["boundary_contrast_to_noise", "b"]))
    return figure


def test_learning_curves_say_whose_dice_it_is():
    figure = figures.curves(T["curves"])
    assert "Dice of slabs (1)" in [ax.get_ylabel() for ax in figure.axes]


def test_redundancy_puts_copies_side_by_side():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30))
    features = pd.DataFrame({"a": a, "b": b, "a_again": np.exp(a), "b_again": -b, "flat": 1.0})
    figure = figures.redundancy(features, {}, 5)
    names = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert {frozenset(names[:2]), frozenset(names[2:])} == {frozenset({"a", "a_again"}), frozenset({"b", "b_again"})}
    image = figure.axes[0].images[0].get_array()
    assert (
        image[0, 1] == pytest.approx(1)
        and image[2, 3] == pytest.approx(1)
        and "5 patients, 30 candidates, 4 features" in words(figure)
    )


def test_preview_from_a_folder_is_the_preview_of_its_arrays(tmp_path):
    folder = fake.result(tmp_path / "c1", "c1")
    sheet = figures.png(figures.preview_of(folder))
    names = json.loads((folder / "result.json").read_text())["ledger_codes"]
    same = figures.preview(
        A["ct"], torch.from_numpy(A["labels"]), A["tumor_probability"], A["ledger"], MM, meanings=names, title="c1: ok"
    )
    assert sheet == figures.png(same) and picture(sheet).std() > 0.1
    (tmp_path / "c1 ct.nii.gz").unlink()
    assert "no CT:" in words(figures.preview_of(folder)) and "no longer there" in words(figures.preview_of(folder))
    empty = figures.preview_of(fake.result(tmp_path / "none", "none", status="no liver"))
    assert picture(figures.png(empty)).std() > 0.02
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "result.json").write_text("{}")
    with pytest.raises(Refused, match="no volume"):
        figures.preview_of(tmp_path / "bare")


def test_survival_counts_from_the_step_at_which_a_feature_left():
    steps = ["undefined", "unstable", "unstable", "redundant", "less relevant", "kept", "kept"]
    table = pd.DataFrame(
        {"group": ["shape", "shape", "wavelet", "wavelet", "shape", "wavelet", "shape"], "step": steps}
    )
    left = descriptors._left_after(table)
    assert left.sum(axis=1).to_dict() == {"all": 7, "defined": 6, "stable": 4, "not redundant": 3, "kept": 2}
    assert left.loc["stable"].to_dict() == {"shape": 2, "wavelet": 2} and tuple(figures.STEPS) == selection.STEPS[:-1]
    assert "7 → 6 → 4 → 3 → 2 features" in words(figures.survival(table, 3))


def test_save_is_whole_or_nothing_and_notebooks_show_figures(tmp_path, monkeypatch):
    figure = figures.timings({"liver": 1.0})
    path = figures.save(figure, tmp_path / "new" / "a.png")
    first = path.read_bytes()
    assert first.startswith(b"\x89PNG") and [p.name for p in path.parent.iterdir()] == ["a.png"]
    assert figure._repr_png_() == figures.png(figure) == figures.png(figures.timings({"liver": 1.0}))
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        figures.save(figures.timings({"tumor": 2.0}), path)
    assert path.read_bytes() == first


def test_three_planes_meet_in_one_voxel():
    """At voxel (7, 15, 13) of (5, 2, 1.5) mm: 35 mm up, 30 mm back, 19.5 mm left."""
    figure = figures.planes(A["ct"], MM, (7, 15, 13), A["labels"])
    lines = [[float(line.get_ydata()[0]), float(line.get_xdata()[0])] for ax in figure.axes[:3] for line in ax.lines]
    across = [lines[n : n + 2] for n in (0, 2, 4)]
    assert [(y[0], x[1]) for y, x in across] == [(30, 19.5), (35, 19.5), (35, 30)]
    tumor = figure.axes[0].images[2].get_array()
    assert np.array_equal(tumor[..., 3] > 0, A["labels"][7] == 2) and np.allclose(
        tumor[tumor[..., 3] > 0, :3], to_rgb(figures.TUMOR_COLOUR), atol=1e-6
    )


def test_a_decision_marks_the_candidate_and_who_is_rejected():
    table = pd.DataFrame(
        {"case": "c", "patient": "p", "candidate": range(1, 5), "is_lesion": [True, False, True, False],
         "lesion": [1, 0, 1, 0], "volume_ml": 1.0, "score": [0.9, 0.8, 0.4, 0.1]}
    )  # fmt: skip
    one = A["ct"], A["candidates"] == 1, A["labels"], MM
    figure = figures.decision(table, 2, one, np.full(10, 0.4), CONTRIBUTIONS, [(one, True, "near")], 3, 2, 0.5)
    assert "threshold 0.500: 1 of 3 lesions found, 0.5 false positives a patient (2 of 4" in words(figure)
    cells = next(ax.tables[0] for ax in figure.axes if ax.tables).get_celld()
    assert [cells[line, 6].get_text().get_text() for line in range(1, 5)] == ["kept", "kept", "rejected", "rejected"]
    assert [line for line in range(1, 5) if cells[line, 0].get_text().get_fontweight() == "bold"] == [3]
    assert "votes of 10 trees: 0.400, rejected" in words(figure)


def test_stability_draws_each_change_and_each_candidate():
    values = np.array([[1.0, 2.0, 3.0], [1.0, 2.5, 3.0], [2.0, 3.0, 4.0]])
    changes = pd.DataFrame(
        {
            "change": ["noise", "grow"],
            "kind": ["random", "systematic"],
            "icc": [0.9, 0.6],
            "low": [0.8, 0.4],
            "high": [1, 0.8],
        }
    )
    figure = figures.stability(values, changes, "grow", [True, False, True], "shape_x", "mm", 0.5, 2)
    left, right = figure.axes
    assert [t.get_text() for t in left.get_yticklabels()] == ["grow", "noise"]
    drawn = {tuple(zip(line.get_xdata(), line.get_ydata())) for line in right.lines}
    assert {((1.0, 2.0), (3.0, 4.0)), ((2.0, 3.0),)} <= drawn
    assert "shape_x (2 patients, 3 training candidates)" in words(figure) and "grow (mm)" in words(figure)


def test_montage_along_the_tumor_shows_each_slice_that_holds_some():
    labels, truth = np.ones((9, 6, 6), np.uint8), np.ones((9, 6, 6), np.uint8)
    labels[2, 3, 3] = truth[7, 3, 3] = 2
    shown = [
        ax.get_title() for ax in figures.montage(np.zeros((9, 6, 6)), (1, 1, 1), labels, truth, along="tumor").axes
    ]
    assert shown == ["axial slice 2 (2 mm)", "axial slice 7 (7 mm)"]


def test_relative_difference():
    apart = figures.relative_difference([0, 1, -2, np.nan, 3], [0, 2, 2, 1, 3])
    assert apart[[0, 1, 2, 4]].tolist() == [0, 0.5, 2, 0] and np.isnan(apart[3])
    figure = figures.parity([1, 2, np.nan], [1, 4, 1], ["shape", "texture", "boundary"])
    assert "2 descriptors that both define, largest relative difference 5.0e-01" in words(figure)


def test_a_dot_for_each_case_and_its_mean():
    table = pd.DataFrame({"split": ["train", "train", "test"], "patient": list("abc"), "dice": [0.5, 0.7, 0.9]})
    ax = figures.per_case(table, "dice").axes[0]
    assert [len(c.get_offsets()) for c in ax.collections[::2]] == [1, 2]
    assert [line.get_ydata()[0] for line in ax.lines] == pytest.approx([0.9, 0.6])


def test_right_and_wrong_say_their_share():
    ax = figures.right_and_wrong(pd.DataFrame({"right": [3, 0], "wrong": [1, 0]}, ["restored", "suppressed"])).axes[0]
    assert {t.get_text().strip() for t in ax.texts} == {"75% of 4 right", "none"}


def test_the_architecture_names_the_channels_that_flow():
    settings = NetworkSettings(layers=(1, 2, 3))
    net, seen = SlabNet(settings), {}

    def watch(part, key):
        part.register_forward_hook(lambda module, given, out: seen.update({key: out.shape}))

    for level, part in enumerate(net.encode):
        watch(part, level)
    for level, part in enumerate(reversed(net.merge)):
        watch(part, f"up {level}")
    net(torch.zeros(1, 3, 32, 48))
    layout = net.layout(32, 48)
    assert [(row["encoded"], *row["pixels"]) for row in layout] == [tuple(seen[k][1:]) for k in range(3)]
    assert [row["decoded"] for row in layout[:-1]] == [seen[f"up {k}"][1] for k in range(2)]
    words = " ".join(t.get_text() for t in figures.architecture(layout, 3, 0).axes[0].texts)
    assert all(f"{row['encoded']} channels" in words for row in layout) and "16 x 24" in words


def test_steps_and_attention_are_drawn_in_mm():
    maps = (A[name] for name in ("liver_probability", "tumor_probability", "ledger", "labels"))
    figure = figures.steps(A["ct"], MM, *maps, title="case")
    assert [ax.get_title() for ax in figure.axes[:5]][3:] == ["ledger", "final contours"]
    gates = figures.attention(torch.zeros(6, 8), [torch.ones(3, 4), torch.ones(2, 2)], 2.5).axes
    assert gates[0].images[0].get_extent() == gates[2].images[0].get_extent() == [-1.25, 18.75, 13.75, -1.25]


def test_calibration_says_its_n_once():
    bins = pd.DataFrame(
        {"score": [0.01, 0.02, 0.9], "share": [0.0, 0.0, 1.0], "low": 0.0, "high": 1.0, "n": [12, 12, 11]}
    )
    (ax,) = figures.calibration(bins, 0.1, 0.1, 3).axes
    assert [t.get_text() for t in ax.get_legend().get_texts()][-1] == "candidates, 11 to 12 a point" and not ax.texts
    (ax,) = figures.calibration(bins[:2], 0.1, 0.1, 3).axes
    assert [t.get_text() for t in ax.get_legend().get_texts()][-1] == "candidates, 12 a point"
