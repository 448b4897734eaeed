"""Detectors on tiny random models: planted boxes, parity with the library, batches, bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import (
    BertConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    OwlViTConfig,
    OwlViTForObjectDetection,
    PreTrainedTokenizerFast,
    SwinConfig,
)

from open_cloc.inference.predictor import Predictor
from open_cloc.labelling.cycle import CycleScorer
from open_cloc.labelling.detectors import open_detector
from open_cloc.labelling.detectors.canvas import Canvas, Preprocess, read_preprocess
from open_cloc.labelling.detectors.cloc import relative_scores
from open_cloc.labelling.detectors.decode import CUT, keep_boxes
from open_cloc.labelling.detectors.texts import TextCache, drop_first_words
from open_cloc.labelling.recipe import DetectorConfig
from open_cloc.labelling.types import Detections, Failure
from open_cloc.model.create import ModelConfig, create_model
from open_cloc.model.prompter import PrompterConfig

TYPES = ("owlv2", "owlvit", "grounding-dino")
WORDS = [
    "a",
    "the",
    "red",
    "blue",
    "small",
    "dog",
    "cat",
    "bird",
    "tree",
    "car",
    "sky",
    "mat",
    "on",
    "of",
    "two",
]
SIZE = 64  # canvas of the tiny OWL models
# Of scores in [0, 1] whose float32 products were made in another place or size of a batch: 4e-7 was seen.
ROUNDING = 1e-5
# A box is a mean of boxes up to 20 pixels apart. Their weights are exponentials of scores over 0.05 of the
# spread of all scores, so rounding (1e-6 of a spread near 1e-2) moves it by some hundredths of a pixel.
VOTES_PX = 0.1
PICTURES = [(48, 80), (80, 48), (64, 64), (50, 90), (48, 80), (30, 100), (64, 64), (48, 80)]
PHRASES = [
    ["dog"],
    ["a red dog", "cat"],
    ["tree", "car", "sky"],
    ["two cat on the mat"],
    ["bird", "a small bird on a tree", "sky", "car"],
    ["the blue car"],
    ["dog", "dog"],
    ["mat"],
]


# --- tiny checkpoints on disk, opened by the code that opens real ones ---


def tokenizer(ids: dict[str, int], start: str, stop: str, pad: str) -> PreTrainedTokenizerFast:
    own = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    own.normalizer = normalizers.Lowercase()
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(start, ids[start]), (stop, ids[stop])]
    own.post_processor = processors.TemplateProcessing(single=f"{start} $A {stop}", special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=own,
        unk_token="[UNK]",
        cls_token=start,
        sep_token=stop,
        eos_token=stop,
        pad_token=pad,
    )


def make_owl(folder: Path, model_type: str) -> Path:
    names = ["!", "[UNK]", *WORDS, "<start>", "<end>"]  # the end has the largest id: that is where it is read
    tokenizer({n: i for i, n in enumerate(names)}, "<start>", "<end>", "!").save_pretrained(folder)
    text = {
        "vocab_size": len(names), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 8, "pad_token_id": 0,
        "bos_token_id": names.index("<start>"), "eos_token_id": names.index("<end>"),
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": SIZE, "patch_size": 16,
    }  # fmt: skip
    config, model = {
        "owlv2": (Owlv2Config, Owlv2ForObjectDetection),
        "owlvit": (OwlViTConfig, OwlViTForObjectDetection),
    }[model_type]
    save(model(config(text_config=text, vision_config=vision, projection_dim=32)), folder)
    return folder


def make_dino(folder: Path) -> Path:
    # The ids of [CLS], [SEP], full stop and question mark are constants of the library's model.
    ids = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
    ids |= {word: 200 + row for row, word in enumerate(WORDS)}
    tokenizer(ids, "[CLS]", "[SEP]", "[PAD]").save_pretrained(folder)
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
            out_indices=[2, 3, 4],
        ),
        text_config=BertConfig(
            vocab_size=1100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
        ),
        d_model=32, num_queries=10, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_text_len=24,
    )  # fmt: skip
    save(GroundingDinoForObjectDetection(config), folder)
    size = {"shortest_edge": 72, "longest_edge": 144}
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": size}))
    return folder


def save(model: torch.nn.Module, folder: Path) -> None:
    model_with_effect(model).save_pretrained(folder)


def model_with_effect(model: torch.nn.Module) -> torch.nn.Module:
    """Draw weights so large that pictures and phrases make a difference far above rounding."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                fan_in = parameter.flatten(1).shape[1]
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("detectors")
    torch.manual_seed(0)  # for what has one dimension
    return {
        "owlv2": make_owl(root / "owlv2", "owlv2"),
        "owlvit": make_owl(root / "owlvit", "owlvit"),
        "grounding-dino": make_dino(root / "dino"),
        "cloc": make_cloc(root / "cloc"),
    }


