"""The predictor against the model called by hand, its pictures, boxes and errors, and grounding."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.ops import box_iou, roi_align

import open_cloc
from open_cloc.canvas import Geometry
from open_cloc.cli import predict as command
from open_cloc.inference.predictor import Predictor, boxes_of_picture, load
from open_cloc.model import embed
from open_cloc.model import search as grounding
from open_cloc.model.create import ModelConfig, create_model
from open_cloc.model.embed import embed_regions, embed_texts
from open_cloc.model.prompter import PrompterConfig
from open_cloc.model.search import candidate_grid, ground_phrases

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32},
    "text_cfg": {"width": 32, "heads": 2, "layers": 2, "context_length": 16},
}
PROMPTERS = {
    "mean": PrompterConfig(),
    "prompt": PrompterConfig(
        readout="prompt", patch_positions=True, box_prior=True, box_content="none", pooled_residual=True
    ),
    "roialign": PrompterConfig(regions="roialign"),
}


def tiny_model(prompter: str = "prompt", **changes):
    torch.manual_seed(0)
    return create_model(ModelConfig(model_cfg=TINY | changes, prompter=PROMPTERS[prompter])).eval()


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(tiny_model())


BOXES = [[0, 0, 10, 20], [5.5, 3, 60, 40], [0, 0, 90, 50]]  # pixels of a 50 x 90 picture


@pytest.mark.parametrize("prompter", PROMPTERS)
@pytest.mark.parametrize("size_hw", [(50, 90), (90, 50), (64, 64), (7, 300)])
def test_regions_equal_the_model_called_by_hand(prompter, size_hw):
    model = tiny_model(prompter)
    pixels = picture(*size_hw)
    height, width = size_hw
    boxes_px = np.array([[0, 0, width / 2, height / 2], [1.5, 2, width - 1, height]])
    geometry = Geometry.fit(size_hw, (64, 64), "longest")
    canvas = geometry.draw(pixels, model.preprocess.fill, "bicubic")
    images = torch.from_numpy(canvas).permute(2, 0, 1)[None]
    boxes = geometry.to_canvas(torch.tensor(boxes_px) / torch.tensor([width, height, width, height]))
    with torch.no_grad():
        state = model.encode_image(images, torch.tensor([geometry.content_box]))
        expected = F.normalize(model.encode_regions(state, boxes[None].float()), dim=-1)[0]
        image = F.normalize(state.image_features, dim=-1)[0]
    predictor = Predictor(model)
    np.testing.assert_allclose(predictor.encode_regions(pixels, boxes_px), expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(predictor.encode_image(pixels), image.numpy(), atol=1e-6)


def test_outputs_are_float32_of_unit_length(predictor):
    pixels = picture(50, 90)
    outputs = [
        predictor.encode_image(pixels)[None],
        predictor.encode_text(["a dog", "two cats on a mat"]),
        predictor.encode_regions(pixels, BOXES),
    ]
    for output, rows in zip(outputs, (1, 2, 3)):
        assert output.dtype == np.float32
        assert output.shape == (rows, 32)
        np.testing.assert_allclose(np.linalg.norm(output, axis=1), 1, atol=1e-5)


def test_set_image_equals_direct_call_and_runs_the_tower_once(predictor, monkeypatch):
    pixels = picture(50, 90)
    direct = (
        predictor.encode_image(pixels),
        predictor.encode_regions(pixels, BOXES),
        predictor.classify_regions(pixels, BOXES, ["a", "b"]),
        predictor.ground(pixels, ["a dog"], candidates=50),
    )
    predictor.set_image(pixels)
    monkeypatch.setattr(predictor.model, "encode_image", None)  # whoever calls it now fails
    np.testing.assert_array_equal(predictor.encode_image(), direct[0])
    np.testing.assert_array_equal(predictor.encode_regions(None, BOXES), direct[1])
    assert predictor.classify_regions(None, BOXES, ["a", "b"]) == direct[2]
    assert predictor.ground(None, ["a dog"], candidates=50) == direct[3]


def test_a_direct_call_leaves_the_set_image_alone(predictor):
    first, second = picture(50, 90), picture(64, 64, seed=1)
    expected = predictor.encode_image(first)
    predictor.set_image(first)
    predictor.encode_image(second)
    np.testing.assert_array_equal(predictor.encode_image(), expected)


def test_no_image_names_set_image():
    for call in (lambda p: p.encode_image(), lambda p: p.encode_regions(None, BOXES)):
        with pytest.raises(RuntimeError, match="set_image"):
            call(Predictor(tiny_model()))


def test_paths_pil_and_arrays_agree(predictor, tmp_path):
    pixels = picture(50, 90)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = predictor.encode_image(pixels)
    for same in (Image.fromarray(pixels), tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(predictor.encode_image(same), expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_pil_modes_are_converted(predictor, mode):
    image = Image.fromarray(picture(50, 90)).convert(mode)
    expected = predictor.encode_image(np.asarray(image.convert("RGB")))
    np.testing.assert_array_equal(predictor.encode_image(image), expected)


def test_exif_orientation_is_not_applied(predictor, tmp_path):
    pixels = picture(50, 90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(
        predictor.encode_image(tmp_path / "turned.png"), predictor.encode_image(pixels)
    )


def test_box_formats_and_normalised_boxes_agree(predictor):
    pixels = picture(50, 90)
    xyxy = np.array(BOXES, float)
    expected = predictor.encode_regions(pixels, xyxy)
    sides = xyxy[:, 2:] - xyxy[:, :2]
    forms = {
        "xywh": np.concatenate([xyxy[:, :2], sides], 1),
        "cxcywh": np.concatenate([xyxy[:, :2] + sides / 2, sides], 1),
        "xyxy": xyxy,
    }
    for name, boxes in forms.items():
        np.testing.assert_allclose(
            predictor.encode_regions(pixels, boxes, box_format=name), expected, atol=1e-5
        )
        relative = boxes / np.array([90, 50, 90, 50])
        given = predictor.encode_regions(pixels, relative, box_format=name, normalized=True)
        np.testing.assert_allclose(given, expected, atol=1e-5)


def test_classification_is_a_softmax_over_bare_labels(predictor):
    pixels, labels = picture(50, 90), ["a dog", "two cats", "tree"]
    cosines = predictor.encode_regions(pixels, BOXES) @ predictor.encode_text(labels).T
    logits = np.exp(predictor.model.clip.logit_scale.item()) * cosines
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = predictor.classify_regions(pixels, BOXES, labels, top_k=5)
    for row, named in zip(expected, found):
        assert [label for label, _ in named] == [labels[i] for i in np.argsort(-row)]
        np.testing.assert_allclose([score for _, score in named], np.sort(row)[::-1], atol=1e-5)
    assert [len(named) for named in predictor.classify_regions(pixels, BOXES, labels, top_k=1)] == [1, 1, 1]


def test_sigmoid_models_score_each_label_by_itself():
    predictor = Predictor(tiny_model(init_logit_scale=float(np.log(10)), init_logit_bias=-10.0))
    pixels = picture(50, 90)
    (alone,) = predictor.classify_regions(pixels, BOXES[:1], ["a dog"])
    (both,) = predictor.classify_regions(pixels, BOXES[:1], ["a dog", "a cat"])
    cosine = float(predictor.encode_regions(pixels, BOXES[:1])[0] @ predictor.encode_text(["a dog"])[0])
    assert alone[0][1] == pytest.approx(1 / (1 + np.exp(10 - 10 * cosine)), rel=1e-3)
    assert dict(both)["a dog"] == pytest.approx(alone[0][1], rel=1e-4)


@pytest.mark.parametrize("prompter", PROMPTERS)
def test_many_boxes_in_chunks_equal_one_by_one(prompter, monkeypatch):
    predictor = Predictor(tiny_model(prompter))
    pixels = picture(50, 90)
    whole = predictor.encode_regions(pixels, BOXES * 7)
    monkeypatch.setattr(embed, "MAX_FLOATS", 1)  # a chunk per box
    np.testing.assert_allclose(predictor.encode_regions(pixels, BOXES * 7), whole, atol=1e-5)
    assert predictor.encode_regions(pixels, []).shape == (0, 32)
    assert predictor.classify_regions(pixels, np.zeros((0, 4)), ["a"]) == []


def test_many_texts_in_chunks_equal_one_by_one(monkeypatch):
    model = tiny_model()
    texts = [f"{'very ' * (i % 5)}small dog {i}" for i in range(9)]
    with torch.no_grad():
        whole = embed_texts(model, texts)
        monkeypatch.setattr(embed, "TEXTS_PER_CHUNK", 2)
        torch.testing.assert_close(embed_texts(model, texts), whole, atol=1e-5, rtol=0)
        assert embed_texts(model, []).shape == (0, 32)


def test_roialign_regions_equal_torchvision_and_the_towers_head():
    model = tiny_model()
    images = torch.randint(0, 255, (1, 3, 64, 96), dtype=torch.uint8)
    boxes = torch.tensor([[[0, 0, 0.5, 0.5], [0.2, 0.1, 0.9, 0.7]]])
    with torch.no_grad():
        state = model.encode_image(images)
        found = embed_regions(model, state, boxes, "roialign")[0]
        feature_map = state.image_tokens.transpose(1, 2).reshape(1, 64, 4, 6)
        pixels = boxes[0] * torch.tensor([96.0, 64, 96, 64])
        pooled = roi_align(feature_map, [pixels], 7, spatial_scale=1 / 16, aligned=True).mean((2, 3))
        visual = model.clip.visual
        features = visual.ln_post(pooled) if visual.final_ln_after_pool else pooled
        torch.testing.assert_close(found, F.normalize(features @ visual.proj, dim=-1), atol=1e-5, rtol=0)


# --- grounding ---


@pytest.mark.parametrize("prompter", PROMPTERS)
@pytest.mark.parametrize("size_hw", [(50, 90), (90, 50), (7, 300)])
@pytest.mark.parametrize("candidates", [0, 60])
def test_grounded_boxes_lie_in_the_picture_and_score_their_own_embedding(prompter, size_hw, candidates):
    predictor = Predictor(tiny_model(prompter))
    predictor.set_image(picture(*size_hw))
    phrases = ["a dog", "two cats", "a dog"]
    found = predictor.ground(None, phrases, candidates=candidates)
    assert [phrase for phrase, _, _ in found] == phrases
    boxes = np.array([box for _, box, _ in found])
    assert (boxes >= 0).all()
    assert (boxes[:, 2] <= size_hw[1]).all()
    assert (boxes[:, 3] <= size_hw[0]).all()
    cosines = (predictor.encode_regions(None, boxes) * predictor.encode_text(phrases)).sum(1)
    np.testing.assert_allclose([score for _, _, score in found], cosines, atol=1e-4)
    np.testing.assert_allclose(found[0][1], found[2][1], atol=1e-3)


def test_box_head_alone_equals_the_model(predictor):
    pixels = picture(64, 64)
    model = predictor.model
    with torch.no_grad():
        state = model.encode_image(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        expected = model.ground(state, embed_texts(model, ["a dog"])[None])[0, 0].clamp(0, 1) * 64
    ((_, box, _),) = predictor.ground(pixels, ["a dog"], candidates=0)
    np.testing.assert_allclose(box, expected.numpy(), atol=1e-3)


def overlap_with_hidden_box(_model, state, boxes, _method="prompter"):
    """A stand-in for a perfect Prompter: embeds a box as (IoU with its image's hidden box, the rest, 0...).

    The hidden boxes (B, 4) stand where image features would.
    """
    ious = torch.stack([box_iou(own, hidden[None])[:, 0] for own, hidden in zip(boxes, state.image_features)])
    return F.normalize(F.pad(torch.stack([ious, 1 - ious], -1), (0, 30)), dim=-1)


@pytest.fixture
def hidden_boxes(monkeypatch):
    """(model, state of 3 images that hide a box each, phrases that ask for it, the boxes, content boxes)."""
    monkeypatch.setattr(grounding, "embed_regions", overlap_with_hidden_box)
    model = tiny_model()
    hidden = torch.tensor([[0.1, 0.3, 0.45, 0.6], [0.5, 0.3, 0.9, 0.7], [0.35, 0.1, 0.55, 0.9]])
    content = torch.tensor([[0.0, 0, 1, 1], [0, 0.25, 1, 0.75], [0.3, 0, 0.6, 1]])
    with torch.no_grad():
        state = model.encode_image(torch.zeros(3, 3, 64, 64, dtype=torch.uint8), content)
        yield (
            model,
            replace(state, image_features=hidden),
            torch.eye(32)[:1].expand(3, 2, -1),
            hidden,
            content,
        )


def test_ranking_finds_the_box_whose_embedding_is_the_phrase(hidden_boxes):
    model, state, phrases, hidden, content = hidden_boxes
    found = ground_phrases(model, state, phrases, content)
    head = ground_phrases(model, state, phrases, content, 0)
    for i in range(3):
        assert (box_iou(found.boxes[i], hidden[i : i + 1]) > 0.7).all()
        assert (box_iou(head.boxes[i], hidden[i : i + 1]) < 0.6).all()  # so it was the ranking


def test_a_box_head_has_a_vote_where_it_is_near(hidden_boxes, monkeypatch):
    model, state, phrases, hidden, content = hidden_boxes

    def overlaps(head):
        monkeypatch.setattr(model, "ground", lambda *_: head[:, None].expand(-1, 2, -1))
        boxes = ground_phrases(model, state, phrases, content).boxes
        return torch.cat([box_iou(boxes[i], hidden[i : i + 1]) for i in range(3)]), boxes

    corners = content[:, [0, 1, 0, 1]] + torch.tensor([0, 0, 0.05, 0.05])
    others = content[:, [2, 3, 2, 3]] - torch.tensor([0.05, 0.05, 0, 0])
    alone, boxes = overlaps(corners)
    torch.testing.assert_close(overlaps(others)[1], boxes)  # what lies elsewhere changes nothing
    right, _ = overlaps(hidden)
    assert (right > alone + 0.03).all()


def test_grounding_knows_nothing_of_its_neighbours(hidden_boxes):
    model, state, phrases, _, content = hidden_boxes
    together = ground_phrases(model, state, phrases, content, 200)
    for i in range(3):
        one = slice(i, i + 1)
        alone = ground_phrases(model, state.select(one), phrases[one, :1], content[one], 200)
        torch.testing.assert_close(alone.boxes, together.boxes[one, :1], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.scores, together.scores[one, :1], atol=1e-5, rtol=0)


def test_of_boxes_that_match_alike_the_larger_wins_and_neighbours_vote():
    boxes = torch.tensor([[[[0.2, 0.2, 0.4, 0.4], [0.2, 0.2, 0.5, 0.5], [0.7, 0.7, 0.8, 0.8]]]])
    ranks = grounding._rank(boxes, torch.tensor([[[1.0, 1.0, 1.0]]]))
    assert ranks.argsort(descending=True).tolist() == [[[1, 0, 2]]]
    assert grounding._rank(boxes, torch.tensor([[[1.5, 1.0, 1.0]]])).argmax() == 0  # only among equals
    (((x1, y1, x2, y2),),) = grounding._vote(boxes, ranks, 0.1).tolist()
    assert (x1, y1) == pytest.approx((0.2, 0.2))  # the third box is apart: no vote
    assert 0.4 < x2 < 0.5
    assert x2 == pytest.approx(y2)
    assert x2 > 0.45  # nearer to the better one


@pytest.mark.parametrize("limit", [1, 18, 100, 600, 2000])
def test_candidate_grid_is_within_its_limit_and_covers_the_picture(limit):
    grid = candidate_grid(limit)
    assert 0 < len(grid) <= limit
    assert (grid >= 0).all()
    assert (grid <= 1 + 1e-6).all()
    assert (grid[:, 2:] > grid[:, :2]).all()
    if limit >= 100:  # every point of the picture lies in a box
        points = torch.rand(500, 2)[:, None]
        assert ((points >= grid[:, :2]) & (points <= grid[:, 2:])).all(-1).any(1).all()


# --- bad input ---


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([0, 0, 10, 10], "shape"),
        ([[0, 0, 10]], "shape"),
        ([[0, 0, 10, "x"]], "numbers"),
        ([[0, 0, 10, 10], [1, 2]], "numbers"),
        ([[0, 0, 10, float("nan")]], "finite"),
        ([[10, 0, 5, 10]], "x1 < x2"),
        ([[0, 0, 91, 10]], "inside the picture of 90 x 50"),
        ([[-3, 0, 9, 10]], "inside the picture"),
    ],
)
def test_bad_boxes(predictor, boxes, message):
    with pytest.raises(ValueError, match=message):
        predictor.encode_regions(picture(50, 90), boxes)


def test_unknown_box_format_and_pixels_called_normalised():
    with pytest.raises(ValueError, match="box format"):
        boxes_of_picture(BOXES, (50, 90), "yxyx")
    with pytest.raises(ValueError, match="normalised xyxy"):
        boxes_of_picture(BOXES, (50, 90), normalized=True)


def test_rounding_at_the_border_is_clipped():
    assert boxes_of_picture([[-0.01, 0, 90.02, 50]], (50, 90)).tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("labels", "message"),
    [([], "at least one"), ("a dog", "list of strings"), (["a", ""], "row 1"), (["a", "a"], "distinct")],
)
def test_bad_labels(predictor, labels, message):
    with pytest.raises(ValueError, match=message):
        predictor.classify_regions(picture(50, 90), BOXES, labels)


def test_bad_phrases_texts_and_knobs(predictor):
    pixels = picture(50, 90)
    with pytest.raises(ValueError, match="phrases"):
        predictor.ground(pixels, [])
    with pytest.raises(ValueError, match="texts must be a list"):
        predictor.encode_text("a dog")
    with pytest.raises(ValueError, match="top_k"):
        predictor.classify_regions(pixels, BOXES, ["a"], top_k=0)
    with pytest.raises(ValueError, match="candidates"):
        predictor.ground(pixels, ["a"], candidates=-1)


def test_bad_pictures(predictor, tmp_path):
    (tmp_path / "text.jpg").write_text("not a picture")
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg"):
        predictor.encode_image(tmp_path / "missing.jpg")
    with pytest.raises(ValueError, match=r"text\.jpg"):
        predictor.encode_image(tmp_path / "text.jpg")
    for wrong in (np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3)), np.zeros((0, 5, 3), np.uint8), 3):
        with pytest.raises(ValueError, match="picture"):
            predictor.encode_image(wrong)


def test_load(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    loaded = open_cloc.load(tmp_path / "model", device="cpu")
    pixels = picture(50, 90)
    np.testing.assert_array_equal(
        loaded.encode_regions(pixels, BOXES), Predictor(model).encode_regions(pixels, BOXES)
    )
    assert open_cloc.CLOC is type(model)
    assert not loaded.model.training


def test_load_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="weights not found"):
        load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(ValueError, match="not a CLOC config"):
        load(tmp_path)
    with pytest.raises(ValueError, match="folder"):
        load(tmp_path / "config.json")
    tiny_model().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="device 'abacus'"):
        load(tmp_path / "model", device="abacus")


# --- open-cloc predict ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model and a picture of 50 x 90."""
    path = tmp_path_factory.mktemp("predict")
    tiny_model().save_pretrained(path / "model")
    Image.fromarray(picture(50, 90)).save(path / "a.png")
    return path


def predict_argv(folder, *options: str) -> list[str]:
    return ["--weights", str(folder / "model"), str(folder / "a.png"), *options]


def test_command_prints_what_the_predictor_says(folder, capsys):
    options = ["--boxes", "0,0,10,20", "5.5,3,60,40", "--labels", "a dog", "a cat", "--phrases", "two dogs"]
    assert command.main(predict_argv(folder, *options, "--json", "--output", str(folder / "out.png"))) == 0
    result = json.loads(capsys.readouterr().out)
    predictor = load(folder / "model")
    expected = predictor.classify_regions(folder / "a.png", BOXES[:2], ["a dog", "a cat"])
    found = [[(e["label"], e["score"]) for e in region["labels"]] for region in result["regions"]]
    for one, other in zip(found, expected):
        assert dict(one) == pytest.approx(dict(other), abs=1e-5)
    np.testing.assert_allclose([region["box"] for region in result["regions"]], BOXES[:2], atol=1e-6)
    ((phrase, box, score),) = predictor.ground(folder / "a.png", ["two dogs"])
    np.testing.assert_allclose(result["phrases"][0]["box"], box, atol=1e-3)
    assert result["phrases"][0]["phrase"] == phrase
    assert result["phrases"][0]["score"] == pytest.approx(score, abs=1e-5)
    drawn = np.asarray(Image.open(folder / "out.png"))
    assert drawn.shape == (50, 90, 3)
    assert (drawn != picture(50, 90)).any()
    assert not list(folder.glob(".*"))


def test_command_lines(folder, capsys):
    command.main(predict_argv(folder, "--boxes", "0,0,10,20", "--box-format", "xywh", "--labels", "a dog"))
    assert capsys.readouterr().out == "box 0,0,10,20: a dog 1.000\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to predict"),
        (["--boxes", "0,0,10,20"], "--boxes needs --labels"),
        (["--labels", "a"], "--labels needs --boxes"),
        (["--boxes", "0,0,10", "--labels", "a"], "four numbers"),
        (["--boxes", "0,0,10,200", "--labels", "a"], "inside the picture"),
        (["--phrases", "a", "--output", "out.txt"], "output must end in"),
    ],
)
def test_command_errors(folder, options, message):
    with pytest.raises(ValueError, match=message):
        command.main(predict_argv(folder, *options))
