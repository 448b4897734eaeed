"""A folder that open_clip opens as `local-dir:FOLDER`, and all that is built on open_clip."""

from __future__ import annotations

import json
import logging
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from safetensors.torch import save_file
from torch import Tensor

from open_cloc.errors import UserError
from open_cloc.export.compare import Difference, Inputs, compare, unit
from open_cloc.files import write_text, write_whole
from open_cloc.model.cloc import CLOC
from open_cloc.model.towers.folder import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS
from open_cloc.model.towers.positions import resize_positions

logger = logging.getLogger(__name__)


def export_open_clip(model: CLOC, folder: Path, inputs: Inputs) -> list[Difference]:
    """Write `open_clip_config.json` and `open_clip_model.safetensors`, and open them with open_clip.

    Raises:
        UserError: If the towers cannot be built at the canvas' size.
        RunError: If open_clip computes something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model_cfg, state = at_canvas_size(model)
    text_cfg = model_cfg["text_cfg"]
    if text_cfg.get("hf_model_name"):
        # open_clip asks the hub for any other name.
        model.clip.text.config.save_pretrained(folder)
        text_cfg["hf_model_name"] = str(folder.resolve())
        logger.warning("the folder holds its own path, for open_clip to find the text tower: keep it there")
    if text_cfg.get("hf_tokenizer_name"):
        tokenizer: Any = model.tokenize.raw
        tokenizer.tokenizer.save_pretrained(folder)
        text_cfg["hf_tokenizer_name"] = str(folder.resolve())
    config = {"model_cfg": {**model_cfg, "custom_text": True}, "preprocess_cfg": preprocess_cfg(model)}
    with write_whole(folder / OPEN_CLIP_WEIGHTS[0]) as part:
        save_file(state, part, metadata={"format": "pt"})
    write_text(folder / OPEN_CLIP_CONFIG, json.dumps(config, indent=2) + "\n")
    return _compare(folder, inputs)


def preprocess_cfg(model: CLOC) -> dict[str, Any]:
    """How pictures become the tower's input, in open_clip's words."""
    canvas = model.preprocess
    return {
        "size": list(canvas.image_size),
        "mode": "RGB",
        "mean": list(canvas.mean),
        "std": list(canvas.std),
        "interpolation": canvas.interpolation,
        "resize_mode": canvas.resize_mode,
        "fill_color": list(canvas.fill),
    }


def at_canvas_size(model: CLOC) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """open_clip's config and weights, with position embeddings of the canvas' size.

    Raises:
        UserError: If a timm tower was built for another size.
    """
    cfg, size_hw = deepcopy(model.model_cfg), model.preprocess.image_size
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.clip.state_dict().items()}
    for name in ("logit_scale", "logit_bias"):  # scalars to open_clip
        if name in state:
            state[name] = state[name].reshape(())
    visual: Any = model.clip.visual
    built_hw = _built_hw(visual, cfg["vision_cfg"].get("image_size", 224))
    if built_hw == tuple(size_hw):
        return cfg, state
    if not isinstance(visual, VisionTransformer):
        raise UserError(
            f"open_clip builds this image tower for {built_hw[1]} x {built_hw[0]} pixels alone, and the "
            f"model's canvas has {size_hw[1]} x {size_hw[0]}: train at the tower's own size"
        )
    cfg["vision_cfg"]["image_size"] = size_hw[0] if size_hw[0] == size_hw[1] else list(size_hw)
    grid = (size_hw[0] // visual.patch_size[0], size_hw[1] // visual.patch_size[1])
    positions = resize_positions(visual.positional_embedding.detach(), visual.grid_size, grid)
    state["visual.positional_embedding"] = positions.cpu().contiguous()
    return cfg, state


def _built_hw(visual: Any, image_size: Any) -> tuple[int, int]:
    """(height, width) that open_clip builds a tower for: timm's say it themselves, if they have one."""
    own = getattr(getattr(getattr(visual, "trunk", None), "patch_embed", None), "img_size", None)
    size = own or image_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return height, width


@torch.inference_mode()
def _compare(folder: Path, inputs: Inputs) -> list[Difference]:
    import open_clip

    name = f"local-dir:{folder}"
    theirs, _, preprocess = open_clip.create_model_and_transforms(name)
    tokenize = open_clip.get_tokenizer(name)
    theirs.eval()
    resized = torch.stack([preprocess(picture) for picture in inputs.pictures])
    images, again = (unit(theirs.encode_image(pixels)) for pixels in (inputs.pixels, resized))
    texts = unit(theirs.encode_text(tokenize(inputs.texts)))
    return [
        compare("pictures, same pixels", images, inputs.images),
        compare("texts, by its tokenizer", texts, inputs.text_features),
        compare("pictures, resized by it", again, inputs.images, None),
    ]
