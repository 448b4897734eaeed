"""AdamW's parameter groups, the learning-rate schedule, and what stays frozen."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import nn

from open_cloc.model.cloc import CLOC
from open_cloc.training.recipe import OptimConfig

LAYER = re.compile(r"\.(?:resblocks|blocks|layer|layers|stages)\.(\d+)\.")
FIRST = re.compile(
    r"(conv1|patch_embed|class_embedding|positional_embedding|token_embedding|embeddings|stem)"
)


def lock_towers(model: CLOC, config: OptimConfig) -> None:
    """Freeze what the config says; call again after `model.train()`, which wakes frozen batch norms."""
    visual, text = model.clip.visual, model.clip.text
    if config.lock_image:
        _freeze(getattr(visual, "trunk", visual))
    if config.lock_text:
        _freeze(text.transformer if hasattr(text, "pooler") else text)


def _freeze(module: nn.Module) -> None:
    module.requires_grad_(False)
    module.eval()


def build_optimizer(model: CLOC, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that learn, each group with its `peak_lr`."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    depths = {tower: _depth(getattr(model.clip, tower)) for tower in ("visual", "text")}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = config.weight_decay if parameter.ndim > 1 and "embedding" not in name else 0.0
        if name.startswith("prompter."):
            lr = config.prompter_lr or config.lr
        else:
            lr = config.lr * config.layer_decay ** _distance_from_top(name, depths)
        groups[(lr, decay)].append(parameter)
    if not groups:
        raise ValueError("nothing to train: every parameter is frozen")
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": lr, "peak_lr": lr, "weight_decay": decay}
            for (lr, decay), parameters in groups.items()
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
            match = LAYER.search(name)
            if match:
                return depth - int(match[1])
            return depth + 1 if FIRST.search(name) else 0
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


def clamp_logit_scale(model: CLOC, largest: float) -> None:
    """Keep the learned scale in [1, largest], as CLIP does."""
    with torch.no_grad():
        model.clip.logit_scale.clamp_(0, math.log(largest))
