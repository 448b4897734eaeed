"""`open-cloc data`: what it finds, what it draws, and what the user sees when something is wrong."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from open_cloc.cli.main import main as cli
from open_cloc.data.readers import open_reader
from open_cloc.data.shards.read import ShardDataset
from open_cloc.data.shards.write import write_shards
from open_cloc.samples import Region, RegionSample

COCO128 = Path(__file__).resolve().parents[3] / "shared/data/coco128"


def jpeg(seed: int, size: tuple[int, int] = (100, 50)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def sample(number: int, **changes: Any) -> RegionSample:
    regions = (Region((0.1, 0.1, 0.5, 0.6), "a red mug"), Region((0.2, 0.4, 0.9, 0.8), "mug"))
    return replace(RegionSample(f"s{number}", jpeg(number), ("a caption",), regions), **changes)


def coco(folder: Path, boxes: list[list[float]], **image: Any) -> Path:
    """One picture of 100 x 50 with these boxes."""
    (folder / "a.jpg").write_bytes(jpeg(0))
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 50} | image],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "bbox": box} for i, box in enumerate(boxes, start=900)
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    path = folder / "instances_a.json"
    path.write_text(json.dumps(document))
    return path


def test_check_of_coco_boxes_in_the_wrong_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    xyxy = [[50, 20, 90, 45], [60, 5, 70, 40], [40, 30, 100, 50], [55, 10, 99, 48]]
    out = tmp_path / "deep/report.json"
    assert cli(["data", "check", str(coco(tmp_path, xyxy)), "--json", str(out)]) == 1
    printed = capsys.readouterr()
    assert "ERROR: box outside the picture: 4" in printed.out
    assert "instances_a.json, annotation 903" in printed.out
    assert "wrong or tiny as xywh in pixels: these look like xyxy in pixels (0% wrong)" in printed.out
    assert "reading" in printed.err
    report = json.loads(out.read_text())
    assert report["errors"]["box outside the picture"]["count"] == 4
    assert report["counts"]["regions"] == 4
    assert [path.name for path in out.parent.iterdir()] == ["report.json"]


def test_check_compares_the_declared_size_with_the_picture(tmp_path: Path) -> None:
    assert cli(["data", "check", f"coco:{coco(tmp_path, [[0, 0, 50, 40]], width=200)}"]) == 1
    assert cli(["data", "check", f"coco:{coco(tmp_path, [[0, 0, 50, 40]])}"]) == 0


def test_check_goes_on_past_broken_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards([sample(i) for i in range(6)], tmp_path / "out", 2)
    assert cli(["data", "check", str(tmp_path / "out")]) == 0
    tar = tmp_path / "out/00001.tar"
    tar.write_bytes(tar.read_bytes()[:700])
    capsys.readouterr()
    assert cli(["data", "check", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().out
    assert "ERROR: broken tar: 1\n  broken tar file" in printed
    assert "4 images" in printed


def test_check_reports_json_that_is_not_the_schema(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [sample(0), sample(1, metadata={"noun_chunks": [["x"]]})]
    write_shards(data, tmp_path / "out")
    assert cli(["data", "check", str(tmp_path / "out")]) == 1
    assert "ERROR: broken region: 1\n  JSON is not a region sample: at $.noun_" in capsys.readouterr().out


def test_check_of_a_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["data", "check", "scenes:val,num_samples=50", "--num", "5"]) == 0
    assert capsys.readouterr().out.startswith("5 images, ")


def test_convert_and_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = f"coco:{coco(tmp_path, [[10, 10, 50, 30]])}"
    assert cli(["data", "convert", source, str(tmp_path / "out"), "--samples-per-shard", "10"]) == 0
    assert "wrote 1 samples in 1 shards" in capsys.readouterr().out
    region = ShardDataset(str(tmp_path / "out"))[0].regions[0]
    assert (region.text, region.source) == ("cat", "coco")
    assert region.box == pytest.approx((0.1, 0.2, 0.6, 0.8))
    sheet = tmp_path / "new/sheet.png"
    assert cli(["data", "show", str(tmp_path / "out"), str(sheet), "--tile", "100"]) == 0
    with Image.open(sheet) as picture:
        assert picture.width == 100 + 2 * 8
    assert [path.name for path in sheet.parent.iterdir()] == ["sheet.png"]


def test_convert_makes_pictures_smaller(tmp_path: Path) -> None:
    source = "scenes:val,num_samples=2,image_size=64"
    assert cli(["data", "convert", source, str(tmp_path / "out"), "--max-side", "40"]) == 0
    smaller, original = ShardDataset(str(tmp_path / "out"))[1], open_reader(source)[1]
    assert (smaller.pixels().shape, original.pixels().shape) == ((40, 40, 3), (64, 64, 3))
    assert smaller.regions == original.regions


def test_convert_leaves_out_bad_samples_only_where_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(coco(tmp_path, [[0, 0, 50, 40]]).read_text())
    document["images"].append({"id": 2, "file_name": "gone.jpg", "width": 100, "height": 50})
    (tmp_path / "instances_a.json").write_text(json.dumps(document))
    args = ["data", "convert", str(tmp_path), str(tmp_path / "out")]
    assert cli(args) == 2
    assert "open-cloc data: image of sample 'gone' not found" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))
    assert cli([*args, "--max-bad-fraction", "0.02"]) == 0
    assert "wrote 1 samples in 1 shards" in (printed := capsys.readouterr().out)
    assert "left out 1 (missing picture: 1)" in printed


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["check", "nowhere"], "'nowhere' is neither an existing path nor FORMAT:PATH"),
        (["check", "ark:x"], "'ark:x' is neither an existing path nor FORMAT:PATH"),
        (["check", "coco:nowhere"], "no such annotation file or folder: nowhere"),
        (["check", "scenes:val", "--num", "0"], "--num must be at least 1; got 0"),
        (["convert", "scenes:val,num_samples=3", "{full}"], "output folder must be new or empty; got "),
        (
            ["show", "scenes:val,num_samples=3", "{full}/sheet"],
            "output must end in .png, .jpg, .jpeg, .webp; got ",
        ),
        (["show", "shards:nowhere.tar", "{full}/a.png"], "no such shard: nowhere.tar"),
    ],
)
def test_user_errors_are_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    (tmp_path / "note").write_text("mine")
    assert cli(["data", *(arg.format(full=tmp_path) for arg in args)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("open-cloc data: ")
    assert message in error
    assert "\n" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


@pytest.mark.skipif(not COCO128.exists(), reason="../shared/data/coco128 is not here")
def test_coco128_from_json_to_shards_to_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli(["data", "convert", f"coco:{COCO128}", str(tmp_path / "out"), "--samples-per-shard", "64"]) == 0
    )
    assert cli(["data", "check", str(tmp_path / "out"), "--num", "40"]) == 0
    assert capsys.readouterr().out.endswith("0 errors, 0 warnings\n")
    assert cli(["data", "show", str(tmp_path / "out"), str(tmp_path / "sheet.png"), "--num", "4"]) == 0
    written = ShardDataset(str(tmp_path / "out"))
    assert sum(len(written[i].regions) for i in range(len(written))) == 929
