"""Towers of SigLIP's kind in transformers' classes, and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

import open_cloc
from open_cloc.cli.main import main as open_cloc_command
from open_cloc.data.readers import open_reader
from open_cloc.errors import MissingFileError, UserError
from open_cloc.export import export
from tests.export.test_export import saved

NETWORK = "vit_tiny_patch16_siglip_of_these_tests"
TEXTS = ["a dog on a mat", "two red cat", "small"]


def register(name: str, **changes: Any) -> None:
    """A network of timm's registry that is small enough for a test."""

    def build(pretrained: bool = False, **given: Any) -> nn.Module:
        given = {name: value for name, value in given.items() if name in ("img_size", "global_pool")}
        shape = {"patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 2, "class_token": False}
        return VisionTransformer(**{"img_size": 64, "num_classes": 0} | shape | given | changes)

    build.__name__, build.__module__ = name, __name__
    if not timm.is_model(name):
        globals().setdefault("__all__", []).append(name)
        timm.models.register_model(build)


register(NETWORK)
register(f"{NETWORK}_scaled", init_values=0.1)
register(f"{NETWORK}_with_class", class_token=True)


def model_cfg(tokenizer: Path, network: str = NETWORK, **text: Any) -> dict[str, Any]:
    return {
        "embed_dim": 32,
        "init_logit_bias": -10.0,
        "vision_cfg": {
            "image_size": 64,
            "timm_model_name": network,
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 20,
            "hf_tokenizer_name": str(tokenizer),
            "width": 48,
            "heads": 2,
            "layers": 2,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh"},
            **text,
        },
    }


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, text_tower: Path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("siglip")
    tokenizer = shutil.copytree(text_tower, folder / "tokenizer")
    return saved(folder / "model", model_cfg(tokenizer))


def test_a_siglip_is_the_model_and_comes_back(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = export("siglip", weights, tmp_path / "out")
    assert [d.what for d in found if d.most] == ["pictures, same pixels", "texts, same tokens"]
    back = open_cloc.create_model(f"folder:{tmp_path / 'out'}", device="cpu").eval()
    own = open_cloc.load(weights, "cpu").model
    theirs, ours = back.clip.state_dict(), own.clip.state_dict()
    assert theirs.keys() == ours.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=0, msg=name)
    tokens = own.tokenizer(TEXTS)
    assert torch.equal(back.tokenizer(TEXTS), tokens)
    with torch.inference_mode():
        assert torch.equal(back.encode_text(tokens), own.encode_text(tokens))


@torch.inference_mode()
def test_transformers_alone_opens_it(weights: Path, tmp_path: Path) -> None:
    """With the classes that it finds by itself, and scores of a sigmoid."""
    from transformers import AutoModel, AutoProcessor

    export("siglip", weights, tmp_path / "out")
    theirs = AutoModel.from_pretrained(tmp_path / "out").eval()
    assert type(theirs).__name__ == "SiglipModel"
    own = open_cloc.load(weights, "cpu").model
    pixels = torch.from_numpy(open_reader("scenes:val")[0].pixels()).permute(2, 0, 1)[None]
    size_hw = own.preprocess.image_size
    resized = F.interpolate(pixels.float(), size_hw).byte()
    tokens = own.tokenizer(TEXTS)
    output = theirs(input_ids=tokens, pixel_values=own.normalize_pixels(resized))
    images = F.normalize(own.encode_image(resized).image_features, dim=-1)
    texts = F.normalize(own.encode_text(tokens), dim=-1)
    clip: Any = own.clip
    expected = images @ texts.T * clip.logit_scale.exp() + clip.logit_bias
    torch.testing.assert_close(output.logits_per_image, expected, atol=1e-4, rtol=0)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor is not None


def test_llava_next_takes_the_tower(weights: Path, tmp_path: Path) -> None:
    import transformers

    folder = tmp_path / "cloc-siglip"
    (difference,) = export("llava", weights, folder)
    assert difference.largest <= 1e-5
    text = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=100
    )
    vision = transformers.SiglipVisionConfig.from_pretrained(folder)
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, vision_feature_select_strategy="full"
    )
    llava = transformers.LlavaForConditionalGeneration(config).eval()
    tower = transformers.SiglipVisionModel.from_pretrained(folder)
    llava.model.vision_tower.load_state_dict(tower.state_dict())
    seen: list[torch.Tensor] = []
    llava.model.multi_modal_projector.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    pixels = torch.randn(2, 3, 64, 64)
    own: Any = open_cloc.load(weights, "cpu").model.clip.visual
    kept: list[torch.Tensor] = []
    own.trunk.blocks[-2].register_forward_hook(lambda module, given, made: kept.append(made))
    with torch.no_grad():
        llava.get_image_features(pixel_values=pixels)
        own(pixels)
    torch.testing.assert_close(seen[0], kept[0], rtol=0, atol=1e-5)


