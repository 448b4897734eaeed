"""From a batch to what the objectives of a run need of it, and no more.

Shapes: B images, R regions per image, N image tokens, U distinct texts, T text tokens, D shared embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from open_cloc.model.text_buckets import fill, passes_on, split_by_length
from open_cloc.model.towers import image_tower_of, text_tower_of
from open_cloc.model.towers.tower import ImageTower, TextTokens, TowerOutput
from open_cloc.samples import Features, RegionBatch, View

REGIONAL = ("region_features", "pred_boxes")  # what needs the Prompter
PLACES = "place_features"
NOWHERE: Mapping[str, Any] = {}
TEXT_TOKENS = ("text_tokens", "text_token_mask")
IMAGE_TOKENS = ("image_tokens", "image_token_mask")


class Encoder(Protocol):
    """What is asked of the model; `CLOC` has it."""

    clip: Any
    tokenize: Any

    def normalize_pixels(self, images: Tensor) -> Tensor: ...
    def encode_image(self, images: Tensor, content_boxes: Tensor | None = None) -> Any: ...
    def encode_text(self, token_ids: Tensor) -> Tensor: ...
    def encode_regions(self, state: Any, prompts: Mapping[str, Tensor]) -> Tensor: ...
    def ground(self, state: Any, text_features: Tensor) -> Tensor: ...
    def tokens_in_picture(self, grid_size: tuple[int, int], content_boxes: Tensor) -> Tensor: ...


def compute_features(
    model: Encoder,
    batch: RegionBatch,
    needs: Collection[str],
    after_texts: Callable[[Features], object] | None = None,
) -> Features:
    """Everything of a batch that is asked for, by path; each picture and each distinct text passes once."""
    unique, tokens = _distinct_texts(model, batch, needs)  # (U, D)
    region_text = unique[batch.region_text_index]  # (B, R, D)
    features = Features(
        text_features=unique[batch.caption_index.clamp(min=0)],
        caption_mask=batch.caption_index >= 0,
        region_text_features=region_text,
        region_mask=batch.region_mask,
        region_text_ids=batch.region_text_ids,
        boxes=batch.boxes,
        logit_scale=model.clip.logit_scale.exp(),
        logit_bias=model.clip.logit_bias,
        texts={role: unique[index.clamp(min=0)] for role, index in batch.role_index.items()},
        text_masks={role: index >= 0 for role, index in batch.role_index.items()},
    )
    if tokens is not None:
        features = replace(features, **_caption_tokens(tokens, batch.caption_index))
    if after_texts is not None:
        after_texts(features)
    wanted = sorted({path.split(".")[1] for path in needs if path.startswith("views.")})
    places = {name: batch.views[name].places for name in wanted if f"views.{name}.{PLACES}" in needs}
    features, of_places = _with_image(
        model, features, batch.images, batch.content_boxes, batch.boxes, needs, places, _instead(batch)
    )
    views = {name: _of_view(model, batch.views[name], features, needs, name) for name in wanted}
    views |= {name: replace(views[name], place_features=made) for name, made in of_places.items()}
    return replace(features, views=views)


def _with_image(
    model: Encoder,
    features: Features,
    images: Tensor,
    content_boxes: Tensor,
    boxes: Tensor,
    needs: Collection[str],
    places: Mapping[str, Tensor] = NOWHERE,
    instead: Mapping[str, tuple[Tensor, Tensor]] = NOWHERE,
) -> tuple[Features, dict[str, Tensor]]:
    """The same features with those of pictures (B, 3, H, W) and of boxes (B, R, 4) in them.

    And those of places (B, V, 4) by name, which are boxes too: (B, V, D). Some regions are asked for by
    other prompts instead, as `_instead` gives them.
    """
    if not places and (not boxes.shape[1] or not any(name in needs for name in REGIONAL)):
        # Plain CLIP, at plain CLIP's price.
        output = image_tower_of(model.clip.visual).encode(model.normalize_pixels(images))
        made: dict[str, Any] = {"image_features": output.image_features}
        if not boxes.shape[1]:
            made |= {"region_features": features.region_text_features, "pred_boxes": boxes}
        return replace(features, **made, **_image_tokens(model, output, content_boxes, needs)), {}
    state = model.encode_image(images, content_boxes)
    made = {"image_features": state.image_features}
    if "region_features" in needs:
        made["region_features"] = _embedded(model, state, boxes, instead)
    if "pred_boxes" in needs:
        (phrases,) = features.take("region_text_features")
        made["pred_boxes"] = model.ground(state, phrases)
    of_places = {name: model.encode_regions(state, {"box": own}) for name, own in places.items()}
    return replace(features, **made, **_image_tokens(model, state, content_boxes, needs)), of_places


def _instead(batch: RegionBatch) -> dict[str, tuple[Tensor, Tensor]]:
    """Prompts of other kinds in place of boxes: by kind, which regions (B, R) ask so, and with what."""
    found = {}
    if batch.points is not None:
        found["points"] = ~batch.points[:, :, 0, 0].isnan(), batch.points.nan_to_num(0.5)
    if batch.masks is not None:
        found["mask"] = (batch.masks != 0).flatten(2).any(-1), batch.masks.float() / 255
    if batch.box_sets is not None:
        found["boxes"] = ~batch.box_sets[:, :, 0, 0].isnan(), batch.box_sets.nan_to_num(0.5)
    return found


def _embedded(
    model: Encoder, state: Any, boxes: Tensor, instead: Mapping[str, tuple[Tensor, Tensor]]
) -> Tensor:
    """Regions (B, R, D) by their boxes or, where they are asked for so, by prompts of other kinds."""
    features = model.encode_regions(state, {"box": boxes})
    for kind, (asked, prompts) in instead.items():
        features = torch.where(asked[..., None], model.encode_regions(state, {kind: prompts}), features)
    return features


def _image_tokens(
    model: Encoder, output: TowerOutput, content_boxes: Tensor, needs: Collection[str]
) -> dict[str, Any]:
    if not any(name in needs for name in IMAGE_TOKENS):
        return {}
    return {
        "image_tokens": project_tokens(image_tower_of(model.clip.visual), output.image_tokens),
        "image_token_mask": model.tokens_in_picture(output.grid_size, content_boxes),
    }


def project_tokens(tower: ImageTower, tokens: Tensor) -> Tensor:
    """Image tokens (B, N, C) -> (B, N, D): each through the tower's own pooling and projection, alone."""
    return tower.project_pooled(tokens.flatten(0, 1)[:, None]).unflatten(0, tokens.shape[:2])


