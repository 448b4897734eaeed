"""LoRA: nothing changes at the start, only adapters learn, and what is saved is an ordinary model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_recipes import assert_same_run, losses_of, start, with_loader, with_optim, with_run

from open_cloc.errors import UserError
from open_cloc.model.adapters import is_adapter
from open_cloc.model.cloc import CLOC
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.model.load import load_model
from open_cloc.model.weights import read_state
from open_cloc.objectives import Term
from open_cloc.training.freeze import lock_towers
from open_cloc.training.loop import train
from open_cloc.training.lora import add_adapters
from open_cloc.training.recipe import OptimConfig, Recipe

CONV: dict[str, Any] = {"image_size": 32, "timm_model_name": "cloc_resnet10_s8", "timm_pool": "avg"}


def model_of(cfg: dict[str, Any], kind: str, text_tower: Path) -> CLOC:
    """A CLOC whose towers are open_clip's own, or timm's and transformers'."""
    if kind == "timm, transformers":
        text = {"hf_model_name": str(text_tower), "hf_tokenizer_name": str(text_tower)}
        cfg = {"embed_dim": 32, "vision_cfg": CONV | {"timm_proj": "linear"}, "text_cfg": text}
    torch.manual_seed(0)
    return build_model(ModelConfig(towers=cfg)).eval()


def features(model: CLOC) -> list[torch.Tensor]:
    side = model.preprocess.image_size[0]
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=generator)
    with torch.no_grad():
        state = model.encode_image(images)
        boxes = torch.tensor([[[0.1, 0.2, 0.6, 0.9]]]).expand(2, 1, 4)
        regions = model.encode_regions(state, {"box": boxes})
        return [state.image_features, regions, model.encode_text(model.tokenize(["a cup", "two red dogs"]))]


@pytest.mark.parametrize("kind", ["open_clip", "timm, transformers"])
def test_adapters_are_saved_within_the_weights(
    tiny_model_cfg: dict[str, Any], kind: str, text_tower: Path, tmp_path: Path
) -> None:
    model = model_of(tiny_model_cfg, kind, text_tower)
    before, names = features(model), set(model.state_dict())
    config = OptimConfig(lora_rank=4)
    add_adapters(model, config)
    lock_towers(model, config)
    for found, expected in zip(features(model), before):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    towers = {name for name, p in model.clip.named_parameters() if p.requires_grad}
    assert any(map(is_adapter, towers))
    outside = {name for name in towers if not is_adapter(name)}
    assert outside <= {"logit_scale", "visual.head.proj.weight", *(f"text.proj.{i}.weight" for i in range(3))}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter(name):
                parameter.normal_(std=0.3)
    changed = features(model)
    model.save_pretrained(tmp_path / "saved")
    assert set(read_state(tmp_path / "saved" / "model.safetensors")) == names
    loaded = load_model(tmp_path / "saved", "cpu").eval()
    for found, expected, old in zip(features(loaded), changed, before):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert (expected - old).abs().max() > 1e-2


def test_only_adapted_layers_change(tiny: Recipe) -> None:
    tiny = with_optim(tiny, lora_rank=2)
    torch.manual_seed(tiny.run.seed)
    before = build_model(tiny.model)
    after = load_model(train(tiny), "cpu")
    changed = {
        name
        for name, tensor in after.clip.state_dict().items()
        if not torch.equal(tensor, before.clip.state_dict()[name])
    }
    assert changed - {"logit_scale"} == {
        f"{tower}transformer.resblocks.{block}.mlp.{layer}.weight"
        for tower in ("visual.", "text.")
        for block in (0, 1)
        for layer in ("c_fc", "c_proj")
    } | {"visual.conv1.weight"}
    for name in changed - {"logit_scale"}:
        difference = after.clip.state_dict()[name] - before.clip.state_dict()[name]
        rank = torch.linalg.matrix_rank(difference.flatten(1), atol=1e-6, rtol=1e-4)
        assert 1 <= rank <= 2
    assert losses_of(tiny.run.output)[-1] != losses_of(tiny.run.output)[0]


