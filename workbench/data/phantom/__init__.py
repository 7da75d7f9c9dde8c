"""Phantom: a synthetic contrast-enhanced abdominal CT with known liver, lesions and look-alikes; and tumors for real livers.

States (the paper): nothing; it uses clinical scans.
Chooses: anatomy is a set of signed distance functions (mm, negative inside) of ellipsoids, tapering capsules and a few
implicit surfaces of the body wall, in patient coordinates (z head, y back, x left) that a smooth random warp bends. Each
is painted by its occupancy on sub-slices that are then averaged (partial volume in and across the plane), blurred in the
plane (reconstruction kernel) and covered with band-pass noise that is stronger in the body's centre. Lesions come with their
true volume. `implant` draws lesions of the same make into the liver of any CT.

HU figures are *empirical*: next to the real scans named in docs/log.md (2026-11-25).
"""

from workbench.data.phantom.implants import IMPLANTS, Implanted, implant
from workbench.data.phantom.lesions import KINDS
from workbench.data.phantom.painting import ORGANS
from workbench.data.phantom.scanner import FORMAT, PRESETS, Phantom, Preset, generate

__all__ = ["FORMAT", "IMPLANTS", "KINDS", "ORGANS", "PRESETS", "Implanted", "Phantom", "Preset", "generate", "implant"]
