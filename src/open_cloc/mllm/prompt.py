"""Prompts: where the picture and its regions stand in a text, and boxes written as text.

A prompt says `<image>` once and `<region>` for each box. Boxes in texts are whole numbers from 0 to bins - 1
along the sides of the model's canvas, padding included: `[07 23 44 91]` is x1, y1, x2, y2 with 100 bins, each
with as many digits as the last step.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from open_cloc.errors import UserError

IMAGE, REGION = "<image>", "<region>"
# In rows of token ids; the language model's own are 0 and above.
IMAGE_ID, REGION_ID = -1, -2

_PLACES = re.compile(f"({IMAGE}|{REGION})")
_BOX = re.compile(r"\[([0-9\s,]*)\]")


def step_texts(bins: int) -> list[str]:
    """Every number that a box may be written with, in order: `00` to `99` with 100 bins."""
    width = len(str(bins - 1))
    return [f"{step:0{width}d}" for step in range(bins)]


def box_text(box: Sequence[float] | np.ndarray, bins: int) -> str:
    """A box as text.

    Args:
        box: Normalised `xyxy` of the canvas; clipped to it.
        bins: Steps along a side.
    """
    width = len(str(bins - 1))
    steps = np.floor(np.asarray(box, np.float64) * bins).clip(0, bins - 1).astype(int)
    return f"[{' '.join(f'{step:0{width}d}' for step in steps)}]"


def boxes_in(text: str, bins: int) -> np.ndarray:
    """The boxes that a text names, in its order.

    Args:
        text: What a language model has written. Commas and blanks do no harm, as some tokenizers put them
            between digits.
        bins: Steps along a side.

    Returns:
        (n, 4) float64 normalised `xyxy` of the canvas, at the middles of the steps. Brackets that hold no box
        (not four numbers of full length, one past the last step, ends before starts) are left out.
    """
    width = len(str(bins - 1))
    found = []
    for inner in _BOX.findall(text):
        digits = re.sub(r"[\s,]", "", inner)
        if len(digits) != 4 * width:
            continue
        x1, y1, x2, y2 = steps = [int(digits[i * width : (i + 1) * width]) for i in range(4)]
        if max(steps) < bins and x1 <= x2 and y1 <= y2:
            found.append(steps)
    return (np.array(found, np.float64).reshape(-1, 4) + 0.5) / bins


def write_boxes(prompt: str, texts: Sequence[str]) -> str:
    """Put texts of boxes in the places of `<region>`; as many as there are places."""
    left = iter(texts)
    return re.sub(REGION, lambda _: next(left), prompt)


def check_places(prompt: str, num_boxes: int) -> None:
    """Refuse a prompt that does not fit the picture and its boxes.

    Raises:
        UserError: If it does not say `<image>` once, or not as many `<region>` as there are boxes.
    """
    if prompt.count(IMAGE) != 1:
        raise UserError(f"a prompt must say {IMAGE} once; got {prompt.count(IMAGE)} times in {prompt!r:.80}")
    if prompt.count(REGION) != num_boxes:
        raise UserError(
            f"a prompt needs one {REGION} for each box; got {prompt.count(REGION)} of them and {num_boxes} "
            f"boxes in {prompt!r:.80}"
        )


def token_ids(prompt: str, tokenizer: Any) -> list[int]:
    """Token ids of a prompt, with `IMAGE_ID` and `REGION_ID` in the places of the picture and the regions.

    The tokenizer's start mark comes first if it has one. The vocabulary stays as it is.
    """
    ids: list[int] = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for part in _PLACES.split(prompt):
        if part == IMAGE:
            ids.append(IMAGE_ID)
        elif part == REGION:
            ids.append(REGION_ID)
        elif part:
            ids.extend(tokenizer(part, add_special_tokens=False)["input_ids"])
    return ids
