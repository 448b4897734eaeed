"""A phrase at several boxes: python -m benchmarks.repeated_phrases [--samples 25600] [--output FOLDER]

The scenes' regions are called by their colour alone, so that a phrase often stands at several boxes of one
picture. Two models with the same towers, scenes, steps and seed learn to find them: one whose target is each
region's own box (the paper), one whose target is the nearest box of the phrase. Unseen pictures are asked for
phrases that repeat and for those that do not, apart.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from benchmarks.timing import print_table
from open_cloc.data.scenes.dataset import SceneDataset
from open_cloc.data.scenes.vocabulary import SceneConfig
from open_cloc.evaluation.run import evaluate
from open_cloc.files import write_json
from open_cloc.memory import keep_freed_memory
from open_cloc.model.load import load_model
from open_cloc.objectives import Term
from open_cloc.samples import Region, RegionSample
from open_cloc.training.loop import train
from open_cloc.training.recipe import Recipe
from open_cloc.training.recipes import scenes_cloc
from open_cloc.training.run_folder import FINAL_FOLDER

TEST_SCENES = 1000
TARGETS = ("own", "nearest")


@dataclass
class Options:
    """Attributes:
    output: Folder for the runs and `repeated_phrases.json`.
    samples: Scenes that each model sees.
    image_size: Pixels a side.
    seed: Of scenes, starting weights and draws.
    """

    output: Path = Path("runs/repeated_phrases")
    samples: int = 25_600
    image_size: int = 48
    seed: int = 0


class ByColour:
    """Scenes whose regions are called by their colour.

    Args:
        scenes: With phrases such as "a red umbrella".
        kept: `all` regions, those whose phrase `repeats` in the picture, or the `single` ones.
    """

    def __init__(self, scenes: SceneDataset, kept: str = "all") -> None:
        self.scenes, self.kept = scenes, kept

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> RegionSample:
        sample = self.scenes[index]
        colours = [scene_object.colour for scene_object in self.scenes.scene(index).objects]
        counts = Counter(colours)
        regions = tuple(
            Region(region.box, f"something {self._name(region.text)}")
            for region, colour in zip(sample.regions, colours)
            if self.kept == "all" or (counts[colour] > 1) == (self.kept == "repeats")
        )
        return replace(sample, regions=regions, metadata={})

    @staticmethod
    def _name(phrase: str) -> str:
        """`a red umbrella`, `a pair of red scissors` -> `red`."""
        words = phrase.split()
        return words[3] if words[1:3] == ["pair", "of"] else words[1]


def scenes(options: Options, split: str, count: int) -> SceneDataset:
    """Fewer and larger things than the demo's: what is to be learned is which, not how to see."""
    config = SceneConfig(image_size=options.image_size, max_objects=4, min_object_size=0.3, seed=options.seed)
    return SceneDataset(config, split, count)


def recipe_of(options: Options, target: str) -> Recipe:
    """The demo's CLOC with the box loss of a target."""
    recipe = scenes_cloc()
    grounding = Term("grounding", options={"form": "l1_giou", "target": target})
    return replace(
        recipe,
        name=target,
        model=replace(recipe.model, image_size=options.image_size),
        objectives=(Term("image_text"), Term("region_text"), grounding),
        run=replace(
            recipe.run,
            samples=options.samples,
            seed=options.seed,
            output=str(options.output / target),
            progress=False,
        ),
    )


def measure(options: Options, target: str) -> dict[str, float]:
    """Train, unless it is done, and ask for unseen phrases."""
    folder = options.output / target / FINAL_FOLDER
    if not folder.is_dir():
        train(recipe_of(options, target), dataset=ByColour(scenes(options, "train", options.samples)))
    row = {}
    for kept in ("repeats", "single"):
        data = ByColour(scenes(options, "test", TEST_SCENES), kept)
        for method in ("head", "ranked"):
            result = evaluate(load_model(folder), data, "grounding", method=method)
            write_json(options.output / f"{target}-{kept}-{method}.json", result)
            row[f"{kept} {method}"] = result["metrics"]["acc@0.5"]
    return row


def main() -> None:
    """Both targets, one table."""
    options = tyro.cli(Options)
    keep_freed_memory()
    rows = {target: measure(options, target) for target in TARGETS}
    print_table(rows)
    write_json(options.output / "repeated_phrases.json", rows)


if __name__ == "__main__":
    main()
