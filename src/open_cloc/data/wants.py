"""Texts with roles and further crops: what some objectives want of a sample beside a caption and regions.

Shapes: B samples, R regions, K texts of a role, V crops of a view, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from open_cloc.canvas import CanvasConfig, Geometry
from open_cloc.data.augment import AugmentConfig, random_crop, visible_boxes
from open_cloc.samples import OF_REGIONS, RegionSample, Text, View, ViewConfig


class PreparedView(NamedTuple):
    """Crops of one sample."""

    images: np.ndarray  # (V, H, W, 3) uint8
    content_boxes: np.ndarray  # (V, 4)
    boxes: np.ndarray  # (V, <= R, 4) float32
    visible: np.ndarray  # (V, <= R) bool
    places: np.ndarray  # (V, 4) float32


def draw_texts(
    sample: RegionSample,
    regions: Sequence[int],
    roles: Mapping[str, int],
    clean: Callable[[str], str],
    rng: np.random.Generator,
) -> dict[str, list[list[str]]]:
    """Texts by role: one list for the picture or, under `regions.ROLE`, one for each of the drawn regions."""
    drawn = {}
    for role, count in roles.items():
        name = role.removeprefix(OF_REGIONS)
        pools = [sample.texts] if name == role else [sample.regions[row].texts for row in regions]
        drawn[role] = [_draw([t for t in pool if t.role == name], count, clean, rng) for pool in pools]
    return drawn


def _draw(
    pool: Sequence[Text], count: int, clean: Callable[[str], str], rng: np.random.Generator
) -> list[str]:
    """At most so many different texts, likelier those of larger weight."""
    weights = {clean(text.text): text.weight for text in pool if text.weight > 0}
    weights.pop("", None)
    if not weights:
        return []
    shares = np.array(list(weights.values())) / sum(weights.values())
    chosen = rng.choice(len(weights), min(count, len(weights)), replace=False, p=shares)
    return [list(weights)[row] for row in chosen]


def make_views(
    pixels: np.ndarray,
    boxes: np.ndarray,
    canvas: CanvasConfig,
    geometry: Geometry,
    augment: AugmentConfig,
    views: Mapping[str, ViewConfig],
    rng: np.random.Generator,
) -> dict[str, PreparedView]:
    """Random crops of a picture, with its drawn regions' boxes (R, 4) of the source.

    Where they lie on the canvas, the geometry says, by which the picture came there.
    """
    return {
        name: _make_view(pixels, boxes, canvas, geometry, augment, view, rng) for name, view in views.items()
    }


def _make_view(
    pixels: np.ndarray,
    boxes: np.ndarray,
    canvas: CanvasConfig,
    geometry: Geometry,
    augment: AugmentConfig,
    view: ViewConfig,
    rng: np.random.Generator,
) -> PreparedView:
    whole = Geometry.fit(pixels.shape[:2], view.canvas_hw(canvas.image_size), canvas.resize_mode)
    crops = [random_crop(whole, view.min_scale, view.max_scale, rng) for _ in range(view.count)]
    seen = [visible_boxes(boxes, crop) for crop in crops]
    visible = np.stack([share >= augment.min_visible for _, share in seen])
    placed = np.stack([own for own, _ in seen]).astype(np.float32)
    windows = np.array([crop.window for crop in crops]) / np.tile(pixels.shape[1::-1], 2)
    return PreparedView(
        images=np.stack([crop.draw(pixels, canvas.fill, canvas.interpolation) for crop in crops]),
        content_boxes=np.array([crop.content_box for crop in crops], np.float32),
        boxes=placed * visible[..., None],
        visible=visible,
        places=geometry.to_canvas(windows).clip(0, 1).astype(np.float32),
    )


def index_texts(
    drawn: Sequence[Mapping[str, list[list[str]]]],
    roles: Mapping[str, int],
    num_regions: int,
    rows: dict[str, int],
) -> dict[str, Tensor]:
    """Rows of texts by role, -1 for none: (B, K), or (B, R, K) of regions; new texts are added to `rows`."""
    found = {}
    for role, count in roles.items():
        of_regions = role.startswith(OF_REGIONS)
        index = torch.full((len(drawn), num_regions if of_regions else 1, count), -1)
        for i, own in enumerate(drawn):
            for j, texts in enumerate(own[role]):
                index[i, j, : len(texts)] = torch.tensor(
                    [rows.setdefault(text, len(rows)) for text in texts]
                ).long()
        found[role] = index if of_regions else index[:, 0]
    return found


def stack_views(views: Sequence[Mapping[str, PreparedView]], num_regions: int) -> dict[str, View]:
    """One `View` for each name, regions padded to `num_regions`."""
    return {name: _stack_view([own[name] for own in views], num_regions) for name in views[0]}


def _stack_view(own: Sequence[PreparedView], num_regions: int) -> View:
    images = torch.from_numpy(np.stack([view.images for view in own]))  # (B, V, H, W, 3)
    boxes = torch.zeros(*images.shape[:2], num_regions, 4)
    mask = torch.zeros(*images.shape[:2], num_regions, dtype=torch.bool)
    for i, view in enumerate(own):
        boxes[i, :, : view.boxes.shape[1]] = torch.from_numpy(view.boxes)
        mask[i, :, : view.boxes.shape[1]] = torch.from_numpy(view.visible)
    return View(
        images=images.permute(0, 1, 4, 2, 3).contiguous(),
        content_boxes=torch.from_numpy(np.stack([view.content_boxes for view in own])),
        boxes=boxes,
        region_mask=mask,
        places=torch.from_numpy(np.stack([view.places for view in own])),
    )
