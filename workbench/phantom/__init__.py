"""Phantom: a synthetic abdomen with known truth, and made-up tumors in the liver of any CT."""

from workbench.phantom.abdomen import KINDS, ORGANS, PRESETS, Phantom, Preset, generate
from workbench.phantom.implants import IMPLANTS, Implanted, implant

__all__ = ["IMPLANTS", "KINDS", "ORGANS", "PRESETS", "Implanted", "Phantom", "Preset", "generate", "implant"]
