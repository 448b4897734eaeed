"""Weights on disk: round trips, strictness, open_clip's layouts, starting values; and the whole model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from paper_terms import paper_objectives
from safetensors.torch import save_file
from torch.nn import functional as F

from open_cloc.canvas import CanvasConfig
from open_cloc.model.cloc import CLOC
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.model.interpolate import interpolate
from open_cloc.model.prompter import PrompterConfig
from open_cloc.model.weights import load_in_order, read_state
from open_cloc.samples import RegionBatch

BOXES = torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.2, 0.2, 0.8, 0.9]]] * 2)
IMAGES = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TEXTS = ["a dog", "two cats on a mat"]


def _outputs(model: CLOC) -> list[torch.Tensor]:
    """Everything that the weights and the config decide."""
    with torch.no_grad():
        state = model.eval().encode_image(IMAGES)
        text = model.encode_text(model.tokenize(TEXTS))
        return [
            state.image_features,
            text,
            model.encode_regions(state, {"box": BOXES}),
            model.ground(state, text.expand(2, -1, -1)),
            model.clip.logit_scale,
        ]


def _assert_same(one: CLOC, other: CLOC) -> None:
    for a, b in zip(_outputs(one), _outputs(other)):
        assert torch.equal(a, b)


def _shaken(model: CLOC) -> CLOC:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def model(tiny_model_cfg: dict[str, Any]) -> CLOC:
    return _shaken(build_model(ModelConfig(towers=tiny_model_cfg)))


@pytest.fixture
def saved(model: CLOC, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


# --- CLOC's folder --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompter",
    [
        PrompterConfig(),
        PrompterConfig(
            readout="prompt", patch_positions=True, box_prior=True, box_content="none", pooled_residual=True
        ),
        PrompterConfig(box_content="none", mlp_ratio=2.0, box_prior=True),
        PrompterConfig(regions="roialign", width=24),
    ],
    ids=["paper", "prior", "none", "roialign"],
)
def test_round_trip_is_exact(
    tiny_model_cfg: dict[str, Any], tmp_path: Path, prompter: PrompterConfig
) -> None:
    tiny_model_cfg |= {"quick_gelu": True, "init_logit_bias": -10.0}
    config = ModelConfig(towers=tiny_model_cfg, prompter=prompter, resize_mode="squash")
    model = _shaken(build_model(config))
    model.save_pretrained(tmp_path / "m")
    loaded = CLOC.from_pretrained(tmp_path / "m")
    _assert_same(model, loaded)
    assert not loaded.training
    assert loaded.preprocess == model.preprocess
    assert loaded.prompter.config == prompter
    assert torch.equal(loaded.clip.logit_bias, model.clip.logit_bias)
    again = build_model(ModelConfig(f"folder:{tmp_path / 'm'}"))
    _assert_same(model, again)


def test_the_config_holds_all_that_changes_numbers(tiny_model_cfg: dict[str, Any], tmp_path: Path) -> None:
    tiny_model_cfg["quick_gelu"] = True
    build_model(ModelConfig(towers=tiny_model_cfg, resize_mode="squash")).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert set(config) == {"model_cfg", "prompter", "preprocess", "texts"}
    assert config["model_cfg"]["quick_gelu"] is True
    assert config["model_cfg"]["vision_cfg"]["patch_size"] == 16  # with the image size: the grid
    assert config["model_cfg"]["text_cfg"]["context_length"] == 16
    assert config["preprocess"]["image_size"] == [64, 64]
    assert config["preprocess"]["resize_mode"] == "squash"
    assert config["preprocess"]["mean"] == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    assert config["preprocess"]["std"] == pytest.approx(open_clip.OPENAI_DATASET_STD)
    assert {"interpolation", "fill"} <= set(config["preprocess"])
    assert config["prompter"]["readout"] == "mean"
    assert "mean" not in read_state(tmp_path / "model.safetensors")  # each fact in one place


def test_saving_twice_leaves_the_model_and_no_other_files(model: CLOC, saved: Path) -> None:
    before = {path.name for path in saved.iterdir()}
    model.save_pretrained(saved)
    assert (
        {path.name for path in saved.iterdir()} == before == {"config.json", "model.safetensors", "README.md"}
    )
    _assert_same(model, CLOC.from_pretrained(saved))


def test_a_hugging_face_text_tower_travels_along(text_tower: Path, tmp_path: Path) -> None:
    config = ModelConfig(f"timm:test_resnet,text={text_tower},embed_dim=24,context_length=16", image_size=64)
    model = _shaken(build_model(config))
    model.save_pretrained(tmp_path / "first")
    shutil.move(tmp_path / "first", tmp_path / "second")
    text = (tmp_path / "second" / "config.json").read_text()
    assert str(text_tower) not in text
    assert str(tmp_path) not in text
    loaded = CLOC.from_pretrained(tmp_path / "second")
    _assert_same(model, loaded)
    loaded.save_pretrained(tmp_path / "third")  # and once more, from there
    shutil.rmtree(tmp_path / "second")
    _assert_same(model, CLOC.from_pretrained(tmp_path / "third"))


def test_a_hugging_face_tokenizer_travels_along(
    tiny_model_cfg: dict[str, Any], text_tower: Path, tmp_path: Path
) -> None:
    """SigLIP's kind: open_clip's text transformer with another tokenizer."""
    local = shutil.copytree(text_tower, tmp_path / "tokenizer")
    tiny_model_cfg["text_cfg"] |= {
        "hf_tokenizer_name": str(local),
        "vocab_size": 20,
        "no_causal_mask": True,
        "pool_type": "last",
    }
    model = _shaken(build_model(ModelConfig(towers=tiny_model_cfg)))
    model.save_pretrained(tmp_path / "m")
    shutil.rmtree(local)
    assert str(tmp_path) not in (tmp_path / "m" / "config.json").read_text()
    _assert_same(model, CLOC.from_pretrained(tmp_path / "m"))


def _drop_text_cfg(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["model_cfg"]["text_cfg"]
    (folder / "config.json").write_text(json.dumps(config))


def _edit(**changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        for place, value in changes.items():
            part, _, key = place.rpartition("__")
            (config[part] if part else config)[key] = value
        (folder / "config.json").write_text(json.dumps(config))

    return apply


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, r"model\.safetensors is not a whole safetensors file"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "not a whole safetensors file"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json is not valid JSON"),
        (lambda f: (f / "config.json").write_text("[1]"), r"config\.json is not a CLOC config.*got list"),
        (_edit(extra=1), r"config\.json is not a CLOC config.*got \['extra'"),
        (_edit(model_cfg=3), r"config\.json is not a CLOC config.*model_cfg"),
        (_drop_text_cfg, r"config\.json is not a CLOC config.*text_cfg"),
        (_edit(prompter__read=1), "unknown key 'read' in prompter"),
        (_edit(prompter__readout="max"), "unknown prompter.readout 'max'"),
        (_edit(preprocess__size=1), "unknown key 'size' in preprocess"),
        (_edit(model_cfg__colour=1), "open_clip cannot build this model_cfg.*colour"),
        (
            _edit(prompter__box_prior=True),
            "weights of another architecture: .* lack 2 tensors such as 'prompter",
        ),
        (
            _edit(model_cfg__init_logit_bias=1.0),
            "another architecture.*lack 1 tensors such as 'clip.logit_bias'",
        ),
        (_edit(model_cfg__embed_dim=16), r"weights of another architecture: .* expected \(.*16"),
    ],
)
def test_damage_is_one_sentence(saved: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(saved)
    with pytest.raises(ValueError, match=message) as error:
        CLOC.from_pretrained(saved)
    assert "\n" not in str(error.value)


def test_missing_files_are_named(saved: Path, tmp_path: Path) -> None:
    for name in ("/no/such/folder", str(tmp_path / "nothing")):
        with pytest.raises(FileNotFoundError, match=f"no folder {name}, and the hub says"):
            CLOC.from_pretrained(name)
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"weights not found: .*model\.safetensors"):
        CLOC.from_pretrained(saved)
    (saved / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"not a CLOC model: it holds no config.json"):
        CLOC.from_pretrained(saved)


def test_the_hub_mixin_is_there(model: CLOC) -> None:
    assert callable(model.push_to_hub)
    assert "clip" in str(model.generate_model_card())


# --- interpolation --------------------------------------------------------------------------------


def test_interpolation(model: CLOC, saved: Path, tmp_path: Path) -> None:
    other = _shaken(deepcopy(model))
    other.save_pretrained(tmp_path / "other")
    for alpha, expected in ((0.0, model), (1.0, other)):
        interpolate(saved, tmp_path / "other", alpha, tmp_path / f"at{alpha}")
        _assert_same(CLOC.from_pretrained(tmp_path / f"at{alpha}"), expected)
    interpolate(saved, tmp_path / "other", 0.25, tmp_path / "between")
    first, second, mixed = (
        read_state(tmp_path / name / "model.safetensors") for name in ("saved", "other", "between")
    )
    for name, tensor in mixed.items():
        torch.testing.assert_close(tensor, 0.75 * first[name] + 0.25 * second[name])


def test_interpolation_refuses(saved: Path, tiny_model_cfg: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\]; got 1.5"):
        interpolate(saved, saved, 1.5, tmp_path / "out")
    build_model(ModelConfig(towers=tiny_model_cfg, prompter=PrompterConfig(box_prior=True))).save_pretrained(
        tmp_path / "other"
    )
    with pytest.raises(ValueError, match="weights of another architecture"):
        interpolate(saved, tmp_path / "other", 0.5, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"output folder .*saved exists"):
        interpolate(saved, saved, 0.5, saved)


# --- open_clip's files ----------------------------------------------------------------------------


def _open_clip_model(cfg: dict[str, Any]) -> Any:
    """open_clip's own model in its ordinary layout (no separate text tower), with weights of some size."""
    clip = open_clip.model.CLIP(**deepcopy(cfg)).eval()
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return clip


