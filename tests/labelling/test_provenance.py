"""The birth certificate of labels."""

from __future__ import annotations

from dataclasses import replace

from open_cloc.labelling.provenance import (
    describe,
    differences,
    downstream,
    in_todays_words,
    software,
    upstream,
)
from open_cloc.labelling.recipe import CaptionConfig, LabelRecipe


def test_what_the_raw_detections_depend_on() -> None:
    plain = LabelRecipe("a")
    for same in (
        replace(plain, name="b"),
        replace(plain, filter=replace(plain.filter, min_score=0.5)),
        replace(plain, run=replace(plain.run, detectors=7)),
    ):
        assert upstream(same) == upstream(plain)
    for other in (
        replace(plain, cycle_weights="model"),
        replace(plain, detect=replace(plain.detect, precision="bf16")),
        replace(plain, run=replace(plain.run, batch_size=1)),
    ):
        assert upstream(other) != upstream(plain)
    assert downstream(plain)["filter"]["min_score"] == 0.1


def test_passwords_of_urls_are_not_recorded() -> None:
    own = LabelRecipe("a", caption=CaptionConfig(kind="server", url="http://user:sesame@host/v1"))
    assert "sesame" not in str(upstream(own))
    assert upstream(own)["caption"]["url"] == "http://***@host/v1"


def test_differences_are_named_by_their_path() -> None:
    changes = list(differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": [4]}))
    assert changes == [("a.b", 1, 3), ("a.c", 2, None), ("d", None, [4])]
    assert describe(changes[:2]) == "a.b was 1, now 3; a.c was 2, now None"


def test_the_software_is_named() -> None:
    assert {"python", "torch", "transformers", "ray", "code"} <= set(software())


def test_the_words_of_version_0_1() -> None:
    old = {
        "recipe": {
            "caption": {"kind": "local", "model": "blip"},
            "detect": {"kind": "transformers", "dtype": "bfloat16"},
        },
        "made_by": {"caption": {"name": "local", "model": "blip"}, "detect": {"dtype": "bfloat16"}},
    }
    new = {
        "recipe": {
            "caption": {"kind": "local", "weights": "blip"},
            "detect": {"kind": "auto", "precision": "bf16"},
        },
        "made_by": {"caption": {"name": "local", "weights": "blip"}, "detect": {"precision": "bf16"}},
    }
    assert in_todays_words(old) == new
    assert in_todays_words(new) == new
    assert in_todays_words({"made_by": {}}) == {"made_by": {}}
