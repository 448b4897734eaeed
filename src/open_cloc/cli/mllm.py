"""`open-cloc mllm train | ask | compare`: a language model that sees through CLOC."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from open_cloc.cli.parse import check_result_file, parse, parse_command
from open_cloc.cli.screen import say, say_json
from open_cloc.errors import UserError
from open_cloc.files import write_json
from open_cloc.mllm.compare import CompareConfig, table
from open_cloc.mllm.compare import compare as run_comparison
from open_cloc.mllm.model import MAX_NEW_TOKENS, load
from open_cloc.mllm.train import MLLMRecipe
from open_cloc.mllm.train import train as run_training

# What every result of a comparison holds.
RESULT = ("arms", "differences", "config", "protocol")


@dataclass(frozen=True)
class CompareOptions:
    """Teach the same small language model with CLIP's and CLOC's tower, and measure all on unseen pictures.

    Attributes:
        config: What is compared.
        output: File for the result JSON.
        progress: Show progress bars.
    """

    config: Annotated[CompareConfig, tyro.conf.arg(name="")]
    output: Path | None = None
    progress: bool = True


def usage() -> str:
    """How the verb is called."""
    return (
        "usage: open-cloc mllm train --weights MODEL --output FOLDER [options]\n"
        "       open-cloc mllm ask PICTURE QUESTION --model FOLDER [--regions 10,20,200,180 ...]\n"
        "       open-cloc mllm compare --clip MODEL --cloc MODEL [options]\n"
        "       open-cloc mllm train --help lists every option with its default, and so on"
    )


def main(argv: Sequence[str]) -> int:
    """Run one of the three; 0 when it is done."""
    if not argv or argv[0] in ("-h", "--help"):
        say(usage())
        return 0 if argv else 2
    words: dict[str, Callable[[Sequence[str]], int]] = {"train": train, "ask": _ask, "compare": compare}
    if argv[0] not in words:
        raise UserError(f"unknown mllm command {argv[0]!r}; expected one of {', '.join(words)}")
    return words[argv[0]](argv[1:])


def train(argv: Sequence[str]) -> int:
    """Teach a language model; prints its folder."""
    say(run_training(parse(MLLMRecipe, argv, "open-cloc mllm train")))
    return 0


def compare(argv: Sequence[str]) -> int:
    """Teach and measure three times as many models as seeds; prints a line for each, and the table."""
    options = parse(CompareOptions, argv, "open-cloc mllm compare")
    check_result_file(options.output, RESULT)
    result = run_comparison(options.config, progress=options.progress, tell=partial(say, to_errors=True))
    if options.output is not None:
        write_json(options.output, result)
    say(table(result))
    if options.output is not None:
        say(f"written to {options.output}")
    return 0


def _ask(argv: Sequence[str]) -> int:
    return parse_command({"": ask}, argv, "open-cloc mllm ask")()


def ask(
    image: Annotated[Path, tyro.conf.Positional],
    question: Annotated[str, tyro.conf.Positional],
    model: Path,
    regions: tuple[str, ...] = (),
    max_new_tokens: int = MAX_NEW_TOKENS,
    json: bool = False,
    device: str | None = None,
) -> int:
    """Ask about a picture, and about places in it.

    Args:
        image: The picture.
        question: With one `<region>` for each of --regions.
        model: Folder that `mllm train` wrote.
        regions: Places in pixels, numbers joined by commas: a point x,y, a box x1,y1,x2,y2, or a scribble of
            three points or more.
        max_new_tokens: Tokens of the longest answer.
        json: Print JSON: the answer, and the boxes that it names in pixels.
        device: cpu, cuda, ...; a GPU if there is one.
    """
    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens must be at least 1; got {max_new_tokens}")
    places = [parse_region(text) for text in regions]
    reply = load(model, device).ask(image, question, places, max_new_tokens=max_new_tokens)
    if json:
        say_json({"image": str(image), "answer": reply.text, "boxes": [list(box) for box in reply.boxes]})
        return 0
    say(reply.text)
    for box in reply.boxes:
        say(f"box {','.join(f'{number:.1f}' for number in box)}")
    return 0


def parse_region(text: str) -> np.ndarray:
    """Numbers joined by commas: a point (2,), a box (4,) or a scribble (K, 2).

    Raises:
        UserError: If they are none of these.
    """
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or len(numbers) % 2:
        raise UserError(
            "a region must be 2 numbers (a point), 4 (a box), or 6 and more in twos (a scribble), joined by "
            f"commas; got {text!r:.80}"
        )
    return np.array(numbers) if len(numbers) <= 4 else np.array(numbers).reshape(-1, 2)
