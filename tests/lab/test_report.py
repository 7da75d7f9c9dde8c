"""Reports: complete, escaped, offline, and honest about what is missing."""

import base64
import json
import math
import re
import shutil
from html.parser import HTMLParser

import fake_folders as fake
import pandas as pd
import pytest

from workbench.experiment import reading, verdicts
from workbench.lab import report
from workbench.stages.ledger import CODES
from workbench.volume import Refused


class Page(HTMLParser):
    """Tags balanced, words, images, and everything that would leave the file."""

    def __init__(self, html):
        super().__init__()
        self.open, self.words, self.images, self.leaves = [], [], [], []
        self.within, self.places = [], []
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"
        assert self.within and set(self.within) <= set(self.places), "a link of the contents leads nowhere"
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag in ("script", "link", "iframe") or not attributes.get("href", "#").startswith("#"):
            self.leaves.append(tag)
        if attributes.get("href"):
            self.within.append(attributes["href"][1:])
        if attributes.get("id"):
            self.places.append(attributes["id"])
        if tag == "img":
            assert attributes["src"].startswith("data:image/png;base64,")
            self.images.append(base64.b64decode(attributes["src"].partition(",")[2]))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return fake.experiment(tmp_path_factory.mktemp("report") / "exp")


def test_case_report_has_everything_and_escapes_it(tmp_path):
    folder = fake.result(tmp_path / "r", "<b>case")
    (folder / "preview.png").unlink()
    html = report.case_report(folder)
    page = Page(html)
    assert not page.leaves and "http://" not in html and "https://" not in html
    assert "<b>case" not in html and "spacing <suspect>" not in html, "words from files must be escaped"
    for words in (
        "Case <b>case",
        "status: ok",
        "contrast phase, estimated portal venous",
        "liver, median HU 104.2",
        "liver: 80.1 ml",
        "research use only",
        "Not a medical device",
        "spacing <suspect>",
        "forest score <below> threshold & more",
        "too small",
        "1 kept of 3 candidates;",
        fake.NAMES[0].replace("_", " "),
        "consistency.t",
        "0.5",
        "torch",
        "radiomics 0.5",
        "tumor (cascade, unchanged)",
        "rejected by the forest",
    ):
        assert words in page.text, words
    assert len(page.images) == 1 and page.images[0].startswith(b"\x89PNG")
    rejected = (fake.arrays()["ledger"] == 6).sum()
    assert f"6 rejected by the forest {rejected} {rejected * 0.015:.4g}" in page.text, "5 x 2 x 1.5 mm are 0.015 ml"
    assert "No warnings." not in page.text and "result.json does not name its models." in page.text
    info = json.loads((folder / "result.json").read_text())
    info |= {"warnings": [], "models": {"experiment": "../exp", "stages": {"liver": "ab" * 32}}}
    (folder / "result.json").write_text(json.dumps(info))
    text = Page(report.case_report(folder)).text
    assert "No warnings." in text and f"liver {'ab' * 32} ../exp" in text
    (folder / "preview.png").write_bytes(b"\x89PNG stored")
    assert Page(report.case_report(folder)).images == [b"\x89PNG stored"]


def test_case_report_says_what_readers_said(tmp_path):
    folder = fake.result(tmp_path / "r")
    assert "Readers:" not in Page(report.case_report(folder)).text
    for candidate, verdict, who in ((1, "accept", "Ann"), (2, "reject", "Ben"), (3, "reject", "Ann")):
        verdicts.give(folder, candidate, verdict, who=who)
    assert "Readers: 1 accept, 2 reject (Ann, Ben)." in Page(report.case_report(folder)).text
    verdicts.correct(folder, fake.arrays()["labels"], "Ann")
    assert "2 reject (Ann, Ben); labels corrected by Ann." in Page(report.case_report(folder)).text
    (folder / "lesions.csv").write_text((folder / "lesions.csv").read_text() + "\n")
    changed = "labels corrected by Ann; the result has changed since 3 verdicts and the corrected labels (last on 2"
    assert f"Readers: {changed}" in Page(report.case_report(folder)).text
    (folder / "verdicts" / "verdicts.json").write_text("{")
    text = Page(report.case_report(folder)).text
    assert "verdicts.json: found no JSON" in text and "1 kept of 3 candidates" in text


def test_case_report_of_a_case_without_liver(tmp_path):
    page = Page(report.case_report(fake.result(tmp_path / "r", status="no liver")))
    assert "status: no liver" in page.text and "No candidate was found." in page.text
    (tmp_path / "r" / "lesions.csv").unlink()
    (tmp_path / "r" / "ledger.nii.gz").unlink()
    assert "No ledger in this folder." in Page(report.case_report(tmp_path / "r")).text


