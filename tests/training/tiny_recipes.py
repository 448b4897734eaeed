"""What the tests of training share: scenes that cost nothing, and recipes with one part changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from open_cloc.training.recipe import Recipe

SCENES = "scenes:train,image_size=32,num_samples=1000"


def with_run(recipe: Recipe, **changes: Any) -> Recipe:
    return replace(recipe, run=replace(recipe.run, **changes))


def with_loader(recipe: Recipe, **changes: Any) -> Recipe:
    return replace(recipe, data=replace(recipe.data, loader=replace(recipe.data.loader, **changes)))
