"""Folders of transformers' CLIPModel and SiglipModel, of any size, against the library's own calls."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

import open_cloc
from open_cloc.errors import MissingFileError, UserError
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.run import evaluate
from open_cloc.model.cloc import CLOC
from open_cloc.model.towers.siglip_network import NETWORKS, SiglipShape, network_of, ratio_of
from tests.evaluation.tiny_data import NAMES, Samples, make_samples, with_maps

TEXTS = ["a red dog", "two", "small cat on a mat"]
SIZE = {"hidden_size": 40, "num_hidden_layers": 3, "num_attention_heads": 5, "intermediate_size": 57}
# Other sizes, activations and norms than any released model has.
SIGLIPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tanh, the library's default": ({}, {}),
    "exact": ({"hidden_act": "gelu"}, {"hidden_act": "gelu"}),
    "pictures with a rest of a patch": ({"image_size": 50, "patch_size": 14}, {}),
}
CLIPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "quick": ({}, {}),
    "exact": ({"hidden_act": "gelu"}, {"hidden_act": "gelu"}),
    "tanh": ({"hidden_act": "gelu_pytorch_tanh"}, {"hidden_act": "gelu_pytorch_tanh"}),
    "another eps": ({"layer_norm_eps": 1e-3}, {"layer_norm_eps": 1e-2}),
}


def saved(kind: str, folder: Path, tokenizer: Any, vision: dict[str, Any], text: dict[str, Any]) -> Any:
    """A random model of transformers, as the library saves it, and the same opened."""
    torch.manual_seed(0)
    vision = {**SIZE, "image_size": 48, "patch_size": 16} | vision
    text = {**SIZE, "hidden_size": 30, "intermediate_size": 41, "max_position_embeddings": 16} | text
    text |= {"vocab_size": len(tokenizer), "projection_size": vision["hidden_size"]}
    if kind == "siglip":
        model: Any = SiglipModel(SiglipConfig(vision_config=vision, text_config=text))
    else:
        end = {"eos_token_id": tokenizer.sep_token_id, "bos_token_id": tokenizer.cls_token_id}
        model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text | end, projection_dim=24))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


def features(answer: Any) -> Tensor:
    """transformers 5 gives a record, older ones the tensor."""
    return answer if isinstance(answer, Tensor) else answer.pooler_output


@torch.inference_mode()
def compare(own: CLOC, theirs: Any, tokenizer: Any, *, padded: bool) -> None:
    """Features of the same pixels and of the same texts, as each reads them by itself."""
    size = theirs.config.vision_config.image_size
    pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    found = own.encode_image(pixels)
    expected = theirs.get_image_features(own.normalize_pixels(pixels))
    torch.testing.assert_close(found.image_features, features(expected), atol=1e-5, rtol=1e-5)
    tokens = theirs.vision_model(own.normalize_pixels(pixels)).last_hidden_state[
        :, -found.image_tokens.shape[1] :
    ]
    normed = tokens if padded else theirs.vision_model.post_layernorm(tokens)  # CLIP's come without
    torch.testing.assert_close(found.image_tokens, normed, atol=1e-5, rtol=1e-5)
    padding: Any = "max_length" if padded else True
    inputs = tokenizer(TEXTS, padding=padding, max_length=16, truncation=True, return_tensors="pt")
    expected = theirs.get_text_features(input_ids=inputs["input_ids"])
    torch.testing.assert_close(
        own.encode_text(own.tokenizer(TEXTS)), features(expected), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(("vision", "text"), SIGLIPS.values(), ids=SIGLIPS)
def test_a_siglip_of_any_size(hf_clip: Path, tmp_path: Path, vision: Any, text: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(hf_clip)
    theirs = saved("siglip", tmp_path, tokenizer, vision, text)
    own = open_cloc.create_model(f"folder:{tmp_path}", device="cpu").eval()
    assert own.preprocess.image_size == (theirs.config.vision_config.image_size,) * 2
    compare(own, theirs, tokenizer, padded=True)


@pytest.mark.parametrize(("vision", "text"), CLIPS.values(), ids=CLIPS)
def test_a_clip_of_any_size(hf_clip: Path, tmp_path: Path, vision: Any, text: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(hf_clip)
    theirs = saved("clip", tmp_path, tokenizer, vision, text)
    own = open_cloc.create_model(f"folder:{tmp_path}", device="cpu").eval()
    compare(own, theirs, tokenizer, padded=False)


def test_a_siglip_is_saved_and_opened_again(hf_clip: Path, tmp_path: Path) -> None:
    """Its network's name says all of it, so another process can build it."""
    saved("siglip", tmp_path / "theirs", AutoTokenizer.from_pretrained(hf_clip), {}, {})
    own = open_cloc.create_model(f"folder:{tmp_path / 'theirs'}", device="cpu").eval()
    name = own.model_cfg["vision_cfg"]["timm_model_name"]
    assert name == "cloc_siglip_48_patch16_width40_layers3_heads5_mlp57_gelu_tanh"
    own.save_pretrained(tmp_path / "own")
    again = open_cloc.load(tmp_path / "own", "cpu").model
    pixels = torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(again.encode_image(pixels).image_features, own.encode_image(pixels).image_features)


