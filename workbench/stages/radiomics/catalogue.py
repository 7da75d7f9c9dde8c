"""The 728 descriptors, one row each: the single source of names, order, units, formulas, sources and twins.

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

import re

import pandas as pd

BANDS = ("LLH", "LHL", "LHH", "HLL", "HLH", "HHL", "HHH", "LLL")  # letters along x, y, z; L low-pass, H high-pass

_FLAT = "NaN in a flat region"
_ONE = "one grey level after binning: PyRadiomics's {} is kept; " + _FLAT

# PyRadiomics name | our name | unit | formula | IBSI code | note
_INTENSITY = f"""
10Percentile | p10 | HU | 10th percentile of X, linear between ranks | QG58 |
90Percentile | p90 | HU | 90th percentile of X | 8DWT |
Energy | energy | HU^2 | sum X^2 | N8CA |
Entropy | entropy | bit | -sum p(i) log2 p(i) | TLU2 | bins start at a multiple of the width, IBSI's at the minimum
InterquartileRange | iqr | HU | P75 - P25 | SALO |
Kurtosis | kurtosis | 1 | m4 / m2^2, central moments | IPH6 | not excess: IBSI's value plus 3; {_FLAT}
Maximum | maximum | HU | max X | 84IY |
MeanAbsoluteDeviation | mad | HU | mean abs(X - mean X) | 4FUA |
Mean | mean | HU | mean X | Q4LE |
Median | median | HU | median X | Y12H |
Minimum | minimum | HU | min X | 1GSF |
Range | range | HU | max X - min X | 2OJQ |
RobustMeanAbsoluteDeviation | rmad | HU | mean abs(X' - mean X'), X' between P10 and P90 | 1128 |
RootMeanSquared | rms | HU | sqrt(mean X^2) | 5ZWQ |
Skewness | skewness | 1 | m3 / m2^1.5 | KE2A | {_FLAT}
TotalEnergy | total_energy | HU^2 mm^3 | voxel volume * sum X^2 | |
Uniformity | uniformity | 1 | sum p(i)^2 | BJ5W | bins as for entropy
Variance | variance | HU^2 | mean (X - mean X)^2 | ECT3 |
"""

_GLCM = f"""
Autocorrelation | autocorrelation | level^2 | sum p(i,j) i j | QWB0 |
ClusterProminence | cluster_prominence | level^4 | sum p(i,j) (i+j-mx-my)^4 | AE86 |
ClusterShade | cluster_shade | level^3 | sum p(i,j) (i+j-mx-my)^3 | 7NFM |
ClusterTendency | cluster_tendency | level^2 | sum p(i,j) (i+j-mx-my)^2 | DG8W |
Contrast | contrast | level^2 | sum p(i,j) (i-j)^2 | ACUI |
Correlation | correlation | 1 | sum p(i,j) (i-mx)(j-my) / (sx sy) | NI2N | {_ONE.format("1")}
DifferenceAverage | difference_average | level | sum p(i,j) abs(i-j) | TF7R |
DifferenceEntropy | difference_entropy | bit | -sum_k p(abs(i-j)=k) log2 p(abs(i-j)=k) | NTRS |
DifferenceVariance | difference_variance | level^2 | variance of abs(i-j) | D3YU |
Id | id | 1 | sum p(i,j) / (1+abs(i-j)) | IB1Z |
Idm | idm | 1 | sum p(i,j) / (1+(i-j)^2) | WF0Z |
Idmn | idmn | 1 | sum p(i,j) / (1+(i-j)^2/Ng^2) | 1QCO |
Idn | idn | 1 | sum p(i,j) / (1+abs(i-j)/Ng) | NDRX |
Imc1 | imc1 | 1 | (HXY - HXY1) / max(HX, HY), H entropies of p(i,j) and its marginals | R8DG | {_ONE.format("0")}
Imc2 | imc2 | 1 | sqrt(1 - exp(-2 (HXY2 - HXY))) | JN9H | {_ONE.format("0")}
InverseVariance | inverse_variance | 1 | sum over i<>j of p(i,j) / (i-j)^2 | E8JP |
JointAverage | joint_average | level | sum p(i,j) i | 60VM |
JointEnergy | joint_energy | 1 | sum p(i,j)^2 | 8ZQL |
JointEntropy | joint_entropy | bit | -sum p(i,j) log2 p(i,j) | TU9B |
MCC | mcc | 1 | second singular value of p(i,j) / sqrt(px(i) py(j)) | | {_ONE.format("1")}
MaximumProbability | maximum_probability | 1 | max p(i,j) | GYBY |
SumAverage | sum_average | level | sum p(i,j) (i+j) | ZGXS |
SumEntropy | sum_entropy | bit | -sum_k p(i+j=k) log2 p(i+j=k) | P6QZ |
SumSquares | sum_squares | level^2 | sum p(i,j) (i-mx)^2 | UR99 |
"""

_GLDM = """
DependenceEntropy | dependence_entropy | bit | -sum p(i,j) log2 p(i,j), j = 1 + equal neighbours of 26 | FCBV |
DependenceNonUniformity | dependence_non_uniformity | 1 | sum_j (sum_i P)^2 / N | Z87G |
DependenceNonUniformityNormalized | dependence_non_uniformity_normalized | 1 | sum_j (sum_i P)^2 / N^2 | OKJI |
DependenceVariance | dependence_variance | 1 | variance of j | DNX2 |
GrayLevelNonUniformity | gray_level_non_uniformity | 1 | sum_i (sum_j P)^2 / N | FP8K |
GrayLevelVariance | gray_level_variance | level^2 | variance of i | 1PFV |
HighGrayLevelEmphasis | high_gray_level_emphasis | level^2 | sum P i^2 / N | OAE7 |
LargeDependenceEmphasis | large_dependence_emphasis | 1 | sum P j^2 / N | IMOQ |
LargeDependenceHighGrayLevelEmphasis | large_dependence_high_gray_level_emphasis | level^2 | sum P i^2 j^2 / N | 9QMG |
LargeDependenceLowGrayLevelEmphasis | large_dependence_low_gray_level_emphasis | level^-2 | sum P j^2 / i^2 / N | NBZI |
LowGrayLevelEmphasis | low_gray_level_emphasis | level^-2 | sum P / i^2 / N | TL9H |
SmallDependenceEmphasis | small_dependence_emphasis | 1 | sum P / j^2 / N | SODN |
SmallDependenceHighGrayLevelEmphasis | small_dependence_high_gray_level_emphasis |\
level^2 | sum P i^2 / j^2 / N | JA6D |
SmallDependenceLowGrayLevelEmphasis | small_dependence_low_gray_level_emphasis |\
level^-2 | sum P / (i^2 j^2) / N | EQ3F |
"""

_GLRLM = """
GrayLevelNonUniformity | gray_level_non_uniformity | 1 | sum_i (sum_j P)^2 / Nr | R5YN |
GrayLevelNonUniformityNormalized | gray_level_non_uniformity_normalized | 1 | sum_i (sum_j P)^2 / Nr^2 | OVBL |
GrayLevelVariance | gray_level_variance | level^2 | variance of i over runs | 8CE5 |
HighGrayLevelRunEmphasis | high_gray_level_run_emphasis | level^2 | sum P i^2 / Nr | G3QZ |
LongRunEmphasis | long_run_emphasis | voxel^2 | sum P j^2 / Nr | W4KF |
LongRunHighGrayLevelEmphasis | long_run_high_gray_level_emphasis | level^2 voxel^2 | sum P i^2 j^2 / Nr | 3KUM |
LongRunLowGrayLevelEmphasis | long_run_low_gray_level_emphasis | voxel^2 level^-2 | sum P j^2 / i^2 / Nr | IVPO |
LowGrayLevelRunEmphasis | low_gray_level_run_emphasis | level^-2 | sum P / i^2 / Nr | V3SW |
RunEntropy | run_entropy | bit | -sum p(i,j) log2 p(i,j) | HJ9O |
RunLengthNonUniformity | run_length_non_uniformity | 1 | sum_j (sum_i P)^2 / Nr | W92Y |
RunLengthNonUniformityNormalized | run_length_non_uniformity_normalized | 1 | sum_j (sum_i P)^2 / Nr^2 | IC23 |
RunPercentage | run_percentage | 1 | Nr / N | 9ZK5 |
RunVariance | run_variance | voxel^2 | variance of j over runs | SXLW |
ShortRunEmphasis | short_run_emphasis | voxel^-2 | sum P / j^2 / Nr | 22OV |
ShortRunHighGrayLevelEmphasis | short_run_high_gray_level_emphasis | level^2 voxel^-2 | sum P i^2 / j^2 / Nr | GD3A |
ShortRunLowGrayLevelEmphasis | short_run_low_gray_level_emphasis | level^-2 voxel^-2 | sum P / (i^2 j^2) / Nr | HTZT |
"""

_GLSZM = """
GrayLevelNonUniformity | gray_level_non_uniformity | 1 | sum_i (sum_j P)^2 / Nz | JNSA |
GrayLevelNonUniformityNormalized | gray_level_non_uniformity_normalized | 1 | sum_i (sum_j P)^2 / Nz^2 | Y1RO |
GrayLevelVariance | gray_level_variance | level^2 | variance of i over zones | BYLV |
HighGrayLevelZoneEmphasis | high_gray_level_zone_emphasis | level^2 | sum P i^2 / Nz | 5GN9 |
LargeAreaEmphasis | large_area_emphasis | voxel^2 | sum P j^2 / Nz | 48P8 |
LargeAreaHighGrayLevelEmphasis | large_area_high_gray_level_emphasis | level^2 voxel^2 | sum P i^2 j^2 / Nz | J17V |
LargeAreaLowGrayLevelEmphasis | large_area_low_gray_level_emphasis | voxel^2 level^-2 | sum P j^2 / i^2 / Nz | YH51 |
LowGrayLevelZoneEmphasis | low_gray_level_zone_emphasis | level^-2 | sum P / i^2 / Nz | XMSY |
SizeZoneNonUniformity | size_zone_non_uniformity | 1 | sum_j (sum_i P)^2 / Nz | 4JP3 |
SizeZoneNonUniformityNormalized | size_zone_non_uniformity_normalized | 1 | sum_j (sum_i P)^2 / Nz^2 | VB3A |
SmallAreaEmphasis | small_area_emphasis | voxel^-2 | sum P / j^2 / Nz | 5QRC |
SmallAreaHighGrayLevelEmphasis | small_area_high_gray_level_emphasis | level^2 voxel^-2 | sum P i^2 / j^2 / Nz | HW1V |
SmallAreaLowGrayLevelEmphasis | small_area_low_gray_level_emphasis | level^-2 voxel^-2 | sum P / (i^2 j^2) / Nz | 5RAI |
ZoneEntropy | zone_entropy | bit | -sum p(i,j) log2 p(i,j) | GU8N |
ZonePercentage | zone_percentage | 1 | Nz / N | P30P |
ZoneVariance | zone_variance | voxel^2 | variance of j over zones | 3NSA |
"""

_ISOLATED = "PyRadiomics counts a voxel without neighbours with s = 0, IBSI leaves it out"
_NGTDM = f"""
Busyness | busyness | 1 | sum p(i) s(i) / sum abs(i p(i) - j p(j)) | NQ30 | {_ISOLATED}; {_ONE.format("0")}
Coarseness | coarseness | 1/level | 1 / sum p(i) s(i), s(i) summed distance to the mean of the 26 neighbours | QCDE | \
{_ISOLATED}; {_ONE.format("cap of 1e6")}
Complexity | complexity | level^2 | sum abs(i-j) (p(i) s(i) + p(j) s(j)) / (p(i) + p(j)) / N | HDEZ | {_ISOLATED}
Contrast | contrast | level^3 | sum p(i) p(j) (i-j)^2 / (Ng' (Ng'-1)) * sum s(i) / N, Ng' levels present | 65HE | \
{_ISOLATED}; {_ONE.format("0")}
Strength | strength | level | sum (p(i) + p(j)) (i-j)^2 / sum s(i) | 1X9X | {_ISOLATED}; {_ONE.format("0")}
"""

_AXES = "covariance divides by N, not N - 1"
_SHAPE = f"""
Elongation | elongation | 1 | sqrt(l2 / l1) | Q3CK | {_AXES}; NaN for one voxel
Flatness | flatness | 1 | sqrt(l3 / l1) | N17B | {_AXES}; NaN for one voxel
LeastAxisLength | least_axis | mm | 4 sqrt(l3) | 7J51 | {_AXES}; NaN for one voxel
MajorAxisLength | major_axis | mm | 4 sqrt(l1) | TDIC | {_AXES}; NaN for one voxel
Maximum2DDiameterColumn | maximum_diameter_xz | mm | largest distance of mesh vertices of one y | |
Maximum2DDiameterRow | maximum_diameter_yz | mm | largest distance of mesh vertices of one x | |
Maximum2DDiameterSlice | maximum_diameter_xy | mm | largest distance of mesh vertices of one z | |
Maximum3DDiameter | maximum_diameter | mm | largest distance of mesh vertices | L0JK |
MeshVolume | mesh_volume | mm^3 | V, marching cubes at 0.5 | RNU0 |
MinorAxisLength | minor_axis | mm | 4 sqrt(l2) | P9VJ | {_AXES}; NaN for one voxel
Sphericity | sphericity | 1 | (36 pi V^2)^(1/3) / A | QCFX |
SurfaceArea | surface_area | mm^2 | A | C0JK |
SurfaceVolumeRatio | surface_volume_ratio | 1/mm | A / V | 2PR5 |
VoxelVolume | voxel_volume | mm^3 | N times the voxel's volume | YEKZ |
"""

_XU = "Xu et al. 2012, 10.1118/1.4739507: sigmoid along surface normals"
_SHELL = "shell contrast as in 10.1002/mp.12214 (2017), widths our choice"
_GRADIENT = "margin strength and gradients, 10.1002/mp.12214 (2017)"
_RADIAL = "radial gradient index, Kupinski and Giger 1998, 10.1109/42.730396"
_OURS = "our choice"
_NO_MARGIN = "NaN where no profile has samples on both sides"
# name, unit, formula, source, note. t is the signed distance along the outward normal in mm, from the surface.
BOUNDARY = (
    ("contrast_median", "HU", "median over 26 sectors of S in a + S / (1 + exp(-(t - t0) / W))", _XU, _NO_MARGIN),
    ("contrast_iqr", "HU", "interquartile range of S over the sectors", _XU, _NO_MARGIN),
    ("blur_median", "mm", "median over the sectors of W", _XU, _NO_MARGIN + "; " + _FLAT),
    ("blur_iqr", "mm", "interquartile range of W over the sectors", _XU, _NO_MARGIN + "; " + _FLAT),
    ("fit_r2", "1", "mean over the sectors of the fit's explained share of variance", _XU, _NO_MARGIN + "; " + _FLAT),
    ("inner_mean", "HU", "mean HU inside at -4 <= t <= -1", _SHELL, "NaN where the lesion is thinner than 1 mm"),
    ("margin_mean", "HU", "mean HU at abs(t) <= 1", _SHELL, ""),
    (
        "outer_mean",
        "HU",
        "mean HU outside, within the liver when it is known, at 1 <= t <= 4",
        _SHELL,
        "NaN without tissue there",
    ),
    (
        "contrast_to_noise",
        "1",
        "(outer - inner mean) / sqrt((outer + inner variance) / 2)",
        _SHELL,
        _NO_MARGIN + "; " + _FLAT,
    ),
    ("rim", "HU", "margin mean - (inner mean + outer mean) / 2", _SHELL, _NO_MARGIN),
    ("margin_sd", "HU", "standard deviation of HU at abs(t) <= 1", _SHELL, ""),
    ("gradient_mean", "HU/mm", "mean over the surface of the HU gradient's length", _GRADIENT, ""),
    ("gradient_sd", "HU/mm", "standard deviation of it", _GRADIENT, ""),
    ("gradient_entropy", "bit", "entropy of it in bins of 5 HU/mm", _OURS, ""),
    (
        "radial_gradient",
        "1",
        "sum over the surface of gradient . radius / sum of the gradient's length, radius the "
        "unit vector from the centroid",
        _RADIAL,
        _FLAT,
    ),
    (
        "contrast_asymmetry",
        "HU",
        "standard deviation over octants of outer - inner mean",
        _OURS,
        "NaN with fewer than two octants",
    ),
    (
        "radial_spread",
        "1",
        "standard deviation / mean of the distance from centroid to surface",
        "normalised radial length, Kilday et al. 1993, 10.1109/42.251116",
        "",
    ),
    (
        "roughness",
        "mm",
        "standard deviation of the distance from the surface to that of the smoothed region",
        "against the region blurred by 2.5 mm, our choice",
        "stairs of the voxels are the floor of it",
    ),
    (
        "hull_fill",
        "1",
        "voxels of the region / voxels in its polytope of 98 directions",
        "solidity, IBSI 1 hull density",
        "",
    ),
    (
        "fractal_dimension",
        "1",
        "slope of log(boxes that hold surface voxels) against log(1 / size), sizes 1, 2, 4, 8",
        "box counting, Mandelbrot 1982",
        "NaN below 4 voxels across",
    ),
    ("liver_contact", "1", "share of the surface with no liver 1.5 mm beyond it", _OURS, "NaN without a liver mask"),
)

_CLASSES = dict(glcm=_GLCM, glrlm=_GLRLM, glszm=_GLSZM, gldm=_GLDM, ngtdm=_NGTDM)
_SOURCES = dict(
    firstorder="IBSI 1 intensity statistics and histogram; PyRadiomics firstorder",
    shape="IBSI 1 morphology; PyRadiomics shape; marching cubes after Lorensen and Cline 1987",
    glcm="Haralick et al. 1973; IBSI 1 GLCM",
    glrlm="Galloway 1975; IBSI 1 GLRLM",
    glszm="Thibault et al. 2009; IBSI 1 GLSZM",
    gldm="Sun and Wee 1983; IBSI 1 NGLDM",
    ngtdm="Amadasun and King 1989; IBSI 1 NGTDM",
)


def _rows(table: str):
    for line in table.strip().splitlines():
        twin, name, unit, formula, ibsi, note = (cell.strip() for cell in line.split("|"))
        yield twin, name, unit, re.sub(" +", " ", formula), ibsi, note


def _texture(prefix: str, image: str, group: str, source: str):
    """The 75 rows of one image: the HU image itself, or one sub-band."""
    for kind, table in _CLASSES.items():
        for twin, name, unit, formula, ibsi, note in _rows(table):
            code = ibsi if image == "original" else ""  # IBSI's codes and values are for the image itself
            key = f"{image}_{kind}_{twin}"
            yield f"{prefix}{kind}_{name}", group, unit, formula, _SOURCES[kind] + source, code, key, note


def _all_rows():
    for twin, name, unit, formula, ibsi, note in _rows(_INTENSITY):
        key = f"original_firstorder_{twin}"
        yield f"intensity_{name}", "intensity", unit, formula, _SOURCES["firstorder"], ibsi, key, note
    yield from _texture("", "original", "texture", "")
    for twin, name, unit, formula, ibsi, note in _rows(_SHAPE):
        yield f"shape_{name}", "shape", unit, formula, _SOURCES["shape"], ibsi, f"original_shape_{twin}", note
    for name, unit, formula, source, note in BOUNDARY:
        yield f"boundary_{name}", "boundary", unit, formula, source, "", None, note
    for band in BANDS:
        source = f"; sub-band {band} of coif1 (IBSI 2)"
        yield from _texture(f"wavelet_{band.lower()}_", f"wavelet-{band}", "wavelet", source)


_COLUMNS = ["name", "group", "unit", "formula", "source", "ibsi", "pyradiomics", "note"]
CATALOGUE = pd.DataFrame(list(_all_rows()), columns=_COLUMNS)
NAMES: tuple[str, ...] = tuple(CATALOGUE["name"])
GROUPS = dict(intensity=18, texture=75, shape=14, boundary=21, wavelet=600)


def named(*groups: str) -> tuple[str, ...]:
    """The names of some groups, in the catalogue's order."""
    return tuple(CATALOGUE["name"][CATALOGUE["group"].isin(groups)])


