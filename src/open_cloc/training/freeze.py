"""What stays as it is: locked towers, and parameters that no objective of the run reaches."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from open_cloc.model.adapters import is_adapter
from open_cloc.model.cloc import CLOC
from open_cloc.objectives import Objectives
from open_cloc.samples import RegionBatch
from open_cloc.training.recipe import OptimConfig


def lock_towers(model: CLOC, config: OptimConfig) -> None:
    """Freeze what the config says; call again after `model.train()`, which wakes frozen batch norms.

    Adapters beside frozen weights learn.
    """
    for tower, locked in lockable(model, config):
        if locked or config.lora_rank:
            for name, parameter in tower.named_parameters():
                if not is_adapter(name):
                    parameter.requires_grad_(False)
            # Where adapters learn, dropout and recomputation go on; statistics stay.
            still = [tower] if locked else [m for m in tower.modules() if isinstance(m, _BatchNorm)]
            for module in still:
                module.eval()


def lockable(model: CLOC, config: OptimConfig) -> list[tuple[nn.Module, bool]]:
    """What of each tower a lock freezes, a projection of its own left out, and whether it is locked."""
    visual, text = model.clip.visual, model.clip.text
    return [
        (getattr(visual, "trunk", visual), config.lock_image),
        (text.transformer if hasattr(text, "pooler") else text, config.lock_text),
    ]


def freeze_unreached(model: CLOC, objectives: Objectives, num_regions: int) -> None:
    """Freeze parameters that nothing the objectives need depends on, such as the Prompter's of a plain CLIP.

    Found by one backward pass from the features that they need of two blank images. DDP waits in every step
    for a gradient of each parameter that learns; one that never gets any would make it wait for ever.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()  # no statistics, no random numbers
    batch = blank_batch(model, num_regions, objectives)
    made = model(batch, objectives.needs).tensors()
    reached = [made[path] for path in sorted(objectives.needs) if path in made]
    torch.stack([tensor.sum() for tensor in reached if tensor.requires_grad]).sum().backward()
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.requires_grad_(False)
    model.zero_grad()
    for module, training in modes.items():
        module.training = training


def blank_batch(model: CLOC, num_regions: int, objectives: Objectives) -> RegionBatch:
    """Two black pictures that have all that the objectives need."""
    height, width = model.preprocess.image_size
    index = torch.tensor([0, 1])
    mask = torch.ones(2, num_regions, dtype=torch.bool)
    box = torch.tensor([0.25, 0.25, 0.75, 0.75])
    region_index = index[:, None].expand(2, num_regions)
    batch = RegionBatch(
        images=torch.zeros(2, 3, height, width, dtype=torch.uint8),
        content_boxes=torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2),
        texts=model.tokenize(["a", "b"]),
        caption_index=index,
        boxes=box.expand(2, num_regions, 4),
        region_text_index=region_index,
        region_mask=mask,
        region_text_ids=region_index,
        role_index=objectives.blank_roles(region_index),
        views=objectives.blank_views(box.expand(2, num_regions, 4), (height, width)),
    )
    return batch.to(model.device)
