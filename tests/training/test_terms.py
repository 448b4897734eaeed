"""Objectives with more than the paper's: parameters of their own, a teacher, texts with roles, views."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from test_parallelize import assert_same_bits, log_of, make_recipe, run_ranks, state_of
from tiny_recipes import with_loader, with_run
from torch import Tensor, nn
from torch.nn import functional as F

from open_cloc.data.collate import LoaderConfig
from open_cloc.data.loader import RegionLoader
from open_cloc.model.cloc import CLOC
from open_cloc.model.create import build_model
from open_cloc.objectives import Objectives, Term
from open_cloc.samples import OF_REGIONS, Features, Region, RegionSample, Text, ViewConfig, Wants
from open_cloc.training.accumulate import Forward, split_batch
from open_cloc.training.freeze import freeze_unreached
from open_cloc.training.loop import train
from open_cloc.training.recipe import Recipe


class OwnScale(nn.Module):
    """CLIP's loss with a scale of its own, which only it knows."""

    gathered = frozenset({"text_features"})
    needs = frozenset({"image_features", "text_features"})

    def __init__(self, start: float = 10.0) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(start).log())

    def forward(self, features: Features) -> Tensor:
        images, texts = (
            F.normalize(x.float(), dim=-1) for x in features.take("image_features", "text_features")
        )
        logits = self.log_scale.exp() * images @ texts.T
        target = features.world.first + torch.arange(len(images))
        return features.world.sum(F.cross_entropy(logits, target, reduction="sum")) / len(texts)


class ToTeacher(nn.Module):
    """Features stay near those of a slowly following teacher."""

    needs = frozenset({"image_features", "teacher.image_features"})
    teacher_momentum = 0.9

    def forward(self, features: Features) -> Tensor:
        own, teacher = features.take("image_features", "teacher.image_features")
        far = (1 - F.cosine_similarity(own.float(), teacher.float())).sum()
        return features.world.sum(far) / features.world.sum(torch.tensor(float(len(own))))


class LongAndHard(nn.Module):
    """Long captions and hard negatives of regions, as objectives of the field want them."""

    roles: ClassVar = {"long": 2, f"{OF_REGIONS}negative": 3}
    needs = frozenset({"texts.long", "text_masks.long", "texts.regions.negative", "region_features"})

    def forward(self, features: Features) -> Tensor:
        long, mask, negatives, regions = features.take(
            "texts.long", "text_masks.long", "texts.regions.negative", "region_features"
        )
        return (long * mask[..., None]).square().mean() + (negatives * regions[:, :, None]).mean()


class LocalViews(nn.Module):
    """Small crops against the whole picture."""

    views: ClassVar = {"local": ViewConfig(count=2, image_size=32)}
    needs = frozenset({"image_features", "views.local.image_features", "views.local.region_features"})

    def forward(self, features: Features) -> Tensor:
        whole, crops, regions = features.take(*sorted(self.needs))
        return (whole[:, None] - crops).square().mean() + regions.square().mean()


OWN = f"{__name__}:OwnScale"
TERMS = {
    "own parameter": (Term("image_text"), Term(OWN, 0.5, name="own")),
    "teacher": (Term("image_text"), Term(f"{__name__}:ToTeacher")),
    "sparc": (Term("image_text", 0.5), Term("sparc")),
    "views": (Term("image_text"), Term(f"{__name__}:LocalViews")),
}


@pytest.fixture
def tiny(tiny_model_cfg: dict[str, Any], tmp_path: Path) -> Recipe:
    return make_recipe(tiny_model_cfg, tmp_path / "run")


@pytest.mark.parametrize("name", TERMS)
def test_resume_is_exact(tiny: Recipe, tmp_path: Path, name: str) -> None:
    recipe = replace(with_run(tiny, samples=48, save_steps=3), objectives=TERMS[name])
    train(recipe)
    broken = with_run(recipe, output=str(tmp_path / "broken"))
    train(broken, stop_at=3)
    train(broken, resume="latest")
    assert log_of(recipe.run.output) == log_of(broken.run.output)
    whole = state_of(recipe.run.output, 6)
    assert_same_bits(whole, state_of(broken.run.output, 6))
    names = [n for n in whole if n.startswith("objectives.")]
    assert bool(names) == (name in ("own parameter", "teacher"))
    if name == "own parameter":
        assert any("optimizer.objectives.modules_by_name.own.log_scale" in n for n in whole)


