"""`open-cloc predict`: what it prints and draws, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from open_cloc.cli import predict as command
from open_cloc.cli.main import main
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
        (["--points", "3,4"], "--points needs --labels"),
        (["--points", "3,4,5", "--labels", "a"], "two numbers joined by a comma, such as 50,60; got '3,4,5'"),
        (["--points", "3,60", "--labels", "a"], r"points must lie in the picture; got \(3, 60\) in row 0"),
        (["--points", "3,4", "--boxes", "0,0,9,9", "--labels", "a"], "--boxes and --points are two ways"),
        (["--points", "3,4", "--box-format", "xywh", "--labels", "a"], "--box-format is for --boxes"),
        (["--phrases", "a", "--together"], "--together needs the --boxes, --points or --masks"),
        (["--masks", "none.png", "--labels", "a"], "no such mask|none.png"),
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


def named(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[tuple[float, ...]]:
    """The box of each region that the command names, and its scores of two labels in their order."""
    argv = predict_argv(folder, *options, "--labels", "a dog", "a cat", "--json")
    assert main(["predict", *argv]) == 0
    found = []
    for region in json.loads(capsys.readouterr().out)["regions"]:
        scores = {entry["label"]: entry["score"] for entry in region["labels"]}
        found.append((*region["box"], scores["a dog"], scores["a cat"]))
    return found


def expected(folder: Path, **prompts: Any) -> list[tuple[float, ...]]:
    found = []
    for region in load(folder / "model").encode(folder / "a.png").classify(["a dog", "a cat"], **prompts):
        scores = dict(region.labels)
        found.append((*region.box, scores["a dog"], scores["a cat"]))
    return found


def test_points_masks_and_several_boxes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the command says of each kind of prompt is what the predictor says."""
    masks = np.zeros((2, 50, 90), bool)
    masks[0, 5:20, 10:30] = masks[1, 30:45, 50:51] = True
    Image.fromarray(masks[0]).save(folder / "one.png")
    Image.fromarray(np.repeat(np.uint8(masks[1])[..., None], 3, 2)).save(folder / "two.bmp")
    files = ["--masks", str(folder / "one.png"), str(folder / "two.bmp")]
    boxes, points = [[0, 0, 10, 20], [40, 20, 60, 40]], [[50, 30], [20, 10]]
    given = [
        (["--boxes", "0,0,10,20", "40,20,60,40"], {"boxes": boxes}),
        (["--boxes", "0,0,10,20", "40,20,20,20", "--box-format", "xywh", "--together"], {"boxes": [boxes]}),
        (["--points", "50,30", "20,10"], {"points": [[points[0]], [points[1]]]}),
        (["--points", "50,30", "20,10", "--together"], {"points": [points]}),
        (["--points", "0.5,0.25", "--normalized"], {"points": [[[45, 12.5]]]}),
        (files, {"masks": masks}),
        ([*files, "--together"], {"masks": masks.any(0)[None]}),
    ]
    seen = []
    for options, prompts in given:
        found = named(folder, capsys, *options)
        np.testing.assert_allclose(found, expected(folder, **prompts), atol=1e-5)
        seen += [tuple(row) for row in found]
    assert len(set(seen)) == len(seen)


def test_regions_of_each_kind_are_drawn(folder: Path, tmp_path: Path) -> None:
    mask = np.zeros((50, 90), bool)
    mask[10:40, 20:70] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for number, prompt in enumerate((["--points", "45,25"], ["--masks", str(tmp_path / "mask.png")])):
        output = tmp_path / f"{number}.png"
        argv = predict_argv(folder, *prompt, "--labels", "a dog", "--output", str(output))
        assert main(["predict", *argv]) == 0
        changed = (np.asarray(Image.open(output)) != picture(50, 90)).any(-1)
        assert changed[36, 25] == (number == 1)  # the mask is tinted, below its text
        assert changed[24, 45]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.new("L", (50, 90), 1), "must be as large as the picture, 90 x 50; got 50 x 90"),
        (Image.new("L", (90, 50)), "must cover something; it is all black"),
        (Image.new("RGBA", (90, 50), (9, 9, 9, 9)), "partly transparent; a mask must be black and another"),
    ],
)
def test_masks_that_are_none(folder: Path, tmp_path: Path, mask: Image.Image, message: str) -> None:
    mask.save(tmp_path / "mask.png")
    with pytest.raises(UserError, match=message):
        command.main(predict_argv(folder, "--masks", str(tmp_path / "mask.png"), "--labels", "a"))
    mask.convert("RGB").save(tmp_path / "mask.jpg")  # which is never quite black
    with pytest.raises(UserError, match="mask, which must be PNG, TIFF or BMP, cannot be decoded"):
        command.main(predict_argv(folder, "--masks", str(tmp_path / "mask.jpg"), "--labels", "a"))
