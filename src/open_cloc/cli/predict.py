"""`open-cloc predict --weights PATH IMAGE`: name boxes of a picture, find phrases in it, draw the result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from PIL import Image

from open_cloc.boxes import denormalize_boxes
from open_cloc.draw import draw_regions
from open_cloc.errors import UserError
from open_cloc.inference.predictor import Predictor, boxes_of_picture, load
from open_cloc.model.search import CANDIDATES
from open_cloc.pictures import read_pixels
from open_cloc.samples import Region

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class PredictCommand:
    """Name boxes of a picture (--boxes with --labels), find phrases in it (--phrases), or both.

    Attributes:
        image: The picture.
        weights: Model folder or hub id.
        boxes: One or more boxes, four numbers each joined by commas: 10,20,200,180.
        labels: Names to choose from for each box.
        phrases: What to find, one box each.
        box_format: What the four numbers are: two corners; a corner, width and height; or centre and both.
        normalized: The boxes are in [0, 1] of the picture instead of pixels.
        top_k: Names per box.
        candidates: Boxes that compete for each phrase; 0 takes the box head's answer.
        output: Draw the result on this picture, .png, .jpg or .webp.
        json: Print JSON instead of lines.
        device: cpu, cuda, ...; a GPU if there is one.
    """

    image: Annotated[Path, tyro.conf.Positional]
    weights: str
    boxes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    phrases: tuple[str, ...] = ()
    box_format: Literal["xyxy", "xywh", "cxcywh"] = "xyxy"
    normalized: bool = False
    top_k: int = 5
    candidates: int = CANDIDATES
    output: Path | None = None
    json: bool = False
    device: str | None = None


def main(argv: Sequence[str]) -> int:
    """Run the verb; 0 when the answer is out."""
    command = tyro.cli(PredictCommand, args=list(argv), prog="open-cloc predict")
    check_command(command)
    pixels = read_pixels(command.image)
    boxes = boxes_of_picture(
        [parse_box(text) for text in command.boxes], pixels.shape[:2], command.box_format, command.normalized
    )
    predictor = load(command.weights, command.device).set_image(pixels)
    result = predict(predictor, command, boxes, pixels.shape[:2])
    if command.output is not None:
        drawn = draw_regions(pixels, regions_to_draw(result), show_scores=True)
        write_picture(drawn, command.output)
    print(json.dumps(result, indent=2) if command.json else "\n".join(result_lines(result)))
    return 0


def check_command(command: PredictCommand) -> None:
    """Refuse combinations that ask for nothing, before the model is loaded."""
    if bool(command.boxes) != bool(command.labels):
        given, missing = ("boxes", "labels") if command.boxes else ("labels", "boxes")
        raise UserError(f"--{given} needs --{missing} too: each box is named by one of the labels")
    if not command.boxes and not command.phrases:
        raise UserError("nothing to predict; give --boxes with --labels, or --phrases, or both")
    if command.output is not None and command.output.suffix.lower() not in SUFFIXES:
        raise UserError(f"output must end in {', '.join(SUFFIXES)}; got {command.output}")


def parse_box(text: str) -> list[float]:
    """Four numbers joined by commas."""
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        raise UserError(f"a box must be four numbers joined by commas, such as 10,20,200,180; got {text!r}")
    return numbers


def predict(
    predictor: Predictor, command: PredictCommand, boxes: np.ndarray, size_hw: tuple[int, int]
) -> dict[str, Any]:
    """Answers of a predictor whose image is set, as plain JSON types.

    Args:
        predictor: After `set_image`.
        command: What is asked.
        boxes: (R, 4) normalised `xyxy`.
        size_hw: The picture's (height, width).

    Returns:
        `image`, `size` as [width, height], `regions` and `phrases`; boxes are `xyxy` pixels of the picture.
    """
    regions: list[dict[str, Any]] = []
    if len(boxes):
        named = predictor.classify_regions(None, boxes, command.labels, command.top_k, normalized=True)
        for box, names in zip(denormalize_boxes(boxes, size_hw).tolist(), named):
            labels = [{"label": label, "score": score} for label, score in names]
            regions.append({"box": box, "labels": labels})
    phrases: list[dict[str, Any]] = []
    if command.phrases:
        found = predictor.ground(None, command.phrases, candidates=command.candidates)
        phrases = [{"phrase": phrase, "box": list(box), "score": score} for phrase, box, score in found]
    height, width = size_hw
    return {"image": str(command.image), "size": [width, height], "regions": regions, "phrases": phrases}


def regions_to_draw(result: dict[str, Any]) -> list[Region]:
    """Each box with its best name, and each phrase with its box."""
    width, height = result["size"]
    answers = [(r["box"], r["labels"][0]["label"], r["labels"][0]["score"]) for r in result["regions"]]
    answers += [(p["box"], p["phrase"], p["score"]) for p in result["phrases"]]
    return [
        Region((x1 / width, y1 / height, x2 / width, y2 / height), text, score)
        for (x1, y1, x2, y2), text, score in answers
    ]


def result_lines(result: dict[str, Any]) -> list[str]:
    """The answers for people to read."""
    lines = []
    for region in result["regions"]:
        names = ", ".join(f"{entry['label']} {entry['score']:.3f}" for entry in region["labels"])
        lines.append(f"box {_short(region['box'])}: {names}")
    for phrase in result["phrases"]:
        lines.append(f"{phrase['phrase']}: box {_short(phrase['box'])}, score {phrase['score']:.3f}")
    return lines


def _short(box: Sequence[float]) -> str:
    return ",".join(f"{number:.1f}".removesuffix(".0") for number in box)


def write_picture(pixels: np.ndarray, path: Path) -> None:
    """Save a picture, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        Image.fromarray(pixels).save(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