def make_cloc(folder: Path) -> Path:
    cfg = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32},
        "text_cfg": {"width": 32, "heads": 2, "layers": 2, "context_length": 16},
    }
    prompter = PrompterConfig(readout="prompt", box_prior=True, box_content="none", pooled_residual=True)
    torch.manual_seed(0)  # for the position code, which is no parameter
    save(create_model(ModelConfig(model_cfg=cfg, prompter=prompter)), folder)
    return folder


def detector(folder: Path, **changes):
    kind = "cloc" if folder.name == "cloc" else "transformers"
    return open_detector(
        DetectorConfig(kind=kind, weights=str(folder), **{"raw_score": 0.0, **changes}), "cpu"
    )


def picture(size_hw: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Smooth noise: sharp noise would be gone after a resize."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.integers(0, 256, (1, 3, 6, 6))).float()
    return F.interpolate(coarse, size=size_hw, mode="bilinear")[0].permute(1, 2, 0).to(torch.uint8).numpy()


def pictures() -> list[np.ndarray]:
    return [picture(size, seed) for seed, size in enumerate(PICTURES)]


# --- planted detections ---


def bright_boxes(pixels: torch.Tensor, mean, std) -> torch.Tensor:
    """(B, 3, H, W), normalised -> (B, 4) `cxcywh` in pixels of the bright rectangle, to a part of one."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (mean, std))
    grey = (pixels * std + mean).mean(1)  # (B, H, W)
    found = []
    for own in grey:
        sides = []
        for profile in (own.sum(0), own.sum(1)):
            centre = ((torch.arange(len(profile)) + 0.5) * profile).sum() / profile.sum()
            sides.append((centre, profile.sum() / profile.max()))
        (x, width), (y, height) = sides
        found.append(torch.stack([x, y, width, height]))
    return torch.stack(found)


def plant(own) -> None:
    """Make a detector's model find the bright rectangle in the pixels that it is given."""
    mean, std = own.preprocess.mean, own.preprocess.std

    def relative(pixels, size_hw):
        height, width = size_hw
        return bright_boxes(pixels, mean, std) / torch.tensor([width, height, width, height])

    def embed(pixels, interpolate_pos_encoding):
        return (relative(pixels, pixels.shape[-2:])[:, None, None],)  # (B, 1, 1, 4)

    def dino(pixel_values, pixel_mask, input_ids, attention_mask):
        boxes = torch.cat(
            [
                relative(image[None, :, :height, :width], (height, width))
                for image, mask in zip(pixel_values, pixel_mask)
                for height, width in [(int(mask[:, 0].sum()), int(mask[0].sum()))]
            ]
        )
        return SimpleNamespace(pred_boxes=boxes[:, None], logits=torch.full((len(boxes), 1, 24), 3.0))

    if own.preprocess.mode == "edges":
        own.model = dino
    else:
        own.model.image_embedder = embed
        own.model.box_predictor = lambda features, feature_map, resized: features
        own.model.class_predictor = lambda features, queries, mask: (
            torch.full((len(features), 1, queries.shape[1]), 3.0),
        )


@pytest.mark.parametrize("size_hw", [(200, 200), (160, 320), (320, 160), (80, 400), (420, 60)])
@pytest.mark.parametrize("model_type", TYPES)
def test_planted_boxes_come_back_within_half_a_pixel(folders, model_type, size_hw):
    own = detector(folders[model_type])
    own.preprocess = replace(
        own.preprocess, size=(300, 500) if own.preprocess.mode == "edges" else (256, 256)
    )
    plant(own)
    height, width = size_hw
    x1, y1, x2, y2 = width // 5, height // 3, width - width // 4, height - height // 5
    image = np.zeros((*size_hw, 3), np.uint8)
    image[y1:y2, x1:x2] = 255
    (found,) = own([image], [["dog"]])
    assert found.boxes.shape == (1, 4)
    np.testing.assert_allclose(found.boxes[0] * [width, height, width, height], [x1, y1, x2, y2], atol=0.5)


def test_a_picture_too_thin_for_the_queries_is_padded_and_masked(folders):
    own = detector(folders["grounding-dino"])
    own.preprocess = replace(own.preprocess, size=(300, 300))
    own.min_area = 300 * 60
    plant(own)
    image = np.zeros((20, 400, 3), np.uint8)
    image[5:15, 100:300] = 255
    canvas = own.preprocess.canvas((20, 400), own.min_area)
    assert canvas == Canvas((15, 300), (60, 300))
    (found,) = own([image], [["dog"]])
    np.testing.assert_allclose(found.boxes[0] * [400, 20, 400, 20], [100, 5, 300, 15], atol=0.5)
    real = detector(folders["grounding-dino"])
    real.model.config.num_queries = real.model.model.config.num_queries = 10
    (found,) = real([picture((2, 400))], [["dog"]])  # 1 x 144 pixels without padding
    assert isinstance(found, Detections)


@pytest.mark.parametrize("pad_value", [0.0, 0.5])
def test_the_padding_has_the_value_that_is_stated(pad_value):
    own = Preprocess("pad", (64, 64), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), pad_value, "bilinear")
    image = np.full((40, 80, 3), 51, np.uint8)
    canvas = own.canvas((40, 80))
    assert canvas == Canvas((32, 64), (64, 64))
    pixels = own.draw([image], [canvas], torch.device("cpu"))[0]
    mean, std = torch.tensor(own.mean), torch.tensor(own.std)
    np.testing.assert_allclose(
        pixels[:, 32:].permute(1, 2, 0) * std + mean, np.full((32, 64, 3), pad_value), atol=1e-6
    )
    np.testing.assert_allclose(
        pixels[:, :32].permute(1, 2, 0) * std + mean, np.full((32, 64, 3), 0.2), atol=1e-6
    )