METHODS = (
    *("roialign", "roialign,tokens=value", "roialign,tokens=value_block", "roialign,tokens=csa"),
    *("crop,context=0.5", "blur", "whole"),
)
WORDS = ("red dog", "red cat", "two dog", "two cat", "small dog", "small cat", "a mat")  # the tokenizer's


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_it(hf_clip: Path, tmp_path: Path, kind: str, method: str) -> None:
    saved(kind, tmp_path, AutoTokenizer.from_pretrained(hf_clip), {}, {})
    names = dict(zip(NAMES, WORDS, strict=True))
    samples = Samples(
        replace(sample, regions=tuple(replace(r, text=names[r.text]) for r in sample.regions))
        for sample in make_samples()
    )
    spec = f"folder:{tmp_path}"
    result = evaluate(spec, samples, "zeroshot_region_classification", method=method, device="cpu")
    assert 0 <= result["metrics"]["acc1"] <= 1
    if method.startswith("roialign"):
        config = EvaluationConfig(classes=WORDS[:4])
        dense = evaluate(spec, with_maps(samples), "segmentation", config, method=method, device="cpu")
        assert 0 <= dense["metrics"]["miou"] <= 1


def test_weights_in_parts_and_of_old_models(hf_clip: Path, tmp_path: Path) -> None:
    theirs = saved("siglip", tmp_path / "one", AutoTokenizer.from_pretrained(hf_clip), {}, {})
    theirs.save_pretrained(tmp_path / "parts", max_shard_size="40KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text((tmp_path / "one" / "config.json").read_text())
    torch.save(theirs.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    one, parts, old = (
        open_cloc.create_model(f"folder:{tmp_path / name}", device="cpu").clip.state_dict()
        for name in ("one", "parts", "old")
    )
    for name, tensor in one.items():
        assert torch.equal(parts[name], tensor), name
        assert torch.equal(old[name], tensor), name
    (tmp_path / "old" / "pytorch_model.bin").unlink()
    with pytest.raises(MissingFileError, match=r"no weights of transformers; expected model\.safetensors or"):
        open_cloc.create_model(f"folder:{tmp_path / 'old'}", device="cpu")


REFUSED = {
    "naflex": ("siglip", {"model_type": "siglip2"}, "of the NaFlex kind"),
    "heads": (
        "siglip",
        {"vision_config": {"num_attention_heads": 3}},
        "vision_config.num_attention_heads must",
    ),
    "text heads": (
        "clip",
        {"text_config": {"num_attention_heads": 7}},
        "text_config.num_attention_heads must",
    ),
    "eps": (
        "siglip",
        {"text_config": {"layer_norm_eps": 1e-3}},
        "text_config.layer_norm_eps of a SiglipModel",
    ),
    "relu": (
        "siglip",
        {"vision_config": {"hidden_act": "relu"}},
        "vision_config.hidden_act of a SiglipModel",
    ),
    "two kinds": (
        "clip",
        {"vision_config": {"hidden_act": "gelu"}},
        "activations must both be one of quick_gelu",
    ),
    "too many": ("siglip", {"vision_config": {"num_hidden_layers": 10**6}}, "larger model than its weights"),
}


@pytest.mark.parametrize(("kind", "change", "told"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_one_sentence(
    hf_clip: Path, tmp_path: Path, kind: str, change: dict[str, Any], told: str
) -> None:
    saved(kind, tmp_path, AutoTokenizer.from_pretrained(hf_clip), {}, {})
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for key, value in change.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=told):
        open_cloc.create_model(f"folder:{tmp_path}", device="cpu")


def test_known_networks_are_what_their_names_say() -> None:
    """timm's own of these names, looked at part by part."""
    import timm

    for shape, name in NETWORKS.items():
        with torch.device("meta"):
            trunk: Any = timm.create_model(name, num_classes=0)
        block = trunk.blocks[0]
        assert shape == SiglipShape(
            trunk.patch_embed.img_size[0],
            trunk.patch_embed.patch_size[0],
            trunk.embed_dim,
            len(trunk.blocks),
            block.attn.num_heads,
            block.mlp.fc1.out_features,
            "tanh" if "Tanh" in type(block.mlp.act).__name__ else "none",
        )
    assert network_of(SiglipShape(224, 16, 768, 12, 12, 3072, "tanh")).endswith("_mlp3072_gelu_tanh")


def test_ratios_give_back_the_width() -> None:
    for width in (768, 1152, 40, 30, 7):
        for hidden in np.arange(1, 5000, 7).tolist():
            assert int(width * ratio_of(hidden, width)) == hidden
