"""Teaching: a tiny model that learns, stages, the order of pictures, the measure and the comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from open_cloc.cli import main as cli
from open_cloc.errors import ExistingFileError, NotFiniteError, UserError
from open_cloc.mllm.compare import ARMS, CompareConfig, compare, constant_answers, table
from open_cloc.mllm.evaluate import is_right, right, score
from open_cloc.mllm.model import MLLMConfig, RegionLM, load
from open_cloc.mllm.questions import Question, QuestionConfig, make_questions
from open_cloc.mllm.small import SmallLM, small_language_model
from open_cloc.mllm.train import (
    Example,
    MLLMRecipe,
    TeachConfig,
    batches_of,
    build,
    fit,
    make_examples,
    train,
    words_of,
)
from open_cloc.samples import Region, RegionSample
from tests.tiny import tiny_model

COLOURS = {"red": (230, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 230), "white": (250, 250, 250)}
SMALL = SmallLM(layers=2, width=32, heads=2, mlp=64)


def blocks(num: int, seed: int) -> list[RegionSample]:
    """Pictures of two coloured blocks on grey, left and right of each other."""
    rng = np.random.default_rng(seed)
    samples = []
    for index in range(num):
        pixels = np.full((64, 64, 3), 110, np.uint8)
        regions = []
        for left, name in zip((0, 32), rng.permutation(list(COLOURS))):
            x, y = left + int(rng.integers(0, 8)), int(rng.integers(0, 32))
            pixels[y : y + 24, x : x + 24] = COLOURS[str(name)]
            regions.append(Region((x / 64, y / 64, (x + 24) / 64, (y + 24) / 64), f"a {name} block"))
        samples.append(RegionSample(f"{seed}-{index}", pixels, regions=tuple(regions)))
    return samples


def prepared(
    num: int, seed: int, like: RegionLM | None = None, kinds: Any = ("what", "where")
) -> tuple[RegionLM, list[Example]]:
    samples = blocks(num, seed)
    questions = make_questions(samples, QuestionConfig(kinds=kinds))
    if like is None:
        lm, tokenizer = small_language_model(words_of(questions, 10), SMALL)
        like = build(tiny_model(), lm, tokenizer, MLLMConfig(bins=10), 0)
    return like, make_examples(like, samples, questions)


def test_a_tiny_model_learns_in_seconds() -> None:
    model, examples = prepared(64, 0)
    _, unseen = prepared(40, 1, model)
    before = right(model, unseen)
    losses = fit(model, examples, TeachConfig(steps=120, pictures=8, lr=5e-3, projector_lr=5e-3, warmup=10))
    assert np.mean(losses[-10:]) < 0.4 * np.mean(losses[:5])
    after = right(model, unseen)
    what = torch.tensor([example.question.kind == "what" for example in unseen])
    assert before[what].mean() < 0.2
    assert after[what].mean() > 0.6  # one of four by chance
    assert not model.training
    values = score(after[None], [example.question for example in unseen], 40).values
    assert values["what"] == pytest.approx(float(after[what].mean()))
    assert values["average"] == pytest.approx((values["what"] + values["where"]) / 2)


def test_the_first_stage_teaches_projectors_alone() -> None:
    model, examples = prepared(8, 0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit(model, examples, TeachConfig(projector_steps=3, steps=0, pictures=2))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[0] for name in changed} == {"project_image", "project_region", "project_place"}
    assert all(parameter.requires_grad for parameter in model.lm.parameters())
    fit(model, examples, TeachConfig(steps=2, pictures=2))
    after = model.state_dict()
    assert any(not torch.equal(after[name], before[name]) for name in before if name.startswith("lm."))
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("tower."))


def test_what_its_owner_has_frozen_stays_so() -> None:
    model, examples = prepared(4, 0)
    first, second = model.lm.model.layers
    first.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.lm.state_dict().items()}
    fit(model, examples, TeachConfig(projector_steps=1, steps=2, pictures=2))
    after = model.lm.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if ".layers.0." in name)
    assert not torch.equal(
        after["model.layers.1.mlp.up_proj.weight"], before["model.layers.1.mlp.up_proj.weight"]
    )
    assert not any(parameter.requires_grad for parameter in first.parameters())
    assert all(parameter.requires_grad for parameter in second.parameters())


def test_the_same_by_the_same_seed() -> None:
    def run(seed: int) -> list[float]:
        model, examples = prepared(8, 0)
        return fit(model, examples, TeachConfig(projector_steps=2, steps=3, pictures=2, seed=seed))

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_every_picture_once_an_epoch() -> None:
    batches = batches_of(5, 2, seed=3)
    rows = [row for _ in range(5) for row in next(batches)]
    assert sorted(rows[:5]) == sorted(rows[5:]) == list(range(5))
    assert rows[:5] != rows[5:]
    later = batches_of(5, 2, seed=3, first=2)
    assert next(later) == rows[4:6]


def test_examples_share_their_pictures_tokens() -> None:
    _, examples = prepared(3, 0)
    tokens = {example.question.image: id(example.prompt.image_tokens) for example in examples}
    assert len(examples) == 6
    assert all(id(e.prompt.image_tokens) == tokens[e.question.image] for e in examples)
    assert len(set(tokens.values())) == 3


def test_a_loss_that_is_no_number() -> None:
    model, examples = prepared(4, 0)
    with torch.no_grad():
        model.project_image[1].weight.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="the loss is nan at step 0"):
        fit(model, examples, TeachConfig(steps=2, pictures=2))


def test_what_is_right() -> None:
    _, (what, where) = prepared(1, 0)
    assert is_right(what, f" {what.question.answer.upper()} ", 10)
    assert not is_right(what, f"{what.question.answer} too", 10)
    x1, y1, x2, y2 = (where.canvas_box * 10).astype(int)
    assert is_right(where, f"[ {x1} {y1} {x2} {y2} ]", 10)
    assert not is_right(where, f"[ {x1} {y1} {x1} {y2} ]", 10)
    assert not is_right(where, f"[0 0 9 9] [ {x1} {y1} {x2} {y2} ]", 10)  # the first one counts
    assert not is_right(where, "there", 10)


def question(image: int, kind: Any, answer: str = "", box: Any = None) -> Question:
    return Question(image, kind, "", (), answer, box)


def test_scores_by_hand() -> None:
    asked = [question(0, "what"), question(0, "which"), question(1, "what"), question(2, "what")]
    found = score(torch.tensor([[1.0, 0, 1, 0], [1, 1, 1, 1]]), asked, 3)
    assert found.values == pytest.approx({"what": 5 / 6, "which": 0.5, "average": (5 / 6 + 0.5) / 2})
    low, high = found.intervals["what"]
    assert low < 5 / 6 < high <= 1


def test_a_constant_answer_by_hand() -> None:
    learned = [question(0, "what", "a dog"), question(1, "what", "a dog"), question(2, "what", "a cat")]
    learned += [question(0, "where", "", (0, 0, 1, 1)), question(1, "where", "", (0, 0, 0, 0))]
    asked = [question(0, "what", "A dog"), question(1, "what", "a cat")]
    asked += [question(0, "where", "", (0, 0, 0.5, 0.5)), question(1, "where", "", (0.5, 0.5, 1, 1))]
    assert constant_answers(learned, asked) == {"what": 0.5, "where": 0.5}


@pytest.mark.parametrize(
    ("config", "said"),
    [({"steps": 0}, "nothing would be learned"), ({"pictures": 0}, "pictures"), ({"lr": -1.0}, "lr")],
)
def test_wrong_configs(config: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        TeachConfig(**config)


def test_comparisons_that_make_no_sense() -> None:
    with pytest.raises(UserError, match="the same pictures"):
        CompareConfig("a", "b", train="scenes:val", test="scenes:val")
    with pytest.raises(UserError, match="seeds must be"):
        CompareConfig("a", "b", seeds=())


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tower") / "model"
    tiny_model().save_pretrained(folder)
    return folder


TINY = ["--small.layers", "1", "--small.width", "16", "--small.heads", "2", "--teach.steps", "1"]
SHORT: dict[str, Any] = {"small": SMALL, "teach": TeachConfig(steps=2, pictures=2)}


def test_a_recipe_from_end_to_end(tower: Path, tmp_path: Path) -> None:
    recipe = MLLMRecipe(
        str(tower), tmp_path / "out", "scenes:train,num_samples=4", device="cpu", progress=False, **SHORT
    )
    assert train(recipe) == tmp_path / "out"
    assert json.loads((tmp_path / "out" / "recipe.json").read_text())["teach"]["steps"] == 2
    model = load(tmp_path / "out", "cpu")
    assert model.config.bins == 100
    with pytest.raises(ExistingFileError, match="must be new or empty"):
        train(recipe)
    # What was taught goes on to be taught.
    again = MLLMRecipe(
        str(tower),
        tmp_path / "two",
        recipe.data,
        str(tmp_path / "out" / "lm"),
        device="cpu",
        progress=False,
        **SHORT,
    )
    assert len(load(train(again), "cpu").tokenizer) == len(model.tokenizer)


def test_the_comparison_is_of_equal_terms(tower: Path) -> None:
    """With one tower in both places the first two arms are the same to the last digit."""
    config = CompareConfig(
        str(tower),
        str(tower),
        "scenes:train,num_samples=4",
        "scenes:val,num_samples=3",
        (0, 1),
        device="cpu",
        **SHORT,
    )
    told: list[str] = []
    result = compare(config, tell=told.append)
    assert len(told) == 6
    first, second, tokens = (result["arms"][name] for name in ARMS)
    assert first["last_losses"] == second["last_losses"] != tokens["last_losses"]
    assert len(first["seeds"]) == 2
    assert set(result["differences"]["CLOC, coordinates - CLIP, coordinates"]["values"].values()) == {0.0}
    assert result["questions"]["in_region"] % 2 == 0
    lines = table(json.loads(json.dumps(result))).splitlines()
    assert len(lines) == 1 + 3 + 3 + 1
    assert lines[0].split() == [*result["questions"], "average"]
    assert all(line.count("[") == 7 for line in lines[1:7])


def test_the_commands(tower: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    small = [*TINY, "--no-progress"]
    data = ["--data", "scenes:train,num_samples=3"]
    assert cli.main(["mllm", "train", "--weights", str(tower), "--output", out, *data, *small]) == 0
    assert capsys.readouterr().out.strip() == out
    picture = "docs/scene.png"
    asked = ["mllm", "ask", picture, "what is in <region> ?", "--model", out]
    assert cli.main([*asked, "--regions", "26,17,55,39", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"image", "answer", "boxes"}
    assert cli.main([*asked, "--regions", "1,2,3"]) == 2
    assert "a region must be 2 numbers" in capsys.readouterr().err
    assert cli.main(asked) == 2
    assert "got 1 of them and 0 boxes" in capsys.readouterr().err
    assert cli.main([*asked, "--regions", "1,2,30,40", "--max-new-tokens", "0"]) == 2
    assert cli.main(["mllm", "paint"]) == 2
    assert "expected one of train, ask, compare" in capsys.readouterr().err
    assert cli.main(["mllm"]) == 2


def test_the_command_that_compares(tower: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tmp_path / "result.json"
    command = f"mllm compare --clip {tower} --cloc {tower} --train scenes:train,num_samples=2 "
    command += f"--test scenes:val,num_samples=2 --seeds 0 --no-progress --output {result}"
    assert cli.main([*command.split(), *TINY]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"written to {result}"
    assert json.loads(result.read_text())["config"]["seeds"] == [0]
    result.write_text("{}")
    assert cli.main([*command.split(), *TINY]) == 2
