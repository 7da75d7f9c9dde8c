"""The one training loop: precision, schedule, checkpoints, resume.

Chooses: AdamW, one cycle of warm-up and cosine decay, gradient clipping, bfloat16 autocast where it is native. On request the
net is the running average of its weights, and the best checkpoint is kept beside the last. A checkpoint holds
weights, optimiser, average, best and step as safetensors with the settings and a SHA-256 beside it in JSON; it is written
under another name and moved into place, and the one before is kept until then. Checkpoints and progress go by the clock, the
curve by steps. Several processes share each batch, and the first one alone writes and speaks. Since every batch follows from (seed, step), a resumed run ends in the same weights as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from workbench.data.files import read_json, write_atomic
from workbench.nets import distributed
from workbench.nets.slabs import autocast
from workbench.volume import Refused


@dataclass(frozen=True)
class FitSettings:
    """Length and pace of one training run."""

    steps: int = 400
    batch: int = 32
    rate: float = 3e-3
    weight_decay: float = 1e-2
    warmup: float = 0.1  # share of the steps
    clip: float = 1.0
    check_every: int = 50  # steps between validation points
    save_every_s: float = 30.0
    seed: int = 0
    ema: float = 0.0  # decay of the weights' running average, which is then what is validated and kept; 0: none
    volumes: int = 2  # held-out patients that are predicted whole
    volume_checks: int = 2  # how often in a run, the last time at its end; 0: never
    inner: float = 0.0  # share of the training patients set aside to choose the best checkpoint; 0: the last is kept
    compile: bool = False  # through torch.compile; pays after thousands of steps: the log, 2026-11-26

    def __post_init__(self):
        if not (0 <= self.ema < 1 and 0 <= self.inner < 1) or (self.inner > 0 and self.volume_checks < 1):
            raise Refused(
                "fit settings",
                f"ema {self.ema}, inner {self.inner}, volume_checks {self.volume_checks}",
                "ema and inner from 0 to below 1, and with inner at least one volume check",
            )

    def whole_at(self, step: int) -> bool:
        """Whether whole volumes are predicted at this point of the curve: `volume_checks` times, evenly, the end among them."""
        points = math.ceil(self.steps / self.check_every)
        share = min(self.volume_checks, points) / points
        point = math.ceil(step / self.check_every)
        return math.floor(point * share + 1e-9) > math.floor((point - 1) * share + 1e-9)


TELL_S = 10.0  # a choice: the longest that a run stays silent, unless one step takes longer


def save_tensors(path: Path, tensors: dict[str, Tensor], about: dict) -> None:
    """`path`.safetensors and `path`.json, which holds `about` and the checksum. The JSON goes last: without it nothing counts."""
    data = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    held = path.with_name(f"{path.name}.{digest[:12]}.safetensors")
    write_atomic(held, data)
    write_atomic(
        path.with_suffix(".json"), json.dumps({**about, "file": held.name, "sha256": digest}, indent=1).encode()
    )
    for old in path.parent.glob(f"{path.name}.*.safetensors"):
        if old != held:
            old.unlink()


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """What `save_tensors` wrote, refused when the bytes are not those that were written."""
    about_path = path.with_suffix(".json")
    if not about_path.is_file():
        raise Refused(about_path, "no such model", "a trained one", "Train this stage first.")
    about = read_json(about_path, sha256=str, file=str | None, config=dict | None)
    held = path.parent / Path(about.get("file") or f"{path.name}.safetensors").name
    data = held.read_bytes() if os.path.isfile(held) else b""
    if hashlib.sha256(data).hexdigest() != about["sha256"]:
        raise Refused(
            held,
            "a checksum other than the recorded one, or no file",
            about["sha256"][:12],
            f"The file is damaged: restore it, or remove {about_path.name} and train this stage again.",
        )
    try:
        return load(data), about
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise Refused(held, f"no safetensors ({error})", "the weights of a net", "Train this stage again.") from error


def copy_tensors(path: Path, to: Path) -> None:
    """Another folder's `save_tensors`, checked and copied."""
    tensors, about = load_tensors(path)
    save_tensors(to, tensors, {k: v for k, v in about.items() if k not in ("file", "sha256")})


def fill(net: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Stored weights into a net; refused when they are another net's."""
    if {k: v.shape for k, v in tensors.items()} != {k: v.shape for k, v in net.state_dict().items()}:
        raise Refused(path, "weights of another network", "those of this version", "Train this stage again.")
    net.load_state_dict(tensors)


def rate_at(step: int, settings: FitSettings) -> float:
    """Learning rate: linear warm-up, then half a cosine down to zero."""
    warm = max(1, round(settings.steps * settings.warmup))
    if step < warm:
        return settings.rate * (step + 1) / warm
    return settings.rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, settings.steps - warm)))