# --- parity with the library ---


@pytest.mark.parametrize("model_type", ["owlv2", "owlvit"])
def test_owl_equals_the_librarys_forward_pass(folders, model_type):
    own = detector(folders[model_type])
    pixels = torch.randn(8, 3, SIZE, SIZE)
    most = max(map(len, PHRASES))
    ids = torch.zeros(8, most, 8, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, phrases in enumerate(PHRASES):
        encoded = own.tokenizer(phrases, padding="max_length", max_length=8, return_tensors="pt")
        ids[row, : len(phrases)], mask[row, : len(phrases)] = encoded["input_ids"], encoded["attention_mask"]
    with torch.inference_mode():
        expected = own.model(ids.flatten(0, 1), pixels, mask.flatten(0, 1))
        for _ in range(2):  # the second time all texts come from the cache
            raw = own.raw(pixels, PHRASES)
            for row, phrases in enumerate(PHRASES):
                scores = expected.logits[row, :, : len(phrases)].sigmoid()
                torch.testing.assert_close(raw[row].scores, scores, atol=1e-5, rtol=0)
                torch.testing.assert_close(raw[row].boxes, expected.pred_boxes[row], atol=1e-5, rtol=0)
    assert own.text_cache.num_encoded == len({phrase for phrases in PHRASES for phrase in phrases})
    assert expected.logits[0, :, 0].sigmoid().std() > 1e-3  # or the comparison would say nothing


def test_grounding_dino_equals_the_librarys_forward_pass(folders):
    own = detector(folders["grounding-dino"])
    pixels = torch.randn(1, 3, 64, 96)
    phrases = ["a red dog", "cat", "two bird on the tree"]
    encoded = own.tokenizer("a red dog. cat. two bird on the tree.", return_tensors="pt")
    (caption,), cut = own._captions(phrases)
    assert caption.ids == encoded["input_ids"][0].tolist()
    with torch.inference_mode():
        output = own.model(
            pixel_values=pixels, input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]
        )
        (raw,) = own.raw(pixels, Canvas((64, 96), (64, 96)), [caption], [3])
    tokens = output.logits[0].sigmoid()
    expected = torch.stack([tokens[:, a:b].max(1).values for a, b in [(1, 4), (5, 6), (7, 12)]], dim=1)
    torch.testing.assert_close(raw.scores, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(raw.boxes, output.pred_boxes[0], atol=1e-6, rtol=0)
    assert expected.std() > 1e-3
    assert cut == 0


# --- batches ---


def assert_equal_detections(first: Detections, second: Detections, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(first.scores, second.scores, atol=atol)
    np.testing.assert_allclose(first.boxes, second.boxes, atol=atol)
    assert first.dropped == second.dropped


@pytest.mark.parametrize("model_type", [*TYPES, "cloc"])
def test_a_picture_says_the_same_alone_and_among_others(folders, model_type):
    own = detector(folders[model_type])
    together = own(pictures(), PHRASES)
    assert sum(len(found.boxes) for found in together) >= 8
    for image, phrases, expected in zip(pictures(), PHRASES, together):
        (alone,) = detector(folders[model_type])([image], [phrases])
        assert alone.scores.shape == (len(expected.boxes), len(phrases))
        assert_equal_detections(alone, expected)


@pytest.mark.parametrize("model_type", [*TYPES, "cloc"])
def test_phrases_and_pictures_make_a_difference(folders, model_type):
    own = detector(folders[model_type])
    first, second = own([picture((64, 64), 0), picture((64, 64), 1)], [["dog", "cat"]] * 2)
    assert np.abs(first.boxes[:1] - second.boxes[:1]).max() > 1e-4
    if model_type != "cloc":
        assert np.abs(first.scores[:, 0] - first.scores[:, 1]).max() > 1e-4


@pytest.mark.parametrize("model_type", TYPES)
def test_a_cached_text_is_bit_for_bit_what_a_fresh_one_is(folders, model_type):
    """Or a run that was stopped and started again would not give the same bytes."""
    warm = detector(folders[model_type])
    warm(pictures()[::-1], PHRASES[::-1])
    for first, second in zip(warm(pictures(), PHRASES), detector(folders[model_type])(pictures(), PHRASES)):
        np.testing.assert_array_equal(first.scores, second.scores)
        np.testing.assert_array_equal(first.boxes, second.boxes)


def test_the_text_cache_is_bounded():
    asked = []

    def encode(text: str) -> torch.Tensor:
        asked.append(text)
        return torch.tensor([float(len(text))])

    cache = TextCache(encode, capacity=2)
    assert cache.get(["a", "bb", "a"]).tolist() == [[1.0], [2.0], [1.0]]
    assert cache.get(["ccc", "a"]).tolist() == [[3.0], [1.0]]  # bb was asked longest ago
    cache.get(["bb"])
    assert asked == ["a", "bb", "ccc", "bb"]


# --- phrases: none, many, long ---


@pytest.mark.parametrize("model_type", [*TYPES, "cloc"])
def test_pictures_without_phrases_cost_nothing(folders, model_type, monkeypatch):
    own = detector(folders[model_type])
    images = pictures()[:3]
    alone = own([images[1]], [["dog"]])[0]
    mixed = own(images, [[], ["dog"], []])
    assert [found.boxes.shape for found in (mixed[0], mixed[2])] == [(0, 4)] * 2
    assert mixed[0].scores.shape == (0, 0)
    assert_equal_detections(mixed[1], alone)
    monkeypatch.setattr(own, "_detect", None)  # whoever calls it now fails
    assert [len(found.boxes) for found in own(images, [[], [], []])] == [0, 0, 0]
    assert own([], []) == []


@pytest.mark.parametrize("model_type", [*TYPES, "cloc"])
def test_twenty_phrases(folders, model_type):
    """More than the tiny Grounding DINO's 24 tokens hold: it needs several passes."""
    phrases = [
        f"{a} {b}" for a in ("red", "blue", "small", "two") for b in ("dog", "cat", "bird", "car", "tree")
    ]
    (found,) = detector(folders[model_type])([picture((50, 80))], [phrases])
    assert found.scores.shape[1] == 20
    assert (found.scores.max(0) > 0).all()
    assert found.dropped.get(CUT) is None


def test_each_pass_of_grounding_dino_scores_its_own_phrases(folders):
    own = detector(folders["grounding-dino"])
    phrases = ["a red dog", "cat on the mat", "two small bird on the tree", "the blue car on the tree", "sky"]
    captions, _ = own._captions(phrases)
    assert [caption.phrases for caption in captions] == [[0, 1, 2], [3, 4]]
    assert all(len(caption.ids) <= own.max_tokens for caption in captions)
    image = picture((50, 80))
    (whole,) = own([image], [phrases])
    parts = own([image, image], [phrases[:3], phrases[3:]])
    expected = np.zeros((20, 5), np.float32)
    expected[:10, :3], expected[10:, 3:] = parts[0].scores, parts[1].scores
    order = np.argsort(-expected.max(1), kind="stable")
    np.testing.assert_allclose(whole.scores, expected[order], atol=1e-5)


@pytest.mark.parametrize("model_type", TYPES)
def test_long_phrases_keep_their_last_words_and_are_counted(folders, model_type):
    own = detector(folders[model_type])
    long = "the two small red blue red blue small two the a " * 3 + "dog on a small red mat"
    endless = " ".join(["red"] * 5000)
    most = own.max_tokens - (2 if model_type != "grounding-dino" else 3)
    short = " ".join(long.split()[-most:])
    image = picture((50, 80))
    found, expected = own([image, image], [[long], [short]])
    assert found.dropped[CUT] == 1
    assert CUT not in expected.dropped
    # One question from two rows of a batch: products round by their place in it.
    np.testing.assert_allclose(found.scores, expected.scores, atol=ROUNDING)
    (found,) = own([image], [["dog", endless, long]])
    assert found.dropped[CUT] == 2
    assert found.scores.shape[1] == 3


def test_a_single_word_that_is_too_long_is_cut_by_the_tokenizer():
    assert drop_first_words("b cc", "a {}", len, 6) == ("a b cc", False)
    assert drop_first_words("b cc", "a {}", len, 5) == ("a cc", True)
    assert drop_first_words("b cc", "a {}", len, 3) == ("a cc", True)
    assert drop_first_words(" ", "a {}", len, 3) == ("a ", False)


def test_separators_inside_a_phrase_do_not_split_it(folders):
    own = detector(folders["grounding-dino"])
    image = picture((50, 80))
    dotted, plain, nothing = own([image] * 3, [["red . dog ?", "cat"], ["red dog", "cat"], [". ?", "cat"]])
    np.testing.assert_allclose(dotted.scores, plain.scores, atol=ROUNDING)
    assert (nothing.scores[:, 0] == 0).all()
    assert (nothing.scores[:, 1] > 0).any()


def test_the_prompt_is_what_is_asked(folders):
    image = picture((64, 64))
    for name in ("owlv2", "grounding-dino", "cloc"):
        (prompted,) = detector(folders[name], prompt="the red {}")([image], [["dog", "cat"]])
        (spelled,) = detector(folders[name])([image], [["the red dog", "the red cat"]])
        np.testing.assert_array_equal(prompted.scores, spelled.scores)


# --- what the heads say may be anything ---


def test_numbers_that_are_not_finite(folders):
    own = detector(folders["owlv2"])
    images = [picture((64, 64), seed) for seed in range(3)]
    usual = own(images, [["dog"]] * 3)
    predict = own.model.class_predictor

    def broken(features, queries, mask):
        logits = predict(features, queries, mask)[0]
        logits[0] = torch.nan
        logits[1, :5] = torch.nan
        return (logits,)

    own.model.class_predictor = broken
    failed, partly, fine = own(images, [["dog"]] * 3)
    assert isinstance(failed, Failure)
    assert failed.cause == "detector gave no finite output"
    assert "16" in failed.message
    assert partly.dropped["not finite"] == 5
    assert np.isfinite(partly.scores).all()
    assert_equal_detections(fine, usual[2])


def test_keep_boxes_by_hand():
    nan, inf = float("nan"), float("inf")
    rows = [
        ((0.1, 0.2, 0.5, 0.6), (0.3, 0.1)),
        ((-0.5, 0.2, 0.5, 1.6), (0.2, 0.9)),  # clipped
        ((0.1, 0.2, 0.5, 0.6), (0.02, 0.01)),  # not above the threshold
        ((1.1, 0.2, 1.5, 0.6), (0.5, 0.1)),  # in the padding
        ((1.1, 0.2, 1.5, 0.6), (0.01, 0.0)),  # in the padding, but nobody asked
        ((0.5, 0.2, 0.5, 0.6), (0.5, 0.1)),  # no width
        ((0.5, nan, 0.6, 0.6), (0.5, 0.1)),
        ((0.5, 0.1, 0.6, 0.6), (inf, 0.1)),
        ((0.2, 0.2, 0.3, 0.3), (0.25, 0.4)),
        ((0.3, 0.2, 0.4, 0.3), (0.25, 0.4)),  # of equal scores the first
        ((0.4, 0.2, 0.5, 0.3), (0.35, 0.0)),
    ]
    boxes, scores = (torch.tensor(column) for column in zip(*rows))
    found = keep_boxes(boxes, scores, DetectorConfig(raw_score=0.02, max_boxes=3), cut=2)
    np.testing.assert_allclose(
        found.boxes, [(0, 0.2, 0.5, 1), (0.2, 0.2, 0.3, 0.3), (0.3, 0.2, 0.4, 0.3)], atol=1e-7
    )
    np.testing.assert_allclose(found.scores, [(0.2, 0.9), (0.25, 0.4), (0.25, 0.4)])
    assert found.boxes.dtype == found.scores.dtype == np.float32
    assert found.dropped == {
        "not finite": 2,
        "outside the picture": 1,
        "empty": 1,
        "beyond the best 3": 2,
        CUT: 2,
    }


def test_boxes_in_the_padding_are_dropped_and_counted(folders):
    own = detector(folders["owlv2"])
    wide = picture((20, 80))
    (found,) = own([wide], [["dog"]])
    assert found.dropped["outside the picture"] > 0
    assert len(found.boxes) + found.dropped["outside the picture"] == 16
    assert ((found.boxes >= 0) & (found.boxes <= 1)).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()


# --- checkpoints, settings, provenance ---


def test_a_picture_size_that_is_not_the_models_own(folders, tmp_path):
    folder = make_owl(tmp_path / "owlv2", "owlv2")
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 96, "width": 96}}))
    own = detector(folder)
    raw = own.raw(torch.randn(2, 3, 96, 96), [["dog"]] * 2)
    assert raw[0].boxes.shape == (36, 4)
    (found,) = own([picture((30, 60))], [["dog"]])
    assert len(found.boxes)
    asked = detector(folders["owlv2"], image_size=96)
    assert asked.provenance["preprocess"] == own.provenance["preprocess"]
    (same,) = asked([picture((30, 60))], [["dog"]])
    np.testing.assert_array_equal(same.boxes, found.boxes)


