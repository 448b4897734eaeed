"""A folder of transformers' `SiglipModel`, for towers of SigLIP's kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from open_cloc.errors import UserError
from open_cloc.export.compare import Difference, Inputs, compare
from open_cloc.export.hugging_face import (
    image_features,
    squashing,
    text_features,
    towers_at_canvas_size,
)
from open_cloc.model.cloc import CLOC
from open_cloc.model.foreign import quietly
from open_cloc.model.towers.siglip import (
    reason_against_siglip_text,
    reason_against_siglip_vision,
    siglip_text_config,
    siglip_vision_config,
    to_siglip,
)


def export_siglip(model: CLOC, folder: Path, inputs: Inputs) -> list[Difference]:
    """Write a folder of `SiglipModel` with its image processor and the model's own tokenizer.

    Raises:
        UserError: If transformers' classes cannot hold a tower; says why.
        RunError: If transformers computes something else.
    """
    from transformers import SiglipConfig, SiglipModel

    towers: Any = model.clip
    reason = reason_against_siglip_vision(towers.visual) or reason_against_siglip_text(
        towers.text, model.embed_dim
    )
    if reason:
        raise UserError(f"cannot export to siglip: {reason}; open-clip holds any tower")
    clip = towers_at_canvas_size(model)
    config = SiglipConfig(
        vision_config=siglip_vision_config(clip.visual), text_config=siglip_text_config(clip.text)
    )
    theirs = SiglipModel(config).eval()
    theirs.load_state_dict(to_siglip(clip))
    with quietly():
        theirs.save_pretrained(folder)
    siglip_image_processor(model).save_pretrained(folder)
    tokenizer: Any = model.tokenize.raw
    if hasattr(tokenizer, "tokenizer"):  # a Hugging Face one; CLIP's own has no folder of its own
        tokenizer.tokenizer.save_pretrained(folder)
    return _compare(model, folder, inputs)


def siglip_image_processor(model: CLOC) -> Any:
    """The nearest `SiglipImageProcessor`, which squashes pictures onto the canvas as CLIP's does."""
    from transformers import SiglipImageProcessor

    return SiglipImageProcessor(**squashing(model))


@quietly()
@torch.inference_mode()
def _compare(model: CLOC, folder: Path, inputs: Inputs) -> list[Difference]:
    from transformers import SiglipImageProcessor, SiglipModel

    theirs = SiglipModel.from_pretrained(folder).eval()
    texts = {"input_ids": model.tokenizer(inputs.texts)}
    resized = SiglipImageProcessor.from_pretrained(folder)(inputs.pictures, return_tensors="pt")
    return [
        compare("pictures, same pixels", image_features(theirs, inputs.pixels), inputs.images),
        compare("texts, same tokens", text_features(theirs, texts), inputs.text_features),
        compare(
            "pictures, resized by it", image_features(theirs, resized["pixel_values"]), inputs.images, None
        ),
    ]
