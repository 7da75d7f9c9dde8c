"""Several processes that train one net together, each on its share of every batch.

Chooses: sums over all processes of losses, gradients and the statistics of batch norm, so that a step is that of one process
with the whole batch, up to rounding. torch's own SyncBatchNorm needs CUDA; this one is exact on every backend. Nothing here knows how the processes
came to be: the command line sets them up through Accelerate (docs/decisions/0008).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from workbench.volume import Refused


def count() -> int:
    """How many processes train together; 1 where none were joined."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if count() > 1 else 0


def wait() -> None:
    """Until all processes are here."""
    if count() > 1:
        dist.barrier()


def agree(said: bool) -> bool:
    """What the first process says."""
    if count() > 1:
        held = torch.tensor(int(said), device="cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.broadcast(held, 0)
        said = bool(held)
    return said


def share(batch: tuple) -> tuple[tuple, float]:
    """This process's rows of a batch, and what share of it they are."""
    n, size = count(), len(batch[0])
    if size < n:
        raise Refused("batch", f"{size} for {n} processes", "at least one row for each", "Start fewer processes.")
    own = tuple(part[rank() :: n] for part in batch)
    return own, len(own[0]) / size


@torch.no_grad()
def summed(net: nn.Module, loss: Tensor) -> Tensor:
    """The sum of all processes' losses; their gradients are summed in place."""
    loss = loss.detach()
    if count() > 1:
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        flat = torch.cat([*(g.reshape(-1) for g in gradients), loss.reshape(1).to(gradients[0].dtype)])
        dist.all_reduce(flat)
        for g, sums in zip(gradients, flat[:-1].split([g.numel() for g in gradients]), strict=True):
            g.copy_(sums.view_as(g))
        loss = flat[-1]
    return loss


def join_norms(net: nn.Module) -> None:
    """Every batch norm of the net takes its statistics from the batch of all processes."""
    for module in net.modules() if count() > 1 else ():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.__class__ = WholeBatchNorm


class WholeBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over all processes: their means, variances and counts are gathered and joined (Chan et al. 1979)."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        over = [axis for axis in range(x.ndim) if axis != 1]
        full = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        variance, mean = torch.var_mean(full, over, correction=0)
        own = torch.stack([mean, variance, torch.full_like(mean, x.numel() / x.shape[1])])
        mean, variance, n = _gathered(own).unbind(1)  # each [processes c]
        total = n.sum(0)
        middle = (n * mean).sum(0) / total
        spread = (n * (variance + (mean - middle).square())).sum(0) / total
        assert self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(middle.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((spread * total / (total - 1)).to(self.running_var.dtype), self.momentum)
        shape = [1, -1] + [1] * (x.ndim - 2)
        scale = self.weight * torch.rsqrt(spread + self.eps)
        return ((full - middle.view(shape)) * scale.view(shape) + self.bias.view(shape)).to(x.dtype)


def _gathered(own: Tensor) -> Tensor:
    """`own` of all processes, [processes ...], through which gradients flow back to each."""
    from torch.distributed.nn.functional import all_reduce

    places = [own if n == rank() else torch.zeros_like(own) for n in range(count())]
    return all_reduce(torch.stack(places))
