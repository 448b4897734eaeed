"""A folder of transformers' `CLIPModel`, and what other exports share with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from open_cloc.errors import UserError
from open_cloc.export.compare import Difference, Inputs, compare, unit
from open_cloc.export.open_clip import at_canvas_size
from open_cloc.model.cloc import CLOC
from open_cloc.model.foreign import quietly
from open_cloc.model.towers.build import build_clip
from open_cloc.model.towers.hugging_face import (
    reason_against_text,
    reason_against_vision,
    text_config,
    to_hugging_face,
    vision_config,
)
from open_cloc.model.towers.siglip import is_siglip_vision

# Start and end of a text, as open_clip and as transformers write them.
MARKS = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}


def export_clip(model: CLOC, folder: Path, inputs: Inputs) -> list[Difference]:
    """Write a folder of `CLIPModel` with its processor; `CLIPVisionModelWithProjection` opens it too.

    Raises:
        UserError: If transformers' classes cannot hold a tower; says why.
        RunError: If transformers computes something else.
    """
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor

    clip = representable(model, "clip", model.clip.visual, model.clip.text)
    if not isinstance(model.tokenize.raw, SimpleTokenizer):
        raise UserError("cannot export to clip: its tokenizer is not CLIP's own")
    vision, text = vision_config(clip.visual, model.embed_dim), text_config(clip.text, model.embed_dim)
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=model.embed_dim)
    theirs = CLIPModel(config).eval()
    theirs.load_state_dict(to_hugging_face(clip))
    with quietly():
        theirs.save_pretrained(folder)
    processor = CLIPProcessor(image_processor(model), clip_tokenizer(model))
    processor.save_pretrained(folder)
    return _compare_clip(folder, inputs)


def representable(model: CLOC, target: str, visual: Any, text: Any) -> Any:
    """Towers of CLIP's kind at the canvas' size.

    Raises:
        UserError: If transformers' classes cannot hold them.
    """
    reason = reason_against_vision(visual) or (text is not None and reason_against_text(text)) or ""
    if reason:
        other = "take siglip" if is_siglip_vision(visual) else "open-clip holds any tower"
        raise UserError(f"cannot export to {target}: {reason}; {other}")
    clip = towers_at_canvas_size(model)
    reason = reason_against_vision(clip.visual)  # of another size its grid may not be square
    if reason:
        raise UserError(f"cannot export to {target}: {reason}")
    return clip


def towers_at_canvas_size(model: CLOC) -> Any:
    """open_clip's model with the weights, its image tower built for the canvas.

    Raises:
        UserError: If a timm tower was built for another size.
    """
    cfg, state = at_canvas_size(model)
    clip: Any = build_clip(cfg)
    shapes = {name: tensor.shape for name, tensor in clip.state_dict().items()}
    clip.load_state_dict({name: tensor.reshape(shapes[name]) for name, tensor in state.items()})
    return clip.eval()


def image_processor(model: CLOC) -> Any:
    """The nearest `CLIPImageProcessor`: it squashes pictures onto the canvas, since it knows no padding."""
    from transformers import CLIPImageProcessor

    height, width = model.preprocess.image_size
    crop = {"crop_size": {"height": height, "width": width}, "do_center_crop": False}
    return CLIPImageProcessor(**squashing(model), **crop)


def squashing(model: CLOC) -> dict[str, Any]:
    """What image processors of transformers take in common to squash pictures onto the canvas."""
    from transformers.image_utils import PILImageResampling

    canvas = model.preprocess
    height, width = canvas.image_size
    return {
        "size": {"height": height, "width": width},
        "resample": int(PILImageResampling[canvas.interpolation.upper()]),
        "image_mean": list(canvas.mean),
        "image_std": list(canvas.std),
    }


def clip_tokenizer(model: CLOC) -> Any:
    """CLIP's tokenizer as transformers has it, of the vocabulary that open_clip brings."""
    from transformers import CLIPTokenizer

    raw: Any = model.tokenize.raw
    vocab = {MARKS.get(token, token): number for token, number in raw.encoder.items()}
    merges = sorted(raw.bpe_ranks, key=raw.bpe_ranks.get)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=model.tokenize.context_length)


@quietly()
@torch.inference_mode()
def _compare_clip(folder: Path, inputs: Inputs) -> list[Difference]:
    from transformers import CLIPModel, CLIPProcessor, CLIPVisionModelWithProjection

    theirs = CLIPModel.from_pretrained(folder).eval()
    processor = CLIPProcessor.from_pretrained(folder)
    vision = CLIPVisionModelWithProjection.from_pretrained(folder).eval()
    texts = processor(text=inputs.texts, padding=True, truncation=True, return_tensors="pt")
    resized = processor(images=inputs.pictures, return_tensors="pt")["pixel_values"]
    return [
        compare("pictures, same pixels", image_features(theirs, inputs.pixels), inputs.images),
        compare("pictures, vision model alone", unit(vision(inputs.pixels).image_embeds), inputs.images),
        compare("texts, by its processor", text_features(theirs, texts), inputs.text_features),
        compare("pictures, resized by it", image_features(theirs, resized), inputs.images, None),
    ]


def image_features(theirs: Any, pixels: Tensor) -> Tensor:
    """Of unit length, whatever this version of transformers returns."""
    found = theirs.get_image_features(pixel_values=pixels)
    return unit(getattr(found, "pooler_output", found))


def text_features(theirs: Any, texts: Any) -> Tensor:
    """Of unit length, whatever this version of transformers returns."""
    found = theirs.get_text_features(**texts)
    return unit(getattr(found, "pooler_output", found))
