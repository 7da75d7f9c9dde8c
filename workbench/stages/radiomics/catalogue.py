"""The 728 descriptors, one row of catalogue.csv each: the single source of names, order, units, formulas, sources and twins.

The paper STATES 728 descriptors in five groups (intensity, texture, shape, boundary, wavelet). We CHOOSE the split
18 + 75 + 14 + 21 + 600. All but the boundary group are the standard set: each has a twin in PyRadiomics 3.0.1 and,
where the Image Biomarker Standardisation Initiative defines it (IBSI 1: Zwanenburg et al. 2020,
10.1148/radiol.2020191145), its permanent code. The boundary group is our own choice from the literature.

Columns: `name`, `group`, `unit`, `formula`, `source`, `ibsi` (code, empty where IBSI has none), `pyradiomics` (key in
its extractor's result, missing without a twin), `note` (where PyRadiomics departs from IBSI; what a degenerate region
gets).

Settings of the standard set are PyRadiomics's defaults (*fixed*, parity): bin width 25 HU with edges at multiples of
the width, no resampling, distance 1, 13 directions, symmetric GLCM, one matrix a direction and the mean of the values,
dependence tolerance 0, undecimated coif1 wavelet of one level.

Symbols: X the HU of the region's N voxels; p(i) the share of grey level i; P(i,j) the counts of a matrix and p(i,j) its
shares; levels count from 1; px, py marginals with means mx, my and deviations sx, sy; Ng the largest level; Nr runs, Nz
zones; V, A volume and area of the surface mesh; l1 >= l2 >= l3 the eigenvalues of the covariance of the voxel centres
in mm; log2 everywhere.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

BANDS = ("LLH", "LHL", "LHH", "HLL", "HLH", "HHL", "HHH", "LLL")  # letters along x, y, z; L low-pass, H high-pass

CATALOGUE = pd.read_csv(
    Path(__file__).with_suffix(".csv"), dtype=str, keep_default_na=False, na_values={"pyradiomics": [""]}
)
NAMES: tuple[str, ...] = tuple(CATALOGUE["name"])
GROUPS = dict(intensity=18, texture=75, shape=14, boundary=21, wavelet=600)


def named(*groups: str) -> tuple[str, ...]:
    """The names of some groups, in the catalogue's order."""
    return tuple(CATALOGUE["name"][CATALOGUE["group"].isin(groups)])


def page() -> str:
    """The catalogue as a Markdown page (docs/descriptors.md): all but the wavelet group, which repeats the texture group."""
    settings, symbols = __doc__.split("\n\n")[3:]
    lines = [
        "# The 728 descriptors",
        "",
        "Made by `workbench radiomics --catalogue -o docs/descriptors.md`; with a name in `.csv` all 728 rows are written.",
        f"{', '.join(f'{count} {group}' for group, count in GROUPS.items())}. The wavelet group is the texture group on each of the {len(BANDS)}",
        f"sub-bands {', '.join(BANDS)} (letters along x, y, z), named `wavelet_llh_glcm_contrast` and so on.",
        f"\n{settings}\n\n{symbols.rstrip()}",
    ]
    for group in [group for group in GROUPS if group != "wavelet"]:
        lines += [
            f"\n## {group.capitalize()} ({GROUPS[group]})\n",
            "| name | unit | formula | IBSI | note |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| `{r.name}` | {r.unit} | {r.formula} | {r.ibsi} | {r.note} |".replace("|  |", "| |")
            for r in CATALOGUE[CATALOGUE.group == group].itertuples(index=False)
        ]
    return "\n".join(lines) + "\n"