def test_what_the_checkpoint_says_of_its_pictures_is_followed(tmp_path):
    def read(model_type: str, given: dict | None, name: str = "preprocessor_config.json") -> Preprocess:
        if given is not None:
            (tmp_path / name).write_text(json.dumps(given))
        return read_preprocess(tmp_path, model_type, image_size=64)

    default = read("owlv2", None)
    assert (default.mode, default.size, default.pad_value) == ("pad", (64, 64), 0.0)
    assert default.interpolation == "bilinear"
    assert (read("owlvit", None).mode, read("owlvit", None).interpolation) == ("squash", "bicubic")
    dino = read("grounding-dino", None)
    assert (dino.mode, dino.size, dino.mean[0], dino.pad_value) == ("edges", (800, 1333), 0.485, None)
    nested = read(
        "owlv2", {"image_processor": {"size": {"height": 48, "width": 48}}}, "processor_config.json"
    )
    assert nested.size == (48, 48)
    assert read("owlvit", {"size": [96, 80], "resample": 2}).size == (96, 80)
    given = read("owlvit", {"size": 96, "crop_size": 96, "do_center_crop": True, "image_mean": [0.5] * 3})
    assert (given.size, given.mean) == ((96, 96), (0.5, 0.5, 0.5))
    assert read("owlv2", {"do_normalize": False}).std == (1, 1, 1)
    assert read("grounding-dino", {"size": {"shortest_edge": 5, "longest_edge": 9}}).size == (5, 9)
    for wrong, message in (
        ({"do_resize": False}, "without resize"),
        ({"do_center_crop": True, "crop_size": 7, "size": 9}, "centre crop"),
        ({"rescale_factor": 1}, "rescale_factor"),
        ({"size": {"width": 9}}, "height and width"),
        ({"resample": 9}, "resample"),
    ):
        with pytest.raises(ValueError, match=message):
            read("owlv2", wrong)


