"""Shapes as contracts: what a signature says of its tensors, `Float[Tensor, "z y x"]`, is checked while the tests run.

Only functions that speak of shapes are wrapped. Plain hints (`float`, `tuple[int, ...]`) are mypy's work, and a
NumPy number that is passed for a `float` harms nobody.
"""

import jaxtyping
from beartype import BeartypeConf, beartype

KINDS = ("Float", "Int", "Bool", "Shaped", "Num", "UInt8", "Int16", "Int32", "Int64", "Integer", "Real", "Inexact")
SCIENCE = ["volume", "masks", "nets", "stages", "data.phantom"]

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float


def _of_tensors(hint: object) -> bool:
    """Does this annotation, a string or not, name one of jaxtyping's shaped types?"""
    return any(f"{kind}[" in (hint if isinstance(hint, str) else repr(hint)) for kind in KINDS)


def checked(function):
    hints = getattr(function, "__annotations__", {})
    return _check(function) if any(map(_of_tensors, hints.values())) else function


def install() -> None:
    """Check the science modules from now on; none of them may be imported before."""
    jaxtyping.install_import_hook([f"workbench.{name}" for name in SCIENCE], "shapes.checked")
