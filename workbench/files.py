"""A file whole or not at all: the one way in which the workbench writes, and how it reads its own JSON back."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from workbench.volume import Refused


def write_atomic(path: Path, data: bytes) -> None:
    """The whole file or none of it: write beside it, flush to disk, move into place. Makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(partial, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path, *keys: str) -> dict:
    """An object that was written as JSON and has these keys; anything else is refused."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Refused(path, f"no JSON ({error})", "what the workbench wrote there", DAMAGED) from error
    lacking = [key for key in keys if not isinstance(held, dict) or key not in held]
    if lacking:
        raise Refused(path, f"no {', '.join(lacking)}", "what the workbench wrote there", DAMAGED)
    return held


DAMAGED = "The file is damaged: restore it, or remove it and run this again."


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=1, allow_nan=False, default=_plain).encode())


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)