def _spec(cfg: dict[str, Any], weights: Path) -> str:
    """Towers of a written-out config with weights from a file, as a spec."""
    path = weights.with_name("cfg.json")
    path.write_text(json.dumps(cfg))
    return f"open_clip:{path},pretrained={weights}"


def _assert_equals_open_clip(model: CLOC, clip: Any) -> None:
    with torch.no_grad():
        state = model.eval().encode_image(IMAGES)
        expected = clip.encode_image(model.normalize_pixels(IMAGES))
        torch.testing.assert_close(state.image_features, expected, rtol=1e-4, atol=1e-5)
        expected = clip.encode_text(model.tokenizer(TEXTS))
        torch.testing.assert_close(model.encode_text(model.tokenize(TEXTS)), expected, rtol=1e-4, atol=1e-5)
    assert model.clip.logit_scale.item() == clip.logit_scale.item()


@pytest.mark.parametrize("form", ["pt", "training", "module", "safetensors", "module.safetensors"])
def test_open_clip_checkpoints(tiny_model_cfg: dict[str, Any], tmp_path: Path, form: str) -> None:
    clip = _open_clip_model(tiny_model_cfg)
    prefix = "module." if form.startswith("module") else ""
    state = {prefix + name: tensor for name, tensor in clip.state_dict().items()}
    path = tmp_path / ("weights.safetensors" if form.endswith("safetensors") else "weights.pt")
    if path.suffix == ".safetensors":
        save_file(state, path)
    elif form == "training":
        torch.save({"epoch": 3, "name": "run", "state_dict": state, "optimizer": {"state": {}}}, path)
    else:
        torch.save(state, path)
    model = build_model(ModelConfig(_spec(tiny_model_cfg, path)))
    _assert_equals_open_clip(model, clip)
    assert torch.equal(model.prompter.project.weight, clip.visual.proj.T)


