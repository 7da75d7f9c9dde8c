# ruff: noqa: F401  (these imports are the names of the package)
"""Every picture of the method: plain arrays and tables in, a matplotlib figure out.

States: the paper's figures are not known here. Chooses: axial slices as radiologists see them (canonical `[z y x]`,
the patient's left on the right), axes in mm, the colours of Okabe and Ito (2008), which colour-blind readers can tell
apart, and the same colour for the same thing in every figure, in napari and in the widgets. A figure that shows
statistics has its number of patients in the title. Nothing here needs pyplot, a display, or any other module's types:
arrays may be numpy or torch, tables are data frames with the columns of the experiment folder.
"""

from workbench.lab.figures.decisions import calibration, decision, froc, importance, lesion_card, tradeoff, what_if
from workbench.lab.figures.descriptors import (
    STEPS,
    icc_forest,
    parity,
    perturbed,
    redundancy,
    relative_difference,
    stability,
    survival,
)
from workbench.lab.figures.measures import ablation, edge_gain, paired, sweep, timings
from workbench.lab.figures.slices import (
    boundary_change,
    case_montage,
    consistency,
    decided,
    ledger,
    montage,
    overlay,
    planes,
    preview,
    preview_of,
    probability,
    slice_view,
    steps,
)
from workbench.lab.figures.style import (
    FAINT,
    FALSE_COLOUR,
    GREY,
    LEDGER_COLOURS,
    LEDGER_MEANINGS,
    LIVER_COLOUR,
    PROBABILITY_MAPS,
    STAGE_COLOURS,
    TRUE_COLOUR,
    TUMOR_COLOUR,
    VERMILLION,
    WINDOWS,
    Picture,
    limits,
    meanings_of,
    png,
    save,
    stage_colour,
    units_of,
)
from workbench.lab.figures.training import architecture, attention, cohort, curves, lesions, per_case, right_and_wrong
from workbench.lab.figures.view import AXES, View, box_around, slice_with_most