REFUSED = {
    "layer scales": ({"network": f"{NETWORK}_scaled"}, "norms or scales that SiglipVisionModel has not"),
    "a class token": ({"network": f"{NETWORK}_with_class"}, "SiglipVisionModel is a ViT pooled by attention"),
    "a causal text tower": ({"no_causal_mask": False}, "does not see all tokens and end in the last"),
    "a projection without a bias": ({"proj_bias": False}, "no projection with a bias"),
    "another eps": ({"norm_kwargs": {"eps": 1e-5}}, "eps in its text tower is not 1e-06"),
}


@pytest.mark.parametrize(("changes", "reason"), REFUSED.values(), ids=REFUSED)
def test_towers_that_are_no_siglip(
    changes: dict[str, Any], reason: str, text_tower: Path, tmp_path: Path
) -> None:
    tokenizer = shutil.copytree(text_tower, tmp_path / "tokenizer")
    made = saved(tmp_path / "model", model_cfg(tokenizer, **changes))
    with pytest.raises(UserError, match=f"cannot export to siglip: .*{reason}.*open-clip holds any tower"):
        export("siglip", made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_reason_names_the_way_out(weights: Path, tmp_path: Path, capsys: Any) -> None:
    assert open_cloc_command(["export", "clip", str(tmp_path / "out"), "--weights", str(weights)]) == 2
    assert "take siglip" in capsys.readouterr().err


def edited(folder: Path, part: str, key: str, value: Any) -> Path:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config[part][key] = value
    path.write_text(json.dumps(config))
    return folder


STRANGE = {
    "a width that is not the weights'": ("vision_config", "hidden_size", 40, "weights of another"),
    "another activation": (
        "vision_config",
        "hidden_act",
        "relu",
        "vision_config.hidden_act of a SiglipModel",
    ),
    "a text activation": ("text_config", "hidden_act", "relu", "text_config.hidden_act of a SiglipModel"),
    "layers as text": ("vision_config", "num_hidden_layers", "many", "num_hidden_layers"),
    "no table": ("vision_config", "patch_size", [16], "patch_size"),
}


@pytest.mark.parametrize(("part", "key", "value", "told"), STRANGE.values(), ids=STRANGE)
def test_configs_of_strangers(
    weights: Path, tmp_path: Path, monkeypatch: Any, part: str, key: str, value: Any, told: str
) -> None:
    export("siglip", weights, tmp_path / "out")
    folder = edited(tmp_path / "out", part, key, value)
    with pytest.raises(UserError, match=told):
        open_cloc.create_model(f"folder:{folder}", device="cpu")


@pytest.mark.parametrize(
    ("name", "shape", "told"),
    [
        ("vision_model.head.probe", None, "lack 'vision_model.head.probe'"),
        ("logit_scale", (2,), "odd shapes"),
        ("text_model.encoder.layers.0.self_attn.q_proj.weight", (48, 7), "odd shapes"),
        ("text_model.head.bias", (), "odd shapes"),
        ("vision_model.post_layernorm.weight", (31,), "post_layernorm|norm.weight"),
    ],
)
def test_weights_of_strangers(
    weights: Path, tmp_path: Path, monkeypatch: Any, name: str, shape: tuple[int, ...] | None, told: str
) -> None:
    export("siglip", weights, tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    state = load_file(path)
    del state[name]
    if shape is not None:
        state[name] = torch.zeros(shape)
    save_file(state, path)
    with pytest.raises(UserError, match=told):
        open_cloc.create_model(f"folder:{tmp_path / 'out'}", device="cpu")


def test_weights_that_are_not_there(weights: Path, tmp_path: Path, monkeypatch: Any) -> None:
    export("siglip", weights, tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"holds no weights of transformers"):
        open_cloc.create_model(f"folder:{tmp_path / 'out'}", device="cpu")
