"""The step: what freezes, how fast what learns, precision, recomputation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paper_terms import paper_terms
from tiny_recipes import SCENES, assert_same_tensors, joined, log_of, start, with_loader, with_optim, with_run

from open_cloc.data.readers import open_reader
from open_cloc.model.cloc import CLOC
from open_cloc.model.create import build_model
from open_cloc.model.prompter import PrompterConfig
from open_cloc.model.weights import read_state
from open_cloc.objectives import Objectives
from open_cloc.samples import RegionSample
from open_cloc.training import optim
from open_cloc.training.loop import open_data, train
from open_cloc.training.recipe import OptimConfig, Recipe
from open_cloc.training.step import train_step


def rates(model: CLOC, **settings: Any) -> dict[str, tuple[float, float]]:
    """Parameter -> (learning rate, weight decay)."""
    optimizer = optim.build_optimizer(model, Objectives(), OptimConfig(**settings))
    return {
        name: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for name in group["names"]
    }


# tower -> parameter -> layers between it and the output
DISTANCES = {
    "test_vit": {
        "clip.visual.trunk.patch_embed.proj.weight": 7,
        "clip.visual.trunk.pos_embed": 7,
        "clip.visual.trunk.cls_token": 7,
        "clip.visual.trunk.blocks.0.mlp.fc1.weight": 6,
        "clip.visual.trunk.blocks.5.mlp.fc1.weight": 1,
        "clip.visual.trunk.norm.weight": 0,
        "clip.visual.head.proj.weight": 0,
        "clip.text.transformer.embeddings.word_embeddings.weight": 3,
        "clip.text.transformer.embeddings.LayerNorm.bias": 3,
        "clip.text.transformer.encoder.layer.0.output.dense.weight": 2,
        "clip.text.transformer.encoder.layer.1.output.dense.weight": 1,
        "clip.text.proj.weight": 0,
        "prompter.layer.query.weight": 0,
        "clip.logit_scale": 0,
    },
    "test_efficientnet": {
        "clip.visual.trunk.conv_stem.weight": 6,
        "clip.visual.trunk.bn1.weight": 6,
        "clip.visual.trunk.blocks.0.0.conv.weight": 5,
        "clip.visual.trunk.blocks.3.0.conv_dw.weight": 2,
        "clip.visual.trunk.conv_head.weight": 0,
        "clip.visual.trunk.bn2.weight": 0,
    },
    "cloc_resnet10_s8": {
        "clip.visual.trunk.conv1.0.weight": 6,
        "clip.visual.trunk.layer1.0.conv1.weight": 4,
        "clip.visual.trunk.layer4.0.conv1.weight": 1,
    },
    "test_convnext": {
        "clip.visual.trunk.stem.0.weight": 5,
        "clip.visual.trunk.stages.0.blocks.0.conv_dw.weight": 4,
        "clip.visual.trunk.stages.3.blocks.0.conv_dw.weight": 1,
    },
}


class WithoutRegions:
    """Scenes with captions only."""

    def __init__(self, path: str) -> None:
        self.scenes = open_reader(SCENES)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> RegionSample:
        return replace(self.scenes[index], regions=())


def test_frozen_towers_stay_as_they_are(tiny: Recipe, text_tower: Path) -> None:
    recipe = with_optim(
        with_run(joined(tiny, "cloc_resnet10_s8", text_tower), samples=12), lock_image=True, lock_text=True
    )
    torch.manual_seed(recipe.run.seed)
    before = build_model(recipe.model).state_dict()
    after = CLOC.from_pretrained(train(recipe)).state_dict()
    frozen = {n for n in before if n.startswith(("clip.visual.trunk.", "clip.text.transformer."))}
    assert any(name.endswith("running_mean") for name in frozen)
    assert any(name.endswith("num_batches_tracked") for name in frozen)
    assert_same_tensors({n: before[n] for n in frozen}, {n: after[n] for n in frozen})
    for name in ("clip.visual.head.proj.weight", "clip.text.proj.weight", "prompter.layer.query.weight"):
        assert not torch.equal(before[name], after[name]), name


def test_batch_norm_learns_where_the_tower_does(tiny: Recipe, text_tower: Path) -> None:
    recipe = with_run(joined(tiny, "cloc_resnet10_s8", text_tower), samples=4)
    torch.manual_seed(recipe.run.seed)
    before = build_model(recipe.model).state_dict()
    after = CLOC.from_pretrained(train(recipe)).state_dict()
    assert not torch.equal(
        before["clip.visual.trunk.bn1.running_mean"], after["clip.visual.trunk.bn1.running_mean"]
    )


def test_open_clip_towers_freeze_whole(tiny: Recipe) -> None:
    model = start(with_optim(tiny, lock_image=True, lock_text=True))[0].model
    learning = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {"prompter", "clip"}
    assert [n for n, p in model.named_parameters() if p.requires_grad and n.startswith("clip")] == [
        "clip.logit_scale"
    ]


def test_learning_rate_schedule() -> None:
    factor = partial(optim.learning_rate_factor, num_steps=110, warmup=10)
    assert factor(0) == pytest.approx(0.1)
    assert factor(9) == factor(10) == 1.0  # the peak
    assert factor(60) == pytest.approx(0.5)  # half-way down the cosine
    assert 0 < factor(109) < 0.001
    assert factor(110) == pytest.approx(0.0)
    assert optim.learning_rate_factor(0, 5, 0) == 1.0
    steps = [factor(step) for step in range(111)]
    assert steps[:10] == sorted(steps[:10])
    assert steps[10:] == sorted(steps[10:], reverse=True)


def test_logged_learning_rates_follow_the_schedule(tiny: Recipe) -> None:
    train(tiny)
    expected = [1e-3 * optim.learning_rate_factor(step, 6, 2) for step in range(6)]
    assert [line["lr"] for line in log_of(tiny.run.output)] == pytest.approx(expected)


@pytest.mark.parametrize("name", DISTANCES)
def test_layer_decay_of_joined_towers(tiny: Recipe, text_tower: Path, name: str) -> None:
    model = build_model(joined(tiny, name, text_tower).model)
    found = rates(model, lr=1.0, layer_decay=0.5)
    assert {p: -np.log2(found[p][0]) for p in DISTANCES[name]} == pytest.approx(DISTANCES[name])


def test_layer_decay_of_open_clip_towers(tiny: Recipe) -> None:
    found = rates(build_model(tiny.model), lr=1.0, prompter_lr=3.0, layer_decay=0.5)
    for tower, first in (("visual", "conv1.weight"), ("text", "token_embedding.weight")):
        assert found[f"clip.{tower}.{first}"][0] == 0.125
        assert found[f"clip.{tower}.positional_embedding"][0] == 0.125
        assert found[f"clip.{tower}.transformer.resblocks.0.mlp.c_fc.weight"][0] == 0.25
        assert found[f"clip.{tower}.transformer.resblocks.1.mlp.c_fc.weight"][0] == 0.5
    assert found["clip.visual.class_embedding"][0] == found["clip.visual.ln_pre.weight"][0] == 0.125
    assert found["clip.visual.proj"][0] == found["clip.visual.ln_post.weight"][0] == 1.0
    assert found["clip.text.text_projection"][0] == found["clip.text.ln_final.weight"][0] == 1.0
    assert {rate for name, (rate, _) in found.items() if name.startswith("prompter.")} == {3.0}


@pytest.mark.parametrize("timm_model", ["", "test_vit", "cloc_resnet10_s8"])
def test_weight_decay_only_on_maps(tiny: Recipe, text_tower: Path, timm_model: str) -> None:
    recipe = joined(tiny, timm_model, text_tower) if timm_model else tiny
    model = build_model(recipe.model)
    found = rates(model, weight_decay=0.3)
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        table = any(word in name for word in ("embedding", "pos_embed", "cls_token", ".corner"))
        assert found[name][1] == (0.0 if parameter.ndim < 2 or table else 0.3), name
    assert found["clip.logit_scale"][1] == 0.0


def test_logit_scale_stays_within_its_limits(tiny: Recipe) -> None:
    run, batch = start(with_optim(tiny, max_logit_scale=50.0))
    logit_scale = run.model.clip.logit_scale
    for begin, expected in ((9.0, 50.0), (-3.0, 1.0)):
        logit_scale.data.fill_(begin)
        train_step(run, batch, 0)
        assert logit_scale.exp().item() == pytest.approx(expected)


def test_gradient_clipping(tiny: Recipe) -> None:
    for limit in (0.0, 0.01):
        run, batch = start(with_optim(tiny, grad_clip=limit))
        losses = train_step(run, batch, 0).losses
        gradients = [p.grad.norm() for p in run.model.parameters() if p.grad is not None]
        left = torch.stack(gradients).norm()
        assert losses["grad_norm"] > 0.01  # before clipping
        assert left == pytest.approx(losses["grad_norm"].item() if limit == 0 else limit, rel=1e-3)


def test_without_regions_it_is_a_plain_clip(tiny: Recipe) -> None:
    recipe = with_loader(with_run(tiny, samples=12), num_regions=0)
    torch.manual_seed(recipe.run.seed)
    before = build_model(recipe.model).state_dict()
    after = CLOC.from_pretrained(train(recipe)).state_dict()
    for name in before:
        assert torch.equal(before[name], after[name]) is name.startswith("prompter."), name
    for line in log_of(recipe.run.output):
        assert line["region_text"] == line["grounding"] == 0.0
        assert line["total"] == line["image_text"] > 0


def test_images_without_regions_are_mixed_in(tiny: Recipe) -> None:
    specs = (SCENES, f"{__name__}:WithoutRegions:x")
    recipe = replace(with_run(tiny, global_batch_size=8), data=replace(tiny.data, train=specs))
    recipe = with_run(recipe, global_batch_size=8)
    data = open_data(recipe)
    assert len(data) == 2000
    assert data[3].regions
    assert not data[1003].regions
    run, batch = start(replace(recipe, objectives=paper_terms(region_weight=0.7)))
    share = batch.region_mask.any(1).float().mean().item()
    assert 0 < share < 1
    losses = train_step(run, batch, 0).losses
    expected = losses["image_text"] + 0.7 * share * (losses["region_text"] + losses["grounding"])
    assert losses["total"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("timm_model", ["", "test_vit", "test_efficientnet"])
def test_gradient_checkpointing_changes_no_number(tiny: Recipe, text_tower: Path, timm_model: str) -> None:
    recipe = joined(tiny, timm_model, text_tower) if timm_model else tiny
    made = []
    for enable in (False, True):
        run, batch = start(with_run(recipe, grad_checkpointing=enable))
        losses = train_step(run, batch, 0).losses
        gradients = {n: p.grad for n, p in run.model.named_parameters() if p.grad is not None}
        made.append((losses, gradients))
    torch.testing.assert_close(made[0], made[1], rtol=1e-5, atol=1e-7)


def test_gradient_checkpointing_is_off_unless_asked_for(tiny: Recipe, text_tower: Path) -> None:
    model = build_model(joined(tiny, "test_vit", text_tower).model)
    for enable in (True, False):
        model.set_grad_checkpointing(enable)
        assert model.clip.visual.trunk.grad_checkpointing is enable
        layers = model.clip.text.transformer.encoder.layer
        assert [layer.gradient_checkpointing for layer in layers] == [enable, enable]


def test_a_tower_without_gradient_checkpointing_says_so(caplog: pytest.LogCaptureFixture) -> None:
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    text = {"width": 32, "heads": 2, "layers": 1, "context_length": 16}
    model = CLOC({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text})
    model.set_grad_checkpointing(False)
    assert not caplog.records
    model.set_grad_checkpointing(True)
    assert "has no gradient checkpointing" in caplog.text


def test_bf16_is_close_to_fp32(tiny: Recipe, tmp_path: Path) -> None:
    tiny = replace(tiny, model=replace(tiny.model, prompter=PrompterConfig(readout="prompt", box_prior=True)))
    train(with_run(tiny, samples=12, output=str(tmp_path / "fp32")))
    train(with_run(tiny, samples=12, output=str(tmp_path / "bf16"), precision="bf16"))
    for one, other in zip(log_of(tmp_path / "fp32"), log_of(tmp_path / "bf16")):
        for term in ("image_text", "region_text", "grounding", "total"):
            assert other[term] == pytest.approx(one[term], rel=0.03)
        assert other["total"] != one["total"]
    state = read_state(tmp_path / "bf16/model/model.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float32}
