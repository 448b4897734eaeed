"""Towers: features equal the wrapped libraries', for every kind of tower and for inputs of other sizes."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from open_cloc.model import towers
from open_cloc.model.create import ModelConfig, create_model
from open_cloc.model.weights import read_state

SMALL_TEXT = {"width": 32, "heads": 2, "layers": 1, "context_length": 8}
VIT = {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32}
OPEN_CLIP_TOWERS: dict[str, dict[str, Any]] = {
    "vit": {},
    "vit_avg": {"pool_type": "avg"},
    "vit_ln_after_pool": {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
    "vit_tok_ln_after_pool": {"final_ln_after_pool": True},
    "vit_sincos": {"pos_embed_type": "sin_cos_2d"},
    "vit_layer_scale": {"ls_init_value": 0.5},
    "vit_rectangle": {"image_size": [32, 64]},
    "resnet": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "patch_size": None},
}
# name -> (image size, pool, projection, expected stride)
TIMM_TOWERS: dict[str, tuple[int, str, str, int]] = {
    "test_vit": (160, "token", "linear", 16),
    "test_vit3": (160, "avg", "linear", 16),  # registers
    "test_vit4": (160, "map", "none", 16),  # attention pooling, as in SigLIP
    "test_convnext": (160, "", "linear", 32),
    "test_efficientnet": (160, "avg", "mlp", 32),
    "resnet10t": (64, "avg", "linear", 32),
    "fastvit_t8": (64, "avg", "", 32),  # MobileCLIP's kind
    "mobilenetv3_small_050": (64, "avg", "linear", 32),  # its head is wider than its feature map
    "vitamin_small_224": (64, "avg", "linear", 16),  # convolutional stem in front of a ViT
    "eva02_tiny_patch14_224": (224, "token", "", 14),  # rotary positions
    "vit_small_patch16_dinov3": (64, "avg", "linear", 16),
}
timm_towers = pytest.mark.parametrize("name", TIMM_TOWERS)


def _cfg(vision: dict[str, Any], embed_dim: int = 24) -> dict[str, Any]:
    return {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": {"vocab_size": 100, **SMALL_TEXT}}


def _timm_cfg(name: str) -> dict[str, Any]:
    size, pool, proj, _ = TIMM_TOWERS[name]
    embed_dim = 96 if proj == "none" else 24  # the tower's own width, as nothing projects it
    vision = {"image_size": size, "timm_model_name": name, "timm_pool": pool, "timm_proj": proj}
    return _cfg(vision, embed_dim)


def _randomized(module: nn.Module) -> nn.Module:
    """Away from the start, where layers that begin at zero hide what is behind them."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return module.eval()


def _build(cfg: dict[str, Any]) -> Any:
    return _randomized(towers.build_clip(cfg))


def _size_hw(visual: Any) -> tuple[int, int]:
    size = visual.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


