"""Models by spec or by table, for recipes and for users."""

from __future__ import annotations

import logging
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from open_cloc.model.create import ModelConfig, build_model, create_model
from open_cloc.model.prompter import PrompterConfig

PROMPTER = PrompterConfig(readout="prompt", box_prior=True)


def test_the_recipes_own_table_is_left_alone(tiny_model_cfg: dict[str, Any]) -> None:
    before = deepcopy(tiny_model_cfg)
    model = build_model(ModelConfig(tiny_model_cfg, image_size=96, sigmoid=True))
    assert model.preprocess.image_size == (96, 96)
    assert model.model_cfg["vision_cfg"]["image_size"] == 96
    assert model.clip.logit_bias is not None
    assert tiny_model_cfg == before


@pytest.mark.parametrize(
    "prompter", [PROMPTER, {"readout": "prompt", "box_prior": True}], ids=["config", "dict"]
)
def test_create_model_is_build_model_ready_to_use(tiny_model_cfg: dict[str, Any], prompter: Any) -> None:
    torch.manual_seed(0)
    made = create_model(tiny_model_cfg, prompter=prompter, image_size=32, resize_mode="squash", device="cpu")
    torch.manual_seed(0)
    built = build_model(ModelConfig(tiny_model_cfg, 32, "squash", prompter=PROMPTER))
    assert built.training
    assert not made.training
    assert made.preprocess == built.preprocess
    assert made.prompter.config == PROMPTER
    for name, tensor in built.state_dict().items():
        assert torch.equal(made.state_dict()[name], tensor), name


def test_create_model_takes_a_towers_options_by_name(text_tower: Path) -> None:
    options = {"embed_dim": 24, "context_length": 16}
    model = create_model("timm:test_resnet", text=text_tower, image_size=64, device="cpu", **options)
    assert model.embed_dim == 24
    assert model.tokenizer(["a dog"]).shape == (1, 16)


def test_create_model_refuses(tiny_model_cfg: dict[str, Any]) -> None:
    for towers, options, message in (
        ("ViT-B16", {}, r"unknown architecture 'ViT-B16'.*ViT-B-16"),
        ("ViT-B-16", {"imagesize": 32}, "unknown option 'imagesize' in 'ViT-B-16,imagesize=32'"),
        (tiny_model_cfg, {"pretrained": "openai"}, "takes no options of towers; got pretrained"),
        (tiny_model_cfg, {"prompter": {"readuot": "mean"}}, "unknown key 'readuot' in prompter"),
        (tiny_model_cfg, {"device": "abacus"}, "device 'abacus' cannot be used"),
        ("", {}, "no towers: expected KIND:WHAT"),
    ):
        with pytest.raises(ValueError, match=message):
            create_model(towers, **{"device": "cpu", **options})  # type: ignore[arg-type]


def test_a_trained_model_keeps_its_prompter(
    tiny_model_cfg: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build_model(ModelConfig(tiny_model_cfg, resize_mode="squash", prompter=PROMPTER)).eval()
    model.save_pretrained(tmp_path / "saved")
    spec = f"folder:{tmp_path / 'saved'}"
    with caplog.at_level(logging.WARNING):
        assert create_model(spec, prompter=PROMPTER, device="cpu").preprocess.resize_mode == "squash"
        assert not caplog.records
        other = create_model(spec, device="cpu")
    assert other.prompter.config == PROMPTER
    assert f"taking the Prompter that {spec} was trained with, not the recipe's" in caplog.text
