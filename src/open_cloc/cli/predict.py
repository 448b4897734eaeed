"""`open-cloc predict --weights PATH IMAGE`: name boxes of a picture, find phrases in it, draw the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from open_cloc.boxes import normalize_boxes
from open_cloc.cli.parse import parse
from open_cloc.cli.screen import say, say_json
from open_cloc.draw import check_output, draw_regions, write_picture
from open_cloc.errors import UserError
from open_cloc.inference.answer import Answer, Box
from open_cloc.inference.encoded import EncodedImage
from open_cloc.inference.inputs import boxes_of_picture
from open_cloc.inference.predictor import load
from open_cloc.model.search import CANDIDATES
from open_cloc.pictures import read_pixels
from open_cloc.samples import Region


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
    command = parse(PredictCommand, argv, "open-cloc predict")
    check_command(command)
    pixels = read_pixels(command.image)
    boxes = boxes_of_picture(
        [parse_box(text) for text in command.boxes], pixels.shape[:2], command.box_format, command.normalized
    )
    answer = ask(load(command.weights, command.device).encode(pixels), command, boxes)
    if command.output is not None:
        write_picture(command.output, draw_regions(pixels, regions_to_draw(answer), show_scores=True))
    document = {"image": str(command.image), **answer.as_json()}
    if command.json:
        say_json(document)
    else:
        say("\n".join(answer_lines(answer)))
    return 0


def check_command(command: PredictCommand) -> None:
    """Refuse combinations that ask for nothing, before the model is loaded."""
    if bool(command.boxes) != bool(command.labels):
        given, missing = ("boxes", "labels") if command.boxes else ("labels", "boxes")
        raise UserError(f"--{given} needs --{missing} too: each box is named by one of the labels")
    if not command.boxes and not command.phrases:
        raise UserError("nothing to predict; give --boxes with --labels, or --phrases, or both")
    if command.output is not None:
        check_output(command.output, [command.image])


def parse_box(text: str) -> list[float]:
    """Four numbers joined by commas."""
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        raise UserError(f"a box must be four numbers joined by commas, such as 10,20,200,180; got {text!r}")
    return numbers


def ask(image: EncodedImage, command: PredictCommand, boxes: np.ndarray) -> Answer:
    """Put the command's questions to a picture.

    Args:
        image: The picture.
        command: What is asked.
        boxes: (R, 4) normalised `xyxy` of the picture.
    """
    named = image.classify(command.labels, boxes, normalized=True, top_k=command.top_k) if len(boxes) else []
    found = image.find(command.phrases, candidates=command.candidates) if command.phrases else []
    return Answer(image.size_hw, named, found)


def regions_to_draw(answer: Answer) -> list[Region]:
    """Each box with its best name, and each phrase with its box."""
    answers = [(region.box, *region.labels[0]) for region in answer.regions]
    answers += [(found.box, found.phrase, found.score) for found in answer.phrases]
    regions = []
    for box, text, score in answers:
        x1, y1, x2, y2 = normalize_boxes(np.array(box), answer.size_hw).tolist()
        regions.append(Region((x1, y1, x2, y2), text, score))
    return regions


def answer_lines(answer: Answer) -> list[str]:
    """The answers for people to read."""
    lines = []
    for region in answer.regions:
        names = ", ".join(f"{label} {score:.3f}" for label, score in region.labels)
        lines.append(f"box {_short(region.box)}: {names}")
    for phrase, box, score in answer.phrases:
        lines.append(f"{phrase}: box {_short(box)}, score {score:.3f}")
    return lines


def _short(box: Box) -> str:
    return ",".join(f"{number:.1f}".removesuffix(".0") for number in box)
