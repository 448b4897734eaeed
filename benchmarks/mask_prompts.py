"""Regions asked for by mask, box, boxes, or points: python -m benchmarks.mask_prompts --weights MODEL ...

Cut-outs with exact outlines on photos, named among all phrases of the split, by each of some trained models:
what training with masks (`open-cloc train ... --data.loader.masks 0.3`) or with several boxes
(`--data.loader.box-sets 0.3`) costs the boxes is the difference of two of them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tqdm import tqdm

from benchmarks.pasted_scenes import PastedScenes
from benchmarks.timing import print_table, write_json
from open_cloc.inference.predictor import load

POINTS = 3


@dataclass
class Options:
    """Attributes:
    weights: Folders of trained models.
    shared: Folder that holds `coco128` and `stamps`.
    split: `dev` to choose, `val` to report.
    scenes: Pictures with four cut-outs each, at most.
    """

    weights: tuple[Path, ...]
    shared: Path = Path("../shared/data")
    split: str = "val"
    scenes: int = 150


def points_on(mask: np.ndarray, count: int, rng: np.random.Generator) -> list[list[float]]:
    """Pixels of a mask, `xy` of their middles."""
    ys, xs = np.nonzero(mask)
    drawn = rng.integers(len(xs), size=count)
    return (np.stack([xs[drawn], ys[drawn]], 1) + 0.5).tolist()


def boxes_of(mask: np.ndarray) -> list[tuple[float, float, float, float]]:
    """Up to four, `xyxy` in pixels: around what of a mask lies in each quarter of its box."""
    ys, xs = np.nonzero(mask)
    middle = (xs.min() + xs.max()) / 2, (ys.min() + ys.max()) / 2
    found = []
    for left, top in itertools.product((True, False), repeat=2):
        own = ((xs <= middle[0]) == left) & ((ys <= middle[1]) == top)
        if own.any():
            x, y = xs[own], ys[own]
            found.append((float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1)))
    return found


def main(options: Options) -> None:
    """Print and write the share of cut-outs that each way names rightly, with its standard error."""
    sources = (options.shared / "stamps", options.shared / "coco128")
    scenes = PastedScenes(*sources, options.split, options.scenes, seed=2)
    found = {}
    for weights in options.weights:
        found[str(weights)] = measure(weights, scenes)
        print(weights)
        print_table(found[str(weights)])
    print(write_json("mask_prompts", {"split": options.split, "scenes": len(scenes), "models": found}))


def measure(weights: Path, scenes: PastedScenes) -> dict[str, dict[str, float]]:
    """What a model names rightly, by each way to ask."""
    predictor = load(weights, "cpu")
    phrases = sorted({row["phrase"].lower() for row in scenes.sprites})
    classes = predictor.encode_text(phrases)
    rng = np.random.default_rng(0)
    ways = ("box", "mask", "boxes of its quarters", "one point", f"{POINTS} points")
    right: dict[str, list[list[bool]]] = {way: [] for way in ways}
    for number in tqdm(range(len(scenes)), desc="scenes"):
        sample, masks = scenes.with_masks(number)
        shown = [mask.any() for mask in masks]
        masks = [mask for mask in masks if mask.any()]
        regions = [region for region, is_shown in zip(sample.regions, shown, strict=True) if is_shown]
        if not regions:
            continue
        image = predictor.encode(sample.pixels())
        embedded = {
            "box": image.embed([region.box for region in regions], normalized=True),
            "mask": image.embed(masks=np.stack(masks)),
            "boxes of its quarters": image.embed(boxes=[boxes_of(mask) for mask in masks]),
            "one point": image.embed(points=[points_on(mask, 1, rng) for mask in masks]),
            f"{POINTS} points": image.embed(points=[points_on(mask, POINTS, rng) for mask in masks]),
        }
        for way, features in embedded.items():
            named = (features @ classes.T).argmax(1)
            right[way].append([phrases[n] == region.text for n, region in zip(named, regions)])
    return {way: _share(found) for way, found in right.items()}


def _share(found: list[list[bool]]) -> dict[str, float]:
    """The share of all, with its standard error over pictures."""
    hits, sizes = np.array([sum(own) for own in found]), np.array([len(own) for own in found])
    share = hits.sum() / sizes.sum()
    error = np.sqrt(((hits - share * sizes) ** 2).sum()) / sizes.sum()
    return {"right": float(share), "error": float(error)}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