def test_a_teacher_follows_and_does_not_learn(tiny: Recipe) -> None:
    train(replace(with_run(tiny, samples=40), objectives=TERMS["teacher"]))
    state = state_of(tiny.run.output)
    name = "prompter.layer.query.weight"
    student, teacher = state[f"model.{name}"], state[f"objectives.teacher.model.{name}"]
    assert torch.equal(student, teacher)  # nothing reaches the Prompter
    name = "clip.visual.conv1.weight"
    student, teacher = state[f"model.{name}"], state[f"objectives.teacher.model.{name}"]
    start = model_of(tiny).state_dict()[name]
    assert 0 < (teacher - start).norm() < (student - start).norm()
    assert not any("optimizer.objectives" in n for n in state)


def model_of(recipe: Recipe) -> CLOC:
    torch.manual_seed(recipe.run.seed)
    return build_model(recipe.model)


def train_it(path: str) -> None:
    folder = Path(path)
    recipe = Recipe(**torch.load(folder / "recipe.pt", weights_only=False))
    train(with_run(recipe, output=str(folder / "two")))


@pytest.mark.parametrize("name", ["own parameter", "teacher", "sparc"])
def test_two_ranks_learn_what_one_process_learns(tiny: Recipe, tmp_path: Path, name: str) -> None:
    recipe = replace(with_run(tiny, samples=24, save_steps=3), objectives=TERMS[name])
    train(with_run(recipe, output=str(tmp_path / "one")))
    torch.save(vars(recipe), tmp_path / "recipe.pt")
    assert run_ranks(train_it, str(tmp_path)) == [None, None]
    one, two = (state_of(tmp_path / folder, 3) for folder in ("one", "two"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=2e-3, atol=2e-5, msg=key)


def test_parts_give_the_whole_batchs_gradients(tiny: Recipe) -> None:
    for terms in TERMS.values():
        objectives, model = Objectives(terms), model_of(tiny).eval()
        batch = batch_of(model, objectives, 8)
        found = [gradients(model, objectives, batch, parts) for parts in (1, 4)]
        assert found[0].keys() == found[1].keys()
        for name, value in found[0].items():
            torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-5, msg=name)


def gradients(model: CLOC, objectives: Objectives, batch: Any, parts: int) -> dict[str, Tensor]:
    if objectives.teacher_momentum is not None and objectives.teacher is None:
        from open_cloc.objectives.teacher import Teacher

        objectives.teacher = Teacher(model, objectives.teacher_momentum)
    both = nn.ModuleDict({"model": model, "objectives": objectives})
    both.zero_grad()
    forward = Forward(
        model, split_batch(batch, parts), objectives.needs, objectives.teacher, False, (0, 0, 0)
    )
    features = forward.features()
    objectives(features)["total"].backward()
    forward.backward(features)
    return {name: p.grad.clone() for name, p in both.named_parameters() if p.grad is not None}