def _of_view(model: Encoder, view: View, features: Features, needs: Collection[str], name: str) -> Features:
    """Features of further crops, each field with a second axis V."""
    prefix = f"views.{name}."
    own = {path.removeprefix(prefix) for path in needs if path.startswith(prefix)}
    count = view.images.shape[1]
    flat = Features(region_text_features=_repeated(features.region_text_features, count))
    made, _ = _with_image(
        model,
        flat,
        view.images.flatten(0, 1),
        view.content_boxes.flatten(0, 1),
        view.boxes.flatten(0, 1),
        own,
    )
    tensors = {
        path: tensor.unflatten(0, (-1, count)) for path, tensor in made.tensors().items() if path in own
    }
    return Features(**(tensors | {"boxes": view.boxes, "region_mask": view.region_mask}))


def _repeated(tensor: Tensor | None, count: int) -> Tensor | None:
    return None if tensor is None else tensor.repeat_interleave(count, dim=0)


def _distinct_texts(
    model: Encoder, batch: RegionBatch, needs: Collection[str]
) -> tuple[Tensor, TextTokens | None]:
    """(U, D), and their tokens where they are needed."""
    if any(name in needs for name in TEXT_TOKENS):
        tokens = text_tower_of(model.clip.text).encode_tokens(batch.texts)
        return tokens.features, tokens
    return encode_distinct_texts(model, batch), None


def encode_distinct_texts(model: Encoder, batch: RegionBatch) -> Tensor:
    """(U, D), of one pass over packed texts; else texts of like length together."""
    tower = text_tower_of(model.clip.text)
    if batch.packing is not None and tower.packs:
        return tower.encode_packed(batch.texts, batch.packing)
    if not batch.text_lengths:
        return model.encode_text(batch.texts)
    features, start = [], 0
    passes, read = passes_on(batch.texts.device), model.tokenize
    for bucket in split_by_length(batch.text_lengths, passes, read.context_length):
        texts = fill(batch.texts[start:], bucket, read.pad_id)  # an empty bucket makes its pass too
        features.append(model.encode_text(texts)[: bucket.real])
        start += bucket.real
    return torch.cat(features)


def _caption_tokens(tokens: TextTokens, caption_index: Tensor) -> dict[str, Any]:
    rows = caption_index.clamp(min=0)
    return {
        "text_tokens": tokens.tokens[rows],
        "text_token_mask": tokens.mask[rows] & (caption_index >= 0)[:, None],
    }
