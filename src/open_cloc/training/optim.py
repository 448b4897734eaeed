"""AdamW's parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from open_cloc.errors import UserError
from open_cloc.model.cloc import CLOC
from open_cloc.training.parallelize import whole_tensor
from open_cloc.training.recipe import OptimConfig

# A parameter's place in its tower: `resblocks.3.` (open_clip), `blocks.3.`, `stages.3.`, `layer3.` (timm),
# `layer.3.`, `block.3.` (Hugging Face). The first match counts: a stage, not the block inside it.
LAYER = re.compile(r"\.(?:resblocks|blocks?|layers?|stages)\.?(\d+)\.")
# What comes before the first layer.
FIRST = re.compile(
    r"^(?:(?:conv|bn)\d\.|(?:class|positional|token)_embedding|cls_emb|ln_pre\."
    r"|trunk\.(?:conv1|conv_stem|bn1|stem|patch_embed|pos_embed|cls_token|reg_token|norm_pre)"
    r"|transformer\.(?:\w+\.)?\w*embed)"
)
# Of the names of objectives' own parameters, beside the model's.
OBJECTIVES_PREFIX = "objectives."
# Matrices that are positions or tokens rather than maps.
NOT_DECAYED = re.compile(r"embedding|pos_embed|cls_token|reg_token|relative_position_bias|\.corner$")


def build_optimizer(model: CLOC, objectives: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over what learns of the model and of the objectives, each group with its `peak_lr`."""
    groups: dict[tuple[float, float], dict[str, nn.Parameter]] = defaultdict(dict)
    depths = {tower: _depth(getattr(model.clip, tower)) for tower in ("visual", "text")}
    own = {f"{OBJECTIVES_PREFIX}{name}": parameter for name, parameter in objectives.named_parameters()}
    for name, parameter in [*model.named_parameters(), *own.items()]:
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and not NOT_DECAYED.search(name)
        if name.startswith("prompter."):
            lr = config.prompter_lr or config.lr
        else:
            lr = config.lr * config.layer_decay ** _distance_from_top(name, depths)
        groups[(lr, config.weight_decay if decays else 0.0)][name] = parameter
    if not groups:
        raise UserError("nothing to train: every parameter is frozen")
    return torch.optim.AdamW(
        [
            {
                "params": list(named.values()),
                "names": list(named),
                "lr": lr,
                "peak_lr": lr,
                "weight_decay": decay,
            }
            for (lr, decay), named in groups.items()
        ],
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def _layers(tower: nn.Module) -> Iterator[int]:
    for name, _ in tower.named_parameters():
        match = LAYER.search(f".{name}")
        if match:
            yield int(match[1])


def _depth(tower: nn.Module) -> int:
    return max(_layers(tower), default=-1) + 1


def _distance_from_top(name: str, depths: dict[str, int]) -> int:
    """How many layers lie between a parameter and its tower's output; 0 outside of the towers."""
    for tower, depth in depths.items():
        if name.startswith(f"clip.{tower}."):
            name = name.removeprefix(f"clip.{tower}.")
            match = LAYER.search(f".{name}")
            if match:
                return depth - int(match[1])
            return depth + 1 if FIRST.match(name) else 0
    return 0


def learning_rate_factor(step: int, num_steps: int, warmup: int) -> float:
    """Linear warm-up from 0 to 1 over `warmup` steps, then a cosine to 0 at `num_steps`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group to a share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def clip_gradient(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scale the gradients to a norm of at most `largest` (0: leave them); the norm before, over all ranks."""
    norm = clip_grad_norm_(parameters, largest or float("inf"))
    return whole_tensor(norm)  # under FSDP each rank knows its shards' share


def update_if_finite(
    optimizer: torch.optim.Optimizer,
    values: Mapping[str, Tensor],
    statistics: Sequence[tuple[Tensor, Tensor]] = (),
) -> None:
    """One step of the optimizer if all values are finite, else none; the host does not wait to know.

    Args:
        optimizer: A fused AdamW.
        values: Losses and the gradient's norm.
        statistics: Buffers that the step's forward pass changed, each with its old value to go back to.
    """
    finite = torch.stack([value.float() for value in values.values()]).isfinite().all()
    # What torch's GradScaler sets as well: fused optimizers look at it on the device.
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    optimizer.step()
    for buffer, old in statistics:
        buffer.copy_(torch.where(finite, buffer, old))


def clamp_logit_scale(model: CLOC, largest: float) -> None:
    """Keep the learned scale in [1, largest], as CLIP does."""
    with torch.no_grad():
        model.clip.logit_scale.clamp_(0, math.log(largest))
