"""Training on several processes: rows, weights and context are shared among them.

torchrun starts the processes; each finds its place here. Weights, gradients and moments are cut or copied by
`fully_shard` (FSDP2), whose gradients are averages over all processes. Context parallelism is in `nn.spread`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from perceivers.models.perceiver_ar import PerceiverAR
from perceivers.models.recompute import recomputed_layers
from perceivers.nn.spread import Spread
from perceivers.train.config import ParallelConfig

PATIENCE = timedelta(minutes=10)
"""How long a process waits for another; one that has ended is noticed at once."""


@dataclass(frozen=True)
class Place:
    """This process among those of a run."""

    config: ParallelConfig
    rank: int = 0
    """Of all processes. The first one writes files and prints."""

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.config.processes == 1

    @property
    def readers(self) -> int:
        """Processes, or groups of them, that read rows of their own."""
        return self.config.dp * self.config.fsdp

    @property
    def reader(self) -> int:
        """Which of them this is. Processes are counted by dp, then cp, then fsdp, whose traffic is the largest."""
        return self.rank // (self.config.cp * self.config.fsdp) * self.config.fsdp + self.rank % self.config.fsdp

    def agreed(self, ticks: int, device: torch.device) -> int:
        """The first process's `ticks`, so that all have the same rates and stop at the same step."""
        if self.alone:
            return ticks
        told = torch.tensor(ticks, dtype=torch.int64, device=device)
        dist.broadcast(told, 0)
        return int(told)


def join(config: ParallelConfig, device: torch.device) -> tuple[Place, torch.device]:
    """Find this process's place, and its device; wait for the others.

    Raises:
        ValueError: torchrun has started another number of processes than `config` asks for.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != config.processes:
        asked = f"dp={config.dp} x fsdp={config.fsdp} x cp={config.cp} = {config.processes} processes"
        raise ValueError(
            f"parallel asks for {asked}, but {started} started: "
            f"torchrun --nproc-per-node {config.processes} -m perceivers train ..."
        )
    if started == 1:
        return Place(config), device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    return Place(config, dist.get_rank()), device


def share(model: nn.Module, place: Place, device: torch.device, *, bfloat16: bool) -> None:
    """Cut the weights of a model that is on the device "meta", and tell it which part of the context is its own.

    With `bfloat16` layers are put together in that, which is what their products are computed in anyway; only the
    weights of their norms are rounded on top. Gradients are summed in float32.
    """
    config = place.config
    if config.cp > 1:
        assert isinstance(model, PerceiverAR)
        cube = init_device_mesh(device.type, (config.dp, config.cp, config.fsdp), mesh_dim_names=("dp", "cp", "fsdp"))
        model.spread_context(Spread(cube.get_group("cp")))
    mesh = init_device_mesh(device.type, (config.dp * config.cp, config.fsdp), mesh_dim_names=("copies", "parts"))
    policy = MixedPrecisionPolicy()
    if bfloat16:
        policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in recomputed_layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)  # its output layer is used after it returns


def fill(model: nn.Module, whole: nn.Module | None, device: torch.device) -> None:
    """Give a cut model without numbers its part of those of `whole`, which the first process has."""
    model.to_empty(device=device)
    has = {} if whole is None else _tensors(whole)
    with torch.no_grad():
        for name, own in _tensors(model).items():
            tensor = has[name].to(device) if has else torch.empty(own.shape, dtype=own.dtype, device=device)
            dist.broadcast(tensor, 0)
            own.copy_(part(tensor, own))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def total(values: Tensor, place: Place) -> Tensor:
    """Sum of what the readers of different rows have; those that share rows have the same."""
    if place.alone:
        return values
    values = values / place.config.cp
    dist.all_reduce(values)
    return values


def whole(tensors: Mapping[str, Tensor], place: Place) -> dict[str, Tensor]:
    """Tensors put together from the parts of all processes, each of which must call this; the first one gets them."""
    result = {}
    for name, x in tensors.items():
        x = x.full_tensor() if isinstance(x, DTensor) else x
        if place.rank == 0:
            result[name] = x if place.alone else x.cpu()
    return result


def part(tensor: Tensor, like: Tensor) -> Tensor:
    """What this process keeps of a whole tensor, which it has: the same part as of `like`."""
    if not isinstance(like, DTensor):
        return tensor.to(like.device)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process has."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def leave() -> None:
    """Let go of the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()
