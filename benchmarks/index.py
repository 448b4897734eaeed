"""The region index against its aims: python -m benchmarks.index

    --only speed|search|kills|quality ...
    --model FOLDER   a trained model, for quality and for regions of real distribution; made by `make demo`

speed: pictures with boxes into an index, by the Prompter and by crops through the same tower (as FiftyOne and
LightlyStudio embed patches), the same pictures in turn. search: an index of many regions, of clusters around
directions that pictures share; approximate against exact, and the time of a text query with its text tower.
kills: `kill -9` of a process that adds. quality: what searches by the texts of regions find, by both.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from benchmarks.timing import print_table, verdict, write_json
from open_cloc.data.readers import open_reader
from open_cloc.index import build as adding
from open_cloc.index.build import add_pictures
from open_cloc.index.query import Query
from open_cloc.index.region_index import RegionIndex
from open_cloc.index.rows import rows_of
from open_cloc.inference.encoded import Regions
from open_cloc.inference.predictor import Predictor, load
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.model.load import choose_dtype
from open_cloc.samples import Region, RegionSample

TINY: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32},
    "text_cfg": {"width": 32, "heads": 2, "layers": 2, "context_length": 16},
}
SIZE_HW = (480, 640)
TOP = 10
WORDS = ("red", "blue", "small", "large", "old", "wooden", "glass", "round", "dog", "cat", "mug", "chair")


@dataclass
class Options:
    """Attributes:
    only: Which parts.
    model: A trained model's folder.
    clip: A CLIP's, whose crops are compared as well.
    pictures: Pictures of the first part; the aim speaks of 2,000.
    boxes: Boxes of each.
    regions: Of the index that is searched.
    queries: Searches of each kind.
    kills: How often a process that adds is killed.
    scenes: Generated pictures, for quality.
    towers: Of speed and search.
    dtype: Type of their weights.
    """

    only: tuple[str, ...] = ("speed", "search", "kills", "quality")
    model: Path = Path("runs/demo/cloc/model")
    clip: Path | None = None
    pictures: int = 40
    boxes: int = 20
    regions: int = 200_000
    queries: int = 200
    kills: int = 20
    scenes: int = 400
    towers: str = "ViT-B-16"
    dtype: str = "fp32"


class Crops:
    """In a predictor's place: each box is cut out and goes through the image tower by itself."""

    def __init__(self, predictor: Predictor, batch_size: int = 32) -> None:
        self.predictor, self.model, self.batch_size = predictor, predictor.model, batch_size

    def encode(self, pictures: Sequence[np.ndarray]) -> list[Cropped]:
        whole = self.predictor.encode(list(pictures))
        return [Cropped(self, one, image.embed()) for one, image in zip(pictures, whole)]

    def embed_together(self, images: Sequence[Cropped], boxes: Sequence[np.ndarray]) -> list[Regions]:
        return [
            Regions(torch.from_numpy(image.embed(own)), own) for image, own in zip(images, boxes, strict=True)
        ]

    def embed(self, crops: Sequence[np.ndarray]) -> np.ndarray:
        parts = [crops[start : start + self.batch_size] for start in range(0, len(crops), self.batch_size)]
        return np.stack([image.embed() for part in parts for image in self.predictor.encode(list(part))])


class Cropped:
    """In an encoded picture's place."""

    def __init__(self, crops: Crops, pixels: np.ndarray, features: np.ndarray) -> None:
        self.crops, self.pixels, self.features = crops, pixels, features
        self.size_hw = pixels.shape[:2]

    def embed(self, boxes: np.ndarray | None = None, *, normalized: bool = True) -> np.ndarray:
        if boxes is None:
            return self.features
        height, width = self.size_hw
        corners = np.concatenate(
            [np.floor(boxes[:, :2] * (width, height)), np.ceil(boxes[:, 2:] * (width, height))], 1
        )
        return self.crops.embed(
            [self.pixels[y1:y2, x1:x2] for x1, y1, x2, y2 in corners.astype(int).tolist()]
        )


