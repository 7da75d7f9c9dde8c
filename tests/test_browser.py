"""The widgets in a real browser: JupyterLab on loopback, Chromium driven by Playwright. A slider moves, the picture changes."""

import browser
import nbformat
import pytest

from workbench.lab import figures, widgets

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]  # where many share the cores, Lab takes its time

CELLS = {  # a widget a cell, below one that opens the experiment
    "cases": "widgets.cases(made)",
    "stability": "widgets.stability(made)",
    "decisions": "widgets.decisions(made)",
    "what if": "widgets.what_if(WhatIf(made, case))",
    "threshold": 'widgets.threshold(made.table("forest", "scores.csv"), 0.5)',
    "planes": "seen = review.seen(made, case); widgets.Planes(seen.ct, seen.spacing_mm, seen.labels, title=case)",
}
OPENS = """
from workbench.lab import review, widgets
from workbench.experiment import Experiment
from workbench.experiment.whatif import WhatIf
made = Experiment({!r}, "cpu"); case = review.shown(made)
"""
MOVES = [  # the widget, one of its sliders by its description, a key
    ("cases", "slice", "ArrowRight"),
    ("stability", "descriptor", "ArrowRight"),
    ("decisions", "place in list", "ArrowRight"),
    ("decisions", "threshold", "End"),
    ("what if", "slice", "ArrowRight"),
    ("what if", "tumor from", "End"),
    ("threshold", "threshold", "ArrowRight"),
]
AT = {name: n for n, name in enumerate(CELLS, 1)}


@pytest.fixture(scope="module")
def notebook(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    sources = [OPENS.format(str(trained.folder)), *CELLS.values()]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source.strip()) for source in sources])
    book.metadata.kernelspec = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }  # else Lab asks for one
    nbformat.write(book, folder / "widgets.ipynb")
    with browser.lab(folder) as address, browser.chrome() as page:
        yield browser.Notebook(page, address.format("widgets.ipynb"))


def test_every_cell_runs(notebook):
    assert notebook.cell_errors() == []


@pytest.mark.parametrize("name, slider, key", MOVES)
def test_a_slider_moves_and_the_picture_changes(notebook, name, slider, key):
    was = notebook.picture(AT[name])
    notebook.press(AT[name], slider, key)
    assert notebook.changed(lambda: notebook.picture(AT[name]), was).startswith(b"\x89PNG")


def test_the_browser_shows_what_the_twin_draws(notebook, trained):
    live, at = widgets.cases(trained), AT["cases"]
    was = notebook.picture(at)
    notebook.press(at, "slice", "Home")
    now = notebook.changed(lambda: notebook.picture(at), was)
    live.controls["at"].value = 0
    assert now == figures.png(live.figure(), live.dpi) != was


def test_another_case_is_chosen(notebook):
    at = AT["cases"]
    was = notebook.picture(at)
    notebook.cell(at).locator("select").first.select_option("toy-00")
    notebook.changed(lambda: notebook.picture(at), was)


def test_the_volume_turns_with_its_slider(notebook):
    at = AT["planes"]
    notebook.cell(at).scroll_into_view_if_needed()
    notebook.page.wait_for_timeout(1000)
    was = notebook.canvas(at)
    notebook.press(at, "slice", times=2)
    notebook.changed(lambda: notebook.canvas(at), was)


def test_the_browser_has_no_error_to_tell(notebook):
    assert notebook.errors == []