# --- image ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPEN_CLIP_TOWERS)
@pytest.mark.parametrize("quick_gelu", [False, True])
@torch.no_grad()
def test_open_clip_image_features_are_equal(name: str, quick_gelu: bool) -> None:
    clip = _build({**_cfg({**VIT, **OPEN_CLIP_TOWERS[name]}), "quick_gelu": quick_gelu})
    height, width = _size_hw(clip.visual)
    images = torch.randn(2, 3, height, width)
    output = towers.encode_image(clip.visual, images)
    torch.testing.assert_close(output.image_features, clip.encode_image(images), rtol=1e-4, atol=1e-5)
    rows, columns = output.grid_size
    stride = 32 if name == "resnet" else 16
    assert (rows, columns) == (height // stride, width // stride)
    assert output.image_tokens.shape == (2, rows * columns, towers.token_width(clip.visual))
    pooled = towers.project_pooled(clip.visual, torch.randn(3, 49, towers.token_width(clip.visual)))
    assert pooled.shape == (3, 24)


@torch.no_grad()
def test_quick_gelu_changes_the_features() -> None:
    images = torch.randn(1, 3, 64, 64)
    plain, quick = (towers.build_clip({**_cfg(VIT), "quick_gelu": quick}).eval() for quick in (False, True))
    quick.load_state_dict(plain.state_dict())
    one, other = (towers.encode_image(clip.visual, images).image_features for clip in (plain, quick))
    assert not torch.allclose(one, other)


@timm_towers
@torch.no_grad()
def test_timm_image_features_are_equal(name: str) -> None:
    clip = _build(_timm_cfg(name))
    size, stride = TIMM_TOWERS[name][0], TIMM_TOWERS[name][3]
    images = torch.randn(1, 3, size, size)
    output = towers.encode_image(clip.visual, images)
    torch.testing.assert_close(output.image_features, clip.encode_image(images), rtol=1e-4, atol=1e-5)
    side = size // stride
    assert output.grid_size == (side, side)
    width = towers.token_width(clip.visual)
    assert output.image_tokens.shape == (1, side * side, width)
    assert output.image_features.shape == (1, _timm_cfg(name)["embed_dim"])
    pooled = towers.project_pooled(clip.visual, torch.randn(3, 49, width))
    assert pooled.shape == (3, _timm_cfg(name)["embed_dim"])


@timm_towers
@torch.no_grad()
def test_timm_takes_other_sizes(name: str) -> None:
    """Non-square and larger: equal to the tower that timm itself builds for inputs of any size."""
    clip = _build(_timm_cfg(name))
    size, stride = TIMM_TOWERS[name][0], TIMM_TOWERS[name][3]
    height, width = (size + 2 * stride, size - stride) if size > 100 else (2 * size, size + stride)
    images = torch.randn(1, 3, height, width)
    output = towers.encode_image(clip.visual, images)
    assert output.grid_size == (math.ceil(height / stride), math.ceil(width / stride))
    trunk = _any_size_trunk(name, clip.visual.trunk)
    torch.testing.assert_close(output.image_features, clip.visual.head(trunk(images)), rtol=1e-4, atol=1e-5)


def _any_size_trunk(name: str, like: nn.Module) -> nn.Module:
    """timm's own tower for inputs of any size, with the weights of another."""
    _, pool, proj, _ = TIMM_TOWERS[name]
    kwargs: dict[str, Any] = {"dynamic_img_size": True} if hasattr(like, "dynamic_img_size") else {}
    if proj == "linear":
        trunk = timm.create_model(name, **kwargs)
        trunk.reset_classifier(0, **({"global_pool": pool} if pool else {}))
    else:
        classes = {"": 24, "none": 0, "mlp": 0}[proj]
        trunk = timm.create_model(name, num_classes=classes, global_pool=pool, **kwargs)
    trunk.load_state_dict(like.state_dict())
    return trunk.eval()


@torch.no_grad()
def test_swin_takes_other_sizes() -> None:
    """Its shifted windows are masked by the size of the input, not by that of training."""
    name, window = "swin_tiny_patch4_window7_224", {"depths": (1, 1, 2, 1), "embed_dim": 12}
    clip = towers.build_clip(_cfg({"image_size": 224, "timm_model_name": name, "timm_pool": ""}))
    small = timm.create_model(name, num_classes=0, **window)
    clip.visual.trunk, clip.visual.head = small, nn.Identity()
    _randomized(small)
    towers._allow_any_image_size(clip.visual)
    for height, width in ((224, 224), (224, 448), (336, 224)):
        images = torch.randn(1, 3, height, width)
        output = towers.encode_image(clip.visual, images)
        reference = timm.create_model(name, num_classes=0, strict_img_size=False, **window).eval()
        reference.load_state_dict(small.state_dict())
        torch.testing.assert_close(output.image_features, reference(images), rtol=1e-4, atol=1e-5)
        assert output.grid_size == (math.ceil(height / 32), math.ceil(width / 32))


@torch.no_grad()
def test_vit_takes_other_sizes() -> None:
    """Equal to open_clip's own tower built for that size, its position embedding resized by hand."""
    cfg = _cfg(VIT)
    clip = _build(cfg)
    for height, width in ((64, 128), (96, 48), (128, 128)):
        larger = deepcopy(cfg)
        larger["vision_cfg"]["image_size"] = (height, width)
        reference = towers.build_clip(larger).eval()
        state = clip.state_dict()
        state["visual.positional_embedding"] = resample_abs_pos_embed(
            state["visual.positional_embedding"][None],
            new_size=[height // 16, width // 16],
            old_size=[4, 4],
            num_prefix_tokens=1,
        )[0]
        reference.load_state_dict(state)
        images = torch.randn(2, 3, height, width)
        output = towers.encode_image(clip.visual, images)
        torch.testing.assert_close(
            output.image_features, reference.encode_image(images), rtol=1e-4, atol=1e-5
        )
        assert output.grid_size == (height // 16, width // 16)


def test_positions_stay_as_they_are_at_the_training_size() -> None:
    embedding = torch.randn(17, 8)
    assert towers._resized_positions(embedding, (4, 4), (4, 4)) is embedding
    # The same number of patches in another shape is another grid.
    other = towers._resized_positions(embedding, (4, 4), (2, 8))
    assert other.shape == (17, 8)
    assert torch.equal(other[0], embedding[0])
    assert not torch.allclose(other, embedding)


@torch.no_grad()
def test_resnet_takes_other_sizes() -> None:
    clip = _build(_cfg({**VIT, **OPEN_CLIP_TOWERS["resnet"]}))
    output = towers.encode_image(clip.visual, torch.randn(2, 3, 96, 64))
    assert output.grid_size == (3, 2)
    assert output.image_features.shape == (2, 24)
    assert output.image_features.isfinite().all()


@torch.no_grad()
def test_tokens_lie_row_by_row() -> None:
    """A change in one corner of the picture shows most in that corner's tokens: no grid is transposed."""
    for cfg in (_cfg(VIT), _timm_cfg("resnet10t"), _timm_cfg("test_vit")):
        visual = _build(cfg).visual
        blank = torch.zeros(1, 3, 192, 256)
        spot = blank.clone()
        spot[..., 128:, :64] = 5.0  # lower left
        outputs = [towers.encode_image(visual, x) for x in (blank, spot)]
        rows, columns = outputs[0].grid_size
        change = (outputs[1].image_tokens - outputs[0].image_tokens).norm(dim=-1).view(rows, columns)
        corners = {
            "lower left": change[-rows // 3 :, : columns // 4].mean(),
            "upper left": change[: rows // 3, : columns // 4].mean(),
            "lower right": change[-rows // 3 :, -columns // 4 :].mean(),
        }
        assert max(corners, key=lambda name: float(corners[name])) == "lower left"


def test_what_gives_no_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="CoCa"):
        towers.build_clip(towers.architecture_cfg("coca_ViT-B-32"))
    with pytest.raises(ValueError, match="no grid of image tokens"):
        towers.build_clip(_cfg({**VIT, "attentional_pool": True, "attn_pooler_heads": 2}))
    with pytest.raises(ValueError, match="patch_dropout must be 0"):
        towers.build_clip(_cfg({**VIT, "patch_dropout": 0.5}))
    visual = towers.build_clip(_cfg({"image_size": 64, "timm_model_name": "xcit_nano_12_p16_224"})).visual
    with pytest.raises(ValueError, match="Xcit gives no grid of image tokens"):
        towers.encode_image(visual.eval(), torch.zeros(1, 3, 64, 64))


def test_a_size_that_a_tower_cannot_take_is_one_sentence() -> None:
    visual = towers.build_clip(_cfg({"image_size": 160, "timm_model_name": "test_maxvit"})).visual
    with pytest.raises(ValueError, match=r"MaxxVit takes no images of 128 x 160"):
        towers.encode_image(visual, torch.zeros(1, 3, 128, 160))


@torch.no_grad()
def test_a_last_patch_that_is_not_whole_is_left_out() -> None:
    """As by the convolution of the patches: SigLIP's 384 pixels are 27 patches of 14 and 6 pixels more."""
    images = torch.randn(1, 3, 100, 89)
    for cfg in (_cfg(VIT), _timm_cfg("test_vit")):
        visual = _build(cfg).visual
        whole, cut = (towers.encode_image(visual, x) for x in (images, images[..., :96, :80]))
        assert whole.grid_size == cut.grid_size == (6, 5)
        torch.testing.assert_close(whole.image_features, cut.image_features)


# --- names ----------------------------------------------------------------------------------------


def test_unknown_names_list_near_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown architecture 'ViT-B16'.*ViT-B-16"):
        create_model(ModelConfig(architecture="ViT-B16"))
    with pytest.raises(ValueError, match=r"unknown timm model 'resnet10s'.*resnet10t"):
        create_model(ModelConfig(timm_model="resnet10s", text_tower=str(tmp_path)))
    with pytest.raises(ValueError, match=r"needs a text_tower folder"):
        create_model(ModelConfig(timm_model="resnet10t"))
    with pytest.raises(FileNotFoundError, match=r"text tower folder not found: /no/such"):
        create_model(ModelConfig(timm_model="resnet10t", text_tower="/no/such"))
    with pytest.raises(FileNotFoundError, match=r"holds no config.json"):
        create_model(ModelConfig(timm_model="resnet10t", text_tower=str(tmp_path)))
    with pytest.raises(ValueError, match=r"give one of .* got architecture and timm_model"):
        create_model(ModelConfig(architecture="ViT-B-16", timm_model="resnet10t"))
    with pytest.raises(ValueError, match=r"'nope' is neither .*its tags: .*laion"):
        create_model(ModelConfig(architecture="ViT-B-16", pretrained="nope"))
    with pytest.raises(FileNotFoundError, match="expected an open_clip architecture"):
        create_model(ModelConfig())


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"embed_dim": 8}, "lacks 'vision_cfg'"),
        (_cfg({**VIT, "pool": "avg"}), "open_clip cannot build.*pool"),
        (_cfg({"image_size": 64, "timm_model_name": "no_such_net"}), "open_clip cannot build.*no_such_net"),
    ],
)
def test_wrong_configs_are_one_sentence(cfg: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        towers.build_clip(cfg)
    assert "\n" not in str(error.value)


# Each stands for one family of open_clip's architectures.
REPRESENTATIVES = {
    "ViT-B-32": (7, 7),
    "ViT-B-16-quickgelu": (14, 14),
    "ViT-L-14-CLIPA": (16, 16),
    "RN50": (7, 7),
    "convnext_base": (7, 7),
    "ViT-B-16-SigLIP": (14, 14),
    "EVA02-B-16": (14, 14),
    "MobileCLIP-S1": (8, 8),
    "MobileCLIP-B": (14, 14),
    "ViTamin-S": (14, 14),
    "PE-Core-S-16-384": (24, 24),
    "swin_base_patch4_window7_224": (7, 7),
    "ViT-SO400M-14-SigLIP-384": (27, 27),
}


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_architectures_of_open_clip_build_and_run(name: str) -> None:
    """Shapes only, on the meta device: no memory, no arithmetic."""
    cfg = towers.architecture_cfg(name)
    assert cfg == towers.architecture_cfg(name)
    for part in ("vision_cfg", "text_cfg"):  # fewer layers tell the same story sooner
        if isinstance(cfg[part].get("layers"), int):
            cfg[part]["layers"] = 1
    with torch.device("meta"):
        clip = towers.build_clip(cfg).eval()
    size = cfg["vision_cfg"]["image_size"]
    output = towers.encode_image(clip.visual, torch.zeros(1, 3, size, size, device="meta"))
    rows, columns = output.grid_size
    assert (rows, columns) == REPRESENTATIVES[name]
    assert output.image_tokens.shape == (1, rows * columns, towers.token_width(clip.visual))
    assert output.image_features.shape == (1, cfg["embed_dim"])
    context = cfg["text_cfg"].get("context_length", 77)
    text = towers.encode_text(clip.text, torch.zeros(2, context, dtype=torch.long, device="meta"))
    assert text.shape == (2, cfg["embed_dim"])


# --- text -----------------------------------------------------------------------------------------

TEXTS = ["a dog", "two small cats on the red mat", ""]
TEXT_TOWERS: dict[str, tuple[dict[str, Any], bool]] = {  # options, whether padding may be cut
    "clip": ({}, True),
    "eos": ({"pool_type": "eos", "eos_id": 49407}, True),
    "linear_projection": ({"proj_bias": True}, True),
    "no_projection": ({"proj_type": "none", "width": 24, "heads": 2}, True),
    "siglip": ({"no_causal_mask": True, "pool_type": "last", "proj_bias": True}, False),
    "bidirectional": ({"no_causal_mask": True}, False),
    "causal_last": ({"pool_type": "last"}, False),
    "class_token": ({"embed_cls": True}, False),
}


@pytest.mark.parametrize("name", TEXT_TOWERS)
@torch.no_grad()
def test_open_clip_text_features_are_equal(name: str) -> None:
    options, may_cut = TEXT_TOWERS[name]
    cfg = {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": {**SMALL_TEXT, "context_length": 16, **options}}
    clip = _build(cfg)
    whole = towers.build_tokenizer(cfg)(TEXTS)
    assert whole.shape == (3, 16)
    cut = towers.trim_padding(whole, towers.padding_id(clip.text))
    assert (cut.shape[1] < 16) is may_cut
    expected = clip.encode_text(whole)
    torch.testing.assert_close(towers.encode_text(clip.text, whole), expected)
    torch.testing.assert_close(towers.encode_text(clip.text, cut), expected, rtol=1e-4, atol=1e-5)


def test_cutting_keeps_the_longest_text(tiny_model_cfg: dict[str, Any]) -> None:
    text = towers.build_clip(tiny_model_cfg).text
    ids = torch.tensor([[5, 6, 0, 0, 0], [5, 7, 8, 6, 0]])
    assert towers.trim_padding(ids, towers.padding_id(text)).tolist() == [[5, 6, 0, 0], [5, 7, 8, 6]]
    assert towers.trim_padding(torch.zeros(2, 5, dtype=torch.long), 0).shape == (2, 1)


# --- joined towers --------------------------------------------------------------------------------


@pytest.fixture
def joined(text_tower: Path) -> ModelConfig:
    return ModelConfig(
        timm_model="test_resnet", text_tower=str(text_tower), embed_dim=24, context_length=16, image_size=64
    )


@torch.no_grad()
def test_hugging_face_text_features_are_equal(joined: ModelConfig) -> None:
    from transformers import AutoModel

    model = create_model(joined).eval()
    whole, cut = model.tokenizer(TEXTS), model.tokenize(TEXTS)
    assert whole.shape == (3, 16)
    assert cut.shape[1] < 16
    expected = model.clip.encode_text(whole)
    torch.testing.assert_close(model.encode_text(whole), expected)
    torch.testing.assert_close(model.encode_text(cut), expected, rtol=1e-4, atol=1e-5)
    bert = AutoModel.from_pretrained(joined.text_tower).eval()  # its weights, by transformers itself
    mask = (whole != 0).long()
    hidden = bert(input_ids=whole, attention_mask=mask).last_hidden_state
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(model.clip.text.proj(mean), expected, rtol=1e-4, atol=1e-5)


def _save_timm_weights(path: Path, prefix: str = "") -> tuple[nn.Module, dict[str, Tensor]]:
    """A classifier with random weights, saved as timm does, or under other names."""
    network = _randomized(timm.create_model("test_resnet", num_classes=10))
    state = network.state_dict()
    torch.save({prefix + name: tensor for name, tensor in state.items()}, path)
    return network, state


@pytest.mark.parametrize("match", ["name", "order"])
@torch.no_grad()
def test_local_image_weights(joined: ModelConfig, tmp_path: Path, match: str) -> None:
    path = tmp_path / "image.pt"
    network, _ = _save_timm_weights(path, prefix="other." if match == "order" else "")
    model = create_model(replace(joined, image_weights=str(path), image_weights_match=match)).eval()  # type: ignore[arg-type]
    images = torch.randn(2, 3, 64, 64)
    feature_map = network.forward_features(images)
    tokens = towers.encode_image(model.clip.visual, images).image_tokens
    torch.testing.assert_close(tokens, feature_map.flatten(2).transpose(1, 2))


def test_wrong_image_weights_are_one_sentence(joined: ModelConfig, tmp_path: Path) -> None:
    path = tmp_path / "image.pt"
    _save_timm_weights(path, prefix="other.")
    with pytest.raises(ValueError, match=r"another architecture: .*image.pt lack .* and hold .*'other\."):
        create_model(replace(joined, image_weights=str(path)))
    torch.save(timm.create_model("test_byobnet", num_classes=0).state_dict(), path)
    for match in ("name", "order"):
        with pytest.raises(ValueError, match=r"weights of another architecture: .*image.pt"):
            create_model(replace(joined, image_weights=str(path), image_weights_match=match))  # type: ignore[arg-type]
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="not a torch checkpoint"):
        create_model(replace(joined, image_weights=str(path)))
    with pytest.raises(FileNotFoundError, match=r"weights not found: .*nothing.pt"):
        create_model(replace(joined, image_weights=str(tmp_path / "nothing.pt")))


def test_wrong_text_weights_are_one_sentence(joined: ModelConfig, text_tower: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import save_file

    folder = shutil.copytree(text_tower, tmp_path / "bert")
    state = read_state(folder / "model.safetensors")
    short = {name: tensor for name, tensor in state.items() if "layer.1." not in name}
    save_file(short, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"weights of another architecture: .*bert.* lack .*layer\.1\."):
        create_model(replace(joined, text_tower=str(folder)))


def test_a_text_tower_without_weights_starts_untrained(
    joined: ModelConfig, text_tower: Path, tmp_path: Path
) -> None:
    import shutil

    folder = shutil.copytree(text_tower, tmp_path / "bert")
    (folder / "model.safetensors").unlink()
    assert create_model(replace(joined, text_tower=str(folder))).tokenize(["a dog"]).shape == (1, 4)


def test_a_text_tower_that_open_clip_does_not_know_is_one_sentence(
    joined: ModelConfig, tmp_path: Path
) -> None:
    from transformers import DistilBertConfig, MPNetConfig

    for config in (MPNetConfig(hidden_size=16, num_attention_heads=2), DistilBertConfig(dim=16, n_heads=2)):
        config.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=f"(?i)open_clip cannot build.*{config.model_type}") as error:
            create_model(replace(joined, text_tower=str(tmp_path)))
        assert "\n" not in str(error.value)


def test_timm_names_may_carry_their_pretrained_tag(joined: ModelConfig) -> None:
    """The tag decides mean and standard deviation."""
    tagged = create_model(replace(joined, timm_model="vit_tiny_patch16_224.augreg_in21k"))
    assert tagged.preprocess.mean == (0.5, 0.5, 0.5)
    assert tagged.preprocess.image_size == (64, 64)


@torch.no_grad()
def test_embeddings_of_a_joined_model(joined: ModelConfig) -> None:
    """The whole path on a convolutional tower: any number of boxes, on square and wide canvases."""
    model = create_model(joined).eval()
    for height, width in ((64, 64), (64, 160)):
        images = torch.randint(0, 255, (2, 3, height, width), dtype=torch.uint8)
        state = model.encode_image(images, torch.tensor([[0, 0, 1, 0.5], [0, 0, 1.0, 1]]))
        boxes = torch.tensor([[[0.0, 0, 0.5, 0.5], [0, 0, 1, 1]]] * 2)
        assert model.encode_regions(state, {"box": boxes}).shape == (2, 2, 24)
        assert model.pool_regions(state, boxes).shape == (2, 2, 24)
        assert model.ground(state, model.encode_regions(state, {"box": boxes})).shape == (2, 2, 4)


def test_list_of_architectures_is_open_clips() -> None:
    assert towers.architecture_cfg("ViT-B-32") == open_clip.get_model_config("ViT-B-32")
