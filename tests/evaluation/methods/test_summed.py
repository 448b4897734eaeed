"""Methods added up, against the sum of their own cosines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from open_cloc.canvas import CanvasConfig
from open_cloc.errors import UserError
from open_cloc.evaluation.batches import evaluation_batches
from open_cloc.evaluation.methods import open_method
from open_cloc.evaluation.run import evaluate
from open_cloc.model.cloc import CLOC
from open_cloc.model.prompter import PrompterConfig
from tests.evaluation.tiny_data import Samples, with_texts

TEXTS = ["a red dog", "two cats", "the small one"]


@torch.inference_mode()
@pytest.mark.parametrize("names", ["crop+blur", "crop+blur+whole", "roialign+crop"])
def test_cosines_are_the_mean_of_the_parts(model: CLOC, samples: Samples, names: str) -> None:
    method = open_method(f"sum:{names}", model)
    (batch,) = evaluation_batches(samples, method.canvas, batch_size=len(samples))
    found = method.embed_regions(batch, batch.boxes) @ method.embed_texts(TEXTS).T
    expected = torch.zeros_like(found)
    parts = names.split("+")
    for name in parts:
        one = open_method(name, model)
        expected += one.embed_regions(batch, batch.boxes) @ one.embed_texts(TEXTS).T
    torch.testing.assert_close(found, expected / len(parts), atol=1e-5, rtol=0)
    assert method.describe()["method"] == f"sum:{names}"


@torch.inference_mode()
def test_two_models_have_a_share_each(
    model: CLOC, samples: Samples, tiny_model_cfg: dict[str, Any], tmp_path: Path
) -> None:
    """Of another width and size of picture: each looks at what it draws itself."""
    torch.manual_seed(1)
    other = CLOC({**tiny_model_cfg, "embed_dim": 16}, PrompterConfig(), CanvasConfig((48, 48))).eval()
    other.save_pretrained(tmp_path / "other")
    spec = f"sum:crop+blur,also={tmp_path / 'other'}"
    method = open_method(spec, model)
    (batch,) = evaluation_batches(samples, method.canvas, batch_size=len(samples))
    cosines = method.embed_regions(batch, batch.boxes) @ method.embed_texts(TEXTS).T
    pictures = method.embed_images(batch) @ method.embed_texts(TEXTS).T
    expected, of_pictures = torch.zeros_like(cosines), torch.zeros_like(pictures)
    for weights in (model, other):
        for name in ("crop", "blur"):
            one = open_method(name, weights)
            (own,) = evaluation_batches(samples, one.canvas, batch_size=len(samples))
            expected += one.embed_regions(own, own.boxes) @ one.embed_texts(TEXTS).T / 4
            of_pictures += one.embed_images(own) @ one.embed_texts(TEXTS).T / 4
    torch.testing.assert_close(cosines, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(pictures, of_pictures, atol=1e-5, rtol=0)
    (second,) = method.describe()["also"]
    assert second["pretrained"] == str(tmp_path / "other")
    result = evaluate(model, with_texts(samples), "referring", method=spec)
    assert result["protocol"]["also"][0]["image_size"] == [48, 48]
    with pytest.raises(
        UserError, match="sum of two models takes crop and blur, which draw their pictures; got whole"
    ):
        open_method(f"sum:crop+whole,also={tmp_path / 'other'}", model)


def test_reclips_baseline_chooses_the_box_of_an_expression(model: CLOC, samples: Samples) -> None:
    """By the sum of both scores, each sentence one query."""
    data = with_texts(samples)
    result = evaluate(model, data, "referring", method="sum")
    assert result["protocol"]["method"] == "sum:crop+blur"
    whole = evaluate(model, Samples(replace(s) for s in data), "referring", method="sum:blur+crop")
    assert result["metrics"] == pytest.approx(whole["metrics"])


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("sum:crop", "two different methods or more"),
        ("sum:crop+crop", "two different methods or more"),
        ("sum:crop+nothing", "nothing"),
        ("sum:crop+hf_clip", "hf_clip"),
        ("sum:crop+sum", "brings its own"),
    ],
)
def test_what_cannot_be_added_is_refused(model: CLOC, spec: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        open_method(spec, model)
