"""What a run logs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_recipes import SCENES, TERMS, log_of, with_run

from open_cloc.config import from_dict
from open_cloc.data.readers import open_reader
from open_cloc.data.shards.write import write_shards
from open_cloc.training.loop import train
from open_cloc.training.recipe import Recipe


def test_log_holds_terms_cost_and_throughput(tiny: Recipe) -> None:
    train(with_run(tiny, log_steps=4, report_to=("tensorboard",)))
    lines = log_of(tiny.run.output)
    assert [line["step"] for line in lines] == [4, 6]  # the last step always
    assert [line["samples_seen"] for line in lines] == [16, 24]
    expected = {*TERMS, "step", "samples_seen", "filtered_pairs", "logit_scale", "lr"}
    expected |= {
        "images_per_s",
        "step_time",
        "data_time",
        "distinct_text_share",
        "bad_samples",
        "skipped_steps",
    }
    assert set(lines[0]) == expected
    assert 0 < lines[0]["distinct_text_share"] <= 1
    assert 0 < lines[0]["data_time"] < lines[0]["step_time"]
    assert list((Path(tiny.run.output) / "tensorboard").iterdir())


def test_recipe_json_is_the_recipe(tiny: Recipe) -> None:
    train(with_run(tiny, samples=4))
    saved = json.loads((Path(tiny.run.output) / "recipe.json").read_text())
    assert from_dict(Recipe, saved) == with_run(tiny, samples=4)


@pytest.mark.parametrize(("log_steps", "steps"), [(1, 3), (6, 1)])
def test_a_loss_that_stays_zero_is_told_once(
    tiny: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture, log_steps: int, steps: int
) -> None:
    scenes = open_reader(SCENES)
    samples = (replace(scenes[index], captions=()) for index in range(len(scenes)))
    write_shards(samples, tmp_path / "without_captions")
    silent = replace(tiny, data=replace(tiny.data, train=(f"shards:{tmp_path / 'without_captions'}",)))
    train(with_run(silent, log_steps=log_steps))
    (told,) = [message for message in caplog.messages if message.startswith("image_text has been 0")]
    assert f"each time it was logged ({steps}): nothing is learned from it" in told