def test_regions_start_in_the_space_of_the_images(tiny_model_cfg: dict[str, Any], tmp_path: Path) -> None:
    """With the pooled residual, a checkpoint's regions start as its own RoI pooling."""
    clip = _open_clip_model(tiny_model_cfg)
    torch.save(clip.state_dict(), tmp_path / "weights.pt")
    for prompter in (PrompterConfig(pooled_residual=True), PrompterConfig(regions="roialign")):
        model = build_model(
            ModelConfig(_spec(tiny_model_cfg, tmp_path / "weights.pt"), prompter=prompter)
        ).eval()
        with torch.no_grad():
            state = model.encode_image(IMAGES)
            regions = model.encode_regions(state, {"box": BOXES[:, :1]})  # the upper left 2 x 2 patches
            tokens = state.image_tokens.view(2, 4, 4, 64)
            if prompter.regions == "prompter":
                expected = tokens[:, :2, :2].mean((1, 2)) @ clip.visual.proj
            else:
                expected = model.pool_regions(state, BOXES[:, :1])[:, 0]
        torch.testing.assert_close(regions[:, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_open_clip_folders(tiny_model_cfg: dict[str, Any], tmp_path: Path, weights: str) -> None:
    """The `local-dir:` layout, read by open_clip itself for comparison."""
    tiny_model_cfg["quick_gelu"] = True
    clip = _open_clip_model(tiny_model_cfg)
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "interpolation": "bilinear"}
    config = {"model_cfg": tiny_model_cfg, "preprocess_cfg": preprocess}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    if weights.endswith("safetensors"):
        save_file(clip.state_dict(), tmp_path / weights)
    else:
        torch.save(clip.state_dict(), tmp_path / weights)
    model = build_model(ModelConfig(f"folder:{tmp_path}"))
    assert model.preprocess == CanvasConfig(
        (64, 64), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), interpolation="bilinear", fill=(128, 102, 76)
    )
    _assert_equals_open_clip(model, open_clip.create_model(f"local-dir:{tmp_path}").eval())