def fit(
    net: nn.Module,
    draw: Callable[[int], tuple],
    objective: Callable[[nn.Module, tuple], Tensor],
    settings: FitSettings,
    folder: Path | None,
    name: str,
    about: dict,
    validate: Callable[[nn.Module, bool], dict] | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[str, int, int, dict], None] | None = None,
    best: str | None = None,
    defaults: dict | None = None,
) -> pd.DataFrame:
    """Train `net` in place and return its curve (step, loss, seconds and what `validate` gives).

    draw(step) gives a batch, objective(net, batch) its loss. Saves `folder/name` (safetensors + JSON) at the end, and a
    checkpoint `folder/name-resume` on the way, from which an interrupted run goes on; without a folder it keeps nothing.
    validate(net, whole) gives figures for the curve, those of whole volumes where it is asked for them. `best` names the
    one whose highest value decides which weights are kept, with the last ones in `folder/name-last`; else the last are kept.
    defaults: parts of the `config` by name, whose values stand for what an earlier version's checkpoint does not name.
    progress(name, step, steps, row) is told each row of the curve, and every `TELL_S` how far it is.
    """
    distributed.join_norms(net)
    on_gpu = torch.device(device).type == "cuda"
    optimiser = torch.optim.AdamW(
        net.parameters(), lr=settings.rate, weight_decay=settings.weight_decay, fused=on_gpu or None
    )
    config = {"fit": asdict(settings), **about}
    first = distributed.rank() == 0
    tell = progress if first and progress else lambda *_: None
    point = None if folder is None else folder / f"{name}-resume"
    run = _resumed(point, config, defaults or {}, optimiser, net, device) or _Run(
        average=_copy(net) if settings.ema else {}
    )
    trained: Any = torch.compile(net) if settings.compile else net
    net.train()
    began = saved_at = told_at = time.monotonic()
    start, spent = run.step, run.spent
    tell(name, start, settings.steps, {})
    for step in range(start, settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = rate_at(step, settings)
        with _room(name, step, settings):
            # drawn in full precision: autocast would round the grid that slabs are resampled on
            batch, weight = distributed.share(draw(step))
            with autocast(device):
                loss = objective(trained, batch) * weight
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            loss = distributed.summed(net, loss)
            nn.utils.clip_grad_norm_(net.parameters(), settings.clip)
            optimiser.step()
        _follow(run.average, net, min(settings.ema, (1 + step) / (10 + step)))
        run.running.append(loss)
        run.step, run.spent, now = step + 1, spent + time.monotonic() - began, time.monotonic()
        done, last = run.step, run.step == settings.steps
        if done % settings.check_every == 0 or last:
            tell(name, done, settings.steps, _point(run, net, settings, validate, best, name))
            told_at = time.monotonic()
        elif now - told_at > TELL_S:
            told_at, pace = now, (done - start) / (now - began)
            row = {
                "loss": _mean(run.running, name, done),
                "steps_per_s": pace,
                "left_s": (settings.steps - done) / pace,
            }
            tell(name, done, settings.steps, row)
        if first and point is not None and not last and time.monotonic() - saved_at > settings.save_every_s:
            run.spent = spent + time.monotonic() - began
            about_point = {"config": config, "step": done, "curve": run.rows, "seconds": run.spent}
            top = (run.top, run.top_step) if run.top_step else None
            save_tensors(point, _state(optimiser, net, run), about_point | {"best": top})
            saved_at = time.monotonic()
    net.eval()
    if run.average:
        net.load_state_dict(run.average)
    _finish(run, net, settings, folder if first else None, name, {"config": config, "curve": run.rows})
    distributed.wait()
    return pd.DataFrame(run.rows)


@dataclass
class _Run:
    """How far a training is: steps done, its curve, seconds, the losses since the curve's last row, the averaged weights, and the best ones
    with their figure and step."""

    step: int = 0
    rows: list[dict] = field(default_factory=list)
    spent: float = 0.0
    running: list[Tensor] = field(default_factory=list)
    average: dict[str, Tensor] = field(default_factory=dict)
    top: float = -math.inf
    top_step: int = 0
    top_weights: dict[str, Tensor] = field(default_factory=dict)


def _resumed(
    point: Path | None,
    config: dict,
    defaults: dict,
    optimiser: torch.optim.AdamW,
    net: nn.Module,
    device: torch.device | str,
) -> _Run | None:
    """The run of a checkpoint, its weights and moments put in place; None where there is none of these settings."""
    if point is None or not point.with_suffix(".json").is_file():
        return None
    tensors, saved = load_tensors(point)
    if _filled(saved.get("config"), defaults) != json.loads(json.dumps(config)):
        name = point.name.removesuffix("-resume")
        print(
            f"{point}: a checkpoint of other settings, which is not used: {name} begins at its first step", flush=True
        )
        return None
    _restore(optimiser, net, tensors)
    average, best = ({k: v.to(device) for k, v in _part(tensors, p).items()} for p in ("ema.", "best."))
    top, top_step = saved["best"] or (-math.inf, 0)
    running = list(tensors["running"].to(device))
    return _Run(saved["step"], saved["curve"], saved["seconds"], running, average, top, top_step, best)


def _point(
    run: _Run,
    net: nn.Module,
    settings: FitSettings,
    validate: Callable[[nn.Module, bool], dict] | None,
    best: str | None,
    name: str,
) -> dict:
    """A row of the curve, which also keeps the weights where they are the best so far."""
    row = {"step": run.step, "loss": _mean(run.running, name, run.step), "seconds": run.spent}
    if validate is not None:
        with _still(net, run.average):
            row |= validate(net, settings.whole_at(run.step))
            if best is not None and row.get(best, -math.inf) > run.top:
                run.top, run.top_step, run.top_weights = row[best], run.step, _copy(net)
    run.rows.append(row)
    run.running = []
    return row


def _finish(run: _Run, net: nn.Module, settings: FitSettings, folder: Path | None, name: str, kept: dict) -> None:
    """Put the best weights into the net, where there are some, and save what is kept."""
    last_weights = _copy(net)
    if run.top_step:
        net.load_state_dict(run.top_weights)
    if folder is None:
        return
    if run.top_step:
        save_tensors(folder / f"{name}-last", last_weights, kept | {"step": settings.steps})
    save_tensors(folder / name, net.state_dict(), kept | {"step": run.top_step or settings.steps})
    for old in folder.glob(f"{name}-resume.*"):
        old.unlink()


def _filled(stored: dict | None, defaults: dict) -> dict:
    """A checkpoint's settings, at their defaults where its version did not know them yet."""
    known = {"fit": asdict(FitSettings()), **defaults}
    out = dict(stored or {})
    for part, values in json.loads(json.dumps(known)).items():
        if isinstance(out.get(part), dict):
            out[part] = {**values, **out[part]}
    return out


@contextmanager
def _room(name: str, step: int, settings: FitSettings) -> Iterator[None]:
    """Says in one line what a batch is too large for."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise Refused(
            f"training {name}, step {step}",
            f"no memory left on the device for a batch of {settings.batch}",
            "a batch that fits",
            "Lower that stage's `batch` or its crop (--settings, and -o another folder where nets of it are), or share each batch "
            "among GPUs (`accelerate launch`).",
        ) from error


def _mean(losses: list[Tensor], name: str, step: int) -> float:
    mean = float(torch.stack(losses).mean())
    if not math.isfinite(mean):
        raise Refused(
            f"training {name}, step {step}",
            f"a loss of {mean}",
            "a finite one",
            "Lower the learning rate or check the cohort's voxels.",
        )
    return mean


def _copy(net: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in net.state_dict().items()}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


@torch.no_grad()
def _follow(average: dict[str, Tensor], net: nn.Module, decay: float) -> None:
    """One step of the running average: weights and the norms' statistics; counters are copied."""
    for key, value in net.state_dict().items() if average else ():
        average[key].copy_(average[key].lerp(value, 1 - decay) if value.is_floating_point() else value)


@contextmanager
def _still(net: nn.Module, average: dict[str, Tensor]) -> Iterator[None]:
    """The net in evaluation mode, with its averaged weights where there are some; afterwards as it was."""
    own = _copy(net) if average else {}
    net.load_state_dict(average or net.state_dict())
    net.eval()
    yield
    net.load_state_dict(own or net.state_dict())
    net.train()


def _state(optimiser: torch.optim.AdamW, net: nn.Module, run: _Run) -> dict[str, Tensor]:
    """All that the next steps depend on."""
    groups = {"net": net.state_dict(), "ema": run.average, "best": run.top_weights}
    out = {f"{group}.{k}": v for group, held in groups.items() for k, v in held.items()}
    for key, parameter in net.named_parameters():
        out |= {f"opt.{what}.{key}": value for what, value in optimiser.state[parameter].items()}
    return out | {"running": torch.stack(run.running) if run.running else torch.zeros(0)}


def _restore(optimiser: torch.optim.AdamW, net: nn.Module, tensors: dict[str, Tensor]) -> None:
    net.load_state_dict(_part(tensors, "net."))
    for key, parameter in net.named_parameters():
        held = {what: tensors[f"opt.{what}.{key}"] for what in ("step", "exp_avg", "exp_avg_sq")}
        optimiser.state[parameter] = {  # moments in the parameter's own order of memory, as the fused step wants them
            k: v.to(parameter.device) if k == "step" else torch.empty_like(parameter).copy_(v) for k, v in held.items()
        }
