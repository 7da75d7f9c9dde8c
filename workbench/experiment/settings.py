"""Settings of an experiment and the presets: everything that decides a result, stage by stage."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from workbench.data import cohort
from workbench.data.files import flat, from_dict
from workbench.nets import cascade
from workbench.nets.fit import FitSettings
from workbench.nets.network import NetworkSettings
from workbench.nets.slabs import SlabSettings
from workbench.stages import boundary, candidates, consistency, forest, liver, radiomics, selection, tumor
from workbench.volume import Refused, Spacing, shape_at


@dataclass(frozen=True)
class Settings:
    """Everything that decides a result, stage by stage."""

    preset: str = "demo"
    pixel_mm: float | None = 2.5  # rule: the work grid's pixel; None keeps the scan's own
    slice_mm: float | None = 3.0  # rule: thinner slices are averaged up to this, thicker ones stay
    folds: int = 3
    seed: int = 0
    implants: cohort.ImplantSettings = field(default_factory=cohort.ImplantSettings)
    liver: liver.LiverSettings = field(default_factory=liver.LiverSettings)
    tumor: tumor.TumorSettings = field(default_factory=tumor.TumorSettings)
    consistency: consistency.ConsistencySettings = field(default_factory=consistency.ConsistencySettings)
    candidates: candidates.CandidateSettings = field(default_factory=candidates.CandidateSettings)
    radiomics: radiomics.RadiomicsSettings = field(default_factory=radiomics.RadiomicsSettings)
    selection: selection.SelectionSettings = field(default_factory=selection.SelectionSettings)
    forest: forest.ForestSettings = field(default_factory=forest.ForestSettings)
    boundary: boundary.BoundarySettings = field(default_factory=boundary.BoundarySettings)

    def __post_init__(self):
        if self.folds < 2:
            raise Refused("Settings.folds", str(self.folds), "at least 2")

    def work_grid(self, shape: tuple[int, int, int], spacing_mm: Spacing) -> tuple[tuple[int, int, int], Spacing]:
        """Shape and spacing of the work grid over the same field of view."""
        thin = self.slice_mm is not None and spacing_mm[0] < self.slice_mm
        z, y, x = shape_at(shape, spacing_mm, (self.slice_mm if thin else None, self.pixel_mm, self.pixel_mm))
        extent = [n * s for n, s in zip(shape, spacing_mm)]
        return (z, y, x), (extent[0] / z, extent[1] / y, extent[2] / x)


def demo() -> Settings:
    """Every stage in its true form, small enough for minutes on two cores."""
    return Settings(
        folds=2,
        liver=liver.LiverSettings(cascade=_steps(liver.LiverSettings().cascade, 200)),
        tumor=tumor.TumorSettings(cascade=_steps(tumor.TumorSettings().cascade, 900)),
    )


def _steps(settings: cascade.CascadeSettings, steps: int) -> cascade.CascadeSettings:
    return replace(settings, fit=replace(settings.fit, steps=steps))


def paper() -> Settings:
    """Full size: the scan's own resolution, five folds, for a GPU."""
    net = NetworkSettings(width=32, growth=24, layers=(3, 4, 6, 8, 8), stem_stride=1)
    train = FitSettings(steps=40_000, batch=24, rate=1e-3, check_every=500, save_every_s=300)

    def finer(slabs: SlabSettings, crop: int) -> SlabSettings:
        return replace(
            slabs, crop=(crop, crop), blob_pixels=(3.0, 30.0), blob_slices=(0.15, 0.8), elastic=4.0, thick=0.3
        )

    return Settings(
        preset="paper",
        pixel_mm=None,
        slice_mm=None,
        folds=5,
        liver=liver.LiverSettings(
            pixel_mm=1.5,
            cascade=cascade.CascadeSettings(net, finer(liver.LiverSettings().cascade.slabs, 256), train),
        ),
        tumor=tumor.TumorSettings(
            cascade=cascade.CascadeSettings(
                replace(net, slices=5, extra=1),
                finer(tumor.TumorSettings().cascade.slabs, 320),
                train,
            )
        ),
        radiomics=radiomics.RadiomicsSettings(grid_mm=(2.0, 1.0, 1.0), resolution=True),
        boundary=boundary.PAPER,
    )