def made_model(towers: str | dict[str, Any], dtype: str = "fp32") -> Predictor:
    """A model of random weights: time does not ask what they are."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(towers=towers)).eval()
    model.clip.visual.to(choose_dtype(dtype))
    model.clip.text.to(choose_dtype(dtype))
    return Predictor(model)


def made_samples(options: Options) -> list[RegionSample]:
    """Pictures of noise with random boxes."""
    draw = np.random.default_rng(0)
    samples = []
    for number in range(options.pictures):
        boxes = drawn_boxes(draw, options.boxes)
        pixels = draw.integers(0, 255, (*SIZE_HW, 3), np.uint8)
        samples.append(RegionSample(f"{number}", pixels, (), tuple(Region(box, "") for box in boxes)))
    return samples


def drawn_boxes(draw: np.random.Generator, count: int) -> list[tuple[float, float, float, float]]:
    corners = draw.uniform(0, 0.7, (count, 2))
    boxes = np.concatenate([corners, corners + draw.uniform(0.05, 0.3, corners.shape)], 1)
    return [(x1, y1, x2, y2) for x1, y1, x2, y2 in boxes.tolist()]


def speed(options: Options) -> list[dict[str, Any]]:
    """Pictures into an index, by both, a few pictures of each in turn."""
    predictor = made_model(options.towers, options.dtype)
    ways: dict[str, Any] = {"prompter": predictor, "crops": Crops(predictor)}
    spent = {name: {"CPU s": 0.0, "wall s": 0.0} for name in ways}
    samples = made_samples(options)
    with tempfile.TemporaryDirectory() as folder:
        indices = {name: RegionIndex.build(f"{folder}/{name}", predictor).store for name in ways}
        warm_up = [replace(sample, key=f"warm {sample.key}") for sample in samples[:2]]
        size = max(8, len(samples) // 8)  # each `add` ends with putting the index in order
        for start in range(-size, len(samples), size):
            part = samples[start : start + size] if start >= 0 else warm_up
            for name, way in ways.items():
                cpu, wall = time.process_time(), time.perf_counter()
                add_pictures(indices[name], way, part, lambda sample, pixels: list(sample.regions))
                if start >= 0:
                    spent[name]["CPU s"] += time.process_time() - cpu
                    spent[name]["wall s"] += time.perf_counter() - wall
    for row in spent.values():
        row["CPU ms a region"] = 1e3 * row["CPU s"] / (options.pictures * options.boxes)
    print_table(spent)
    ratio = spent["crops"]["CPU s"] / spent["prompter"]["CPU s"]
    what = f"{options.pictures} pictures x {options.boxes} boxes: crops' CPU time over the Prompter's"
    return [verdict(what, ratio, 10, least=True)]


def fill(index: RegionIndex, options: Options) -> np.ndarray:
    """Regions whose embeddings are a kind's, a picture's and their own direction added up; the kinds'."""
    draw, width = np.random.default_rng(0), index.predictor.model.embed_dim
    kinds = unit(draw.normal(size=(500, width)))
    rows: list[dict[str, Any]] = []
    for number in range(options.regions // options.boxes):
        sample = RegionSample(f"{number}", b"", metadata={})
        boxes = drawn_boxes(draw, options.boxes)
        regions = [Region(box, "", float("nan"), "made") for box in boxes]
        own = kinds[draw.integers(0, len(kinds), options.boxes)] + 0.5 * unit(draw.normal(size=width))
        vectors = unit(own + 0.7 * unit(draw.normal(size=own.shape)))
        whole = unit(vectors.mean(0))
        rows += rows_of(sample, f"{number}", SIZE_HW, regions, np.stack([whole, *vectors]), {}, None)
        if len(rows) >= 20_000:
            index.store.add(rows)
            rows = []
    index.store.add(rows)
    index.store.optimize()
    return kinds


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def search(options: Options) -> list[dict[str, Any]]:
    """Approximate search against exact search, and the time of queries."""
    predictor = made_model(options.towers, options.dtype)
    with tempfile.TemporaryDirectory() as folder:
        index = RegionIndex.build(f"{folder}/made", predictor)
        started = time.perf_counter()
        kinds = fill(index, options)
        print(f"{index.store.count()} rows in {time.perf_counter() - started:.0f} s")
        draw = np.random.default_rng(1)
        queries = {
            "near a kind": unit(kinds[:50] + 0.5 * unit(draw.normal(size=kinds[:50].shape))),
            "anywhere": unit(draw.normal(size=(50, kinds.shape[1]))),
        }
        share = index.store.count("area < 0.01") / index.store.count()
        recalls = {name: recall(index, vectors) for name, vectors in queries.items()}
        ways: dict[str, dict[str, Any]] = {
            "text": {},
            "text, not folded": {"fold": False},
            f"text, filter that leaves {share:.0%}": {"where": "area < 0.01"},
            "text, exact": {"exact": True},
        }
        times = timed(index, options.queries, ways)
    aims = [
        verdict(f"recall@{TOP}, queries {name}", value, 0.95, least=True) for name, value in recalls.items()
    ]
    print_table(times)
    aims.append(
        verdict(f"p95 of a text query in ms, {options.regions} regions", times["text"]["p95 ms"], 100)
    )
    if options.model.is_dir():
        aims += real_search(options)
    return aims


def recall(index: RegionIndex, vectors: np.ndarray) -> float:
    """Share of the true ten that the approximate search finds."""
    shares = []
    for vector in vectors:
        found = [
            {hit.id for hit in index.search(Query(vector), TOP, fold=False, exact=exact)}
            for exact in (False, True)
        ]
        shares.append(len(found[0] & found[1]) / TOP)
    return statistics.mean(shares)


def timed(index: RegionIndex, count: int, ways: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Milliseconds of text queries, each with its pass through the text tower, the ways in turn.

    No text comes twice: they would be remembered.
    """
    draw = random.Random(0)
    walls: dict[str, list[float]] = {name: [] for name in ways}
    cpus: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(count + 3):
        for name, way in ways.items():
            text = f"{number} {name} {' '.join(draw.choices(WORDS, k=4))}"
            wall, cpu = time.perf_counter(), time.process_time()
            index.search(text, TOP, **way)
            walls[name].append(1e3 * (time.perf_counter() - wall))
            cpus[name].append(1e3 * (time.process_time() - cpu))
    return {
        name: {
            "median ms": statistics.median(own[3:]),
            "p95 ms": sorted(own[3:])[int(0.95 * count)],
            "CPU ms": statistics.median(cpus[name][3:]),
        }
        for name, own in walls.items()
    }


def real_search(options: Options) -> list[dict[str, Any]]:
    """Regions of generated scenes by a trained model: their embeddings lie as trained ones do."""
    predictor = load(options.model, "cpu")
    pictures = min(2000, max(1, options.regions // 100))
    with tempfile.TemporaryDirectory() as folder:
        index = RegionIndex.build(f"{folder}/scenes", predictor, thumbnail=0)
        index.add(open_reader(f"scenes:val,num_samples={pictures}"), f"grid:{options.regions // pictures}")
        data = open_reader("scenes:test,num_samples=200")
        texts = sorted({region.text for number in range(200) for region in data[number].regions})[:100]
        value = recall(index, predictor.encode_text(texts))
        what = f"recall@{TOP}, {index.store.count()} rows of scenes, trained model, text queries"
    return [verdict(what, value, 0.95, least=True)]


def fill_until_killed(place: str, pipe: Connection) -> None:
    """Add pictures, and say how many are there."""
    adding.ROWS_PER_WRITE = 200
    index = RegionIndex.open(place, made_model(TINY))
    data = open_reader("scenes:val,num_samples=40000")
    pipe.send(0)
    index.add(data, "grid:20", progress=pipe.send)
    pipe.send(-1)


def kills(options: Options) -> list[dict[str, Any]]:
    """Kill what adds, at a random moment after something was said, and look at what is there."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["open_cloc.inference.predictor", "open_cloc.data.readers"])
    draw, good, said = random.Random(0), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        place = f"{folder}/killed"
        RegionIndex.build(place, made_model(TINY))
        for _ in range(options.kills):
            here, there = context.Pipe()
            process = context.Process(target=fill_until_killed, args=(place, there))
            process.start()
            there.close()
            told = said_until_killed(here, process.pid or 0, draw)
            process.join()
            index = RegionIndex.open(place, made_model(TINY))
            rows = Counter(index.store.read(["picture"])["picture"].to_pylist())
            said = max(said, told)
            whole = len(rows) >= said and set(rows.values()) <= {max(rows.values(), default=0)}
            works = len(index.search("a dog", 3)) == 3
            good += whole and works
            print(
                f"said {said} pictures, there are {len(rows)}, all whole: {whole}, searched: {works}",
                flush=True,
            )
    return [
        verdict(
            f"kills of {options.kills} after which all that was said is there",
            good,
            options.kills,
            least=True,
        )
    ]


def said_until_killed(pipe: Connection, pid: int, draw: random.Random) -> int:
    """Kill a process within a second or two of its work; how many pictures it has said before."""
    told, deadline = -1, float("inf")
    while True:
        if pipe.poll(max(0.0, min(60.0, deadline - time.monotonic()))):
            try:
                count = pipe.recv()
            except EOFError:
                return max(told, 0)
            if count < 0:
                raise SystemExit("all was added before it was killed: give more pictures")
            told = max(told, 0) + count  # pictures that were there already are counted as well
            if count and deadline == float("inf"):
                deadline = time.monotonic() + draw.uniform(0, 1.5)
        elif deadline < float("inf"):
            os.kill(pid, signal.SIGKILL)
            deadline = float("inf")
        else:
            raise SystemExit("nothing was said in a minute")


def quality(options: Options) -> list[dict[str, Any]]:
    """Of the regions with a text, how many are among the first ten for it."""
    data = open_reader(f"scenes:test,num_samples={options.scenes}")
    samples = [data[number] for number in range(options.scenes)]
    texts = np.array([region.text for sample in samples for region in sample.regions])
    predictor = load(options.model, "cpu")
    ways: dict[str, Any] = {"prompter": predictor, "crops": Crops(predictor)}
    if options.clip is not None:
        ways["crops, CLIP"] = Crops(load(options.clip, "cpu"))
    rows = {}
    asked = np.array(sorted(set(texts.tolist())))
    for name, way in ways.items():
        images = way.encode([sample.pixels() for sample in samples])
        boxes = [np.array([region.box for region in sample.regions]) for sample in samples]
        features = np.concatenate([image.embed(own, normalized=True) for image, own in zip(images, boxes)])
        own = way.predictor if isinstance(way, Crops) else way
        directions = own.encode_text(asked.tolist())
        order = np.argsort(-(directions @ features.T), axis=1)[:, :TOP]
        hits = texts[order] == asked[:, None]
        found = hits.sum(1) / np.minimum((texts == asked[:, None]).sum(1), TOP)
        rows[name] = {
            "found in 10": float(found.mean()),
            "error": float(found.std() / len(asked) ** 0.5),
            "first": float(hits[:, 0].mean()),
        }
    print(f"{len(texts)} regions of {len(samples)} pictures, {len(asked)} texts")
    print_table(rows)
    what = "share of a text's regions among the first ten, the Prompter's over crops'"
    return [verdict(what, rows["prompter"]["found in 10"] / rows["crops"]["found in 10"], 1, least=True)]


PARTS = {"speed": speed, "search": search, "kills": kills, "quality": quality}


def main(options: Options) -> int:
    aims = []
    for name in options.only:
        print(f"\n{name}", flush=True)
        aims += PARTS[name](options)
    told = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}
    print(write_json("index", {"options": told, "aims": aims}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options, description=__doc__)))
