"""How a model reads texts: saved with it, the same in training, evaluation, use and labelling."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import picture

import open_cloc
from open_cloc.data.collate import LoaderConfig
from open_cloc.data.loader import RegionLoader
from open_cloc.errors import UserError
from open_cloc.evaluation.run import evaluate
from open_cloc.inference.predictor import Predictor
from open_cloc.labelling.detectors.cloc import Grounder
from open_cloc.model.cloc import CLOC
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.samples import Region, RegionSample
from open_cloc.texts import TextCleaning

# The same to a model that lower-cases, but to a cased vocabulary not to one that does not.
ODD, PLAIN = "A  DOG\non mat", "a dog on mat"


@pytest.fixture
def cased(text_tower: Path, tmp_path: Path) -> Callable[..., CLOC]:
    """A model whose tokenizer tells capitals apart: none of its words has any, so they are unknown to it."""
    folder = tmp_path / "cased"
    folder.mkdir()
    for file in text_tower.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    for name in ("tokenizer_config.json", "tokenizer.json"):
        settings = json.loads((folder / name).read_text())
        if "normalizer" in settings:
            settings["normalizer"]["lowercase"] = False
        else:
            settings["do_lower_case"] = False
        (folder / name).write_text(json.dumps(settings))

    def make(lower_case: bool = True) -> CLOC:
        torch.manual_seed(0)
        spec = f"timm:test_resnet,text={folder},embed_dim=24,context_length=16"
        return build_model(ModelConfig(spec, image_size=64, lower_case=lower_case)).eval()

    return make


def seen_by_training(model: CLOC, text: str) -> np.ndarray:
    """The feature of a region's text that a training step has."""
    sample = RegionSample("a", picture(), (text,), (Region((0.1, 0.1, 0.9, 0.9), text),))
    loader = RegionLoader(
        [sample], model.preprocess, model.tokenize, LoaderConfig(num_regions=1, workers=0), batch_size=1
    )
    (batch,) = loader
    assert batch.caption_index.tolist() == batch.region_text_index[:, 0].tolist() == [0]
    features = model(batch)
    assert torch.equal(features.text_features, features.region_text_features[:, 0])
    return torch.nn.functional.normalize(features.text_features, dim=-1)[0].numpy()


def seen_by_labelling(model: CLOC, text: str) -> np.ndarray:
    return Grounder(model).ground(picture(), [text]).texts[0].numpy()


def seen_by_use(model: CLOC, text: str) -> np.ndarray:
    return Predictor(model).encode_text([text])[0]


def seen_by_evaluation(model: CLOC, text: str) -> np.ndarray:
    """The feature of the class that an evaluation embeds."""
    from open_cloc.evaluation.classes import embed_classes
    from open_cloc.evaluation.methods import open_method
    from open_cloc.evaluation.options import EvaluationConfig

    return embed_classes(open_method("prompter", model), [text], EvaluationConfig())[0].numpy()


SEEN = (seen_by_training, seen_by_labelling, seen_by_use, seen_by_evaluation)


@torch.inference_mode()
def test_everybody_reads_a_text_alike(cased: Callable[..., CLOC]) -> None:
    for lower_case in (True, False):
        model = cased(lower_case)
        odd, plain = ([see(model, text) for see in SEEN] for text in (ODD, PLAIN))
        for features in (odd, plain):
            for one in features[1:]:
                np.testing.assert_allclose(one, features[0], atol=1e-6)
        assert np.allclose(odd[0], plain[0], atol=1e-5) is lower_case


def test_it_is_saved_with_the_model(cased: Callable[..., CLOC], tmp_path: Path) -> None:
    for lower_case in (True, False):
        folder = tmp_path / str(lower_case)
        cased(lower_case).save_pretrained(folder)
        assert json.loads((folder / "config.json").read_text())["texts"] == {"lower_case": lower_case}
        loaded = CLOC.from_pretrained(folder)
        assert loaded.cleaning == TextCleaning(lower_case)
        assert torch.equal(loaded.tokenize([ODD]), loaded.tokenize([PLAIN])) is lower_case
        # A model that goes on from there keeps it, whatever the recipe says.
        for asked in (True, False):
            started = build_model(ModelConfig(f"folder:{folder}", lower_case=asked))
            assert started.cleaning == TextCleaning(lower_case)


def test_the_front_door_has_the_option(tiny_model_cfg: dict[str, Any]) -> None:
    assert open_cloc.create_model(tiny_model_cfg, device="cpu").cleaning.lower_case
    assert not open_cloc.create_model(tiny_model_cfg, lower_case=False, device="cpu").cleaning.lower_case


def test_evaluation_asks_the_model_and_says_so(cased: Callable[..., CLOC]) -> None:
    regions = (Region((0.0, 0.0, 0.5, 0.5), "A dog"), Region((0.2, 0.2, 0.9, 0.9), "a dog"))
    samples = [RegionSample(key, picture(seed=i), ("A dog",), regions) for i, key in enumerate("ab")]
    for lower_case, texts in ((True, 1), (False, 2)):
        protocol = evaluate(cased(lower_case), samples, "region_retrieval")["protocol"]
        assert (protocol["lower_case"], protocol["num_distinct_texts"]) == (lower_case, texts)


def test_labels_that_the_model_reads_alike_are_refused(cased: Callable[..., CLOC]) -> None:
    image = Predictor(cased()).encode(picture())
    with pytest.raises(UserError, match="reads 'Dog' and 'dog' alike"):
        image.classify(["Dog", "cat", "dog"])
    with pytest.raises(UserError, match="got 'dog' more than once"):
        image.classify(["dog", "cat", "dog"])
    with pytest.raises(UserError, match="non-empty strings; got '<br>' in row 1"):
        image.find(["dog", "<br>"])
    assert len(Predictor(cased(False)).encode(picture()).classify(["Dog", "dog"])[0].labels) == 2


# --- what was saved before the config said it -------------------------------------------------------


def make_old(folder: Path) -> None:
    """Take out of a model's config what earlier versions did not write."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["texts"]
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("place", ["model", "start", "checkpoints/step_00000003"])
@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"data": {"loader": {"lower_case": False}}}, False),
        ({"data": {"loader": {"lower_case": True}}}, True),
        ({"data": {"loader": {}}}, True),
        ({"model": {"lower_case": False}, "data": {"loader": {}}}, False),
        (None, True),
        ([1], True),
    ],
)
def test_older_folders_read_texts_as_their_recipe_says(
    tiny_model_cfg: dict[str, Any], tmp_path: Path, place: str, recipe: object, expected: bool
) -> None:
    folder = tmp_path / "run" / place
    CLOC(tiny_model_cfg).save_pretrained(folder)
    make_old(folder)
    if recipe is not None:
        (tmp_path / "run" / "recipe.json").write_text(json.dumps(recipe))
    assert CLOC.from_pretrained(folder).cleaning.lower_case is expected


def test_what_the_config_says_is_checked(tiny_model_cfg: dict[str, Any], tmp_path: Path) -> None:
    CLOC(tiny_model_cfg).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for wrong, message in (
        ({"lower_case": "no"}, r"texts.lower_case must be true or false; got 'no'"),
        ({"case": 1}, "unknown key 'case' in texts"),
        (3, "expected a table texts; got 3"),
    ):
        path.write_text(json.dumps(config | {"texts": wrong}))
        with pytest.raises(UserError, match=message):
            CLOC.from_pretrained(tmp_path)