def test_experiment_report(experiment):
    html = report.experiment_report(experiment)
    page = Page(html)
    assert not page.leaves and "http://" not in html and "https://" not in html
    row = fake.tables()["ablation"].iloc[-3]
    assert f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}], n = 4" in page.text
    for words in (
        "Experiment exp",
        "patients: 12",
        "stages finished: 7 of 10",
        "Not run yet: consistency, candidates, radiomics.",
        "liver.steps",
        "ab" * 32,
        "selection nogueira 0.7",
        "21 s in all.",
        CODES[24],
        "held out: c08",
        "liver: learning curves",
        "forest, train patients",
        "For research use only",
        "p n",
        "p: of a permutation test",
        "size alone 0.402 53",
        "selection, step by step",
        "importance of the features",
        "0.04",
    ):
        assert words in page.text, words
    assert len(page.images) >= 8


def test_the_warnings_and_versions_of_an_experiment(experiment, tmp_path):
    copy = shutil.copytree(experiment, tmp_path / "copy")
    stage = json.loads((copy / "liver" / "stage.json").read_text())
    (copy / "liver" / "stage.json").write_text(json.dumps(stage | {"versions": {"torch": "2.77"}}))
    text = Page(report.experiment_report(copy)).text
    assert "Case c08: spacing <suspect>" in text and "2.77" in text
    for sha in reading.stage_hashes(copy).values():
        assert sha[:12] in text


def test_words_stand_left_and_numbers_right():
    table = report._table(pd.DataFrame({"mixed": [1.0, "word"], "number": [1, 2], "none": ["", None]}))
    assert [c["word"] for c in table["columns"]] == [True, False, False]
    assert [cell["word"] for cell in table["rows"][0]] == [True, False, False]


def test_tables_call_measures_as_the_figures_do(experiment):
    text = Page(report.experiment_report(experiment)).text
    assert "stage tumor Dice (1) mean surface distance (mm)" in text and "tumor_dice" not in text
    table = pd.DataFrame([{"stage": "s", "metric": "recall_iou0", "mean": -1e-9, "low": -1e-9, "high": 1.0, "n": 3}])
    assert report.ablation_table(table).to_dict("records") == [
        {"stage": "s", "lesions found (share)": "0.000 [0.000, 1.000], n = 3"}
    ]


def test_a_value_and_its_ends_are_one_cell():
    table = pd.DataFrame({"features": ["size", "all"], "columns": [2.0, 728.0], "auc": [0.9, math.nan], "auc_low": [0.8, math.nan],
                          "auc_high": [0.95, math.nan], "auc_gain": 0.06, "auc_gain_low": -0.01, "auc_gain_high": 0.1, "low": 1})  # fmt: skip
    shown = report.with_intervals(table)
    assert list(shown) == ["features", "columns", "auc", "auc_gain", "low"]
    assert shown.auc.tolist() == ["0.900 [0.800, 0.950]", ""] and shown.auc_gain[0] == "+0.060 [-0.010, +0.100]"
    assert shown["columns"].tolist() == [2.0, 728.0]


@pytest.mark.slow
def test_a_browser_opens_both_offline_without_a_complaint(experiment, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright")
    chromium = shutil.which("chromium") or pytest.skip("no Chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    pages = [
        report.write(f, tmp_path / f"{n}.html") for n, f in enumerate((experiment, experiment / "results" / "c08"))
    ]
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=flags)
        for file in pages:
            page, said, asked = browser.new_page(viewport={"width": 1200, "height": 900}), [], []
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto(file.as_uri())
            drawn = page.evaluate("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))")
            width = page.evaluate("document.documentElement.scrollWidth")
            page.emulate_media(media="print")
            page.set_viewport_size({"width": 720, "height": 1000})  # A4 with its margins
            page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
            paper = page.evaluate("document.documentElement.scrollWidth")
            page.close()
            assert said == [] and [url for url in asked if not url.startswith(("file:", "data:"))] == []
            assert drawn and min(drawn) > 0, "a picture is not drawn"
            assert width <= 1200, "the page is wider than the window"
            assert paper <= 720, "a table runs off the paper"
        browser.close()


