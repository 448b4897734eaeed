"""AdamW's parameter groups, the learning-rate schedule, and what stays frozen."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from open_cloc.data.collate import Prepared, collate
from open_cloc.errors import UserError
from open_cloc.model.cloc import CLOC
from open_cloc.objectives import LossConfig, total_loss
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
# Matrices that are positions or tokens rather than maps.
NOT_DECAYED = re.compile(r"embedding|pos_embed|cls_token|reg_token|relative_position_bias|\.corner$")


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


def freeze_unreached(model: CLOC, loss: LossConfig, num_regions: int) -> None:
    """Freeze parameters that no loss reaches, such as the Prompter's of a run without regions.

    Found by one backward pass of two blank images. DDP waits in every step for a gradient of each parameter
    that learns; one that never gets any would make it wait for ever.
    """
    blank = np.zeros((*model.preprocess.image_size, 3), np.uint8)
    boxes = np.tile(np.array([0.25, 0.25, 0.75, 0.75], np.float32), (num_regions, 1))
    samples = [
        Prepared("", blank, (0.0, 0.0, 1.0, 1.0), caption, boxes, [caption] * num_regions)
        for caption in ("a", "b")
    ]
    batch = collate(samples, num_regions, model.tokenize, {}).to(model.device)
    modes = {module: module.training for module in model.modules()}
    model.eval()  # no statistics, no random numbers
    total_loss(model(batch), loss)["total"].backward()
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.requires_grad_(False)
    model.zero_grad()
    for module, training in modes.items():
        module.training = training


def build_optimizer(model: CLOC, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that learn, each group with its `peak_lr`."""
    groups: dict[tuple[float, float], dict[str, nn.Parameter]] = defaultdict(dict)
    depths = {tower: _depth(getattr(model.clip, tower)) for tower in ("visual", "text")}
    for name, parameter in model.named_parameters():
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


def clip_gradient(model: CLOC, largest: float) -> Tensor:
    """Scale the gradients to a norm of at most `largest` (0: leave them); the norm before, over all ranks."""
    norm = clip_grad_norm_(model.parameters(), largest or float("inf"))
    return whole_tensor(norm)  # under FSDP each rank knows its shards' share


def clamp_logit_scale(model: CLOC, largest: float) -> None:
    """Keep the learned scale in [1, largest], as CLIP does."""
    with torch.no_grad():
        model.clip.logit_scale.clamp_(0, math.log(largest))
