"""The model over the ranks of a run: whole on each (DDP) or in shards (FSDP), and whole again."""

from __future__ import annotations

import logging
import re
import warnings
from typing import Any, Literal

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from open_cloc.model.adapters import merged
from open_cloc.model.cloc import CLOC
from open_cloc.precision import Precision
from open_cloc.training.ranks import Ranks

logger = logging.getLogger(__name__)

Parallel = Literal["ddp", "fsdp"]

# A tower's repeated modules: `transformer.resblocks.3`, `trunk.blocks.3`, `layer1.0`, `encoder.layer.3`.
BLOCK = re.compile(r"(?:^|\.)(?:resblocks|blocks?|layers?\d*|stages)(?:\.\d+)+$")


def parallelize(model: CLOC, parallel: Parallel, ranks: Ranks, precision: Precision = "fp32") -> nn.Module:
    """The callable that a training step uses in the model's place; gradients become means over the ranks.

    `ddp` keeps the model whole on every rank; `fsdp` replaces its parameters by shards, in place. Every
    learning parameter must get a gradient in every step (`optim.freeze_unreached` sees to it).

    All ranks must begin with the same weights (`share_state`).

    With `bf16` on GPUs, FSDP gathers the towers' blocks in bfloat16, which is what autocast computes their
    products in; shards, gradients and their sums stay in float32.

    Batch norms that learn: on GPUs their statistics are those of all ranks' batches. Elsewhere each rank
    normalises by its own batch, and the running statistics that are saved are the first rank's.
    """
    if ranks.size == 1:
        return model
    if learning_batch_norms(model):
        if ranks.device.type == "cuda":
            synchronize_batch_norms(model)
        else:
            logger.warning(
                "batch norm without a GPU: each of %d ranks normalises by its own batch", ranks.size
            )
    if parallel == "fsdp":
        _shard(model, ranks, precision)
        return model
    with warnings.catch_warnings():
        # torch 2.14 has a new name for the switch, which those before do not know.
        warnings.simplefilter("ignore", FutureWarning)
        # Buffers need no broadcast in each forward pass: see `share_buffers`.
        return DistributedDataParallel(model, broadcast_buffers=False)


def _shard(model: CLOC, ranks: Ranks, precision: Precision) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(ranks.device.type, (ranks.size,))
    for block in tower_blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=block_policy(precision, ranks.device))
    fully_shard(model, mesh=mesh)


def block_policy(precision: Precision, device: torch.device) -> MixedPrecisionPolicy:
    """In which types FSDP gathers a block's weights and sums their gradients.

    What goes into a block stays as it is: the residual stream keeps its digits. A CPU's autocast has no norms
    of 16 bits.
    """
    if precision != "bf16" or device.type != "cuda":
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)


def tower_blocks(model: CLOC) -> list[nn.Module]:
    """The repeated modules of both towers."""
    return [*repeated_blocks(model.clip.visual), *repeated_blocks(model.clip.text)]


def repeated_blocks(tower: nn.Module) -> list[nn.Module]:
    """A tower's repeated modules, the innermost where they nest: always called one by one."""
    named = {name: module for name, module in tower.named_modules() if BLOCK.search(name)}
    return [
        module
        for name, module in named.items()
        if not any(other.startswith(f"{name}.") for other in named)
        and next(module.parameters(), None) is not None
    ]


def use_channels_last(model: CLOC) -> None:
    """Lay out a convolutional image tower as GPUs convolve; no number changes but by rounding."""
    visual: nn.Module = model.clip.visual
    if sum(isinstance(module, nn.Conv2d) for module in visual.modules()) > 1:  # one cuts a ViT's patches
        visual.to(memory_format=torch.channels_last)


def learning_batch_norms(model: nn.Module) -> list[str]:
    """Names of the batch norms that would take statistics of the training batches."""
    return [
        name for name, module in model.named_modules() if isinstance(module, _BatchNorm) and module.training
    ]


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Buffers of the batch norms that take statistics of the training batches."""
    modules = dict(model.named_modules())
    return [buffer for name in learning_batch_norms(model) for buffer in modules[name].buffers(recurse=False)]


def synchronize_batch_norms(model: CLOC) -> None:
    """Let the image tower's batch norms take the statistics of all ranks.

    By timm's function: torch's own replaces the norms of timm that end in an activation by ones without it.
    """
    model.clip.visual = convert_sync_batchnorm(model.clip.visual)


def share_state(model: nn.Module, ranks: Ranks) -> None:
    """Give every rank the first one's weights and buffers."""
    if ranks.size > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)


def share_buffers(model: nn.Module, ranks: Ranks) -> None:
    """Give every rank the first one's buffers: running statistics, the only ones that change."""
    if ranks.size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def whole_tensor(tensor: Tensor) -> Tensor:
    """A tensor as one process would hold it; where it is sharded, all ranks must call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """A model's state as one process holds it; where it is sharded, all ranks must call this together."""
    return {name: whole_tensor(tensor) for name, tensor in model.state_dict().items()}


def average_gradients(module: nn.Module, ranks: Ranks) -> None:
    """Make the gradients of a module that DDP and FSDP do not know those of the world's batch: their mean."""
    if ranks.size == 1:
        return
    for parameter in module.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= ranks.size


def whole_model(model: CLOC, ranks: Ranks) -> CLOC:
    """The model itself, or where it is sharded a whole copy on the CPU, which the first rank alone fills."""
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return model
    state = {}
    for name, tensor in model.state_dict().items():  # one at a time: the GPU never holds the whole model
        whole = whole_tensor(tensor)
        if ranks.is_first:
            state[name] = whole.cpu()
    config: Any = model._hub_mixin_config
    copy = CLOC(**config)
    if ranks.is_first:
        copy.load_state_dict(merged(state))
    return copy
