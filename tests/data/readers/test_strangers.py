"""What strangers' exporters made of data, read as it was meant or told in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from open_cloc.cli.data import main
from open_cloc.data.check import check_dataset
from open_cloc.data.readers import guess_spec, open_reader
from open_cloc.disguises import LOOKED_AT
from open_cloc.errors import SampleError, UserError
from open_cloc.pictures import read_pixels


def picture(path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 16), (9, 99, 199)).save(path, **options)
    return path


def test_splits_of_image_folders_are_not_joined_unawares(tmp_path: Path) -> None:
    for split in ("train", "test"):
        picture(tmp_path / split / f"{split}.png")
        row = {"file_name": f"{split}.png", "text": "a mug"}
        (tmp_path / split / "metadata.jsonl").write_text(json.dumps(row))
    with pytest.raises(
        UserError, match=r"holds splits; give one of folder:.*/test, folder:.*/train, or folder:"
    ):
        guess_spec(str(tmp_path))
    assert len(open_reader(f"folder:{tmp_path}")) == 2  # who says so gets both
    assert len(open_reader(str(tmp_path / "test"))) == 1


@pytest.mark.parametrize("printed", ["\"['a dog', 'b']\"", '"[""x"", ""y""]"'])
def test_a_printed_list_is_no_caption(tmp_path: Path, printed: str) -> None:
    picture(tmp_path / "0.png")
    (tmp_path / "t.csv").write_text(f"image,caption\n0.png,{printed}\n0.png,[sic] a dog [!]\n")
    data = open_reader(f"table:{tmp_path / 't.csv'}")
    with pytest.raises(SampleError, match="is a printed list: write lists to JSON lines or Parquet"):
        data[0]
    assert data[1].captions == ("[sic] a dog [!]",)


def test_turned_pictures_without_boxes_are_told_too(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x112] = 6
    picture(tmp_path / "a.jpg", exif=turned)
    report = check_dataset(open_reader(f"folder:{tmp_path}"))
    (example,) = report.warnings["picture turned by EXIF"].examples
    assert "orientation 6: it is read as it is stored; to turn it as viewers do, give exif=apply" in example


def test_lines_of_old_macs_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"image,caption\r0.jpg,a\r")
    with pytest.raises(UserError, match=r"lines that end as old Macs ended them: save it as CSV .*a\.csv"):
        main(["check", f"table:{tmp_path / 'a.csv'}"])


def test_other_yaml_files_are_told(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    for name in ("data.yaml", "dataset.yaml"):
        (tmp_path / name).write_text("train: images\nnames: [mug]\n")
    assert open_reader(f"yolo:{tmp_path}").left_out == {"file dataset.yaml": 1}  # type: ignore[attr-defined]


def test_pictures_past_the_limit_and_urls_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(SampleError, match="it has more than 200 pixels, the most that is read"):
        read_pixels(tmp_path / "a.png")
    with pytest.raises(SampleError, match=r"not found: https:/x\.org/a\.jpg; URLs are not read"):
        read_pixels("https://x.org/a.jpg")


@pytest.mark.parametrize("text", ["NULL", "#REF!", "N/A", "undefined"])
def test_words_for_nothing_are_no_captions(tmp_path: Path, text: str) -> None:
    picture(tmp_path / "0.png")
    (tmp_path / "t.csv").write_text(f"image,caption\n0.png,{text}\n")
    with pytest.raises(SampleError, match=f"'{text}' stands for a missing text"):
        open_reader(f"table:{tmp_path / 't.csv'}")[0]


def test_a_pose_of_one_point_is_no_track(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.2 0.4 1\n")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [mug]\nkpt_shape: [1, 2]\n")
    raw = open_reader(f"yolo:{tmp_path}").raw(0)  # type: ignore[attr-defined]
    assert not raw.problems
    assert [region.box for region in raw.regions] == [(0.5, 0.5, 0.2, 0.2)]


def test_a_line_end_at_the_end_of_what_is_looked_at_is_no_old_macs(tmp_path: Path) -> None:
    picture(tmp_path / "0.png")
    header = b"image,caption," + b"x" * (LOOKED_AT - 15) + b"\r\n"
    (tmp_path / "a.csv").write_bytes(header + b"0.png,a mug,1\r\n")
    assert open_reader(f"table:{tmp_path / 'a.csv'}")[0].captions == ("a mug",)


def test_the_numbers_of_tracks_are_no_corners(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    lines = "0 0.5 0.5 0.2 0.2 0.91 1\n0 0.1 0.1 0.5 0.1 0.5 0.75\n"
    (tmp_path / "labels" / "a.txt").write_text(lines)
    (tmp_path / "data.yaml").write_text("train: images\nnames: [mug]\n")
    raw = open_reader(f"yolo:{tmp_path}").raw(0)  # type: ignore[attr-defined]
    assert [problem.cause for problem in raw.problems] == ["broken line"]
    assert "the number of a track" in raw.problems[0].message
    assert len(raw.regions) == 1
