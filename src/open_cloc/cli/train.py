"""`open-cloc train RECIPE [--section.field VALUE ...] [--resume latest | --verify-resume]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from open_cloc.cli.recipe import RecipeField, parse_options
from open_cloc.cli.screen import say
from open_cloc.training.loop import train
from open_cloc.training.ranks import Ranks, join_ranks
from open_cloc.training.recipe import Recipe
from open_cloc.training.recipes import RECIPES
from open_cloc.training.run_folder import FINAL_FOLDER
from open_cloc.training.verify import verify_resume

STOPPED = 143  # what a shell reports for SIGTERM


@dataclass(frozen=True)
class Options:
    """Train a model.

    Attributes:
        recipe: What to do; every field can be overridden.
        resume: Go on with a run: `latest`, a checkpoint's path, or `auto`: the latest if there is one, else
            start.
        verify_resume: Train nothing: prove in a temporary folder that this recipe resumes exactly.
    """

    recipe: RecipeField
    resume: str = ""
    verify_resume: bool = False


def usage() -> str:
    lines = [f"  {name:18s} {(function.__doc__ or '').splitlines()[0]}" for name, function in RECIPES.items()]
    return (
        "usage: open-cloc train RECIPE [--section.field VALUE ...] [--resume latest | --verify-resume]\n"
        "       open-cloc train RECIPE --help lists every field with its default\n\nrecipes:\n"
        + "\n".join(lines)
    )


def main(argv: Sequence[str]) -> int:
    """Exit codes: 0 trained or verified, 1 not resumed exactly, 143 stopped by SIGTERM with a checkpoint."""
    if not argv or argv[0] in ("-h", "--help"):
        say(usage())
        return 0 if argv else 2
    options = parse_options(Options, "train", argv)
    recipe = options.recipe
    with join_ranks(recipe.run.device) as ranks:
        if options.verify_resume:
            return _verify(recipe, ranks)
        return _train(recipe, options.resume, ranks)


def _verify(recipe: Recipe, ranks: Ranks) -> int:
    verdict = verify_resume(recipe, ranks)
    if ranks.is_first:
        say(verdict.text)
    return 0 if verdict.exact else 1


def _train(recipe: Recipe, resume: str, ranks: Ranks) -> int:
    if not recipe.run.output:
        recipe = replace(recipe, run=replace(recipe.run, output=str(Path("runs") / recipe.name)))
    made = train(recipe, resume=resume)
    if made.name != FINAL_FOLDER:
        if ranks.is_first:
            say(f"stopped by SIGTERM, saved {made}; go on with --resume latest", to_errors=True)
        return STOPPED
    if ranks.is_first:
        say(made)
    return 0
