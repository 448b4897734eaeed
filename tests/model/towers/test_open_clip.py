"""open_clip's towers by name: names, tags, written-out configs and weights files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from open_cloc.errors import MissingFileError
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.model.towers import open_clip as named
from open_cloc.model.towers.open_clip import architecture_cfg, open_clip_towers


def test_list_of_architectures_is_open_clips() -> None:
    assert architecture_cfg("ViT-B-32") == open_clip.get_model_config("ViT-B-32")


def test_unknown_names_list_near_ones() -> None:
    for towers, message in (
        ("open_clip:ViT-B16", r"unknown architecture 'ViT-B16'.*ViT-B-16"),
        ("ViT-B16", r"unknown architecture 'ViT-B16'.*ViT-B-16"),
        ("ViT-B-16,pretrained=nope", r"'nope' is neither .*its tags: .*laion"),
        ("ViT-B-16,pretraned=openai", "unknown option 'pretraned'.*expected one of pretrained"),
        ("", r"no towers: expected KIND:WHAT .*kinds: open_clip, timm, folder"),
        ("opne_clip:ViT-B-16", "no kind of towers at 'opne_clip:ViT-B-16'"),
    ):
        with pytest.raises(ValueError, match=message):
            build_model(ModelConfig(towers))


def test_a_tag_knows_what_its_name_does_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """OpenAI's weights need QuickGELU, and others were trained with another mean."""
    monkeypatch.setattr(named.open_clip, "download_pretrained", lambda tag: str(tmp_path / "weights.pt"))
    openai = open_clip_towers("ViT-B-32", pretrained="openai")
    assert openai.model_cfg["quick_gelu"] is True
    assert open_clip_towers("ViT-B-32").model_cfg.get("quick_gelu", False) is False
    siglip = open_clip_towers("ViT-B-16-SigLIP", pretrained="webli")
    assert siglip.canvas["mean"] == (0.5, 0.5, 0.5)
    assert set(siglip.canvas) == {"mean", "std", "interpolation"}
    assert openai.is_clip
    assert siglip.is_clip


def test_a_config_may_be_a_json_file(tiny_model_cfg: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(tiny_model_cfg))
    model = build_model(ModelConfig(f"open_clip:{path}"))
    assert model.model_cfg == tiny_model_cfg
    torch.save(model.clip.state_dict(), tmp_path / "weights.pt")
    again = build_model(ModelConfig(f"open_clip:{path},pretrained={tmp_path / 'weights.pt'}"))
    for name, tensor in model.clip.state_dict().items():
        assert torch.equal(again.clip.state_dict()[name], tensor), name
    with pytest.raises(FileNotFoundError, match=r"no such file: .*other\.json"):
        build_model(ModelConfig(f"open_clip:{tmp_path / 'other.json'}"))
    with pytest.raises(ValueError, match=r"pretrained .* is a folder: name it alone, as folder:"):
        build_model(ModelConfig(f"open_clip:{path},pretrained={tmp_path}"))


def test_a_folder_of_no_layout_is_one_sentence(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(FileNotFoundError, match=r"a folder that holds open_clip_config.json, or"):
            build_model(ModelConfig(f"folder:{folder}"))


def test_weights_that_cannot_be_fetched_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(tag: object) -> str:
        raise FileNotFoundError("no hub\nmore of it")

    monkeypatch.setattr(named.open_clip, "download_pretrained", fails)
    with pytest.raises(MissingFileError, match=r"weights 'openai' of ViT-B-32 are not in the .*: no hub$"):
        open_clip_towers("ViT-B-32", pretrained="openai")