def test_notebooks_and_saved_figures_are_in_the_report(experiment, tmp_path):
    copy = shutil.copytree(experiment, tmp_path / "copy")
    shutil.rmtree(copy / "results")
    shutil.rmtree(copy / "metrics")
    (copy / "figures" / "my_figure.png").write_bytes(b"\x89PNG mine")
    (copy / "notebooks" / "03_tumor.json").write_text(
        json.dumps({"status": "failed", "seconds": 2.5, "error": "cell 4: <oops>"})
    )
    page = Page(report.experiment_report(copy))
    assert b"\x89PNG mine" in page.images and "my figure" in page.text
    assert "Notebook 03_tumor failed: cell 4: <oops>" in page.text
    assert "The stage `metrics` has not run." in page.text and "No result yet." in page.text


def test_a_failure_for_want_of_a_stage_is_no_warning_once_the_stage_has_run(experiment, tmp_path):
    copy = shutil.copytree(experiment, tmp_path / "copy")
    for stage in {*reading.STAGES} - {*reading.stage_hashes(copy)}:
        (copy / stage).mkdir()
        (copy / stage / "stage.json").write_text("{}")
    there = reading.stage_hashes(copy)
    early = {stage: sha for stage, sha in there.items() if stage not in ("tumor", "forest")}
    for name, after in (("03_tumor", early), ("02_liver", early), ("case-c1", early), ("08_forest", there)):
        was = {"status": "failed", "seconds": 1.0, "error": "cell 3: oops", "stages_after": after}
        (copy / "notebooks" / f"{name}.json").write_text(json.dumps(was))
    page = Page(report.experiment_report(copy))
    assert [
        name for name in ("02_liver", "03_tumor", "case-c1", "08_forest") if f"Notebook {name} failed" in page.text
    ] == [
        "02_liver",
        "08_forest",
    ], "what failed with its stages there is still to be looked at"
    shutil.rmtree(copy / "tumor")
    assert "Notebook 03_tumor failed" in Page(report.experiment_report(copy)).text


def test_a_mistyped_case_is_no_warning(experiment, tmp_path):
    copy = shutil.copytree(experiment, tmp_path / "copy")
    refused = str(Refused("case", "nobody", "one of c1, c2"))
    for name, given, error in (
        ("03_tumor-nobody", {"case": "nobody"}, f"03_tumor-nobody, cell 4: Refused: {refused}"),
        ("03_tumor-c1", {"case": "c1"}, "03_tumor-c1, cell 5: Refused: c1.nii.gz: found no such file; expected one."),
        ("02_liver", {"experiment": "x"}, f"02_liver, cell 4: Refused: {refused}"),
    ):
        was = {"status": "failed", "seconds": 1.0, "error": error, "key": {"parameters": given}}
        (copy / "notebooks" / f"{name}.json").write_text(json.dumps(was))
    page = Page(report.experiment_report(copy))
    assert "03_tumor-nobody" not in page.text
    assert "Notebook 03_tumor-c1 failed" in page.text and "Notebook 02_liver failed" in page.text, (
        "nobody gave it a case"
    )


def test_report_of_an_experiment_that_has_only_begun(tmp_path):
    (tmp_path / "experiment.json").write_text("{}")
    page = Page(report.experiment_report(tmp_path))
    assert "stages finished: 0 of 10" in page.text and "No figure yet." in page.text


def test_write_is_whole_or_refused(tmp_path):
    folder = fake.result(tmp_path / "r")
    path = report.write(folder, tmp_path / "new" / "case.html")
    assert path.read_text().startswith("<!doctype html>") and [p.name for p in path.parent.iterdir()] == ["case.html"]
    assert report.write(folder) == folder / "report.html"
    with pytest.raises(Refused, match=r"neither result.json nor experiment.json"):
        report.write(tmp_path / "none")
    with pytest.raises(Refused, match=r"a folder of 1 result; .* Each has its page, report.html; name one"):
        report.write(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="a file that can be written"):
        report.write(folder, tmp_path / "file" / "case.html")


def test_the_command_writes_one_page_and_says_where_those_of_several_results_are(experiment, tmp_path, call):
    for n in (1, 2):
        fake.result(tmp_path / "results" / f"r{n}")
    for n, folder in enumerate((tmp_path / "results" / "r1", experiment)):
        out = tmp_path / f"{n}.html"
        assert call("report", folder, "-o", out)[:2] == (0, f"{out}\n") and out.read_text().startswith(
            "<!doctype html>"
        )
    status, _, err = call("report", tmp_path / "results", "-o", tmp_path / "x.html")
    assert status == 2 and "a folder of 2 results" in err and not (tmp_path / "x.html").exists()
