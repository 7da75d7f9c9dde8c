"""An experiment: its settings, the table of stages, the folder that holds what they leave, and one volume through all of them."""

from workbench.experiment.folder import PACKED, Experiment, Progress, pick_device, print_progress, versions
from workbench.experiment.settings import PRESETS, Settings, clinical, demo, paper, preset_of, read_settings
from workbench.experiment.table import STAGES, Stage

__all__ = [
    "PACKED",
    "PRESETS",
    "STAGES",
    "Experiment",
    "Progress",
    "Settings",
    "Stage",
    "clinical",
    "demo",
    "paper",
    "pick_device",
    "preset_of",
    "print_progress",
    "read_settings",
    "versions",
]
