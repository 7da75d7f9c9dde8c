"""The house in numbers and as a graph: `python .ci/house.py sizes` prints lines a room, `graph` writes docs/house.md."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("run", "lab", "experiment", "stages", "nets", "data")
LONGEST_MODULE, LONGEST_FUNCTION = 500, 80


def modules() -> dict[str, list[Path]]:
    """The modules of each room, and those beside the rooms under their own names."""
    top = ROOT / "workbench"
    return {room: sorted((top / room).rglob("*.py")) for room in ROOMS} | {
        p.stem: [p] for p in sorted(top.glob("*.py"))
    }


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def long_functions(path: Path) -> list[str]:
    """Functions of more than `LONGEST_FUNCTION` lines."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and (n := node.end_lineno - node.lineno + 1) > LONGEST_FUNCTION:
            found.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} {n}")
    return found


def sizes() -> str:
    found = {room: [lines(p) for p in paths] for room, paths in modules().items()}
    rows = [f"{room:12} {sum(counts):6,} lines {len(counts):4} modules" for room, counts in found.items()]
    total, science = sum(map(sum, found.values())), sum(sum(found[r]) for r in ("stages", "nets", "volume", "masks"))
    every = [p for paths in modules().values() for p in paths]
    rows += [f"{'library':12} {total:6,}", f"{'science':12} {science:6,}  (stages, nets, volume, masks)"]
    rows += [f"long module  {p.relative_to(ROOT)} {lines(p)}" for p in every if lines(p) > LONGEST_MODULE]
    rows += [f"long function {line}" for p in every for line in long_functions(p)]
    return "\n".join(rows)


def imports(path: Path) -> set[str]:
    """Rooms, and modules beside them, that a module imports, also late."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "workbench":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("workbench."):
            found.add(node.module.split(".")[1])
    return found


def graph() -> str:
    """Mermaid: an arrow from a room to each that it imports, with the number of modules that do."""
    rows = ["graph BT"]
    for room, paths in modules().items():
        if room == "__init__":
            continue
        to = Counter(
            name
            for p in paths
            for name in imports(p)
            if name != room and (name in ROOMS or name in ("volume", "masks"))
        )
        rows += [f"    {room.strip('_')} -->|{n}| {name}" for name, n in sorted(to.items())]
    return "\n".join(rows)


PAGE = """# The house

Written by `make graph`: an arrow leads from a room to one that it imports; the number says how many of its modules do. All arrows lead down the tower
`main` → `run` → `lab` → `experiment` → `stages` → `nets` → `data` → `volume` → `masks`, which `make lint` checks.

```mermaid
{graph}
```

## Sizes

```
{sizes}
```

## A CT on its way

Which room does what for `workbench segment ct.nii.gz`, read from the code: `run` takes the command; `data` reads and checks the scan into a `volume`; `experiment` loads the nets and
takes it through the stages; `nets` runs the network on its slabs; `stages` decides on maps and `masks`; `lab` writes the result folder, its cards and the report.
"""


if __name__ == "__main__":
    if sys.argv[1:] == ["graph"]:
        (ROOT / "docs" / "house.md").write_text(PAGE.format(graph=graph(), sizes=sizes()))
    else:
        print(sizes())
