"""`open-cloc export TARGET --weights MODEL OUTPUT`: a model's towers for another tool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from open_cloc.cli.parse import parse
from open_cloc.cli.screen import say
from open_cloc.export import export


@dataclass(frozen=True)
class Options:
    """Write a model's towers for another tool, open them there, and print how far they are from the model.

    Attributes:
        target: open-clip; clip or siglip (transformers' CLIPModel, SiglipModel); llava (the image tower that
            LLaVA takes); onnx; onnx-int8 (with graphs of 8 bits beside them).
        output: Folder to make.
        weights: Model folder or hub id.
        pictures: Data whose first pictures and texts are compared; generated scenes unless given.
    """

    target: Annotated[str, tyro.conf.Positional]
    output: Annotated[Path, tyro.conf.Positional]
    weights: str
    pictures: str = ""


def main(argv: Sequence[str]) -> int:
    """Run the verb; 0 when the folder is written and computes what the model computes."""
    options = parse(Options, argv, "open-cloc export")
    for difference in export(options.target, options.weights, options.output, options.pictures):
        say(str(difference))
    say(options.output)
    return 0
