"""What this machine has, and what is missing: `workbench doctor`."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path

import torch

import workbench
from workbench import experiment
from workbench.data.threads import cores
from workbench.experiment import table
from workbench.nets import slabs
from workbench.nets.network import SlabNet
from workbench.stages.radiomics import compiled

PACKAGES = (
    "torch numpy scipy pandas scikit-learn scikit-image nibabel SimpleITK pydicom highdicom pyradiomics mlflow papermill jupyterlab "
    "ipywidgets napari"
).split()
# library that Qt or Mesa needs for a napari window -> Debian's package
DISPLAY = {
    "GL": "libgl1", "EGL": "libegl1", "OpenGL": "libopengl0", "dbus-1": "libdbus-1-3", "fontconfig": "libfontconfig1",
    "glib-2.0": "libglib2.0-0", "xkbcommon-x11": "libxkbcommon-x11-0", "xcb-cursor": "libxcb-cursor0",
    "xcb-icccm": "libxcb-icccm4", "xcb-keysyms": "libxcb-keysyms1", "xcb-image": "libxcb-image0",
    "xcb-randr": "libxcb-randr0", "xcb-render-util": "libxcb-render-util0", "xcb-shape": "libxcb-shape0",
    "xcb-xfixes": "libxcb-xfixes0", "xcb-xkb": "libxcb-xkb1",
}  # fmt: skip


def examine() -> dict:
    """Device, precision, versions, memory, display and the system packages that napari lacks."""
    device = experiment.pick_device("auto")
    lacking = [package for library, package in DISPLAY.items() if ctypes.util.find_library(library) is None]
    display = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    if not display and shutil.which("xvfb-run") is None:
        lacking.append("xvfb")
    with slabs.autocast(device) as precision:
        bf16 = torch.is_autocast_enabled(device.type) if precision is None else precision._enabled
    return {
        "workbench": workbench.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "bfloat16": bool(bf16),
        "display": display,
        "compiled_loops": compiled.library() is not None,
        "missing_system_packages": lacking,
        "packages": {p: _package(p) for p in PACKAGES},
        "networks": {name: _networks(make()) for name, make in experiment.PRESETS.items()},
        "environment": sys.prefix,
    }


def words(found: dict) -> str:
    """The same for a person."""
    lines = [
        f"workbench {found['workbench']}, Python {found['python']}, {found['system']}",
        f"device    {found['device']} ({found['device_name']}), {found['cores']} cores, {found['memory_gib']} GiB, "
        f"{'bfloat16' if found['bfloat16'] else 'float32 only'}",
        "packages  " + ", ".join(f"{k} {v or 'MISSING'}" for k, v in found["packages"].items()),
    ]
    if not found["compiled_loops"]:
        lines.append(
            "loops     not compiled: radiomics takes twice as long. With a C compiler: pip install --no-deps -e . (or make .venv)"
        )
    for preset, nets in found["networks"].items():
        lines.append(
            f"networks  {preset}: "
            + "; ".join(
                f"{n} {v['parameters']:,} parameters, {v['gflop_per_slice']:.2f} GFLOP a slice" for n, v in nets.items()
            )
        )
    lines.append("display   " + ("there" if found["display"] else "none: napari needs one (or xvfb-run)"))
    if found["missing_system_packages"]:
        lines.append(
            "missing   system packages for napari's window: "
            + " ".join(found["missing_system_packages"])
            + "\n          Everything else works without them. Debian: apt-get install --no-install-recommends "
            + " ".join(found["missing_system_packages"])
        )
    return "\n".join(lines)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [x.split(":", 1)[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or "CPU"


def _package(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _networks(settings: experiment.Settings) -> dict:
    """Parameters and floating point operations (2 a multiplication) of each cascade net on one training crop."""
    from torch.utils.flop_counter import FlopCounterMode

    out = {}
    for name in table.names(by_fold=True):
        stage = getattr(settings, name).cascade
        with torch.device("meta"):
            net = SlabNet(stage.network).eval()
            with FlopCounterMode(display=False) as count:
                net(torch.empty(1, stage.network.slices + stage.network.extra, *stage.slabs.crop))
        out[name] = {
            "parameters": sum(p.numel() for p in net.parameters()),
            "gflop_per_slice": count.get_total_flops() / 1e9,
        }
    return out