def clinical() -> Settings:
    """The model that comes with the workbench: for patients, about two hours on two cores. Learns from phantoms and patients together.

    What differs from the demo: a finer grid, a liver net that sees large and bright tumors, stronger augmentation with more steps, and a tumor net
    that does not rely on the liver's map. Measured together, not each alone; the model that comes along was
    trained by an earlier form, with a smaller liver net and fewer steps (docs/log.md, 2026-11-30).
    """
    base = demo()

    def stage(of, fit: dict, network: dict, **slabs):
        fit = replace(of.cascade.fit, rate=3e-3, batch=16, **fit)
        network = replace(of.cascade.network, **network)
        return replace(of, cascade=cascade.CascadeSettings(network, replace(of.cascade.slabs, **slabs), fit))

    return replace(
        base,
        preset="clinical",
        pixel_mm=1.5,
        slice_mm=3.0,
        folds=3,
        implants=replace(base.implants, copies=5),
        liver=stage(
            replace(base.liver, pixel_mm=2.5),
            {"steps": 4500, "check_every": 500, "volume_checks": 0},
            {
                "slices": 5,
                "width": 24,
                "growth": 16,
            },  # with three times the steps, out of fold .926 -> .941 in one fold of three
            crop=(112, 112),
            blobs=0.75,
            blob_pixels=(2.0, 28.0),
            blob_hu=((-60.0, 170.0), (-60.0, 170.0), (100.0, 400.0)),
            blob_slices=(0.5, 1.1),
            scale=0.2,
            rotate_degrees=15.0,
            elastic=2.0,
            shift_hu=30.0,
            contrast=0.25,
            noise_hu=15.0,
        ),
        tumor=stage(
            base.tumor,
            {"steps": 2000, "check_every": 200},
            {},
            crop=(128, 128),
            blob_pixels=(1.5, 14.0),
            blob_slices=(0.25, 0.6),
            scale=0.25,
            rotate_degrees=20.0,
            elastic=2.0,
            thick=0.3,
            contrast=0.3,
            noise_hu=20.0,
            blur=0.4,
            prior_fade=0.4,
            prior_bite=0.3,
            prior_drop=0.1,
        ),
        forest=replace(base.forest, operating_point="fp"),  # docs/decisions/0017
        boundary=replace(base.boundary, grid_mm=(3.0, 1.5, 1.5)),  # as fine as what it corrects
    )


PRESETS = {"demo": demo, "paper": paper, "clinical": clinical}


def read_settings(path: str | Path, preset: str | None = None, before: Settings | None = None) -> Settings:
    """Settings from a JSON file, as `asdict` and a sweep write them, laid over those of a preset where one is named, or over those `before`.

    What neither names is at its default; an unknown name is refused, and a file that names another preset.
    """
    path = Path(path)
    if not path.is_file():
        raise Refused("--settings", str(path), "a JSON file of settings, such as a sweep's best.json")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise Refused(path, f"no JSON ({error})", "settings as in an experiment.json") from error
    base = PRESETS[preset]() if preset else before or Settings()
    names = flat(asdict(base))
    given = flat(values) if isinstance(values, dict) else {}
    unknown = [k for k in sorted(given) if not any(f"{name}.".startswith(f"{k}.") for name in names)]
    if unknown:
        raise Refused(path, f"no setting {', '.join(unknown[:3])}", "names as in an experiment.json's settings")
    made = from_dict(Settings, values, path, base, fix="")
    if preset and made.preset != preset:
        raise Refused("--preset", preset, f"{made.preset}, as {path} says", "Leave --preset out, or name that one.")
    return made


def preset_of(settings: Settings) -> str:
    """The name of the preset, which says so where settings differ from it."""
    known = PRESETS.get(settings.preset)
    return settings.preset if known and known() == settings else f"{settings.preset}, changed"