def test_a_run_with_adapters_is_resumed_bit_for_bit(tiny: Recipe, tmp_path: Path) -> None:
    tiny = with_optim(tiny, lora_rank=2)
    train(with_run(tiny, output=str(tmp_path / "whole")))
    stopped = train(tiny, stop_at=3)
    assert stopped.name == "step_00000003"
    train(tiny, resume="latest")
    assert_same_run(tmp_path / "whole", tiny.run.output)
    # A checkpoint is a model too.
    last = load_model(tmp_path / "whole" / "checkpoints" / "step_00000006", "cpu").state_dict()
    final = load_model(tmp_path / "whole" / "model", "cpu").state_dict()
    assert last.keys() == final.keys()
    assert all(torch.equal(tensor, final[name]) for name, tensor in last.items())
    with pytest.raises(UserError, match=r"with adapters.*lora-rank"):
        train(with_optim(tiny, lora_rank=0), resume="latest")


def test_dropout_goes_on_beside_adapters(tiny_model_cfg: dict[str, Any], text_tower: Path) -> None:
    """Statistics of batch norms stay, the text tower's dropout does not end."""
    model, config = model_of(tiny_model_cfg, "timm, transformers", text_tower), OptimConfig(lora_rank=2)
    add_adapters(model, config)
    model.train()
    lock_towers(model, config)
    norms = [m for m in model.clip.visual.trunk.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert model.clip.text.transformer.training


def test_what_cannot_learn_is_said(tiny: Recipe, caplog: pytest.LogCaptureFixture) -> None:
    plain = replace(tiny, objectives=(Term("region_text"),))
    train(with_optim(with_run(plain, samples=4), lora_rank=2))
    assert "towers that start from nothing stay as random" in caplog.text
    caplog.clear()
    alone = replace(tiny, objectives=(Term("distill"),))
    alone = with_run(alone, samples=4, output=f"{tiny.run.output}-distill")
    train(with_optim(with_loader(alone, num_regions=0), lora_rank=2))
    assert "4 of 9 adapters cannot learn, such as that of clip.text." in caplog.text


def test_another_rank_is_named(tiny: Recipe) -> None:
    train(with_optim(tiny, lora_rank=2), stop_at=3)
    with pytest.raises(UserError, match=r"adapters of another rank: go on with its --optim\.lora-rank"):
        train(with_optim(tiny, lora_rank=3), resume="latest")


def test_a_locked_tower_has_no_adapters(tiny: Recipe) -> None:
    run, _ = start(with_optim(tiny, lora_rank=2, lock_text=True))
    add_adapters(run.model, run.recipe.optim)
    names = [name for name, _ in run.model.named_parameters() if is_adapter(name)]
    assert names
    assert all(name.startswith("clip.visual.") for name in names)
    with pytest.raises(UserError, match="lora_rank: no tower has a layer that can take an adapter"):
        add_adapters(build_model(tiny.model), replace(run.recipe.optim, lock_image=True))
    with pytest.raises(UserError, match=r"optim.lora_rank must be in \[0, 1024\]"):
        OptimConfig(lora_rank=-1)


@pytest.mark.parametrize("kind", ["open_clip", "timm, transformers"])
def test_adapters_learn_where_activations_are_recomputed(
    tiny_model_cfg: dict[str, Any], kind: str, text_tower: Path
) -> None:
    """What comes into a frozen tower asks for no gradient, which some ways of recomputing take for an end."""
    model, config = model_of(tiny_model_cfg, kind, text_tower), OptimConfig(lora_rank=2)
    add_adapters(model, config)
    found = []
    for recomputed in (False, True):
        model.train()
        lock_towers(model, config)
        model.set_grad_checkpointing(recomputed)
        images = torch.full((2, 3, 32, 32), 99, dtype=torch.uint8)
        images[1, :, :16] = 7
        made = model.encode_image(images).image_features
        texts = model.encode_text(model.tokenize(["a cup", "two red dogs"]))
        (made.square().sum() + texts.square().sum()).backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    plain, recomputed_too = found
    assert any("visual" in name and "lora_B" in name for name in plain)
    assert any("text" in name and "lora_B" in name for name in plain)
    assert plain.keys() == recomputed_too.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed_too[name], gradient, rtol=1e-4, atol=1e-6)
