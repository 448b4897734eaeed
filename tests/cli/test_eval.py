"""`open-cloc eval`: its options, its table and its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from open_cloc.canvas import CanvasConfig
from open_cloc.cli import eval as command
from open_cloc.cli.main import main
from open_cloc.data.scenes.vocabulary import SceneConfig, vocabulary
from open_cloc.errors import MissingFileError, UserError
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.tasks import without_effect
from open_cloc.model.cloc import CLOC


@pytest.fixture
def weights(tiny_model_cfg: dict[str, Any], tmp_path: Path) -> str:
    CLOC(tiny_model_cfg, preprocess=CanvasConfig((64, 64))).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_eval_prints_a_table_and_writes_a_file(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "result.json"
    argv = ["--weights", weights, "--data", "scenes:val", "--limit", "3", "--device", "cpu"]
    options = ["--recall_k", "1", "10", "--batch-size", "2", "--method", "roialign", "--duplicates", "any"]
    assert command.main(["region-retrieval", *argv, *options, "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert [path.name for path in output.parent.iterdir()] == ["result.json"]
    assert (result["dataset"], result["pretrained"]) == ("scenes:val", weights)
    protocol = result["protocol"]
    assert (protocol["num_images"], protocol["limit"], protocol["batch_size"]) == (3, 3, 2)
    assert (protocol["method"], protocol["duplicates"], protocol["device"]) == ("roialign", "any", "cpu")
    assert "text_to_region_recall@1 " in capsys.readouterr().out


def test_class_names_stand_in_a_file(weights: str, tmp_path: Path) -> None:
    names, output = tmp_path / "names.txt", tmp_path / "result.json"
    names.write_text("\ufeffblue cat\n\nred dog \n")  # as Windows's editors begin a file
    assert command.read_names(names) == ("blue cat", "red dog")
    argv = ["--weights", weights, "--data", "scenes:val", "--limit", "2", "--output", str(output)]
    with pytest.raises(UserError, match="none of the 2 classes"):
        command.main(["zeroshot_region_classification", *argv, "--classes", str(names)])
    names.write_text("")
    with pytest.raises(UserError, match="empty"):
        command.main(["zeroshot_region_classification", *argv, "--classes", str(names)])
    with pytest.raises(MissingFileError, match="no such file: "):
        command.main(["grounding", *argv, "--classes", str(tmp_path / "none.txt")])


def test_wrong_names_are_refused_before_anything_is_read() -> None:
    with pytest.raises(UserError, match="zeroshot_retrieval"):
        command.main(["nonsense", "--weights", "nowhere", "--data", "coco:nowhere"])
    with pytest.raises(UserError, match="needs a model: give --weights"):
        command.main(["grounding", "--data", "scenes:val"])


def test_an_option_that_a_task_does_not_read_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["eval", "region-retrieval", "--weights", "w", "--data", "scenes:val", "--templates", "a {}"]
    assert main(argv) == 2
    assert (
        "region_retrieval does not read --templates: leave it out (it is for detection"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (
            ["grounding", "--method", "head", "--recall-k", "5"],
            "--recall-k has no effect: head gives one box",
        ),
        (["grounding", "--method", "head", "--candidates", "9"], "--candidates has no effect: head ranks no"),
        (["grounding", "--candidates", "9", "--proposals", "labels"], "boxes are chosen among --proposals"),
        (["pointing", "--method", "roialign", "--candidates", "9"], "effect: roialign ranks no candidates"),
        (["pointing", "--method", "prompter,grounding=head", "--candidates", "9"], "ranks no candidates"),
    ],
)
def test_an_option_without_effect_is_refused(
    argv: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", *argv, "--weights", "w", "--data", "scenes:val"]) == 2
    assert told in capsys.readouterr().err


def test_options_that_the_method_reads_are_taken() -> None:
    several = EvaluationConfig(candidates=9, recall_k=(5,))
    assert not without_effect("grounding", several, "prompter")
    assert not without_effect("grounding", EvaluationConfig(recall_k=(5,), proposals="labels"), "head")
    assert not without_effect("pointing", EvaluationConfig(candidates=9), "ranked")
    assert not without_effect("pointing", EvaluationConfig(candidates=9), "mine.module:Method")


def test_groups_stand_in_a_file(weights: str, tmp_path: Path) -> None:
    names = sorted(set(vocabulary(SceneConfig()).phrases))
    groups, out = tmp_path / "groups.json", tmp_path / "r.json"
    groups.write_text(json.dumps({"base": names[:100], "novel": names[100:]}))
    argv = ["eval", "zeroshot-region-classification", "--weights", weights, "--data", "scenes:val"]
    argv += ["--limit", "30", "--groups", str(groups), "--output", str(out)]
    assert main(argv) == 0
    assert {"acc1/base", "acc1/novel"} <= set(json.loads(out.read_text())["metrics"])
    groups.write_text("[1]")
    assert main(argv) == 2
