"""A look at the image level before the first step and after the last: fine-tuning can destroy it unseen."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from open_cloc.data.readers import open_reader
from open_cloc.evaluation.run import evaluate
from open_cloc.files import write_json
from open_cloc.model.cloc import CLOC
from open_cloc.training.recipe import Recipe

logger = logging.getLogger(__name__)

TASK = "zeroshot_retrieval"
LOSS_TO_WARN_OF = 0.02  # absolute recall@1


def probe(model: CLOC, recipe: Recipe, folder: Path, when: str) -> None:
    """Measure image-text retrieval on the recipe's probe data and write `probe_{when}.json`.

    Args:
        model: The model as it is now.
        recipe: `data.probe` names the data.
        folder: The run folder.
        when: `before` or `after`; after, a clear loss is warned of.
    """
    dataset = open_reader(recipe.data.probe)
    result = evaluate(model, dataset, TASK, dataset_name=recipe.data.probe, pretrained=when)
    write_json(folder / f"probe_{when}.json", result)
    before = folder / "probe_before.json"
    if when == "before" or not before.is_file():
        return
    start = json.loads(before.read_text(encoding="utf-8"))["metrics"]
    for name, value in result["metrics"].items():
        if name in start and value < start[name] - LOSS_TO_WARN_OF:
            logger.warning(
                "%s fell from %.3f to %.3f during training: lower optim.lr, or mix start and result with "
                "`open-cloc interpolate %s/start %s/model --towers-only --output FOLDER`",
                name,
                start[name],
                value,
                folder,
                folder,
            )