def samples(count: int) -> list[RegionSample]:
    """Pictures with long captions; every second region has hard negatives."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        hard = tuple(Text(f"not thing {number} {i}", "negative") for i in range(4))
        regions = (
            Region((0.1, 0.1, 0.6, 0.6), f"thing {number}", texts=hard),
            Region((0.3, 0.2, 0.9, 0.9), f"other {number}"),
        )
        texts = (Text(f"a long caption of {number}", "long"), Text("alt text", "alt"))
        pixels = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
        made.append(RegionSample(f"s{number}", pixels, (f"picture {number}",), regions, texts=texts))
    return made


def batch_of(model: CLOC, objectives: Objectives, size: int) -> Any:
    config = LoaderConfig(num_regions=3, workers=0)
    loader = RegionLoader(
        samples(size),
        model.preprocess,
        model.tokenize,
        config,
        batch_size=size,
        wants=Wants(objectives.roles, objectives.views),
    )
    return next(iter(loader))


def test_texts_with_roles_reach_their_objective(tiny: Recipe) -> None:
    objectives, model = Objectives((Term(f"{__name__}:LongAndHard"),)), model_of(tiny)
    batch = batch_of(model, objectives, 4)
    assert batch.role_index["long"].shape == (4, 2)
    assert batch.role_index["regions.negative"].shape == (4, 3, 3)
    assert (batch.role_index["long"] >= 0).sum() == 4  # each picture has one
    per_region = (batch.role_index["regions.negative"] >= 0).sum(-1)
    assert sorted(per_region[0].tolist()) == [0, 0, 3]
    features = model(batch, objectives.needs)
    row = batch.role_index["long"][1, 0]
    torch.testing.assert_close(features.texts["long"][1, 0], model.encode_text(batch.texts)[row])
    assert objectives(features)["total"].isfinite()
    whole, parts = batch, split_batch(batch, 2)
    for number, part in enumerate(parts):
        for role, index in part.role_index.items():
            old = whole.role_index[role][2 * number : 2 * number + 2]
            assert torch.equal(index < 0, old < 0)
            there = index >= 0
            assert torch.equal(part.texts[index[there]], whole.texts[old[there]])


def test_a_run_with_roles_and_views_finds_what_it_reaches(tiny: Recipe) -> None:
    """`freeze_unreached` makes a blank batch that has all that the objectives want."""
    terms = (Term("image_text"), Term(f"{__name__}:LongAndHard"), Term(f"{__name__}:LocalViews"))
    objectives, model = Objectives(terms), model_of(tiny)
    freeze_unreached(model, objectives, 3)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "prompter.layer.query.weight" in learning
    assert not any(name.startswith("prompter.box_head") for name in learning)  # nobody needs boxes


def test_views_are_crops_with_their_boxes(tiny: Recipe) -> None:
    objectives, model = Objectives(TERMS["views"]), model_of(tiny)
    batch = batch_of(model, objectives, 4)
    view = batch.views["local"]
    assert view.images.shape == (4, 2, 3, 32, 32)
    assert view.boxes.shape == (4, 2, 3, 4)
    assert (view.boxes[~view.region_mask] == 0).all()
    assert (view.boxes >= 0).all()
    assert (view.boxes <= 1).all()
    features = model(batch, objectives.needs)
    assert features.views["local"].image_features.shape == (4, 2, model.embed_dim)
    assert objectives(features)["total"].isfinite()


def test_nothing_that_nobody_needs_is_computed(tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    objectives, model = Objectives((Term("image_text"),)), model_of(tiny)
    batch = batch_of(model, objectives, 2)
    monkeypatch.setattr(model.prompter, "prepare", None)  # would raise
    features = model(batch, objectives.needs)
    assert features.image_tokens is features.text_tokens is features.region_features is None
    with pytest.raises(ValueError, match="features hold no 'region_features'; an objective names it"):
        features.take("region_features")


def test_names_in_the_log(tiny: Recipe) -> None:
    terms = (Term("image_text"), Term("image_text", 0.5, name="again", options={"form": "softmax"}))
    train(replace(with_run(tiny, samples=8), objectives=terms))
    (line,) = (json.loads(line) for line in (Path(tiny.run.output) / "log.jsonl").open())
    assert line["total"] == pytest.approx(1.5 * line["image_text"])
    assert line["again"] == line["image_text"]


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ((), "at least one term"),
        ((Term("image_text"), Term("image_text")), "another loss is called 'image_text' already"),
        ((Term("image_txt"),), "unknown objective 'image_txt'; expected one of .*did you mean image_text"),
        ((Term("image_text", name="total"),), "another loss is called 'total' already"),
    ],
)
def test_wrong_terms_are_named(terms: tuple[Term, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objectives(terms)
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="weight of sparc must be a number of at least 0"):
            Term("sparc", weight)
    with pytest.raises(ValueError, match="unknown per 'epoch'"):
        Term("image_text", per="epoch")
    with pytest.raises(ValueError, match="weight in 'sparc,weight=heavy' must be a number"):
        Term.parse("sparc,weight=heavy", {"sparc": ""})


def test_loader_config_is_used(tiny: Recipe) -> None:
    """Regions are drawn before texts and crops: those change nothing of the batch that was."""
    model = model_of(with_loader(tiny))
    bare, more = (batch_of(model, Objectives(TERMS[name]), 4) for name in ("sparc", "views"))
    assert torch.equal(bare.images, more.images)
    assert torch.equal(bare.boxes, more.boxes)


class Misspelt(OwnScale):
    """Needs what no model gives."""

    needs = frozenset({"image_featurs"})


class Silent(nn.Module):
    """Says nothing of itself."""


def test_an_objective_that_needs_what_there_is_not_is_named() -> None:
    with pytest.raises(ValueError, match=r"needs 'image_featurs', which is no field.*; did you mean"):
        Objectives((Term(f"{__name__}:Misspelt"),))
    with pytest.raises(ValueError, match="objective 'Silent' has no attribute `needs`"):
        Objectives((Term(f"{__name__}:Silent"),))
