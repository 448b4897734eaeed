"""What every kind of tower keeps to, and every way to name one."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor

from open_cloc.model.cloc import CLOC
from open_cloc.model.create import TOWERS, ModelConfig, build_model, open_towers
from open_cloc.model.prompter import PrompterConfig
from open_cloc.model.towers import IMAGE_TOWERS, TEXT_TOWERS, image_tower_of, text_tower_of
from open_cloc.model.towers.build import build_clip
from open_cloc.model.towers.tower import StartingTowers, TowerOutput
from tests.model.towers.tower_cases import OPEN_CLIP_TOWERS, SMALL_TEXT, VIT, build, small_cfg, timm_cfg

# One of each class in `IMAGE_TOWERS`, and of timm's two forms: class -> [(config, stride)].
IMAGE_CASES: dict[str, list[tuple[dict[str, Any], int]]] = {
    "VisionTransformer": [(small_cfg(VIT), 16)],
    "TimmModel": [(timm_cfg("resnet10t"), 32), (timm_cfg("test_vit"), 16)],
    "ModifiedResNet": [(small_cfg({**VIT, **OPEN_CLIP_TOWERS["resnet"]}), 32)],
}
PROMPTER = PrompterConfig(width=16)

every_image_tower = pytest.mark.parametrize(
    ("cfg", "stride"), [case for kind in IMAGE_TOWERS for case in IMAGE_CASES[kind.__name__]]
)


@pytest.fixture(params=[kind.__name__ for kind in TEXT_TOWERS])
def text_cfg(request: pytest.FixtureRequest, text_tower: Path) -> dict[str, Any]:
    """A config of each class in `TEXT_TOWERS`."""
    hugging_face = {"hf_model_name": str(text_tower), "hf_tokenizer_name": str(text_tower)}
    text = {
        "TextTransformer": {**SMALL_TEXT, "vocab_size": 100},
        "HFTextEncoder": {**hugging_face, "hf_pooler_type": "mean_pooler", "context_length": 8},
    }
    return {**small_cfg(VIT), "text_cfg": text[request.param]}


# --- adapters -------------------------------------------------------------------------------------


@every_image_tower
@torch.no_grad()
def test_an_image_tower_gives_the_grid_the_width_and_the_features(cfg: dict[str, Any], stride: int) -> None:
    clip = build(cfg)
    size = cfg["vision_cfg"]["image_size"]
    images = torch.randn(2, 3, size, size)
    tower = image_tower_of(clip.visual)
    output = tower.encode(images)
    torch.testing.assert_close(output.image_features, clip.visual(images), rtol=1e-4, atol=1e-5)
    assert output.grid_size == (size // stride, size // stride)
    assert output.image_tokens.shape == (2, (size // stride) ** 2, tower.token_width)
    assert tower.project_pooled(torch.randn(3, 49, tower.token_width)).shape == (3, cfg["embed_dim"])
    own = tower.own_projection()
    assert own is None or own.shape == (cfg["embed_dim"], tower.token_width)


@every_image_tower
@torch.no_grad()
def test_tokens_lie_row_by_row(cfg: dict[str, Any], stride: int) -> None:
    """A change in one corner of the picture shows most in that corner's tokens: no grid is transposed."""
    tower = image_tower_of(build(cfg).visual)
    blank = torch.zeros(1, 3, 192, 256)
    spot = blank.clone()
    spot[..., 128:, :64] = 5.0  # lower left
    outputs = [tower.encode(x) for x in (blank, spot)]
    rows, columns = outputs[0].grid_size
    assert (rows, columns) == (192 // stride, 256 // stride)
    change = (outputs[1].image_tokens - outputs[0].image_tokens).norm(dim=-1).view(rows, columns)
    corners = {
        "lower left": change[-rows // 3 :, : columns // 4].mean(),
        "upper left": change[: rows // 3, : columns // 4].mean(),
        "lower right": change[-rows // 3 :, -columns // 4 :].mean(),
    }
    assert max(corners, key=lambda name: float(corners[name])) == "lower left"


@pytest.mark.parametrize("cfg", [small_cfg(VIT), timm_cfg("test_vit")], ids=["open_clip", "timm"])
@torch.no_grad()
def test_a_last_patch_that_is_not_whole_is_left_out(cfg: dict[str, Any]) -> None:
    """As by the convolution of the patches: SigLIP's 384 pixels are 27 patches of 14 and 6 pixels more."""
    images = torch.randn(1, 3, 100, 89)
    tower = image_tower_of(build(cfg).visual)
    whole, cut = (tower.encode(x) for x in (images, images[..., :96, :80]))
    assert whole.grid_size == cut.grid_size == (6, 5)
    torch.testing.assert_close(whole.image_features, cut.image_features)


@torch.no_grad()
def test_a_text_tower_gives_the_features(text_cfg: dict[str, Any]) -> None:
    clip = build(text_cfg)
    tower = text_tower_of(clip.text)
    ids = torch.tensor([[5, 6, 7, 3, 0, 0, 0, 0], [5, 9, 3, 0, 0, 0, 0, 0]])
    expected = clip.text(ids)
    torch.testing.assert_close(tower.encode(ids), expected)
    assert tower.padding_id == 0
    output = tower.encode_tokens(ids)
    torch.testing.assert_close(output.features, expected)
    assert output.tokens.shape == (2, 8, 24)
    assert output.mask.shape == (2, 8)
    assert not output.mask[:, 5:].any()
    torch.testing.assert_close(tower.encode(ids[:, :4]), expected, rtol=1e-4, atol=1e-5)


@every_image_tower
def test_names_of_weights_are_open_clips(cfg: dict[str, Any], stride: int) -> None:
    model = CLOC(cfg, {"width": 16})
    model.set_grad_checkpointing(False)
    model.encode_image(torch.zeros(1, 3, 2 * stride, 2 * stride, dtype=torch.uint8))
    reference = open_clip.model.CustomTextCLIP(**deepcopy(cfg), nonscalar_logit_scale=True)
    names = [name for name in model.state_dict() if not name.startswith("prompter.")]
    assert names == [f"clip.{name}" for name in reference.state_dict()]


@every_image_tower
@torch.no_grad()
def test_an_adapter_sees_modules_that_were_replaced(cfg: dict[str, Any], stride: int) -> None:
    """As parallel training does with batch norms, and copies of a model with all of it."""
    model, images = build_model(ModelConfig(cfg)).eval(), torch.zeros(1, 3, 2 * stride, 2 * stride)
    before = image_tower_of(model.clip.visual).encode(images).image_tokens
    model.clip.visual = build(cfg).visual
    copied = deepcopy(model)
    model.clip.visual = convert_sync_batchnorm(model.clip.visual)
    one, other = (m.encode_image(images.to(torch.uint8)).image_tokens for m in (model.eval(), copied.eval()))
    torch.testing.assert_close(one, other)
    assert not torch.allclose(image_tower_of(model.clip.visual).encode(images).image_tokens, before)


@every_image_tower
@torch.no_grad()
def test_weights_of_16_bits_take_and_give_float32(cfg: dict[str, Any], stride: int) -> None:
    clip = build(cfg)
    images = torch.randn(2, 3, 2 * stride, 2 * stride)
    whole = image_tower_of(clip.visual).encode(images)
    half = image_tower_of(clip.visual.to(torch.bfloat16)).encode(images)
    _assert_close_in_bf16(half.image_features, whole.image_features)
    _assert_close_in_bf16(half.image_tokens, whole.image_tokens)
    assert isinstance(half, TowerOutput)
    assert half.grid_size == whole.grid_size
    width = whole.image_tokens.shape[-1]
    pooled = image_tower_of(clip.visual).project_pooled(torch.randn(3, 49, width))
    assert pooled.dtype == torch.float32


@torch.no_grad()
def test_text_weights_of_16_bits_give_float32(text_cfg: dict[str, Any]) -> None:
    clip = build(text_cfg)
    ids = torch.tensor([[5, 6, 7, 3]])
    whole = text_tower_of(clip.text).encode(ids)
    _assert_close_in_bf16(text_tower_of(clip.text.to(torch.bfloat16)).encode(ids), whole)


def _assert_close_in_bf16(half: Tensor, whole: Tensor) -> None:
    assert half.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(half, whole, dim=-1).min() > 0.99


# --- specs ----------------------------------------------------------------------------------------


def outside_towers(name: str, *, width: int = 64) -> StartingTowers:
    """A kind of towers from outside of the package."""
    return StartingTowers(small_cfg({**VIT, "width": width}), open_towers(small_cfg(VIT)).canvas)


@pytest.fixture
def specs(tmp_path: Path, text_tower: Path) -> dict[str, str]:
    """One spec of each kind."""
    cfg, clip = tmp_path / "tiny.json", tmp_path / "clip"
    cfg.write_text(json.dumps(small_cfg(VIT)))
    clip.mkdir()
    (clip / "open_clip_config.json").write_text(json.dumps({"model_cfg": small_cfg(VIT)}))
    torch.save(build_clip(small_cfg(VIT)).state_dict(), clip / "open_clip_pytorch_model.bin")
    return {
        "open_clip": f"open_clip:{cfg}",
        "timm": f"timm:test_resnet,text={text_tower},embed_dim=24,context_length=16",
        "folder": f"folder:{clip}",
        "outside": f"{__name__}:outside_towers:anything,width=96",
    }


@pytest.mark.parametrize("kind", [*TOWERS, "outside"])
@torch.no_grad()
def test_every_spec_builds_a_model_that_is_saved_without_it(
    kind: str, specs: dict[str, str], tmp_path: Path
) -> None:
    model = build_model(ModelConfig(specs[kind], image_size=64, prompter=PROMPTER)).eval()
    assert model.preprocess.image_size == (64, 64)
    model.save_pretrained(tmp_path / "saved")
    again = build_model(ModelConfig(f"folder:{tmp_path / 'saved'}", prompter=PROMPTER)).eval()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    outputs = [m.encode_image(images).image_features for m in (model, again)]
    assert torch.equal(*outputs)
    assert again.preprocess == model.preprocess


@pytest.mark.parametrize("kind", [*TOWERS, "outside"])
def test_an_option_that_a_kind_does_not_know_is_one_sentence(kind: str, specs: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"unknown option 'colour' in .*expected") as error:
        open_towers(f"{specs[kind]},colour=red")
    assert "\n" not in str(error.value)


def test_the_tables_list_what_is_walked_here() -> None:
    assert [kind.__name__ for kind in IMAGE_TOWERS] == list(IMAGE_CASES)
