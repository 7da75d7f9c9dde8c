#!/usr/bin/env python3
"""Can napari open a window here? Says which Debian packages are missing; exit status 1 if any is.

    python3 .ci/display.py              what is missing, in words
    python3 .ci/display.py --packages   every package that a window or the browser tests need, for apt-get

Standard library only, so that it runs before anything is installed. Without icccm and keysyms Qt aborts with a
message about xcb-cursor0, and with no display at all it ends the whole process: so it is asked here, not there.
"""

import ctypes
import os
import shutil
import sys

LIBRARIES = {  # what Qt and OpenGL load: the Debian package that holds it
    "libGL.so.1": "libgl1",
    "libEGL.so.1": "libegl1",
    "libOpenGL.so.0": "libopengl0",
    "libdbus-1.so.3": "libdbus-1-3",
    "libfontconfig.so.1": "libfontconfig1",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libxkbcommon-x11.so.0": "libxkbcommon-x11-0",
    "libxcb-cursor.so.0": "libxcb-cursor0",
    "libxcb-icccm.so.4": "libxcb-icccm4",
    "libxcb-keysyms.so.1": "libxcb-keysyms1",
    "libxcb-image.so.0": "libxcb-image0",
    "libxcb-randr.so.0": "libxcb-randr0",
    "libxcb-render-util.so.0": "libxcb-render-util0",
    "libxcb-shape.so.0": "libxcb-shape0",
    "libxcb-xfixes.so.0": "libxcb-xfixes0",
    "libxcb-xkb.so.1": "libxcb-xkb1",
}
SCREEN = ["xvfb", "xauth", "libgl1-mesa-dri"]  # a display where there is none, drawn in software
BROWSER = ["chromium"]  # what tests/test_browser.py drives


def loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def missing() -> list[str]:
    """Debian packages without which no window opens."""
    absent = [package for library, package in LIBRARIES.items() if not loads(library)]
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")) and not shutil.which("xvfb-run"):
        absent += SCREEN
    return absent


if __name__ == "__main__":
    if "--packages" in sys.argv:
        print(*SCREEN, *LIBRARIES.values(), *BROWSER)
    elif absent := missing():
        print("napari cannot open a window here; everything else works. Missing system packages (Debian's names):")
        print("   apt-get install --no-install-recommends", *absent)
        sys.exit(1)
