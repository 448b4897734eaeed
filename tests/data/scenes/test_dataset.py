"""Generated scenes: exact boxes, held-out pairs, captions, determinism, and what bad options say."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from open_cloc.data.scenes.backgrounds import BACKGROUNDS
from open_cloc.data.scenes.dataset import CAPTION_TEMPLATES, Scene, SceneDataset, open_scenes
from open_cloc.data.scenes.glyphs import MIN_INK, glyph_mask
from open_cloc.data.scenes.vocabulary import (
    COLOURS,
    GLYPHS,
    SceneConfig,
    held_out_pairs,
    held_out_phrases,
    phrase_of,
    vocabulary,
)
from open_cloc.samples import RegionSample

EVERYTHING = {"num_glyphs": len(GLYPHS), "num_colours": len(COLOURS)}


def digest(sample: RegionSample) -> str:
    text = repr((sample.key, sample.captions, sample.regions, sample.metadata)).encode()
    return hashlib.sha256(text + sample.pixels().tobytes()).hexdigest()


def test_sample_has_the_agreed_form() -> None:
    sample = SceneDataset(SceneConfig(image_size=48), "val", 3)[2]
    image = sample.pixels()
    assert image.shape == (48, 48, 3)
    assert image.dtype == np.uint8
    assert len(sample.captions) == 1
    assert {(region.score, region.source) for region in sample.regions} == {(1.0, "scenes")}
    assert len(sample.metadata["held_out"]) == len(sample.regions)


def test_equal_in_another_process_and_order() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_dataset import *\n"
        "dataset = SceneDataset(SceneConfig(seed=3), 'val', 9)\n"
        "print(*[digest(dataset[i]) for i in (8, 3, 5)])"
    )
    env = {**os.environ, "PYTHONHASHSEED": "77"}
    run = subprocess.run(
        [sys.executable, "-c", code, os.path.dirname(__file__)],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    here = SceneDataset(SceneConfig(seed=3), "val", 1000)
    expected = {i: digest(here[i]) for i in (3, 5, 8)}
    assert run.stdout.split() == [expected[8], expected[3], expected[5]]


def test_seed_split_and_index_each_change_the_scene() -> None:
    samples = [
        SceneDataset(SceneConfig(seed=seed), split, 9)[index]
        for seed, split, index in (
            (0, "train", 0),
            (1, "train", 0),
            (0, "val", 0),
            (0, "test", 0),
            (0, "train", 1),
        )
    ]
    assert len({sample.pixels().tobytes() for sample in samples}) == len(samples)


def test_survives_pickling_for_data_workers() -> None:
    dataset = SceneDataset(SceneConfig(), "train", 5)
    assert digest(pickle.loads(pickle.dumps(dataset))[4]) == digest(dataset[4])


def changed_box(before: np.ndarray, after: np.ndarray) -> tuple[int, int, int, int]:
    """The smallest pixel box around all pixels that differ."""
    changed = [
        (x, y)
        for y in range(before.shape[0])
        for x in range(before.shape[1])
        if before[y, x].tolist() != after[y, x].tolist()
    ]
    xs, ys = [x for x, _ in changed], [y for _, y in changed]
    return min(xs), min(ys), max(xs) + 1, max(ys) + 1


def test_boxes_are_tight_around_the_pixels_that_an_object_changes() -> None:
    dataset = SceneDataset(SceneConfig(**EVERYTHING), "val", 25)
    for index in range(len(dataset)):
        scene, sample = dataset.scene(index), dataset[index]
        blank = Scene(scene.background, ()).image()
        for item, region in zip(scene.objects, sample.regions):
            alone = Scene(scene.background, (item,)).image()
            expected = np.array(changed_box(blank, alone)) / 64
            np.testing.assert_allclose(region.box, expected, atol=1e-6)
            assert region.text == item.phrase


def test_drawing_matches_a_loop_over_pixels() -> None:
    scene = SceneDataset(SceneConfig(image_size=32), "train", 4).scene(3)
    expected = scene.background.astype(np.float64)
    for item in scene.objects:
        for y, x in np.ndindex(item.mask.shape[:2]):
            ink = float(item.mask[y, x, 0])
            pixel = expected[item.y + y, item.x + x]
            expected[item.y + y, item.x + x] = (1 - ink) * pixel + ink * item.rgb
    assert np.abs(scene.image() - expected).max() <= 0.51


@pytest.mark.parametrize("angle", [-12, 0])
@pytest.mark.parametrize("glyph", GLYPHS, ids=lambda glyph: glyph.name)
def test_masks_end_at_visible_ink(glyph: tuple[str, str], angle: int) -> None:
    for size in (14, 29):
        mask = glyph_mask(glyph[0], size, angle)[..., 0]
        assert size - 3 <= max(mask.shape) <= size
        for border in (mask[0], mask[-1], mask[:, 0], mask[:, -1]):
            assert border.max() >= MIN_INK
        assert mask.max() > 0.6  # somewhere its colour is seen nearly pure


def test_the_font_draws_each_glyph_differently() -> None:
    masks = {glyph_mask(glyph.character, 32, 0).tobytes() for glyph in GLYPHS}
    assert len(masks) == len(GLYPHS)  # a missing character would be the same empty rectangle


def test_layout_keeps_counts_sizes_and_overlap() -> None:
    config = SceneConfig(image_size=96, min_objects=3, max_objects=6, max_overlap=0.05)
    dataset = SceneDataset(config, "val", 200)
    counts = Counter()
    for index in range(len(dataset)):
        boxes = np.array([item.box_px for item in dataset.scene(index).objects])
        counts[len(boxes)] += 1
        assert boxes.min() >= 0
        assert boxes.max() <= 96
        sides = (boxes[:, 2:] - boxes[:, :2]).max(1)
        assert sides.min() >= 0.22 * 96 - 3
        assert sides.max() <= 0.45 * 96 + 1
        for i in range(len(boxes)):
            for j in range(i):
                shared = np.minimum(boxes[i, 2:], boxes[j, 2:]) - np.maximum(boxes[i, :2], boxes[j, :2])
                smaller = min(np.prod(boxes[k, 2:] - boxes[k, :2]) for k in (i, j))
                assert np.prod(shared.clip(min=0)) <= 0.05 * smaller
    assert set(counts) == {3, 4, 5, 6}


def test_crowded_scenes_still_find_room() -> None:
    config = SceneConfig(min_objects=8, max_objects=8, min_object_size=0.22, max_overlap=0.0)
    dataset = SceneDataset(config, "train", 100)
    assert all(len(dataset.scene(i).objects) == 8 for i in range(100))


def test_colours_stand_out_from_the_background() -> None:
    dataset = SceneDataset(SceneConfig(**EVERYTHING), "val", 300)
    for index in range(len(dataset)):
        scene = dataset.scene(index)
        for item in scene.objects:
            distance = np.abs(scene.background - item.rgb).max(-1)  # (H, W) of the most different channel
            assert distance.min() > 70, (index, item.phrase)


def test_backgrounds_lie_between_their_two_colours() -> None:
    for name, background in BACKGROUNDS.items():
        shares = [background(np.random.default_rng(seed), 40) for seed in range(20)]
        assert min(share.min() for share in shares) >= 0, name
        assert max(share.max() for share in shares) <= 1 + 1e-5, name
        assert len({share.tobytes() for share in shares}) == 20, name


def test_training_never_shows_a_held_out_pair_and_shows_all_others() -> None:
    config = SceneConfig()
    dataset = SceneDataset(config, "train", 4000)
    drawn = Counter(
        (COLOURS[item.colour].name, GLYPHS[item.glyph].name)
        for index in range(len(dataset))
        for item in dataset.scene(index).objects
    )
    words = vocabulary(config)
    every_pair = {(colour, glyph) for colour in words.colours for glyph in words.glyphs}
    assert set(drawn) == every_pair - held_out_pairs(config)
    assert not any(flag for i in range(50) for flag in dataset[i].metadata["held_out"])


@pytest.mark.parametrize("split", ["val", "test"])
def test_unseen_scenes_mix_seen_and_held_out_pairs_and_tell_which(split: str) -> None:
    config = SceneConfig()
    held_out = held_out_phrases(config)
    dataset = SceneDataset(config, split, 500)
    flags = []
    for index in range(len(dataset)):
        sample = dataset[index]
        assert sample.metadata["held_out"] == [region.text in held_out for region in sample.regions]
        flags += sample.metadata["held_out"]
    assert 0.25 < np.mean(flags) < 0.35


@pytest.mark.parametrize(
    ("num_glyphs", "num_colours", "fraction"),
    [(24, 6, 0.15), (40, 8, 0.2), (7, 5, 0.3), (12, 3, 0.1), (9, 4, 0)],
)
def test_held_out_pairs_are_balanced(num_glyphs: int, num_colours: int, fraction: float) -> None:
    config = SceneConfig(num_glyphs=num_glyphs, num_colours=num_colours, held_out_fraction=fraction, seed=5)
    pairs = held_out_pairs(config)
    assert len(pairs) == round(fraction * num_glyphs * num_colours)
    words = vocabulary(config)
    by_colour = Counter(colour for colour, _ in pairs)
    by_glyph = Counter(glyph for _, glyph in pairs)
    for names, counts in ((words.colours, by_colour), (words.glyphs, by_glyph)):
        lost = [counts[name] for name in names]
        assert max(lost) - min(lost) <= 1
    assert max(by_colour.values(), default=0) <= num_glyphs - 2
    assert max(by_glyph.values(), default=0) <= num_colours - 2


def test_the_seed_chooses_the_held_out_pairs() -> None:
    assert held_out_pairs(SceneConfig(seed=1)) != held_out_pairs(SceneConfig(seed=2))
    assert held_out_pairs(SceneConfig(seed=1)) == held_out_pairs(SceneConfig(seed=1, image_size=96))


def test_vocabulary_names_each_pair_once() -> None:
    words = vocabulary(SceneConfig(**EVERYTHING))
    assert len(set(words.glyphs)) == len(words.glyphs) == 40
    assert len(set(words.colours)) == len(words.colours) == 8
    assert len(set(words.phrases)) == len(words.phrases) == 320
    assert all(phrase.startswith(("a ", "an ")) for phrase in words.phrases)
    assert phrase_of("red", "umbrella") == "a red umbrella"
    assert phrase_of("orange", "star") == "an orange star"
    assert phrase_of("blue", "pair of scissors") == "a pair of blue scissors"


def test_captions_mention_only_what_is_there_and_at_most_one_object_less() -> None:
    dataset = SceneDataset(SceneConfig(), "train", 400)
    first_words, num_left_out = set(), 0
    for index in range(len(dataset)):
        sample = dataset[index]
        phrases = [region.text for region in sample.regions]
        assert len(set(phrases)) == len(phrases)  # a phrase names one object
        caption = sample.captions[0]
        mentioned = [phrase for phrase in phrases if phrase in caption]
        rest = caption
        for phrase in mentioned:
            rest = rest.replace(phrase, "#", 1)
        lists = {"#" + ", #" * (n - 2) + " and #" for n in range(2, 6)}
        assert rest in {template.format(text) for template in CAPTION_TEMPLATES for text in lists}
        left_out = len(phrases) - len(mentioned)
        assert left_out <= (len(phrases) > 2)
        num_left_out += left_out
        first_words.add(rest.split("#")[0])
    assert 0 < num_left_out < 120
    assert len(first_words) == len(CAPTION_TEMPLATES)


def test_open_scenes_reads_split_and_options() -> None:
    dataset = open_scenes("val,num_samples=7,image_size=96,backgrounds=flat+noise", seed=4)
    assert (dataset.split, len(dataset)) == ("val", 7)
    assert dataset.config == SceneConfig(image_size=96, backgrounds=("flat", "noise"), seed=4)
    assert len(open_scenes("train", num_samples="12")) == 12


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("vol", "unknown split 'vol'; expected one of train, val, test"),
        ("val,500", "options must be name=value; got '500'"),
        ("val,size=3", "unknown option 'size'; expected one of num_samples, image_size"),
        ("val,image_size=big", "image_size must be int; got 'big'"),
        ("val,num_samples=-1", "num_samples must be 0 or more; got -1"),
        ("val,image_size=8", r"image_size must be in \[32, 1024\]; got 8"),
        ("val,num_glyphs=41", r"num_glyphs must be in \[2, 40\]; got 41"),
        ("val,min_objects=6", r"min_objects must be in \[1, 5\]; got 6"),
        ("val,backgrounds=flat+plaid", "backgrounds must be some of flat, .*; got plaid"),
        ("val,max_objects=12", "12 objects of at least 0.22 of the image cover 0.58"),
        ("val,held_out_fraction=0.9", "leaves 14 of 24 x 6 pairs for training"),
    ],
)
def test_wrong_options_are_named(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_scenes(path)


def test_index_outside_the_length() -> None:
    dataset = SceneDataset(SceneConfig(), "train", 2)
    assert [dataset[i].key for i in range(2)] == ["train-0000000", "train-0000001"]
    for index in (2, -1):
        with pytest.raises(IndexError, match="of 2"):
            dataset[index]
