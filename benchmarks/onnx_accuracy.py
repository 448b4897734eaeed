"""What 8 bits cost: `python -m benchmarks.onnx_accuracy --weights PATH --data scenes:test,num_samples=500`.

Boxes are named by the nearest of all of the data's texts, by the model itself, by its graphs in ONNX Runtime,
and by those graphs in 8 bits. Writes runs/bench/onnx_accuracy.json.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import tyro

from benchmarks.timing import verdict, write_json
from open_cloc.canvas import Geometry
from open_cloc.data.readers import open_reader
from open_cloc.export import export
from open_cloc.inference.predictor import load
from open_cloc.model.cloc import CLOC
from open_cloc.samples import RegionSample

MOST = 0.02  # of accuracy


@dataclass
class Options:
    """Attributes:
    weights: Model folder.
    data: Boxes with texts.
    """

    weights: str
    data: str = "scenes:test,num_samples=500"


def graphs(folder: Path, suffix: str) -> dict[str, onnxruntime.InferenceSession]:
    """Image, Prompter and text."""
    return {
        name: onnxruntime.InferenceSession(folder / f"{name}{suffix}", providers=["CPUExecutionProvider"])
        for name in ("image", "prompter", "text")
    }


def embedded(
    sessions: dict[str, onnxruntime.InferenceSession], model: CLOC, samples: list[RegionSample]
) -> Iterator[np.ndarray]:
    """Region features of each sample, as the graphs compute them."""
    canvas = model.preprocess
    for sample in samples:
        pixels = sample.pixels()
        geometry = Geometry.fit(pixels.shape[:2], canvas.image_size, canvas.resize_mode)
        drawn = geometry.draw(pixels, canvas.fill, canvas.interpolation).transpose(2, 0, 1)[None]
        normal = model.normalize_pixels(torch.from_numpy(np.ascontiguousarray(drawn))).numpy()
        _, tokens = sessions["image"].run(None, {"pixels": normal})
        boxes = geometry.to_canvas(np.array([region.box for region in sample.regions]))
        seen = np.ones(tokens.shape[:2], bool)
        given = {"image_tokens": tokens, "token_mask": seen, "boxes": boxes[None].astype(np.float32)}
        yield sessions["prompter"].run(None, given)[0][0]


def accuracy(regions: list[np.ndarray], texts: np.ndarray, right: np.ndarray) -> float:
    """Share of the boxes whose nearest text is their own."""
    return float(((np.concatenate(regions) @ texts.T).argmax(1) == right).mean())


def main(options: Options) -> int:
    """Measure, print and write; 1 if 8 bits cost more than the aim."""
    predictor = load(options.weights, "cpu")
    dataset = open_reader(options.data)
    samples = [sample for sample in (dataset[i] for i in range(len(dataset))) if sample.regions]
    names = sorted({region.text for sample in samples for region in sample.regions})
    right = np.array([names.index(region.text) for sample in samples for region in sample.regions])
    own = [predictor.encode(s.pixels()).embed([r.box for r in s.regions], normalized=True) for s in samples]
    found = {"the model": accuracy(own, predictor.encode_text(names), right)}
    with tempfile.TemporaryDirectory() as folder:
        export("onnx-int8", options.weights, Path(folder) / "onnx")
        token_ids = predictor.model.tokenizer(names).numpy()
        for what, suffix in (("ONNX", ".onnx"), ("ONNX in 8 bits", ".int8.onnx")):
            sessions = graphs(Path(folder) / "onnx", suffix)
            texts = sessions["text"].run(None, {"token_ids": token_ids})[0]
            found[what] = accuracy(list(embedded(sessions, predictor.model, samples)), texts, right)
    print(f"{len(right)} boxes, {len(names)} texts")
    for what, value in found.items():
        print(f"{what}: {value:.4f}")
    aim = verdict("accuracy that 8 bits cost", found["the model"] - found["ONNX in 8 bits"], MOST)
    write_json("onnx_accuracy", {"boxes": len(right), "texts": len(names), "accuracy": found, "aims": [aim]})
    return 0 if aim["met"] else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
