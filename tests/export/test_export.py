"""Exports: the same features in tools that nobody here wrote, and one sentence where a tower has no place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import open_cloc
from open_cloc.cli import main as cli
from open_cloc.data.readers import open_reader
from open_cloc.errors import ExistingFileError, RunError, UserError
from open_cloc.export import compare, export
from open_cloc.model.cloc import CLOC

TEXTS = ["a dog on a mat", "It's 3 o'clock, and two RED cats sleep!", "ein Bär"]
TARGETS = ("open-clip", "clip")


def cfg(**changes: Any) -> dict[str, Any]:
    vision = {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32}
    text = {"width": 32, "heads": 2, "layers": 2, "context_length": 16}
    return {
        "embed_dim": 32,
        "vision_cfg": vision | changes.pop("vision_cfg", {}),
        "text_cfg": text | changes.pop("text_cfg", {}),
        **changes,
    }


def saved(folder: Path, model_cfg: dict[str, Any], **options: Any) -> Path:
    """A model with random weights, none of which is what a part starts with."""
    model = open_cloc.create_model(model_cfg, device="cpu", **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return saved(tmp_path_factory.mktemp("plain") / "model", cfg())


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layer scales, QuickGELU, another canvas than the tower's, squashed."""
    torch.manual_seed(0)
    model_cfg = cfg(
        quick_gelu=True,
        vision_cfg={"ls_init_value": 0.3, "mlp_ratio": 3.0},
        text_cfg={"ls_init_value": 0.3},
    )
    folder = tmp_path_factory.mktemp("scaled") / "model"
    return saved(folder, model_cfg, image_size=96, resize_mode="squash")


