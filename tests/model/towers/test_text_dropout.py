"""Dropout of Hugging Face text towers: none, whatever their config says, unless it is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from open_cloc.errors import UserError
from open_cloc.model.cloc import CLOC
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.model.towers.build import build_clip
from tests.model.towers.tower_cases import VIT, small_cfg

IDS = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]])


def configs() -> dict[str, Any]:
    """A tiny tower of each kind of place where transformers keep dropout: modules, numbers, whole layers."""
    from transformers import BertConfig, M2M100Config, MT5Config, XLMRobertaConfig

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"vocab_size": 20, "max_position_embeddings": 24, "pad_token_id": 0}
    decoder = {f"decoder_{name}": 1 for name in ("layers", "attention_heads", "ffn_dim")}
    encoder = {"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    both = {"d_model": 16, "vocab_size": 20, "pad_token_id": 0}
    return {
        "bert": BertConfig(**sizes),
        "xlm-roberta": XLMRobertaConfig(**sizes),
        "mt5": MT5Config(d_kv=8, d_ff=16, num_layers=2, num_heads=2, **both),
        "m2m_100": M2M100Config(
            encoder_layerdrop=0.5, **both, **encoder, **(decoder | {"decoder_ffn_dim": 8})
        ),
    }


def tower_cfg(folder: Path, **changes: Any) -> dict[str, Any]:
    """A model config whose text tower's folder holds a config and nothing else."""
    text = {"hf_model_name": str(folder), "hf_proj_type": "linear", "hf_pooler_type": "mean_pooler"}
    return {**small_cfg(VIT), "text_cfg": text | {"context_length": 8} | changes}


@pytest.fixture(params=["bert", "xlm-roberta", "mt5", "m2m_100"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    configs()[request.param].save_pretrained(tmp_path / "text")
    return tmp_path / "text"


def places(module: nn.Module) -> list[float]:
    """Every dropout of a module: of its parts, and the numbers that functions are called with."""
    found = [part.p for part in module.modules() if isinstance(part, nn.Dropout)]
    for part in module.modules():
        found += [value for name, value in vars(part).items() if "drop" in name and isinstance(value, float)]
    return found


def runs(clip: nn.Module) -> list[Tensor]:
    """What the text tower makes of the same texts twice, in training."""
    text: Any = clip.train().text
    with torch.no_grad():
        return [text(IDS) for _ in range(2)]


def test_no_dropout_is_active(folder: Path) -> None:
    clip = build_clip(tower_cfg(folder))
    assert places(clip.text)
    assert sum(p > 0 for p in places(clip.text)) == 0
    one, other = runs(clip)
    assert torch.equal(one, other)


def test_dropout_that_is_asked_for_is_active(folder: Path) -> None:
    clip = build_clip(tower_cfg(folder, hf_dropout=0.25))
    assert set(places(clip.text)) - {0.0} == {0.25}
    one, other = runs(clip)
    assert not torch.equal(one, other)
    assert not any("layerdrop" in name and p for m in clip.modules() for name, p in vars(m).items())


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan"), True, "0.1", None, [0.1]])
def test_what_is_no_chance_is_refused(tmp_path: Path, value: object) -> None:
    configs()["bert"].save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"hf_dropout must be a number in \[0, 1\)"):
        build_clip(tower_cfg(tmp_path, hf_dropout=value))


def test_a_tower_without_dropout_takes_none() -> None:
    cfg = small_cfg(VIT)
    cfg["text_cfg"] = {**cfg["text_cfg"], "hf_dropout": 0.1}
    with pytest.raises(UserError, match="no Hugging Face text tower"):
        build_clip(cfg)


def test_the_specs_option_reaches_the_tower_and_is_saved(text_tower: Path, tmp_path: Path) -> None:
    spec = f"timm:test_resnet,text={text_tower},embed_dim=24,context_length=16"
    assert max(places(build_model(ModelConfig(spec, image_size=64)).clip.text)) == 0
    model = build_model(ModelConfig(f"{spec},text_dropout=0.1", image_size=64))
    assert max(places(model.clip.text)) == 0.1
    model.save_pretrained(tmp_path / "m")
    assert max(places(CLOC.from_pretrained(tmp_path / "m").clip.text)) == 0.1
    folder = f"folder:{tmp_path / 'm'}"
    assert max(places(build_model(ModelConfig(folder)).clip.text)) == 0.1


def test_an_architecture_of_open_clip_takes_the_option_too(text_tower: Path, tmp_path: Path) -> None:
    cfg = tower_cfg(text_tower, hf_tokenizer_name=str(text_tower))
    path = tmp_path / "cfg.json"
    path.write_text(json.dumps(cfg))
    assert max(places(build_model(ModelConfig(f"open_clip:{path}")).clip.text)) == 0
    assert max(places(build_model(ModelConfig(f"open_clip:{path},text_dropout=0.2")).clip.text)) == 0.2
    with pytest.raises(UserError, match="no Hugging Face text tower"):
        build_model(ModelConfig("open_clip:ViT-B-32,text_dropout=0.2"))