@pytest.mark.parametrize("model_type", [*TYPES, "cloc"])
def test_provenance_is_json_and_tells_models_apart(folders, model_type, tmp_path):
    own = detector(folders[model_type], prompt="a {}")
    told = json.loads(json.dumps(own.provenance))
    assert told == own.provenance
    assert told["weights"] == str(folders[model_type])
    assert told["prompt"] == "a {}"
    assert {"sha256", "torch", "transformers", "raw_score", "max_boxes", "dtype", "class"} <= set(told)
    if model_type == "owlv2":
        assert told["preprocess"]["pad_value"] == 0.0
        assert told["preprocess"]["size"] == [64, 64]
        (tmp_path / "owlv2").mkdir()
        for path in folders["owlv2"].iterdir():
            (tmp_path / "owlv2" / path.name).write_bytes(path.read_bytes())
        assert detector(tmp_path / "owlv2").provenance["sha256"] == told["sha256"]
        config = json.loads((tmp_path / "owlv2/tokenizer_config.json").read_text())
        (tmp_path / "other").mkdir()
        for path in folders["owlv2"].iterdir():
            (tmp_path / "other" / path.name).write_bytes(path.read_bytes())
        (tmp_path / "other/tokenizer_config.json").write_text(json.dumps(config | {"note": "changed"}))
        assert detector(tmp_path / "other").provenance["sha256"] != told["sha256"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weights": "/nowhere/at/all"}, FileNotFoundError, "no folder /nowhere/at/all"),
        ({"weights": "nobody/nothing"}, FileNotFoundError, "nobody/nothing"),
        ({"kind": "magic"}, ValueError, "expected one of transformers, cloc"),
        ({"dtype": "float8"}, ValueError, "float32, bfloat16"),
        ({"prompt": "dog"}, ValueError, "prompt"),
        ({"raw_score": 2}, ValueError, "raw_score"),
        ({"max_boxes": 0}, ValueError, "max_boxes"),
        ({"image_size": -1}, ValueError, "image_size"),
        ({"revision": "main"}, ValueError, "hub"),
        ({"kind": "cloc"}, ValueError, "holds a owlv2 model"),
    ],
)
def test_wrong_settings_are_one_sentence(folders, changes, error, message):
    config = replace(DetectorConfig(weights=str(folders["owlv2"])), **changes)
    with pytest.raises(error, match=message) as caught:
        open_detector(config, "cpu")
    assert "\n" not in str(caught.value)