@pytest.fixture(params=["plain", "scaled"])
def weights(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def features(model: CLOC) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = np.stack([open_reader("scenes:val")[index].pixels() for index in range(3)])
    images = F.interpolate(torch.from_numpy(pixels).permute(0, 3, 1, 2).float(), model.preprocess.image_size)
    with torch.inference_mode():
        return (
            F.normalize(model.encode_image(images.byte()).image_features, dim=-1),
            F.normalize(model.encode_text(model.tokenizer(TEXTS)), dim=-1),
        )


@pytest.mark.parametrize("target", TARGETS)
def test_an_export_is_the_model_and_comes_back(weights: Path, target: str, tmp_path: Path) -> None:
    found = export(target, weights, tmp_path / "out")
    assert all(difference.most is None or difference.largest <= 1e-5 for difference in found)
    assert any(difference.most is not None for difference in found)
    back = open_cloc.create_model(f"folder:{tmp_path / 'out'}", device="cpu").eval()
    own = open_cloc.load(weights, "cpu").model
    assert back.preprocess.image_size == own.preprocess.image_size
    for one, other in zip(features(back), features(own)):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert back.clip.logit_scale.item() == pytest.approx(own.clip.logit_scale.item())


def test_pipelines_of_transformers(weights: Path, tmp_path: Path) -> None:
    from transformers import pipeline

    export("clip", weights, tmp_path / "out")
    predictor = open_cloc.load(weights, "cpu")
    size = predictor.model.preprocess.image_size[0]
    picture = Image.fromarray(open_reader("scenes:val")[0].pixels()).resize((size, size))
    asked = pipeline("zero-shot-image-classification", str(tmp_path / "out"), device="cpu")
    answers = asked(picture, candidate_labels=TEXTS, hypothesis_template="{}")
    (expected,) = predictor.encode(picture).classify(TEXTS)
    assert [answer["label"] for answer in answers] == [label.label for label in expected.labels]
    for answer, label in zip(answers, expected.labels):
        assert answer["score"] == pytest.approx(label.score, abs=1e-4)


def test_sentence_transformers(plain: Path, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    export("clip", plain, tmp_path / "out")
    predictor = open_cloc.load(plain, "cpu")
    picture = Image.fromarray(open_reader("scenes:val")[0].pixels()).resize((64, 64))
    model = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    images = model.encode([picture], normalize_embeddings=True)
    texts = model.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(images[0], predictor.encode(picture).embed(), atol=1e-5)
    np.testing.assert_allclose(texts, predictor.encode_text(TEXTS), atol=1e-5)


def test_clip_benchmark(plain: Path, tmp_path: Path) -> None:
    models = pytest.importorskip("clip_benchmark.models")
    export("open-clip", plain, tmp_path / "out")
    name = f"local-dir:{tmp_path / 'out'}"
    theirs, transform, tokenize = models.load_clip("open_clip", name, None, None, "cpu")
    predictor = open_cloc.load(plain, "cpu")
    picture = Image.fromarray(open_reader("scenes:val")[0].pixels())
    with torch.no_grad():
        image = F.normalize(theirs.eval().cpu().encode_image(transform(picture)[None]), dim=-1)
        texts = F.normalize(theirs.encode_text(tokenize(TEXTS)), dim=-1)
    np.testing.assert_allclose(image[0], predictor.encode(picture).embed(), atol=2e-3)  # it resizes by itself
    np.testing.assert_allclose(texts, predictor.encode_text(TEXTS), atol=1e-5)


def test_lancedbs_own_function(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = pytest.importorskip("lancedb.embeddings").get_registry()
    export("open-clip", plain, tmp_path / "out")
    function = registry.get("open-clip").create(
        name=f"local-dir:{tmp_path / 'out'}", pretrained="", device="cpu"
    )
    texts = function.compute_query_embeddings(TEXTS[0])
    predictor = open_cloc.load(plain, "cpu")
    np.testing.assert_allclose(texts[0], predictor.encode_text(TEXTS[:1])[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_llava_takes_the_tower(scaled: Path, tmp_path: Path, kind: str) -> None:
    """And sees the tokens that the tower has before its last block."""
    import transformers

    folder = tmp_path / "cloc-clip"
    (difference,) = export("llava", scaled, folder)
    assert difference.largest <= 1e-5
    prefix = {"llava": "Llava", "llava_next": "LlavaNext"}[kind]
    text = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=100
    )
    vision = transformers.CLIPVisionConfig.from_pretrained(folder)
    patches = {} if kind == "llava" else {"image_grid_pinpoints": [[96, 96]]}
    config = getattr(transformers, f"{prefix}Config")(vision_config=vision, text_config=text, **patches)
    llava = getattr(transformers, f"{prefix}ForConditionalGeneration")(config).eval()
    tower = transformers.CLIPVisionModel.from_pretrained(folder)
    llava.model.vision_tower.load_state_dict(tower.state_dict())
    pixels = torch.randn(2, 3, 96, 96)
    seen: list[torch.Tensor] = []
    llava.model.multi_modal_projector.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        if kind == "llava":
            llava.get_image_features(pixel_values=pixels)
        else:  # one picture: the whole, and its only part
            llava.get_image_features(pixel_values=pixels[None], image_sizes=torch.tensor([[96, 96]]))
    own: Any = open_cloc.create_model(f"folder:{scaled}", device="cpu").eval().clip.visual
    kept: list[torch.Tensor] = []
    own.transformer.resblocks[-2].register_forward_hook(lambda module, given, made: kept.append(made))
    with torch.no_grad():
        x = own.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([own.class_embedding.expand(2, 1, -1), x], 1)
        from open_cloc.model.towers.positions import resize_positions

        x = x + resize_positions(own.positional_embedding, own.grid_size, (6, 6))
        own.transformer(own.ln_pre(x))
    torch.testing.assert_close(seen[0].reshape(2, 36, -1), kept[0][:, 1:], rtol=0, atol=1e-5)


def test_the_command_prints_how_far_it_is_off(plain: Path, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "out"
    assert cli.main(["export", "open-clip", str(output), "--weights", str(plain)]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0].startswith("pictures, same pixels: ")
    assert lines[0].endswith("(at most 1e-05)")
    assert lines[-1] == str(output)
    assert open_clip.create_model_and_transforms(f"local-dir:{output}")
    assert cli.main(["export", "open-clip", str(output), "--weights", str(plain)]) == 2
    assert "must be new or empty" in capsys.readouterr().err


REFUSED = {
    "a timm tower": (
        cfg(
            vision_cfg={
                "image_size": 160,
                "timm_model_name": "test_vit",
                "timm_model_pretrained": False,
                "timm_pool": "",
                "timm_proj": "linear",
            }
        ),
        "clip",
        "its image tower is a",
    ),
    "average pooling": (cfg(vision_cfg={"pool_type": "avg"}), "llava", "does not end in the class token"),
    "no first norm": (cfg(vision_cfg={"no_ln_pre": True}), "llava", "no norm before the first block"),
    "texts without a mask": (
        cfg(text_cfg={"no_causal_mask": True, "pool_type": "last"}),
        "clip",
        "does not end in the end-of-text token",
    ),
    "an approximate GELU": (
        cfg(vision_cfg={"act_kwargs": {"approximate": "tanh"}}),
        "llava",
        "neither GELU nor QuickGELU",
    ),
    "a projection with a bias": (cfg(text_cfg={"proj_bias": True}), "clip", "has a bias"),
}


@pytest.mark.parametrize(("model_cfg", "target", "reason"), REFUSED.values(), ids=REFUSED)
def test_towers_that_have_no_place_there(
    model_cfg: dict[str, Any], target: str, reason: str, tmp_path: Path
) -> None:
    weights = saved(tmp_path / "model", model_cfg)
    with pytest.raises(UserError, match=f"cannot export to {target}: .*{reason}.*open-clip holds any tower"):
        export(target, weights, tmp_path / "out-clip")
    assert not (tmp_path / "out-clip").exists()
    assert export("open-clip", weights, tmp_path / "open-clip")


def test_a_timm_tower_of_another_size(tmp_path: Path) -> None:
    model_cfg = REFUSED["a timm tower"][0]
    weights = saved(tmp_path / "model", model_cfg, image_size=96)
    with pytest.raises(UserError, match="for 160 x 160 pixels alone, and the model's canvas has 96 x 96"):
        export("open-clip", weights, tmp_path / "out")


def test_wrong_orders(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="takes no folder whose name has neither clip nor siglip"):
        export("llava", plain, tmp_path / "tower")
    with pytest.raises(UserError, match="unknown export target"):
        export("onxx", plain, tmp_path / "out")
    with pytest.raises(ExistingFileError, match="new or empty"):
        export("clip", plain, plain)
    assert not (tmp_path / "tower").exists()


def test_an_export_that_is_not_the_model_is_an_error(plain: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from open_cloc.export import hugging_face

    real = hugging_face.to_hugging_face

    def wrong(clip: Any) -> dict[str, torch.Tensor]:
        state = real(clip)
        return state | {"visual_projection.weight": state["visual_projection.weight"].flip(0)}

    monkeypatch.setattr(hugging_face, "to_hugging_face", wrong)
    with pytest.raises(RunError, match="the export is not the model: pictures, same pixels"):
        export("clip", plain, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(RunError, match="not the model: x: nan"):
        compare.compare("x", torch.tensor([float("nan")]), torch.zeros(1))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vision_config", 3),
        ("vision_config.hidden_size", "64"),
        ("vision_config.hidden_size", 0),
        ("vision_config.num_attention_heads", 0),
        ("vision_config.hidden_act", "relu"),
        ("vision_config.layer_norm_eps", -1e-6),
        ("vision_config.image_size", [64, 64]),
        ("text_config.vocab_size", None),
        ("text_config.vocab_size", 10**9),
        ("projection_dim", "x"),
    ],
)
def test_configs_of_strangers(plain: Path, tmp_path: Path, key: str, value: Any) -> None:
    export("clip", plain, tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    *tables, name = key.split(".")
    place = config
    for table in tables:
        place = place[table]
    place[name] = value
    path.write_text(json.dumps(config))
    with pytest.raises(UserError):
        open_cloc.create_model(f"folder:{tmp_path / 'out'}", device="cpu")


@pytest.fixture(scope="module")
def in_onnx(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[compare.Difference]]:
    """A model with all that a Prompter may have, its export, and what was compared."""
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("onnx")
    prompter = {"readout": "mean", "box_prior": True, "pooled_residual": True}
    weights = saved(folder / "model", cfg(), prompter=prompter)
    return weights, folder / "out", export("onnx-int8", weights, folder / "out")


def test_onnx_runs_on_any_number_of_pictures_boxes_and_texts(in_onnx: Any) -> None:
    import onnxruntime

    weights, folder, found = in_onnx
    limited = [difference for difference in found if difference.most is not None]
    assert [difference.what for difference in limited] == ["pictures", "boxes", "texts"]
    assert all(difference.largest <= 1e-4 for difference in limited)
    predictor = open_cloc.load(weights, "cpu")
    picture = predictor.encode(np.random.default_rng(0).integers(0, 255, (20, 64, 3), np.uint8))
    boxes = np.array([[0.1, 0.2, 0.6, 0.9], [0, 0, 1, 1]])
    session = onnxruntime.InferenceSession(folder / "prompter.onnx", providers=["CPUExecutionProvider"])
    mask = predictor.model.tokens_in_picture(picture.state.grid_size, picture.content_box)
    assert not mask.all()  # of a wide picture on a square canvas
    given = {
        "image_tokens": picture.state.image_tokens.numpy(),
        "token_mask": mask.numpy(),
        "boxes": picture.geometry.to_canvas(boxes).astype(np.float32)[None],
    }
    (regions,) = session.run(None, given)
    np.testing.assert_allclose(regions[0], picture.embed(boxes, normalized=True), atol=1e-4)


def test_onnx_in_8_bits_is_near(in_onnx: Any) -> None:
    _, folder, found = in_onnx
    told = {difference.what: difference for difference in found if difference.most is None}
    assert set(told) == {"in 8 bits: pictures", "in 8 bits: boxes", "in 8 bits: texts"}
    assert all(0 < difference.largest < 0.1 for difference in told.values())
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.onnx")}
    assert sizes["text.int8.onnx"] < 0.3 * sizes["text.onnx"]


def test_the_prompt_readout_in_onnx(plain: Path, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    from open_cloc.export import onnx

    model = open_cloc.create_model(cfg(), prompter={"readout": "prompt"}, device="cpu").eval()
    part = onnx._parts(model, compare.open_inputs(model))["prompter"]
    onnx._write(part, tmp_path / "prompter.onnx")
    given = (torch.randn(3, 16, 64), torch.rand(3, 16) > 0.2, torch.tensor([[[0.1, 0.2, 0.7, 0.8]]] * 3))
    session = runtime.InferenceSession(tmp_path / "prompter.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: x.numpy() for name, x in zip(part.example, given)})
    with torch.no_grad():
        np.testing.assert_allclose(found, part.module(*given).numpy(), atol=1e-4)


def test_a_prompter_without_a_graph(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    weights = saved(tmp_path / "model", cfg(), prompter={"regions": "roialign"})
    with pytest.raises(UserError, match="regions=roialign has no graph"):
        export("onnx", weights, tmp_path / "out")
