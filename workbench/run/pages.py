"""Notebooks as files: read and checked, as a page of HTML, and without the widgets that weigh."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from workbench.volume import Refused

WIDGET, STATE = "application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json"
ALONE = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; img-src data:; font-src data:; style-src 'unsafe-inline'\">"
)


def read(path: Path) -> Any:
    """A notebook; refused where the file is none."""
    import nbformat

    try:
        book = nbformat.read(path, as_version=4)
        nbformat.validate(book)
        return book
    except OSError:
        raise
    except Exception as error:  # nbformat has no one type for a file that is no notebook
        line = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise Refused(path, f"no notebook ({line})", "a Jupyter notebook", "Restore it from the repository.") from error


def page(notebook: str | Path) -> bytes:
    """An executed notebook as one HTML file: pictures inside, no script, nothing asked of the network.

    Widgets live in JupyterLab only and are left out; their headless twins, pictures, take their place.
    """
    from nbconvert import HTMLExporter

    book = read(Path(notebook))
    book.metadata.pop("widgets", None)
    for cell in book.cells:
        if cell.cell_type == "code":
            for data in (output.get("data", {}) for output in cell.outputs):
                if "image/png" in data:
                    data.pop(WIDGET, None)
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
    exporter = HTMLExporter(template_name="lab", exclude_anchor_links=True)
    html, _ = exporter.from_notebook_node(book, {"metadata": {"name": Path(notebook).stem}})
    html = re.sub(r"<script\b.*?</script>", "", html, flags=re.S)
    return html.replace("<head>", f"<head>{ALONE}", 1).encode()


def lighten(book: Any) -> bool:
    """Take the widgets that bring a program of their own (the 3D view: 5 MB) out of an executed copy and leave their pictures, which
    show the same; whether there were any."""
    held = book.metadata.get("widgets", {}).get(STATE, {}).get("state", {})

    def parts(model: str) -> set[str]:
        found: set[str] = set()
        left = [model]
        while left:
            if (one := left.pop()) in held and one not in found:
                found.add(one)
                left += re.findall(r'"IPY_MODEL_(\w+)"', json.dumps(held[one]["state"]))
        return found

    gone: set[str] = set()
    stays: set[str] = set()
    for output in (output for cell in book.cells for output in cell.get("outputs", [])):
        data = output.get("data", {})
        if WIDGET in data:
            own = parts(data[WIDGET]["model_id"])
            heavy = "image/png" in data and any("_esm" in held[part]["state"] for part in own)
            (gone if heavy else stays).update(own)
            if heavy:
                del data[WIDGET]
    for model in gone - stays:
        del held[model]
    return bool(gone)
