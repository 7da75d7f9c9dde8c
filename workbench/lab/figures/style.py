"""Colours, windows and small habits that every figure shares."""

import io
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.table import Table
from PIL import Image, ImageDraw, ImageFont

from workbench.data.files import write_atomic
from workbench.experiment.table import STAGES
from workbench.stages.ledger import CODES

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE, GREY = "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999"

LIVER_COLOUR = SKY
TUMOR_COLOUR = ORANGE
FAINT = 0.3  # where labels are filled, the liver's share of the tumor's opacity: it lies under everything
TRUTH_COLOUR, DASHED = YELLOW, (0, (3, 2))  # dashed too, so that it does not rest on colour alone
LEDGER_COLOURS = {
    1: SKY,
    2: ORANGE,
    3: GREEN,
    4: PURPLE,
    5: YELLOW,
    6: VERMILLION,
    7: BLUE,
    8: "#FFFFFF",  # the palette's black would pass for fat on a CT
    # darker: an earlier stage had changed the voxel already
    21: "#8C8420",
    22: "#7A3600",
    23: "#003A5C",
    24: "#BBBBBB",
    39: "#3F51FF",
    55: "#6A1B9A",
    71: "#00F0D0",
    87: "#404040",
}
LEDGER_MEANINGS = {code: meaning for code, meaning in CODES.items() if code > 0}
STAGE_COLOURS = {"cascade": TUMOR_COLOUR} | {name: row.colour for name, row in STAGES.items()}
GROUP_COLOURS = {"intensity": ORANGE, "texture": BLUE, "shape": GREEN, "boundary": VERMILLION, "wavelet": PURPLE}
GROUP_MARKERS = {"intensity": "o", "texture": "s", "shape": "^", "boundary": "D", "wavelet": "v"}
FOLD_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
TRUE_COLOUR, FALSE_COLOUR = BLUE, VERMILLION  # a true lesion, a false positive
SPLIT_COLOURS = {"train": BLUE, "test": VERMILLION}
VERDICT_COLOURS = {"true lesion": TRUE_COLOUR, "false positive": FALSE_COLOUR, "missed lesion": GREY}
WINDOWS = {"liver": (60, 350), "tumor": (90, 180), "soft tissue": (40, 400), "lung": (-600, 1500), "bone": (400, 1800)}


def _map_to(colour: str, name: str) -> LinearSegmentedColormap:
    r, g, b = to_rgb(colour)
    return LinearSegmentedColormap.from_list(name, [(r, g, b, 0), (r, g, b, 0.85)])


PROBABILITY_MAPS = {"liver": _map_to(LIVER_COLOUR, "liver"), "tumor": _map_to(TUMOR_COLOUR, "tumor")}


class Picture(Figure):
    """A figure that draws itself with Agg and shows itself in a notebook, without pyplot's global list of figures."""

    def __init__(self, width: float = 7, height: float = 5, **kwargs):
        super().__init__(figsize=(width, height), dpi=100, layout="constrained", **kwargs)
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        return png(self)


class Paragraph(Artist):
    """Lines of black text that Pillow draws: a card has some fifty, and Matplotlib takes some milliseconds for each.

    `x`, `top`: of the first line, in shares of the figure; `pitch`: from line to line, in the same. `right`: x is where lines end.
    """

    def __init__(self, x: float, top: float, lines: Sequence[str], size: float, pitch: float, right: bool = False):
        super().__init__()
        self.x, self.top, self.lines, self.size, self.pitch, self.right = x, top, tuple(lines), size, pitch, right

    def draw(self, renderer):
        figure = self.get_figure(root=True)
        width, height = (round(n) for n in figure.bbox.size)
        font = _font(self.size * figure.dpi / 72)
        ink = Image.new("L", (width, height))
        pen = ImageDraw.Draw(ink)
        for n, line in enumerate(self.lines):
            at = self.x * width, (1 - self.top + n * self.pitch) * height
            pen.text(at, line, fill=255, font=font, anchor="rm" if self.right else "lm")
        box = ink.getbbox()
        if box is not None:
            left, _, _, bottom = box
            alpha = np.asarray(ink.crop(box))[::-1]
            words = np.zeros((*alpha.shape, 4), np.uint8)
            words[..., 3] = alpha
            renderer.draw_image(renderer.new_gc(), left, height - bottom, words)