def test_models_that_are_no_detectors(folders, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"bert model.*grounding-dino, mm-grounding-dino, owlv2, owlvit"):
        open_detector(DetectorConfig(weights=str(tmp_path)), "cpu")
    with pytest.raises(ValueError, match=r"set detect\.kind to cloc"):
        open_detector(DetectorConfig(weights=str(folders["cloc"])), "cpu")
    with pytest.raises(ValueError, match="image_size is for OWL models"):
        open_detector(DetectorConfig(weights=str(folders["grounding-dino"]), image_size=96), "cpu")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "owlv2"}))
    with pytest.raises(FileNotFoundError, match="safetensors"):
        open_detector(DetectorConfig(weights=str(tmp_path)), "cpu")


def test_missing_weights_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = make_owl(tmp_path / "owlvit", "owlvit")
    state = load_file(folder / "model.safetensors")
    del state["class_head.dense0.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 tensors.*class_head.dense0.weight"):
        detector(folder)


@pytest.mark.parametrize("model_type", [*TYPES, "cloc"])
def test_bfloat16_is_near_float32(folders, model_type):
    images, phrases = pictures()[:2], [["dog", "cat"]] * 2
    for exact, rough in zip(
        detector(folders[model_type])(images, phrases),
        detector(folders[model_type], dtype="bfloat16")(images, phrases),
    ):
        assert rough.scores.dtype == np.float32
        if model_type == "grounding-dino":  # with random weights it chooses its queries by a hair
            assert abs(exact.scores.max() - rough.scores.max()) < 0.1
            continue
        # A sliver at the border may be inside for one and outside for the other.
        wide = (exact.boxes[:, 2:] - exact.boxes[:, :2]).min(1) > 0.05
        apart = np.abs(exact.boxes[wide, None] - rough.boxes[None]).max(-1)  # (wide, N)
        assert wide.sum() >= 2
        assert apart.min(1).max() < 0.02
        assert np.abs(exact.scores[wide] - rough.scores[apart.argmin(1)]).max() < 0.1


