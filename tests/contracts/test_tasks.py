"""Whatever the task: finite numbers on a tiny data set, and a protocol that says how they came about."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from open_cloc.canvas import CanvasConfig
from open_cloc.data.readers import open_reader
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.run import evaluate, result_table
from open_cloc.evaluation.tasks import TASKS
from open_cloc.model.cloc import CLOC
from tests.evaluation.tiny_data import WITH_MAPS, WITH_TEXTS, with_maps, with_texts

DATA = "scenes:val,image_size=64,num_samples=5"


@pytest.mark.parametrize("task", TASKS)
def test_it_gives_finite_numbers_and_says_how(task: str, tiny_model_cfg: dict[str, Any]) -> None:
    if task == "detection":
        pytest.importorskip("pycocotools")
    model = CLOC(tiny_model_cfg, preprocess=CanvasConfig((64, 64))).eval()
    scenes = open_reader(DATA)
    data = with_texts(scenes[index] for index in range(5)) if task in WITH_TEXTS else scenes
    if task in WITH_MAPS:
        data = with_maps(scenes[index] for index in range(5))
    method = "roialign" if task in WITH_MAPS else ""
    result = evaluate(model, data, task, EvaluationConfig(batch_size=2, candidates=20), method=method)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["task"] == task
    assert result["metrics"]
    assert all(math.isfinite(value) for value in result["metrics"].values())
    assert set(result["intervals"]) == set(result["metrics"])
    assert all(low <= high for low, high in result["intervals"].values())
    assert result["protocol"]["intervals"]["resamples"] == 1000
    protocol = result["protocol"]
    assert protocol["method"] in ("prompter", "ranked", method)
    assert protocol["num_images"] == 5
    assert all(isinstance(protocol[name], int) for name in protocol if name.startswith("num_"))
    assert len(result_table(result).splitlines()) > len(result["metrics"])
