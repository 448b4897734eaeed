"""`open-cloc predict --weights PATH IMAGE`: name regions of a picture, find phrases in it, draw the result.

Shapes: H W pixels of the picture, R regions, P boxes or points of a region.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from open_cloc.boxes import normalize_boxes
from open_cloc.cli.parse import parse
from open_cloc.cli.screen import say, say_json
from open_cloc.draw import check_output, draw_regions, write_picture
from open_cloc.errors import UserError
from open_cloc.inference.answer import Answer, Box
from open_cloc.inference.encoded import EncodedImage
from open_cloc.inference.inputs import boxes_of_picture, points_of_picture, read_mask
from open_cloc.inference.predictor import load
from open_cloc.masks import Mask
from open_cloc.model.search import CANDIDATES
from open_cloc.pictures import read_pixels
from open_cloc.samples import Region

KINDS = ("boxes", "points", "masks")  # ways to ask for regions
BORDER = 0.01  # in shares of the picture's sides


@dataclass(frozen=True)
class PredictCommand:
    """Name regions of a picture (--labels), find phrases in it (--phrases), or both.

    Regions are asked for by --boxes, --points or --masks.

    Attributes:
        image: The picture.
        weights: Model folder or hub id.
        boxes: One or more boxes, four numbers each joined by commas: 10,20,200,180.
        points: One or more points in place of boxes, two numbers each joined by a comma: 50,60.
        masks: One or more files in place of boxes, PNG, TIFF or BMP as large as the picture: what is not
            black is the region.
        together: All of the boxes, points or masks are one region.
        labels: Names to choose from for each region.
        phrases: What to find, one box each.
        box_format: What the four numbers are: two corners; a corner, width and height; or centre and both.
        normalized: Boxes and points are in [0, 1] of the picture instead of pixels.
        top_k: Names per region.
        candidates: Boxes that compete for each phrase; 0 takes the box head's answer.
        output: Draw the result on this picture, .png, .jpg or .webp.
        json: Print JSON instead of lines.
        device: cpu, cuda, ...; a GPU if there is one.
    """

    image: Annotated[Path, tyro.conf.Positional]
    weights: str
    boxes: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    masks: tuple[Path, ...] = ()
    together: bool = False
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
    prompts = prompts_of(command, (pixels.shape[0], pixels.shape[1]))
    answer = ask(load(command.weights, command.device).encode(pixels), command, prompts)
    if command.output is not None:
        regions = regions_to_draw(answer, prompts.get("masks"))
        write_picture(command.output, draw_regions(pixels, regions, show_scores=True))
    document = {"image": str(command.image), **answer.as_json()}
    if command.json:
        say_json(document)
    else:
        say("\n".join(answer_lines(answer)))
    return 0


def check_command(command: PredictCommand) -> None:
    """Refuse combinations that ask for nothing, before the model is loaded."""
    given = [kind for kind in KINDS if getattr(command, kind)]
    if len(given) > 1:
        raise UserError(f"--{given[0]} and --{given[1]} are two ways to ask for regions; give one of them")
    if given and not command.labels:
        raise UserError(f"--{given[0]} needs --labels too: each region is named by one of the labels")
    if command.labels and not given:
        raise UserError("--labels needs --boxes, --points or --masks too: regions are named by the labels")
    if command.box_format != "xyxy" and not command.boxes:
        raise UserError("--box-format is for --boxes, which are not given")
    if command.together and not given:
        raise UserError("--together needs the --boxes, --points or --masks that are to be one region")
    if not given and not command.phrases:
        raise UserError("nothing to predict; give --boxes with --labels, or --phrases, or both")
    if command.output is not None:
        check_output(command.output, [command.image])


def prompts_of(command: PredictCommand, size_hw: tuple[int, int]) -> dict[str, np.ndarray]:
    """The regions that a command asks for, as `EncodedImage.classify` takes them.

    Args:
        command: What is asked.
        size_hw: (height, width) of the picture.

    Returns:
        `boxes` (R, 4) or (1, P, 4), `points` (R, 1, 2) or (1, P, 2), both normalised `xy` of the picture, or
        `masks` (R, H, W); empty where nothing is asked for.

    Raises:
        MissingPictureError: If the file of a mask is not there.
        UserError: If one is no box, point or mask, or not in the picture.
    """
    if command.boxes:
        given = [parse_box(text) for text in command.boxes]
        boxes = boxes_of_picture(given, size_hw, command.box_format, command.normalized)
        return {"boxes": boxes[None] if command.together else boxes}
    if command.points:
        places = [[parse_point(text)] for text in command.points]
        points = points_of_picture(places, size_hw, command.normalized)
        return {"points": points.swapaxes(0, 1) if command.together else points}
    if command.masks:
        masks = np.stack([read_mask(file, size_hw) for file in command.masks])
        return {"masks": np.any(masks, axis=0)[None] if command.together else masks}
    return {}


def parse_box(text: str) -> list[float]:
    """Four numbers joined by commas."""
    return _numbers(text, 4, "a box must be four numbers joined by commas, such as 10,20,200,180")


def parse_point(text: str) -> list[float]:
    """Two numbers joined by a comma."""
    return _numbers(text, 2, "a point must be two numbers joined by a comma, such as 50,60")


def _numbers(text: str, count: int, expected: str) -> list[float]:
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise UserError(f"{expected}; got {text!r}")
    return numbers


def ask(image: EncodedImage, command: PredictCommand, prompts: Mapping[str, Any]) -> Answer:
    """Put the command's questions to a picture.

    Args:
        image: The picture.
        command: What is asked.
        prompts: As `prompts_of` gives them.
    """
    named = []
    if prompts:
        named = image.classify(command.labels, **prompts, normalized=True, top_k=command.top_k)
    found = image.find(command.phrases, candidates=command.candidates) if command.phrases else []
    return Answer(image.size_hw, named, found)


def regions_to_draw(answer: Answer, masks: np.ndarray | None = None) -> list[Region]:
    """Each region with its best name, and each phrase with its box.

    Args:
        answer: What was said.
        masks: (R, H, W) outlines of the regions, where they were asked for by them.
    """
    answers = [(region.box, *region.labels[0]) for region in answer.regions]
    answers += [(found.box, found.phrase, found.score) for found in answer.phrases]
    outlines = [] if masks is None else [Mask.of(own) for own in masks]
    regions = []
    for (box, text, score), mask in zip_longest(answers, outlines):
        x1, y1, x2, y2 = normalize_boxes(np.array(box), answer.size_hw).tolist()
        if x1 == x2 or y1 == y2:  # points in line: a border around them can be seen
            x1, y1, x2, y2 = np.clip([x1 - BORDER, y1 - BORDER, x2 + BORDER, y2 + BORDER], 0, 1).tolist()
        regions.append(Region((x1, y1, x2, y2), text, score, mask=mask))
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