def test_wrong_pictures_are_refused(folders):
    own = detector(folders["owlvit"])
    with pytest.raises(ValueError, match="2 lists"):
        own([picture((9, 9))], [["dog"], ["cat"]])
    with pytest.raises(ValueError, match=r"uint8; got float64"):
        own([np.zeros((9, 9, 3))], [["dog"]])
    with pytest.raises(ValueError, match=r"\(9, 9\)"):
        own([np.zeros((9, 9), np.uint8)], [["dog"]])
    (tiny,) = own([np.zeros((1, 1, 3), np.uint8)], [["dog"]])
    assert isinstance(tiny, Detections)


# --- CLOC ---


def test_cloc_equals_the_predictor(folders):
    own = detector(folders["cloc"], raw_score=0.0)
    predictor = Predictor(own.grounder.model)
    scale = own.grounder.model.clip.logit_scale.exp().item()
    for image, phrases, found in zip(pictures(), PHRASES, own(pictures(), PHRASES)):
        size = np.array([*image.shape[1::-1]] * 2)
        boxes_px = np.array([predictor.ground([phrase], image=image)[0][1] for phrase in phrases])
        regions = predictor.encode_regions(boxes_px, image=image)
        cosines = regions @ predictor.encode_text(phrases).T
        expected = np.exp(scale * (cosines - cosines.max()))
        best = expected.max(1)
        order = np.argsort(-best, kind="stable")
        np.testing.assert_allclose(found.scores, expected[order], atol=1e-4)
        for row, box in enumerate(found.boxes * size):  # phrases that score alike may have changed places
            alike = boxes_px[np.abs(best - best[order[row]]) < 1e-4]
            assert np.abs(alike - box).max(1).min() < VOTES_PX


