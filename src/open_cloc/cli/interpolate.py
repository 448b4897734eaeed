"""`open-cloc interpolate FIRST SECOND --alpha 0.5 --output FOLDER`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from open_cloc.cli.parse import parse
from open_cloc.cli.screen import say
from open_cloc.model.interpolate import interpolate


@dataclass(frozen=True)
class Options:
    """Average the weights of two models of one architecture (WiSE-FT): (1 - alpha) * first + alpha * second.

    Attributes:
        first: Model folder, usually the one before fine-tuning (RUN/start).
        second: Model folder, usually the one after (RUN/model).
        output: Folder to make.
        alpha: Share of the second, from 0 to 1.
        towers_only: Average the towers and keep the second's Prompter: where the first's is untrained.
    """

    first: Annotated[Path, tyro.conf.Positional]
    second: Annotated[Path, tyro.conf.Positional]
    output: Path
    alpha: float = 0.5
    towers_only: bool = False


def main(argv: Sequence[str]) -> int:
    """Run the verb; 0 when the model is written."""
    options = parse(Options, argv, "open-cloc interpolate")
    interpolate(options.first, options.second, options.alpha, options.output, towers_only=options.towers_only)
    say(options.output)
    return 0
