"""timm and Hugging Face towers joined: weights by name or by order, and what does not fit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from open_cloc.model.cloc import CLOC
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.model.towers import image_tower_of
from open_cloc.model.weights import read_state
from tests.model.towers.tower_cases import TEXTS, randomized

Build = Callable[..., CLOC]


@pytest.fixture
def joined(text_tower: Path) -> Build:
    """Builds a model of a small timm tower and the tiny BERT, its spec changed or longer."""

    def build(name: str = "test_resnet", text: Path = text_tower, **options: object) -> CLOC:
        more = "".join(f",{option}={value}" for option, value in options.items())
        spec = f"timm:{name},text={text},embed_dim=24,context_length=16{more}"
        return build_model(ModelConfig(spec, image_size=64)).eval()

    return build


@torch.no_grad()
def test_hugging_face_text_features_are_equal(joined: Build, text_tower: Path) -> None:
    from transformers import AutoModel

    model = joined()
    whole, cut = model.tokenizer(TEXTS), model.tokenize(TEXTS)
    assert whole.shape == (3, 16)
    assert cut.shape[1] < 16
    expected = model.clip.encode_text(whole)
    torch.testing.assert_close(model.encode_text(whole), expected)
    torch.testing.assert_close(model.encode_text(cut), expected, rtol=1e-4, atol=1e-5)
    bert = AutoModel.from_pretrained(text_tower).eval()  # its weights, by transformers itself
    mask = (whole != 0).long()
    hidden = bert(input_ids=whole, attention_mask=mask).last_hidden_state
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(model.clip.text.proj(mean), expected, rtol=1e-4, atol=1e-5)


def _save_timm_weights(path: Path, prefix: str = "") -> tuple[nn.Module, dict[str, Tensor]]:
    """A classifier with random weights, saved as timm does, or under other names."""
    network = randomized(timm.create_model("test_resnet", num_classes=10))
    state = network.state_dict()
    torch.save({prefix + name: tensor for name, tensor in state.items()}, path)
    return network, state


@pytest.mark.parametrize("match", ["name", "order"])
@torch.no_grad()
def test_local_image_weights(joined: Build, tmp_path: Path, match: str) -> None:
    path = tmp_path / "image.pt"
    network, _ = _save_timm_weights(path, prefix="other." if match == "order" else "")
    model = joined(weights=path, weights_match=match)
    images = torch.randn(2, 3, 64, 64)
    feature_map = network.forward_features(images)
    tokens = image_tower_of(model.clip.visual).encode(images).image_tokens
    torch.testing.assert_close(tokens, feature_map.flatten(2).transpose(1, 2))


def test_wrong_image_weights_are_one_sentence(joined: Build, tmp_path: Path) -> None:
    path = tmp_path / "image.pt"
    _save_timm_weights(path, prefix="other.")
    with pytest.raises(ValueError, match=r"another architecture: .*image.pt lack .* and hold .*'other\."):
        joined(weights=path)
    torch.save(timm.create_model("test_byobnet", num_classes=0).state_dict(), path)
    for match in ("name", "order"):
        with pytest.raises(ValueError, match=r"weights of another architecture: .*image.pt"):
            joined(weights=path, weights_match=match)
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="not a torch checkpoint"):
        joined(weights=path)
    with pytest.raises(FileNotFoundError, match=r"weights not found: .*nothing.pt"):
        joined(weights=tmp_path / "nothing.pt")
    with pytest.raises(
        ValueError, match=r"unknown weights_match 'size' in 'timm:.*expected one of name, order"
    ):
        joined(weights=path, weights_match="size")


def test_wrong_text_weights_are_one_sentence(joined: Build, text_tower: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(text_tower, tmp_path / "bert")
    state = read_state(folder / "model.safetensors")
    short = {name: tensor for name, tensor in state.items() if "layer.1." not in name}
    save_file(short, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"weights of another architecture: .*bert.* lack .*layer\.1\."):
        joined(text=folder)


def test_a_text_tower_without_weights_starts_untrained(
    joined: Build, text_tower: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(text_tower, tmp_path / "bert")
    (folder / "model.safetensors").unlink()
    assert joined(text=folder).tokenize(["a dog"]).shape == (1, 4)


def test_a_text_tower_that_open_clip_does_not_know_is_one_sentence(joined: Build, tmp_path: Path) -> None:
    from transformers import DistilBertConfig, MPNetConfig

    for config in (MPNetConfig(hidden_size=16, num_attention_heads=2), DistilBertConfig(dim=16, n_heads=2)):
        config.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=f"(?i)open_clip cannot build.*{config.model_type}") as error:
            joined(text=tmp_path)
        assert "\n" not in str(error.value)


def test_unknown_names_and_missing_folders_are_one_sentence(tmp_path: Path) -> None:
    for spec, error, message in (
        (f"timm:resnet10s,text={tmp_path}", ValueError, r"unknown timm model 'resnet10s'.*resnet10t"),
        ("timm:resnet10t", ValueError, r"'timm:resnet10t' lacks the option text="),
        ("timm:resnet10t,text=/no/such", FileNotFoundError, "text tower folder not found: /no/such"),
        (f"timm:resnet10t,text={tmp_path}", FileNotFoundError, "holds no config.json"),
    ):
        with pytest.raises(error, match=message):
            build_model(ModelConfig(spec))


def test_timm_names_may_carry_their_pretrained_tag(joined: Build) -> None:
    """The tag decides mean and standard deviation."""
    tagged = joined("vit_tiny_patch16_224.augreg_in21k")
    assert tagged.preprocess.mean == (0.5, 0.5, 0.5)
    assert tagged.preprocess.image_size == (64, 64)


@torch.no_grad()
def test_embeddings_of_a_joined_model(joined: Build) -> None:
    """The whole path on a convolutional tower: any number of boxes, on square and wide canvases."""
    model = joined()
    for height, width in ((64, 64), (64, 160)):
        images = torch.randint(0, 255, (2, 3, height, width), dtype=torch.uint8)
        state = model.encode_image(images, torch.tensor([[0, 0, 1, 0.5], [0, 0, 1.0, 1]]))
        boxes = torch.tensor([[[0.0, 0, 0.5, 0.5], [0, 0, 1, 1]]] * 2)
        assert model.encode_regions(state, {"box": boxes}).shape == (2, 2, 24)
        assert model.pool_regions(state, boxes).shape == (2, 2, 24)
        assert model.ground(state, model.encode_regions(state, {"box": boxes})).shape == (2, 2, 4)