def test_scores_of_a_sigmoid_model_are_its_own_probabilities(folders):
    own = detector(folders["cloc"])
    model = own.grounder.model
    model.clip.logit_bias = torch.nn.Parameter(torch.tensor([-10.0]))
    image = picture((50, 80))
    (found,) = own([image], [["dog"]])
    ((_, _, cosine),) = Predictor(model).ground(["dog"], image=image)
    logit = model.clip.logit_scale.exp().item() * cosine - 10
    np.testing.assert_allclose(found.scores, [[1 / (1 + np.exp(-logit))]], atol=1e-5)


def test_relative_scores_by_hand():
    scores = relative_scores(torch.tensor([[3.0, 1.0], [0.0, 2.0]]))
    np.testing.assert_allclose(scores, [[1, np.exp(-2)], [np.exp(-3), np.exp(-1)]], atol=1e-6)


@pytest.mark.parametrize("broken", ["box_head.2.bias", "project.weight"])
def test_cloc_without_finite_numbers_is_a_failure(folders, broken):
    own = detector(folders["cloc"])
    own.grounder.model.prompter.get_parameter(broken).data.fill_(torch.nan)
    found = own([picture((50, 80))] * 2, [["dog", "cat"], []])
    assert isinstance(found[0], Failure)
    assert isinstance(found[1], Detections)


def test_cycle_equals_the_predictor_asked_twice(folders):
    scorer = CycleScorer(str(folders["cloc"]), "cpu")
    predictor = Predictor(scorer.grounder.model)
    images, phrases = pictures(), [*PHRASES[:4], [], *PHRASES[5:]]
    phrases[0] = [*phrases[0], phrases[0][0]]  # two boxes of the same phrase
    for image, own, scores in zip(images, phrases, scorer(images, phrases), strict=True):
        expected = [predictor.ground([phrase], image=image)[0][2] for phrase in own]
        np.testing.assert_allclose(scores, np.array(expected, np.float32), atol=1e-4)
    assert json.loads(json.dumps(scorer.provenance)) == scorer.provenance


def test_a_cloc_detector_knows_its_own_cycle_score(folders):
    images, phrases = pictures()[:4], PHRASES[:4]
    found = detector(folders["cloc"])(images, phrases)
    expected = CycleScorer(str(folders["cloc"]), "cpu")(images, phrases)
    for own, cosines in zip(found, expected, strict=True):
        np.testing.assert_allclose(own.cycle, cosines, atol=1e-5)


def test_cycle_needs_a_cloc_model(folders):
    with pytest.raises(ValueError, match="must be a CLOC model"):
        CycleScorer(str(folders["owlv2"]), "cpu")
