"""`open-cloc predict --weights PATH IMAGE`: name the boxes of a picture, find phrases in it, draw the result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from PIL import Image

from open_cloc.data.samples import Region
from open_cloc.data.sheet import draw_regions
from open_cloc.inference.predictor import Predictor, boxes_of_picture, load, read_pixels
from open_cloc.model.grounding import CANDIDATES

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
        raise ValueError(f"--{given} needs --{missing} too: each box is named by one of the labels")
    if not command.boxes and not command.phrases:
        raise ValueError("nothing to predict; give --boxes with --labels, or --phrases, or both")
    if command.output is not None and command.output.suffix.lower() not in SUFFIXES:
        raise ValueError(f"output must end in {', '.join(SUFFIXES)}; got {command.output}")


def parse_box(text: str) -> list[float]:
    """Four numbers joined by commas."""
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        raise ValueError(f"a box must be four numbers joined by commas, such as 10,20,200,180; got {text!r}")
    return numbers


def predict(
    predictor: Predictor, command: PredictCommand, boxes: Any, size_hw: tuple[int, int]
) -> dict[str, Any]:
    """Answers as plain JSON types; all boxes in pixels of the picture, `xyxy`, and `size` as [width, height]."""
    regions: list[dict[str, Any]] = []
    if len(boxes):
        named = predictor.classify_regions(None, boxes, command.labels, command.top_k, normalized=True)
        for box, names in zip(boxes.tolist(), named):
            labels = [{"label": label, "score": score} for label, score in names]
            regions.append({"box": to_pixels(box, size_hw), "labels": labels})
    phrases: list[dict[str, Any]] = []
    if command.phrases:
        for phrase, found, score in predictor.ground(None, command.phrases, candidates=command.candidates):
            phrases.append({"phrase": phrase, "box": list(found), "score": score})
    size = [size_hw[1], size_hw[0]]
    return {"image": str(command.image), "size": size, "regions": regions, "phrases": phrases}
