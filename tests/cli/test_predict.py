"""`open-cloc predict`: what it prints and draws, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from open_cloc.cli import predict as command
from open_cloc.errors import UserError
from open_cloc.inference.predictor import load
from tests.tiny import BOXES, picture, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and a picture of 50 x 90."""
    path = tmp_path_factory.mktemp("predict")
    tiny_model().save_pretrained(path / "model")
    Image.fromarray(picture(50, 90)).save(path / "a.png")
    return path


def predict_argv(folder: Path, *options: str) -> list[str]:
    return ["--weights", str(folder / "model"), str(folder / "a.png"), *options]


def test_command_prints_what_the_predictor_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--boxes", "0,0,10,20", "5.5,3,60,40", "--labels", "a dog", "a cat", "--phrases", "two dogs"]
    assert command.main(predict_argv(folder, *options, "--json", "--output", str(folder / "out.png"))) == 0
    result = json.loads(capsys.readouterr().out)
    predictor = load(folder / "model")
    expected = predictor.classify_regions(BOXES[:2], ["a dog", "a cat"], image=folder / "a.png")
    found = [[(e["label"], e["score"]) for e in region["labels"]] for region in result["regions"]]
    for one, other in zip(found, expected):
        assert dict(one) == pytest.approx(dict(other), abs=1e-5)
    np.testing.assert_allclose([region["box"] for region in result["regions"]], BOXES[:2], atol=1e-6)
    ((phrase, box, score),) = predictor.ground(["two dogs"], image=folder / "a.png")
    np.testing.assert_allclose(result["phrases"][0]["box"], box, atol=1e-3)
    assert result["phrases"][0]["phrase"] == phrase
    assert result["phrases"][0]["score"] == pytest.approx(score, abs=1e-5)
    drawn = np.asarray(Image.open(folder / "out.png"))
    assert drawn.shape == (50, 90, 3)
    assert (drawn != picture(50, 90)).any()
    assert not list(folder.glob(".*"))


def test_command_lines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
        (["--boxes", "30,0,10,20", "--labels", "a"], "say so by .*--box-format xywh"),
    ],
)
def test_command_errors(folder: Path, options: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        command.main(predict_argv(folder, *options))


@pytest.mark.parametrize("form", ["the name", "another way", "a link", "a hard link", "another picture"])
def test_no_picture_is_drawn_over(folder: Path, tmp_path: Path, form: str) -> None:
    image, output = tmp_path / "a.png", tmp_path / "b.png"
    image.write_bytes((folder / "a.png").read_bytes())
    if form == "the name":
        output = image
    elif form == "another way":
        output = tmp_path / ".." / tmp_path.name / "a.png"
    elif form == "a link":
        output.symlink_to(image)
    elif form == "a hard link":
        output.hardlink_to(image)
    else:
        output.write_bytes(image.read_bytes())
    argv = ["--weights", "no model is looked for", str(image), "--phrases", "a", "--output", str(output)]
    with pytest.raises(
        UserError, match=r"^output (must not be the picture|is there already, and was not drawn)"
    ):
        command.main(argv)
    assert image.read_bytes() == (folder / "a.png").read_bytes()