@lru_cache
def _font(pixels: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), pixels)


def png(figure: Figure, dpi: int = 100) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a case's name in a script that the font lacks
        # nothing to lay out: drawn once, where savefig draws twice
        if isinstance(figure.get_layout_engine(), PlaceHolderLayoutEngine):
            figure.set_dpi(dpi)
            FigureCanvasAgg(figure).print_png(data, metadata={"Software": None})
        else:
            figure.savefig(data, format="png", dpi=dpi, metadata={"Software": None})
    return data.getvalue()


def save(figure: Figure, path: str | Path, dpi: int = 120) -> Path:
    """Write the figure as PNG, whole or not at all."""
    path = Path(path)
    write_atomic(path, png(figure, dpi))
    return path


def as_array(a) -> np.ndarray | None:
    """An array or tensor, wherever it lies, for NumPy; real numbers of a tensor as float32, None of None."""
    if a is None:
        return None
    if hasattr(a, "detach"):
        a = a.detach().cpu()
        a = a.float().numpy() if a.is_floating_point() else a.numpy()
    return np.asarray(a)


def patients_of(table: pd.DataFrame) -> str:
    return f"{table['patient'].nunique()} patients" if "patient" in table else f"{len(table)} rows, patients not named"


def say(ax, words: str) -> None:
    """An empty panel says why it is empty."""
    ax.text(0.5, 0.5, words, ha="center", va="center", transform=ax.transAxes, color=GREY, wrap=True)


def limits(window: str | tuple[float, float]) -> tuple[float, float]:
    """The lowest and the highest HU of a preset of WINDOWS, or of (level, width)."""
    level, width = WINDOWS[window] if isinstance(window, str) else window
    return level - width / 2, level + width / 2


def meanings_of(codes: dict | None) -> dict[int, str]:
    """What each code of a ledger means, as a result.json (`ledger_codes`) says, else as this version does."""
    return {**LEDGER_MEANINGS, **{int(code): meaning for code, meaning in (codes or {}).items()}}


def stage_colour(stage: str) -> str:
    """`forest`, `all but forest` and `a: forest` (of a variant) are about one stage and have one colour."""
    return STAGE_COLOURS.get(stage.split(": ")[-1].removeprefix("all but "), GREY)


def draw_table(ax, rows: list[list], widths: dict[str, float], stretch: float) -> Table:
    """Rows of words in place of a plot; `widths`: of each column, by its head."""
    ax.set_axis_off()
    table = ax.table(rows, colLabels=list(widths), loc="center", cellLoc="center", colWidths=list(widths.values()))
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    table.scale(1, stretch)
    return table


def legend_below(figure, handles, columns=4) -> None:
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


METRIC_WORDS = {
    "dice": "Dice (1)",
    "assd_mm": "mean surface distance (mm)",
    "surface_dice": "surface Dice (1)",
    "tumor_dice": "tumor Dice (1)",
    "tumor_assd_mm": "mean surface distance (mm)",
    "tumor_surface_dice": "tumor surface Dice (1)",
    "recall_iou0": "lesions found (share)",
    "recall_over_10mm": "lesions over 10 mm found (share)",
    "precision_iou0": "detections that are lesions (share)",
    "false_positives": "false positives a patient",
}


def units_of(metric: str) -> str:
    """What a column of a table holds, in words, with its unit."""
    if metric in METRIC_WORDS:
        return METRIC_WORDS[metric]
    return metric.replace("_mm", " (mm)").replace("_ml", " (ml)").replace("_", " ")