def test_image_size_resizes_the_position_embedding(tiny_model_cfg: dict[str, Any], tmp_path: Path) -> None:
    clip = _open_clip_model(tiny_model_cfg)
    torch.save(clip.state_dict(), tmp_path / "weights.pt")
    config = ModelConfig(_spec(tiny_model_cfg, tmp_path / "weights.pt"), image_size=96)
    model = build_model(config).eval()
    assert model.preprocess.image_size == (96, 96)
    larger = deepcopy(tiny_model_cfg)
    larger["vision_cfg"]["image_size"] = 96
    reference = open_clip.model.CLIP(**larger).eval()
    open_clip.load_checkpoint(reference, str(tmp_path / "weights.pt"))
    images = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    with torch.no_grad():
        state = model.encode_image(images)
        expected = reference.encode_image(model.normalize_pixels(images))
    torch.testing.assert_close(state.image_features, expected, rtol=1e-4, atol=1e-5)
    assert state.grid_size == (6, 6)


def test_wrong_checkpoints_are_one_sentence(tiny_model_cfg: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    other = deepcopy(tiny_model_cfg)
    other["vision_cfg"]["width"] = 96
    state = _open_clip_model(other).state_dict()
    config = ModelConfig(_spec(tiny_model_cfg, path))
    without = {name: tensor for name, tensor in state.items() if name != "visual.proj"}
    contents: list[tuple[Any, str]] = [
        (state, "weights of another architecture: .*weights.pt"),
        (without, "weights of another architecture: .*weights.pt"),
        ({}, "holds no state dict"),
        ([1, 2], "holds no state dict"),
        (
            {"logit_bias": torch.zeros(1), **_open_clip_model(tiny_model_cfg).state_dict()},
            "another architecture",
        ),
    ]
    for content, message in contents:
        torch.save(content, path)
        with pytest.raises(ValueError, match=message) as error:
            build_model(config)
        assert "\n" not in str(error.value)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="not a torch checkpoint of plain tensors") as error:
        build_model(config)
    assert "\n" not in str(error.value)


def test_files_with_code_inside_are_refused(tiny_model_cfg: dict[str, Any], tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "weights.pt")  # a pickled object, not a state dict
    with pytest.raises(ValueError, match="not a torch checkpoint of plain tensors"):
        build_model(ModelConfig(_spec(tiny_model_cfg, tmp_path / "weights.pt")))


def test_load_in_order_counts_and_compares_shapes() -> None:
    norm = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    given = {f"x{i}": torch.full_like(t, i) for i, t in enumerate(norm.state_dict().values()) if t.ndim}
    load_in_order(norm, given, "file")
    assert norm[1].running_var.eq(5).all()
    with pytest.raises(ValueError, match="file holds 5 tensors, expected 6"):
        load_in_order(norm, dict(list(given.items())[:5]), "file")
    with pytest.raises(ValueError, match=r"file has 0\.weight of shape \(3,\), expected \(3, 2\)"):
        load_in_order(norm, dict(reversed(given.items())), "file")


# --- the whole model ------------------------------------------------------------------------------


