"""Photos with cut-outs pasted on them: real backgrounds, exactly known boxes and phrases.

Usable as a data set of any command from the project's root:
`benchmarks.pasted_scenes:open_pasted:train,sprites=../shared/data/stamps,photos=../shared/data/coco128`, and
the photos of a split with their own boxes as `benchmarks.pasted_scenes:open_photos:val,photos=...`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from open_cloc.data.readers import open_reader
from open_cloc.masks import Mask
from open_cloc.samples import Region, RegionSample

NUM_HELD_PHOTOS = 24  # the last photos are val's alone, those before them dev's
DEV_PHRASES = 7  # one in so many of the train phrases is dev's: choices are made on dev, reported on val
SHORT_SIDE = (0.15, 0.45)  # of the picture, that a cut-out's long side takes
OPAQUE = 128  # of 255
MAX_COVERED = 0.2  # of an earlier box, photo's or cut-out's, that a later cut-out may hide


class PastedScenes:
    """Photos of one split with cut-outs of the same split, sample i a pure function of (seed, i).

    Args:
        sprites: Folder with `sprites.jsonl`.
        photos: Folder with COCO annotations.
        split: `train`, `dev` or `val`: disjoint phrases and disjoint photos.
        num_samples: Length.
        num_sprites: Cut-outs pasted on each photo, at most.
        photo_boxes: Keep the photo's own annotated boxes beside the pasted ones.
        seed: Of everything.
        masks: Give the cut-outs their outlines; one that others hide altogether has none.
    """

    def __init__(
        self,
        sprites: str | Path,
        photos: str | Path,
        split: str,
        num_samples: int,
        num_sprites: int = 4,
        photo_boxes: bool = False,
        seed: int = 0,
        masks: bool = False,
    ) -> None:
        self.folder = Path(sprites)
        self.sprites = sprites_of(self.folder, split)
        self.photos = photos_of(photos, split)
        self.num_samples, self.num_sprites = num_samples, num_sprites
        self.photo_boxes, self.seed, self.split, self.masks = photo_boxes, seed, split, masks

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> RegionSample:
        sample, masks = self.with_masks(index)
        if not self.masks:
            return sample
        # Things of the photo itself have no outline here.
        first = len(sample.regions) - len(masks)
        outlined = [
            replace(region, mask=Mask.of(mask) if mask.any() else None)
            for region, mask in zip(sample.regions[first:], masks, strict=True)
        ]
        return replace(sample, regions=(*sample.regions[:first], *outlined))

    def with_masks(self, index: int) -> tuple[RegionSample, list[np.ndarray]]:
        """A sample, and for each cut-out, the last of its regions, which pixels (H, W) show it."""
        rng = np.random.default_rng([self.seed, index, len(self.split)])
        photo = self.photos[int(rng.integers(len(self.photos)))]
        canvas = Image.fromarray(photo.pixels().copy())
        taken = [region.box for region in photo.regions] if self.photo_boxes else []
        pasted: list[Region] = []
        masks: list[np.ndarray] = []
        for number in rng.choice(len(self.sprites), self.num_sprites, replace=False):
            row = self.sprites[int(number)]
            found = self._paste(canvas, row["file"], rng, taken)
            if found is not None:
                box, mask = found
                taken.append(box)
                pasted.append(Region(box, row["phrase"].lower(), source="stamps"))
                masks = [*(earlier & ~mask for earlier in masks), mask]
        regions = (*photo.regions, *pasted) if self.photo_boxes else tuple(pasted)
        return RegionSample(f"{self.split}-{index:06d}", np.asarray(canvas), regions=regions), masks

    def _paste(
        self, canvas: Image.Image, file: str, rng: np.random.Generator, taken: list
    ) -> tuple[tuple[float, float, float, float], np.ndarray] | None:
        with Image.open(self.folder / "sprites" / file) as opened:
            sprite = opened.convert("RGBA")
        sprite = sprite.crop(sprite.getchannel("A").getbbox())
        scale = rng.uniform(*SHORT_SIDE) * min(canvas.size) / max(sprite.size)
        size = (max(4, round(sprite.width * scale)), max(4, round(sprite.height * scale)))
        sprite = sprite.resize(size, Image.Resampling.BICUBIC)
        for _ in range(20):
            x = int(rng.integers(max(1, canvas.width - size[0])))
            y = int(rng.integers(max(1, canvas.height - size[1])))
            box = (
                x / canvas.width,
                y / canvas.height,
                min(1.0, (x + size[0]) / canvas.width),
                min(1.0, (y + size[1]) / canvas.height),
            )
            if all(covered(old, box) <= MAX_COVERED for old in taken):
                canvas.paste(sprite, (x, y), sprite)
                mask = Image.new("L", canvas.size)
                mask.paste(sprite.getchannel("A"), (x, y))
                return box, np.asarray(mask) >= OPAQUE
        return None


def covered(box: tuple, by: tuple) -> float:
    """Share of a box that another covers."""
    width = max(0.0, min(box[2], by[2]) - max(box[0], by[0]))
    height = max(0.0, min(box[3], by[3]) - max(box[1], by[1]))
    return width * height / ((box[2] - box[0]) * (box[3] - box[1]))


def sprites_of(folder: Path, split: str) -> list[dict]:
    """The split's cut-outs; dev's phrases are taken out of the data's own train split."""
    rows = [json.loads(line) for line in (folder / "sprites.jsonl").read_text().splitlines()]
    if split == "val":
        return [row for row in rows if row["split"] == "val"]
    rows = [row for row in rows if row["split"] == "train"]
    held = set(sorted({row["phrase"] for row in rows})[::DEV_PHRASES])
    return [row for row in rows if (row["phrase"] in held) == (split == "dev")]


def photos_of(folder: str | Path, split: str) -> list[RegionSample]:
    """The split's photos."""
    photos = open_reader(f"coco:{folder}")
    first_dev, first_val = len(photos) - 2 * NUM_HELD_PHOTOS, len(photos) - NUM_HELD_PHOTOS
    ranges = {
        "train": range(first_dev),
        "dev": range(first_dev, first_val),
        "val": range(first_val, len(photos)),
    }
    return [photos[i] for i in ranges[split]]


def open_pasted(
    path: str,
    sprites: str,
    photos: str,
    num_samples: str = "1000",
    photo_boxes: str = "",
    seed: str = "0",
    masks: str = "",
) -> PastedScenes:
    """Reader for `FORMAT:PATH` specs; the path is the split."""
    return PastedScenes(
        sprites,
        photos,
        path,
        int(num_samples),
        photo_boxes=bool(photo_boxes),
        seed=int(seed),
        masks=bool(masks),
    )


class Photos(list[RegionSample]):
    """The photos of a split.

    Attributes:
        class_names: Of all photos.
    """

    class_names: tuple[str, ...] = ()


def open_photos(path: str, photos: str) -> Photos:
    """Reader for `FORMAT:PATH` specs; the path is the split."""
    found = Photos(photo for photo in photos_of(photos, path) if photo.regions)
    found.class_names = tuple(getattr(open_reader(f"coco:{photos}"), "class_names", ()))
    return found
