"""Region accuracy on unseen phrases against the number of training boxes, for each way to embed a box.

    python -m benchmarks.few_boxes --shared ../shared/data --split val

The towers are the frozen ones of the `small-pretrained` recipe. What they make of each picture, crop
and text is computed once; projections and Prompter then train on that, by the package's modules and losses.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks.pasted_scenes import PastedScenes, photos_of
from open_cloc.boxes import grid_cells, overlap_fraction
from open_cloc.canvas import Geometry
from open_cloc.memory import keep_freed_memory
from open_cloc.model.cloc import CLOC
from open_cloc.model.create import build_model
from open_cloc.model.load import load_model
from open_cloc.model.prompter import PromptedImage, PrompterConfig
from open_cloc.model.prompts.box import pool_boxes
from open_cloc.objectives import Objectives
from open_cloc.samples import Features, RegionSample
from open_cloc.training import freeze, optim
from open_cloc.training.recipe import Recipe
from open_cloc.training.recipes import small_pretrained

CROP_SIZE = (224, 224)  # what the tower was trained near
WIDTH = 256  # of the recipe's Prompter
PROMPT = PrompterConfig(readout="prompt", width=WIDTH, box_prior=True, box_content="none", dropout=0.1)
METHODS = {
    "paper": PrompterConfig(width=WIDTH),
    "paper + prior": PrompterConfig(width=WIDTH, box_prior=True),
    "prompt": PrompterConfig(width=WIDTH, readout="prompt"),
    "prompt + prior": PrompterConfig(width=WIDTH, readout="prompt", box_prior=True),
    "prompt + prior, no code": PROMPT,
    "prompt + prior, no code, pooled": replace(PROMPT, pooled_residual=True),
    "prompt + prior, no code, pooled, layer drop": replace(PROMPT, pooled_residual=True, layer_drop=0.5),
    "roialign": PrompterConfig(width=WIDTH, readout="prompt", regions="roialign"),
    "crop": PrompterConfig(width=WIDTH, readout="prompt"),
}


@cache
def recipe() -> Recipe:
    """The recipe whose towers and losses these are; its weights must be installed."""
    return small_pretrained()


@dataclass
class Cache:
    """What the frozen towers make of some pictures; P pictures, R boxes each (padded), U texts."""

    tokens: Tensor  # (P, N, C)
    mask: Tensor  # (P, N)
    pooled: Tensor  # (P, C)
    crops: Tensor  # (P, R, C)
    rois: Tensor  # (P, R, C), means of RoIAlign
    boxes: Tensor  # (P, R, 4)
    text_index: Tensor  # (P, R), -1 where padded
    texts: list[str]
    text_features: Tensor  # (U, text width)

    def first(self, num_boxes: int) -> Cache:
        """As many of the first pictures as hold `num_boxes` boxes, the last one's surplus left out."""
        real = self.text_index >= 0
        count = real.flatten().cumsum(0).view_as(real)
        index = torch.where(real & (count <= num_boxes), self.text_index, -1)
        kept = int((index >= 0).any(1).nonzero().max()) + 1
        return replace(
            self,
            tokens=self.tokens[:kept],
            mask=self.mask[:kept],
            pooled=self.pooled[:kept],
            crops=self.crops[:kept],
            rois=self.rois[:kept],
            boxes=self.boxes[:kept],
            text_index=index[:kept],
        )


@torch.no_grad()
def build_cache(model: CLOC, samples: Sequence[RegionSample]) -> Cache:
    """Run the towers over pictures, crops and texts."""
    texts = sorted({r.text for s in samples for r in s.regions})
    most = max(len(s.regions) for s in samples)
    tokens, masks, pooled, crops, boxes, index = [], [], [], [], [], []
    trunk = model.clip.visual.trunk
    for sample in tqdm(samples, desc="towers", unit="img"):
        pixels = sample.pixels()
        geometry = Geometry.fit(pixels.shape[:2], model.preprocess.image_size)
        features = trunk.forward_features(model.normalize_pixels(fit(model, pixels, geometry)[None]))
        pieces = [cut(pixels, region.box) for region in sample.regions]
        fitted = [fit(model, piece, Geometry.fit(piece.shape[:2], CROP_SIZE)) for piece in pieces]
        heads = trunk.forward_head(trunk.forward_features(model.normalize_pixels(torch.stack(fitted))))
        tokens.append(features[0].flatten(1).T)
        cells = grid_cells((features.shape[2], features.shape[3]))
        masks.append(overlap_fraction(torch.tensor([geometry.content_box]), cells)[0] > 0)
        pooled.append(trunk.forward_head(features)[0])
        crops.append(F.pad(heads, (0, 0, 0, most - len(pieces))))
        own = geometry.to_canvas(np.array([r.box for r in sample.regions], np.float32).reshape(-1, 4))
        boxes.append(F.pad(torch.tensor(own).float(), (0, 0, 0, most - len(own))))
        row = torch.tensor([texts.index(r.text) for r in sample.regions], dtype=torch.long)
        index.append(F.pad(row, (0, most - len(row)), value=-1))
    side = int(tokens[0].shape[0] ** 0.5)
    rois = [pool_boxes(t[None], (side, side), b[None])[0].mean(1) for t, b in zip(tokens, boxes)]
    return Cache(
        torch.stack(tokens),
        torch.stack(masks),
        torch.stack(pooled),
        torch.stack(crops),
        torch.stack(rois),
        torch.stack(boxes),
        torch.stack(index),
        texts,
        text_tower(model, texts),
    )