def page() -> str:
    """The catalogue as a Markdown page (docs/descriptors.md): all but the wavelet group, which repeats the texture group."""
    lines = [
        "# The 728 descriptors",
        "",
        "Made by `workbench radiomics --catalogue -o docs/descriptors.md`; with a name in `.csv` all 728 rows are written.",
        f"{', '.join(f'{count} {group}' for group, count in GROUPS.items())}. The wavelet group is the texture group on each of the {len(BANDS)}",
        f"sub-bands {', '.join(BANDS)} (letters along x, y, z), named `wavelet_llh_glcm_contrast` and so on.",
        "",
        *__doc__.split("\n\n")[3:][0].splitlines(),
        "",
        *__doc__.split("\n\n")[4].splitlines(),
    ]
    columns = ["name", "unit", "formula", "IBSI", "note"]
    for group in GROUPS:
        if group == "wavelet":
            continue
        part = CATALOGUE[CATALOGUE.group == group]
        lines += [
            "",
            f"## {group.capitalize()} ({len(part)})",
            "",
            "| " + " | ".join(columns) + " |",
            "|---" * len(columns) + "|",
        ]
        lines += [
            f"| `{r.name}` | {r.unit} | {r.formula} | {r.ibsi} | {r.note} |".replace("|  |", "| |")
            for r in part.itertuples(index=False)
        ]
    return "\n".join(lines) + "\n"
