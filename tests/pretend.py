"""A GPU pretended on the CPU: which tensor lies where, and what mixes them, without a GPU.

Inside `gpu()` a device named cuda is there. Its tensors are the CPU's with a mark that travels from what an operation takes to what it
gives; `device`, `is_cuda` answer by the mark, `to`, `cpu` and `cuda` copy and set it. As on a GPU, an operation that meets tensors of
both sides is an error (but for single numbers and indices), and so is NumPy on a tensor that lies there. Speed, memory and rounding are the CPU's.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter

CUDA = torch.device("cuda", 0)
FREE = 8 << 30
BOTH_SIDES = {"copy_", "__set__", "_has_compatible_shallow_copy_type"}  # take tensors of both sides
INDEXED = {"__getitem__", "__setitem__", "index_put_"}
STRICT = {"cat", "stack"}  # not even a single number of the other side
WAITS = set(
    "item tolist __bool__ __int__ __float__ __index__ nonzero equal allclose unique bincount masked_select repeat_interleave".split()
)


def there(t: Tensor | torch.Generator) -> bool:
    return getattr(t, "_there", False)


def _mark(t: Tensor, cuda: bool) -> Tensor:
    t._there = cuda
    return t


class Generator(torch.Generator):
    def __new__(cls, device: torch.device | str = "cpu"):
        made = super().__new__(cls, "cpu")
        made._there = torch.device(device).type == "cuda"
        return made


class Pretend(TorchFunctionMode):
    """`waits`: for what the processor had to wait until the device was done, and how often. `busy`: an operation there is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.busy = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name, owner = func.__name__, getattr(func, "__self__", None)
        if name == "__get__" and owner in (Tensor.device, Tensor.is_cuda, Tensor.is_cpu):
            cuda = there(args[0])
            if owner is Tensor.device:
                return CUDA if cuda else func(*args)
            return cuda if owner is Tensor.is_cuda else not cuda
        if name == "get_device":
            return 0 if there(args[0]) else -1
        if name in ("to", "cpu", "cuda"):
            return self._moved(name, args, kwargs)
        tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
        asked = kwargs.get("device")
        if asked is not None:
            kwargs["device"] = "cpu"
        cuda = self._side(name, args, tensors) if asked is None else torch.device(asked).type == "cuda"
        if cuda and name in ("numpy", "__array__"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")
        if kwargs.get("generator") is not None and there(kwargs["generator"]) != cuda:
            raise RuntimeError(f"Expected a {'cuda' if cuda else 'cpu'} device type for generator of {name}")
        waits = (name in WAITS and "output_size" not in kwargs) or (
            name in INDEXED and any(t.dtype == torch.bool for t in tensors[1:])
        )
        self.waits[name] += cuda and waits
        out = self._done(cuda, func, *args, **kwargs)
        if name == "as_tensor":  # may be the same one
            out = out.clone()
        if name == "__set__" and owner is Tensor.data:  # how a net moves its weights
            _mark(args[0], there(args[1]))
        for t in tree_iter(out):
            if isinstance(t, Tensor):
                _mark(t, cuda)
        return out

    def _done(self, cuda: bool, func, *args, **kwargs):
        self.busy = cuda
        try:
            return func(*args, **kwargs)
        finally:
            self.busy = False

    def _moved(self, name: str, args: tuple, kwargs: dict):
        own, rest, wanted = args[0], list(args[1:]), kwargs.pop("device", None)
        if name != "to":
            wanted, rest = name, []
        elif rest and isinstance(rest[0], Tensor):
            wanted, rest[0] = ("cuda" if there(rest[0]) else "cpu"), rest[0].dtype
        elif rest and (rest[0] is None or isinstance(rest[0], str | torch.device | int)):
            wanted = rest.pop(0)
        cuda = there(own) if wanted is None else torch.device(wanted).type == "cuda"
        self.waits["cpu"] += there(own) and not cuda
        out = self._done(cuda or there(own), Tensor.to, own, "cpu", *rest, **kwargs)
        if out is own and cuda != there(own):
            out = self._done(True, own.clone)
        return _mark(out, cuda)

    def _side(self, name: str, args: tuple, tensors: list[Tensor]) -> bool:
        """Whether what it gives lies there."""
        if not any(map(there, tensors)):
            return False
        if name in BOTH_SIDES:
            return there(args[0])
        must = [t for t in (args[0], *args[2:]) if isinstance(t, Tensor)] if name in INDEXED else tensors
        if all(
            there(t) or (t.ndim == 0 and name not in STRICT and not (t is args[0] and name.endswith("_"))) for t in must
        ):
            return True
        sides = ", ".join(f"{tuple(t.shape)} on {'cuda' if there(t) else 'cpu'}" for t in tensors)
        raise RuntimeError(f"Expected all tensors to be on the same device: {name} of {sides}")


@contextmanager
def gpu() -> Iterator[Pretend]:
    """A pretended GPU, one, of 8 GiB. Threads begun meanwhile see it too; processes would not, so one core is used, for which none begin."""
    mode, cores = Pretend(), torch.get_num_threads()
    run, autocast = threading.Thread.run, torch.autocast

    def run_there(thread: threading.Thread) -> None:
        with mode:
            run(thread)

    with (
        mock.patch("threading.Thread.run", run_there),
        mock.patch("torch.Generator", Generator),
        mock.patch("torch.cuda.is_available", lambda: True),
        mock.patch("torch.cuda.device_count", lambda: 1),
        mock.patch("torch.cuda.mem_get_info", lambda *_: (FREE, FREE)),
        mock.patch("torch.cuda.memory_reserved", lambda *_: 0),
        mock.patch("torch.cuda.is_bf16_supported", torch.cpu._is_avx512_bf16_supported),
        mock.patch("torch.autocast", lambda _, *words, **named: autocast("cpu", *words, **named)),
        mock.patch("torch.cuda.get_device_name", lambda *_: "pretended"),
        mode,
    ):
        torch.set_num_threads(1)
        try:
            yield mode
        finally:
            torch.set_num_threads(cores)
