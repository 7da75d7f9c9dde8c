"""JupyterLab on loopback and a Chromium that drives it: for the tests of the widgets, and for pictures of them.

    python tests/browser.py NOTEBOOK PICTURE.png CELL [EXPERIMENT]    runs a notebook, takes a picture of Lab with that cell

A copy of the notebook runs, on another experiment where one is named. Nothing is asked of the network.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLAGS = (
    (
        "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
        "--disable-sync --use-angle=swiftshader --enable-unsafe-swiftshader"  # the last two: WebGL in software, for ipyniivue
    ).split()
)
SETTINGS = {  # no news from the network; every cell is in the page, also those out of sight
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}


def chromium() -> str | None:
    """The installed Chromium, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def why_not() -> str:
    """Empty when a browser can be driven here, else what is missing."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "no Playwright: pip install playwright (the browser is the system's, none is downloaded)"
    return "" if chromium() else "no Chromium: apt-get install --no-install-recommends chromium"


@contextmanager
def lab(folder: Path, start_s: float = 120) -> Iterator[str]:
    """JupyterLab on the notebooks of a folder, with settings of its own: its address, with `{}` where a path goes."""
    own, token = folder / ".jupyter", secrets.token_hex(16)
    for name, settings in SETTINGS.items():
        plugin, part = name.split("/")
        file = own / "settings" / "@jupyterlab" / plugin / f"{part}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(settings))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    places = {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython",
              "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}  # fmt: skip
    env = os.environ | {name: str(own / place) for name, place in places.items()} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root",
               "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}",
               "--expose-app-in-browser"]  # fmt: skip
    with open(own / "log", "w") as log:
        server = subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        asked = f"http://127.0.0.1:{port}/api/status?token={token}"
        _until(lambda: server.poll() is not None or _answers(asked), start_s, "JupyterLab does not answer")
        if server.poll() is not None:
            raise RuntimeError(f"JupyterLab ended: {(own / 'log').read_text()[-2000:]}")
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token={token}"
    finally:
        server.terminate()
        server.wait(30)


def _answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except OSError:
        return False


def _until(done: Callable[[], object], seconds: float, words: str) -> None:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise TimeoutError(f"{words} (after {seconds:.0f} s)")
        time.sleep(0.1)


@contextmanager
def chrome(width: int = 1400, height: int = 1000) -> Iterator:
    """A page of a fresh Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium(), args=FLAGS)
        try:
            yield browser.new_page(viewport={"width": width, "height": height})
        finally:
            browser.close()


class Notebook:
    """A notebook open in JupyterLab, run from the first cell to the last; `errors` are the browser's own."""

    def __init__(self, page, address: str, run_s: float = 300):
        self.page, self.errors = page, []
        page.on(
            "console", lambda m: self.errors.append(f"{m.text} ({m.location['url']})") if m.type == "error" else None
        )
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(address)
        page.wait_for_function(  # a command that comes before the kernel is idle is lost
            """() => {
                const session = window.jupyterapp?.shell?.currentWidget?.sessionContext;
                const kernel = session?.isReady && session.session?.kernel;
                return kernel && kernel.status === "idle" && kernel.connectionStatus === "connected";
            }""",
            timeout=120_000,
        )
        page.evaluate(
            """() => {
                window.ran = null;
                window.jupyterapp.commands.execute("notebook:run-all-cells").then(ok => { window.ran = String(ok) });
            }"""
        )
        page.wait_for_function("window.ran !== null", timeout=run_s * 1000)

    def cell(self, at: int):
        return self.page.locator(".jp-Notebook .jp-Cell").nth(at)

    def cell_errors(self) -> list[str]:
        """What cells say that failed."""
        return self.page.evaluate(
            """() => window.jupyterapp.shell.currentWidget.content.widgets.flatMap(
                cell => (cell.model.outputs?.toJSON() ?? []).filter(o => o.output_type === "error").map(o => o.evalue))"""
        )

    def picture(self, at: int) -> bytes:
        """The PNG that the widget of a cell shows."""
        image = self.cell(at).locator("img.widget-image")
        image.wait_for(timeout=30_000)
        read = """async image => {
            const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());
            return btoa(Array.from(bytes, b => String.fromCharCode(b)).join(""));
        }"""
        return base64.b64decode(image.evaluate(read))

    def canvas(self, at: int) -> bytes:
        """A PNG of the first canvas of a cell, as the page shows it."""
        canvas = self.cell(at).locator("canvas").first
        canvas.wait_for(timeout=30_000)
        return canvas.screenshot()

    def press(self, at: int, slider: str, key: str = "ArrowRight", times: int = 1) -> None:
        """Press a key on a slider of a cell, found by its description."""
        handle = self.cell(at).locator(f'.widget-slider:has(.widget-label:text-is("{slider}")) .noUi-handle')
        handle.focus()
        for _ in range(times):
            handle.press(key)

    def changed(self, shown: Callable[[], bytes], was: bytes, seconds: float = 30) -> bytes:
        """What is shown as soon as it differs from what was; an error when it does not."""
        now = [was]

        def differs() -> bool:
            now[0] = shown()
            return now[0] != was

        _until(differs, seconds, "the picture does not change")
        return now[0]


def main(notebook: str, picture: str, cell: str, experiment: str = "experiments/demo") -> None:
    source = (
        Path(notebook)
        .read_text()
        .replace('\\"experiments/demo\\"', json.dumps(json.dumps(str(Path(experiment).resolve())))[1:-1])
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / Path(notebook).name).write_text(source)
        with lab(Path(folder)) as address, chrome(1280, 1060) as page:
            opened = Notebook(page, address.format(Path(notebook).name), 600)
            opened.page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
            opened.cell(int(cell)).evaluate("cell => cell.scrollIntoView()")
            page.wait_for_timeout(3000)
            page.screenshot(path=picture)
            print(*opened.cell_errors(), *opened.errors, sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
