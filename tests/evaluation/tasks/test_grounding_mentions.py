"""Flickr30k Entities as MDETR and GLIP count it: every mention, and the boxes of its own entity alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from open_cloc.canvas import CanvasConfig
from open_cloc.cli.main import main
from open_cloc.data.readers import open_reader
from open_cloc.errors import UserError
from open_cloc.evaluation.batches import EvaluationBatch
from open_cloc.evaluation.method import FoundBoxes
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.run import evaluate
from tests.evaluation.tiny_data import Samples

Box = tuple[float, float, float, float]

LEFT, RIGHT, TOP = (0, 0, 40, 50), (60, 0, 100, 50), (60, 0, 100, 25)
# Two men of equal words, one of whom is spoken of three times as often; a crowd of two boxes; half a dog.
PICTURES = {
    "1": (
        "[/EN#1/people A man] greets [/EN#2/people a man] .\n"
        "[/EN#1/people A man] waves , and [/EN#1/people the tall man] smiles .\n"
        "[/EN#0/notvisual It] is seen in [/EN#5/scene a yard] .\n",
        {"1": [LEFT], "2": [RIGHT]},
    ),
    "2": (
        "[/EN#7/people Two people] and [/EN#8/animals a dog] .\n[/EN#7/people Two people] stand .\n",
        {"7": [LEFT, RIGHT], "8": [TOP]},
    ),
}


def written(folder: Path) -> Path:
    for part in ("Sentences", "Annotations", "flickr30k-images"):
        (folder / part).mkdir(parents=True)
    for name, (sentences, entities) in PICTURES.items():
        (folder / "Sentences" / f"{name}.txt").write_text(sentences)
        objects = "".join(
            f"<object><name>{entity}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax>"
            f"<ymax>{d}</ymax></bndbox></object>"
            for entity, boxes in entities.items()
            for a, b, c, d in boxes
        )
        size = "<size><width>100</width><height>50</height><depth>3</depth></size>"
        (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
        Image.new("RGB", (100, 50)).save(folder / "flickr30k-images" / f"{name}.jpg")
    return folder


class Fixed:
    """Whatever is looked for, it is there."""

    canvas = CanvasConfig((32, 32))

    def __init__(self, box: Box) -> None:
        self.box = box

    def describe(self) -> dict[str, Any]:
        return {"method": "fixed", "model": "fixed", "pretrained": ""}

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return torch.ones(len(texts), 1)

    def embed_images(self, batch: EvaluationBatch) -> Tensor:
        return torch.ones(len(batch.samples), 1)

    def embed_regions(self, batch: EvaluationBatch, boxes: Sequence[np.ndarray]) -> Tensor:
        return torch.ones(sum(map(len, boxes)), 1)

    def describe_grounding(self) -> dict[str, Any]:
        return {"method": "fixed"}

    def ground(self, batch: EvaluationBatch, phrases: Sequence[Sequence[str]]) -> FoundBoxes:
        count = sum(map(len, phrases))
        return FoundBoxes(torch.tensor([self.box] * count).reshape(-1, 4), torch.ones(count))


def overlap(one: Box, other: Box) -> float:
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def slow(folder: Path, answer: Box, merged: bool) -> list[float]:
    """The overlap of one answer with what each mention means, read from the files by hand."""
    overlaps = []
    for file in sorted((folder / "Sentences").iterdir()):
        root = ElementTree.parse(folder / "Annotations" / f"{file.stem}.xml").getroot()
        for entity in re.findall(r"\[/EN#(\d+)/", file.read_text()):
            boxes = [
                tuple(float(number.text or "") for number in item.find("bndbox") or [])
                for item in root.findall("object")
                if item.findtext("name") == entity
            ]
            if not boxes:
                continue
            if merged:
                x1s, y1s, x2s, y2s = zip(*boxes)
                boxes = [(min(x1s), min(y1s), max(x2s), max(y2s))]
            pixels = (answer[0] * 100, answer[1] * 50, answer[2] * 100, answer[3] * 50)
            overlaps.append(max(overlap(pixels, box) for box in boxes))  # type: ignore[arg-type]
    return overlaps


def run(data: Any, answer: Box, rule: str) -> dict[str, Any]:
    return evaluate(Fixed(answer), data, "grounding", EvaluationConfig(protocol=f"flickr30k-{rule}"))


@pytest.mark.parametrize("rule", ["any", "merged"])
@pytest.mark.parametrize(
    "answer", [(0.6, 0, 1, 1), (0, 0, 0.4, 1), (0, 0, 1, 1)], ids=["right", "left", "all"]
)
def test_every_mention_counts_by_its_own_entity(tmp_path: Path, answer: Box, rule: str) -> None:
    """Read from the folder and from shards made of it."""
    folder = written(tmp_path / "entities")
    expected = slow(folder, answer, rule == "merged")
    assert main(["data", "convert", f"flickr30k:{folder}", str(tmp_path / "shards")]) == 0
    for spec in (f"flickr30k:{folder}", f"shards:{tmp_path / 'shards'}"):
        result = run(spec, answer, rule)
        assert result["protocol"]["num_mentions"] == result["protocol"]["num_phrases"] == len(expected) == 7
        assert result["metrics"]["acc@0.5"] == pytest.approx(np.mean([iou >= 0.5 for iou in expected]))
        assert result["metrics"]["mean_iou"] == pytest.approx(np.mean(expected), abs=1e-6)


@pytest.mark.parametrize("rule", ["any", "merged"])
def test_two_things_of_equal_words_stay_two(tmp_path: Path, rule: str) -> None:
    """The answer is the second man: right for the one mention of four that means him."""
    folder = written(tmp_path / "entities")
    (tmp_path / "one.txt").write_text("1\n")
    data = f"flickr30k:{folder},split={tmp_path / 'one.txt'}"
    assert run(data, (0.6, 0, 1, 1), rule)["metrics"]["acc@0.5"] == 0.25


def test_the_protocol_needs_mentions(tmp_path: Path, samples: Samples) -> None:
    """Of data that do not tell them, as shards made before, the number would carry a wrong name."""
    with pytest.raises(
        UserError, match=r"counts each mention .* sample 's1' tells none; .* flickr30k:FOLDER"
    ):
        run(samples, (0, 0, 1, 1), "any")
    result = evaluate(Fixed((0, 0, 1, 1)), samples, "grounding")
    assert "num_mentions" not in result["protocol"]
    data = open_reader(f"flickr30k:{written(tmp_path / 'entities')}")
    assert evaluate(Fixed((0, 0, 1, 1)), data, "grounding")["protocol"]["num_mentions"] == 7


def test_mentions_of_a_region(tmp_path: Path) -> None:
    """Regions to train on stay what they were: one for each thing, wording and box."""
    data = open_reader(f"flickr30k:{written(tmp_path / 'entities')}")
    found = [(region.text, [text.source for text in region.texts]) for region in data[0].regions]
    assert found == [
        ("A man", ["sentence 0, phrase 0", "sentence 1, phrase 0"]),
        ("a man", ["sentence 0, phrase 1"]),
        ("the tall man", ["sentence 1, phrase 1"]),
    ]
    assert {text.role for region in data[0].regions for text in region.texts} == {"mention"}
