"""A folder of the image tower alone, as LLaVA takes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from open_cloc.errors import UserError
from open_cloc.export.compare import Difference, Inputs, compare
from open_cloc.export.hugging_face import image_processor, representable, towers_at_canvas_size
from open_cloc.export.siglip import siglip_image_processor
from open_cloc.model.cloc import CLOC
from open_cloc.model.foreign import quietly
from open_cloc.model.towers.hugging_face import to_hugging_face, vision_config
from open_cloc.model.towers.siglip import (
    is_siglip_vision,
    reason_against_siglip_vision,
    siglip_vision_config,
    vision_to_siglip,
)

# LLaVA-NeXT's own code takes folders by their names.
LLAVA_NAMES = ("clip", "siglip")
LLAVA_LAYER = -2
VISION = "vision_model."


class _Tower(NamedTuple):
    """An image tower as transformers has it.

    Attributes:
        visual: The tower at the canvas' size.
        before: Its module that gives the tokens before the last block.
        theirs: transformers' class, made of its config.
        state: Weights of the whole model by transformers' names.
        processor: What resizes pictures.
    """

    visual: Any
    before: Any
    theirs: Any
    state: Mapping[str, Tensor]
    processor: Any


def export_llava(model: CLOC, folder: Path, inputs: Inputs) -> list[Difference]:
    """Write a folder of `CLIPVisionModel`, which LLaVA-1.5, LLaVA-NeXT and Ferret take as their tower.

    A tower of SigLIP's kind becomes a `SiglipVisionModel`, as LLaVA-NeXT and LLaVA-OneVision take it.

    Raises:
        UserError: If the class cannot hold the tower, or LLaVA-NeXT would not take the folder's name.
        RunError: If transformers computes something else.
    """
    if not any(name in folder.name.lower() for name in LLAVA_NAMES):
        raise UserError(
            f"LLaVA-NeXT takes no folder whose name has neither clip nor siglip in it; got {folder.name}, "
            f"{folder.name}-clip would do"
        )
    tower = _siglip(model) if is_siglip_vision(model.clip.visual) else _clip(model)
    state = {
        name.removeprefix(VISION): tensor for name, tensor in tower.state.items() if name.startswith(VISION)
    }
    tower.theirs.load_state_dict(state)
    with quietly():
        tower.theirs.save_pretrained(folder)
    tower.processor.save_pretrained(folder)
    return _compare(tower, folder, inputs)


def _clip(model: CLOC) -> _Tower:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    clip = representable(model, "llava", model.clip.visual, None)
    theirs = CLIPVisionModel(CLIPVisionConfig(**vision_config(clip.visual, model.embed_dim)))
    blocks = clip.visual.transformer.resblocks
    # Behind block 0 of one alone there is no layer before: that is what the first norm gives.
    before = blocks[LLAVA_LAYER] if len(blocks) > 1 else clip.visual.ln_pre
    return _Tower(clip.visual, before, theirs, to_hugging_face(clip), image_processor(model))


def _siglip(model: CLOC) -> _Tower:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    reason = reason_against_siglip_vision(model.clip.visual)
    if reason:
        raise UserError(f"cannot export to llava: {reason}; open-clip holds any tower")
    clip = towers_at_canvas_size(model)
    theirs = SiglipVisionModel(SiglipVisionConfig(**siglip_vision_config(clip.visual)))
    trunk = clip.visual.trunk
    before = trunk.blocks[LLAVA_LAYER] if len(trunk.blocks) > 1 else trunk.norm_pre
    return _Tower(clip.visual, before, theirs, vision_to_siglip(clip), siglip_image_processor(model))


@quietly()
@torch.inference_mode()
def _compare(tower: _Tower, folder: Path, inputs: Inputs) -> list[Difference]:
    """LLaVA reads the tokens before the last block."""
    theirs = type(tower.theirs).from_pretrained(folder).eval()
    kept: list[Tensor] = []
    hook = tower.before.register_forward_hook(lambda module, given, made: kept.append(made))
    tower.visual(inputs.pixels)
    hook.remove()
    found = theirs(inputs.pixels, output_hidden_states=True).hidden_states[LLAVA_LAYER]
    scale = kept[0].abs().max()
    return [compare("tokens of hidden_states[-2], of the largest", found / scale, kept[0] / scale)]