def fit(model: CLOC, pixels: np.ndarray, geometry: Geometry) -> Tensor:
    """Pixels on the geometry's canvas: (3, H, W) uint8."""
    return torch.tensor(geometry.draw(pixels, fill=model.preprocess.fill)).permute(2, 0, 1)


def cut(pixels: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """The part of a picture under a normalised box, at least a pixel."""
    height, width = pixels.shape[:2]
    x1, y1 = int(box[0] * width), int(box[1] * height)
    x2, y2 = max(x1 + 1, round(box[2] * width)), max(y1 + 1, round(box[3] * height))
    return pixels[y1:y2, x1:x2]


def text_tower(model: CLOC, texts: list[str]) -> Tensor:
    """Text features before the projection: (U, text width)."""
    tower = model.clip.text
    rows = []
    for start in range(0, len(texts), 64):
        ids = model.tokenize(texts[start : start + 64])
        mask = (ids != tower.config.pad_token_id).long()
        rows.append(tower.pooler(tower.transformer(input_ids=ids, attention_mask=mask), mask))
    return torch.cat(rows)


def embed_boxes(
    model: CLOC, cache: Cache, rows: Tensor, slots: Tensor, method: str
) -> tuple[Tensor, PromptedImage]:
    """Region features (B, R, D) of some boxes of some pictures, and the prompted pictures."""
    side = int(cache.tokens.shape[1] ** 0.5)
    prompted = model.prompter.prepare(cache.tokens[rows], (side, side), cache.mask[rows])
    if METHODS[method].regions == "roialign":
        return model.prompter.project_pooled(cache.rois[rows[:, None], slots]), prompted
    if method == "crop":
        return model.clip.visual.head(cache.crops[rows[:, None], slots]), prompted
    return model.prompter.embed(prompted, {"box": cache.boxes[rows[:, None], slots]}), prompted


def train(method: str, cache: Cache, steps: int, seed: int) -> CLOC:
    """Train projections and Prompter on cached features, with the recipe's losses and optimizer."""
    torch.manual_seed(seed)
    model = build_model(replace(recipe().model, prompter=METHODS[method]))
    freeze.lock_towers(model, recipe().optim)
    objectives = Objectives(recipe().objectives)
    optimizer = optim.build_optimizer(model, objectives, recipe().optim)
    model.train()
    freeze.lock_towers(model, recipe().optim)
    rng = np.random.default_rng(seed)
    loader, batch_size = recipe().data.loader, recipe().run.global_batch_size
    for step in range(steps):
        rows = torch.tensor(rng.integers(len(cache.tokens), size=min(batch_size, len(cache.tokens))))
        slots, mask = draw_regions(cache, rows, loader.num_regions, rng)
        unique = model.clip.text.proj(cache.text_features)  # (U, D)
        region_text = unique[cache.text_index[rows[:, None], slots].clamp(min=0)]  # (B, R, D)
        regions, prompted = embed_boxes(model, cache, rows, slots, method)
        weights = mask.float() / mask.sum(1, keepdim=True).clamp(min=1)
        features = Features(
            image_features=model.clip.visual.head(cache.pooled[rows]),
            # A picture's caption is its phrases; their mean stands for it here.
            text_features=torch.einsum("br,brd->bd", weights, F.normalize(region_text, dim=-1)),
            caption_mask=mask.any(1),
            region_features=regions,
            region_text_features=region_text,
            region_mask=mask,
            pred_boxes=model.prompter.ground(prompted, {"text": region_text}),
            boxes=cache.boxes[rows[:, None], slots],
            logit_scale=model.clip.logit_scale.exp(),
        )
        factor = optim.learning_rate_factor(step, steps, recipe().optim.warmup)
        optim.set_learning_rate(optimizer, factor)
        optimizer.zero_grad()
        objectives(features)["total"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe().optim.grad_clip)
        optimizer.step()
        optim.clamp_logit_scale(model, recipe().optim.max_logit_scale)
    return model.eval()


def draw_regions(cache: Cache, rows: Tensor, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """`count` boxes of each picture without replacement: slots (B, count) and which are real."""
    keys = torch.tensor(rng.random((len(rows), cache.boxes.shape[1])))
    keys = keys.masked_fill(cache.text_index[rows] < 0, 2.0)
    order = keys.argsort(1)[:, :count]
    return order, keys.gather(1, order) < 2


@torch.inference_mode()
def accuracy(model: CLOC, cache: Cache, method: str) -> tuple[float, float]:
    """Micro accuracy and mean per class over all boxes, among the cache's texts."""
    classes = F.normalize(model.clip.text.proj(cache.text_features), dim=-1)
    right, truth = [], []
    slots = torch.arange(cache.boxes.shape[1])
    for rows in torch.arange(len(cache.tokens)).split(32):
        regions, _ = embed_boxes(model, cache, rows, slots.expand(len(rows), -1), method)
        index = cache.text_index[rows]
        named = (F.normalize(regions, dim=-1) @ classes.T).argmax(-1)
        right.append((named == index)[index >= 0])
        truth.append(index[index >= 0])
    hits, labels = torch.cat(right).double(), torch.cat(truth)
    per_class = [hits[labels == c].mean() for c in labels.unique()]
    return hits.mean().item(), torch.stack(per_class).mean().item()


@dataclass
class Options:
    """Attributes:
    shared: Folder that holds `coco128` and `stamps`.
    split: Where accuracy is measured: `dev` to choose, `val` to report.
    sizes: Numbers of training boxes.
    methods: Keys of METHODS.
    steps: Updates per run.
    seeds: Runs per point.
    towers: A model whose image tower takes the recipe's place, such as one that `open-cloc train distill` has
        made of it.
    output: For the JSON.
    """

    shared: Path = Path("../shared/data")
    split: str = "dev"
    sizes: tuple[int, ...] = (100, 300, 1000, 3000)
    methods: tuple[str, ...] = tuple(METHODS)
    steps: int = 100
    seeds: int = 1
    towers: Path | None = None
    output: Path = Path("runs/few_boxes.json")


def pictures_of_runs(
    shared: Path, split: str, num_boxes: int
) -> tuple[list[RegionSample], dict[str, list[RegionSample]]]:
    """Training pictures that hold so many boxes, and those of each measure: unseen phrases, unseen photos."""
    sources = (shared / "stamps", shared / "coco128")
    pool = PastedScenes(*sources, "train", 10**6, num_sprites=5, photo_boxes=True)
    samples: list[RegionSample] = []
    while sum(len(s.regions) for s in samples) < num_boxes:
        samples.append(pool[len(samples)])
    held = PastedScenes(*sources, split, 150, num_sprites=4, seed=1)
    photos = [photo for photo in photos_of(shared / "coco128", split) if photo.regions]
    return samples, {"unseen phrases": [held[i] for i in range(len(held))], "unseen photos": photos}


def main(options: Options) -> None:
    """Print accuracy per method and size, and write it as JSON."""
    keep_freed_memory()
    torch.manual_seed(0)
    towers = build_model(recipe().model).eval()
    if options.towers is not None:
        taken = load_model(options.towers, "cpu")
        towers.clip.visual.trunk.load_state_dict(taken.clip.visual.trunk.state_dict())
    samples, sets = pictures_of_runs(options.shared, options.split, max(options.sizes))
    tests = {name: build_cache(towers, those) for name, those in sets.items()}
    cache = build_cache(towers, samples)
    counts = {name: [int((c.text_index >= 0).sum()), len(c.texts)] for name, c in tests.items()}
    result: dict = {"split": options.split, "steps": options.steps, "boxes and classes": counts, "rows": []}
    print(counts, flush=True)
    for size in options.sizes:
        for method in options.methods:
            started = time.monotonic()
            scores = []
            for seed in range(options.seeds):
                model = train(method, cache.first(size), options.steps, seed)
                scores.append([x for c in tests.values() for x in accuracy(model, c, method)])
            mean = [round(float(x), 4) for x in np.mean(scores, 0)]
            seconds = (time.monotonic() - started) / options.seeds
            result["rows"].append({"boxes": size, "method": method, "micro, macro": mean})
            line = "   ".join(f"{mean[i]:.3f} / {mean[i + 1]:.3f}" for i in range(0, len(mean), 2))
            print(f"{size:6d} {method:34s} {line}   {seconds:.0f} s", flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