def _batch(model: CLOC, num_regions: int = 2) -> RegionBatch:
    """Four images of two colours side by side, each half a region named by its colour, but for the last."""
    colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
    names = list(colours)
    images = torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
    boxes, index = torch.zeros(4, num_regions, 4), torch.zeros(4, num_regions, dtype=torch.long)
    for i in range(4):
        for j in range(2):
            name = names[(i + j) % 4]
            images[i, :, :, 32 * j : 32 * j + 32] = torch.tensor(colours[name]).view(3, 1, 1)
            if j < num_regions:
                boxes[i, j] = torch.tensor([j / 2, 0.0, (j + 1) / 2, 1.0])
                index[i, j] = 4 + (i + j) % 4
    mask = torch.ones(4, num_regions, dtype=torch.bool)
    mask[3] = False
    return RegionBatch(
        images=images,
        content_boxes=torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(4, 4),
        texts=model.tokenize([f"{name} on the left" for name in names] + names),
        caption_index=torch.arange(4),
        boxes=boxes,
        region_text_index=index,
        region_mask=mask,
    )


def test_forward_shapes(model: CLOC) -> None:
    batch = _batch(model)
    features = model(replace(batch, caption_index=torch.tensor([0, 1, -1, 3])))
    assert features.image_features.shape == features.text_features.shape == (4, 32)
    assert features.caption_mask.tolist() == [True, True, False, True]
    assert features.region_features.shape == features.region_text_features.shape == (4, 2, 32)
    assert features.pred_boxes.shape == features.boxes.shape == (4, 2, 4)
    assert features.region_mask.shape == (4, 2)
    torch.testing.assert_close(features.logit_scale, model.clip.logit_scale.exp())
    assert features.logit_bias is None
    unique = model.encode_text(batch.texts)
    torch.testing.assert_close(features.region_text_features[1, 0], unique[5])
    torch.testing.assert_close(features.text_features[3], unique[3])


def test_no_regions_is_plain_clip(model: CLOC) -> None:
    batch = _batch(model, num_regions=0)
    losses = paper_objectives()(model(batch))
    image = model.clip.encode_image(model.normalize_pixels(batch.images))
    text = model.clip.encode_text(batch.texts.new_zeros(4, 16).index_copy_(1, *_columns(batch.texts[:4])))
    expected = open_clip.loss.ClipLoss()(
        F.normalize(image, dim=-1), F.normalize(text, dim=-1), model.clip.logit_scale.exp()
    )
    torch.testing.assert_close(losses["total"], expected, rtol=1e-4, atol=1e-5)
    losses["total"].backward()
    assert all(p.grad is None for p in model.prompter.parameters())


def _columns(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(ids.shape[1]), ids


def test_sigmoid_model_starts_where_the_sigmoid_losses_need_it(tiny_model_cfg: dict[str, Any]) -> None:
    model = build_model(ModelConfig(towers=tiny_model_cfg, sigmoid=True))
    features = model(_batch(model))
    assert features.logit_scale.item() == pytest.approx(10)
    assert features.logit_bias is not None
    assert features.logit_bias.item() == pytest.approx(-10)
    assert paper_objectives(contrastive="sigmoid")(features)["total"].isfinite()


def test_padding_of_the_canvas_is_masked_out(model: CLOC) -> None:
    half = torch.tensor([[0.0, 0.0, 1.0, 0.5]]).expand(2, 4)
    with torch.no_grad():
        state = model.encode_image(IMAGES, half)
    assert state.prompted.layer.mask.view(2, 4, 4)[:, :2].all()
    assert not state.prompted.layer.mask.view(2, 4, 4)[:, 2:].any()


@pytest.mark.parametrize(
    "prompter",
    [
        PrompterConfig(),
        PrompterConfig(readout="prompt", box_prior=True, box_content="none", pooled_residual=True),
    ],
    ids=["paper", "prior"],
)
def test_one_batch_is_learned_by_heart(tiny_model_cfg: dict[str, Any], prompter: PrompterConfig) -> None:
    model = build_model(ModelConfig(towers=tiny_model_cfg, prompter=prompter)).train()
    batch, config = _batch(model), paper_objectives()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    history = []
    for _ in range(60):
        losses = config(model(batch))
        optimizer.zero_grad()
        losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    for name in ("image_text", "region_text", "grounding"):
        assert history[-1][name] < 0.1 * history[0][name], name
    model.eval()
    with torch.no_grad():
        regions = F.normalize(
            model.encode_regions(model.encode_image(batch.images), {"box": batch.boxes}), dim=-1
        )
        names = F.normalize(model.encode_text(batch.texts[4:]), dim=-1)
    predicted = (regions @ names.T).argmax(-1) + 4
    accuracy = predicted.eq(batch.region_text_index)[batch.region_mask].float().mean()
    assert accuracy == 1.0
