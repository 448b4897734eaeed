"""How data is named: `FORMAT:PATH[,option=value]`, bare paths, readers from outside the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from open_cloc.data.readers import guess_spec, open_reader
from open_cloc.errors import UserError
from open_cloc.samples import RegionSample
from tests.data.readers.made import coco_document, pictures, write_coco, write_panoptic, write_yolo


class Outside:
    """A reader from outside the package."""

    def __init__(self, path: str, suffix: str = "") -> None:
        self.text = path + suffix

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> RegionSample:
        return RegionSample(self.text, b"")


def test_readers_from_outside_the_package() -> None:
    assert open_reader(f"{__name__}:Outside:some/path,suffix=!")[0].key == "some/path!"
    assert open_reader(f"{__name__}:Outside:a,b/c")[0].key == "a,b/c"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "ark:data",
            "'ark:data' is neither an existing path nor FORMAT:PATH (FORMAT: coco, lvis, yolo",
        ),
        ("coco", "'coco' is neither an existing path nor FORMAT:PATH"),
        ("coco:x,folder=y", "unknown option 'folder' in 'coco:x,folder=y'; expected one of images, captions"),
        (
            "shards:x,images=y",
            "unknown option 'images' in 'shards:x,images=y'; expected one of cache, cache_gb",
        ),
        ("no.such:Reader:x", "no reader at 'no.such:Reader': No module named 'no'"),
        ("open_cloc.boxes:Nope:x", "no reader at 'open_cloc.boxes:Nope'"),
    ],
)
def test_wrong_specs_are_named(spec: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        open_reader(spec)
    assert message in str(caught.value)


def test_bare_paths_are_recognised(tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/00000.tar").touch()
    path = write_coco(tmp_path, coco_document())
    assert guess_spec(str(tmp_path)) == f"coco:{tmp_path}"
    assert guess_spec(str(path)) == f"coco:{path}"
    assert guess_spec(str(tmp_path / "tars")) == f"shards:{tmp_path / 'tars'}"
    assert guess_spec("x/{00000..00003}.tar") == "shards:x/{00000..00003}.tar"
    assert guess_spec("scenes:val") == "scenes:val"
    assert guess_spec("my.module:Reader:x") == "my.module:Reader:x"
    with pytest.raises(FileNotFoundError, match="neither an existing path nor FORMAT:PATH"):
        guess_spec(str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds nothing known"):
        guess_spec(str(tmp_path / "empty"))
    (tmp_path / "00000.tar").touch()
    with pytest.raises(ValueError, match="looks like coco and like shards; give the format as FORMAT:"):
        guess_spec(str(tmp_path))


def test_a_bare_path_may_have_options(tmp_path: Path) -> None:
    pictures(tmp_path / "a,b", "x.png")
    assert guess_spec(f"{tmp_path / 'a,b'},exif=apply") == f"folder:{tmp_path / 'a,b'},exif=apply"
    assert len(open_reader(f"{tmp_path / 'a,b'},outside=true")) == 1


@pytest.mark.parametrize("form", ["coco", "yolo", "shards"])
def test_data_sets_below_a_folder_are_named(tmp_path: Path, form: str) -> None:
    """As Roboflow exports `train` and `valid`: whoever gives the folder above wants the boxes."""
    for split in ("train", "valid"):
        folder = tmp_path / split
        folder.mkdir()
        if form == "coco":
            write_coco(folder, coco_document(), "_annotations.coco.json")
        elif form == "yolo":
            write_yolo(folder, {"a": ["0 .5 .5 1 1"]})
        else:
            (folder / "00000.tar").touch()
    with pytest.raises(UserError, match="holds data sets in its folders; give one of") as caught:
        guess_spec(str(tmp_path))
    assert f"{form}:{tmp_path}/train, {form}:{tmp_path}/valid" in str(caught.value)
    assert (f"folder:{tmp_path} for its pictures alone" in str(caught.value)) == (form != "shards")


def test_what_no_reader_knows_is_named(tmp_path: Path) -> None:
    (tmp_path / "labelme.json").write_text('{"shapes": [{"label": "mug"}], "imagePath": "a.jpg"}')
    (tmp_path / "voc.xml").write_text("<annotation><bndbox></bndbox></annotation>")
    (tmp_path / "windows.json").write_text('{"images": [], "annotations": [{"bbox": []}]}', encoding="utf-16")
    (tmp_path / "found.json").write_text('[{"image_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}]')
    for name, tool in (
        ("labelme.json", "labelme"),
        ("windows.json", "COCO"),
        ("found.json", "COCO's detection results"),
    ):
        with pytest.raises(
            UserError, match=f"holds boxes of {tool}, which no reader knows: export it as COCO"
        ):
            open_reader(str(tmp_path / name))
    with pytest.raises(UserError, match=f"is of one picture: give its folder, voc:{tmp_path}"):
        open_reader(str(tmp_path / "voc.xml"))
    (tmp_path / "voc.xml").unlink()
    for number in range(5):
        (tmp_path / f"train-{number}.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"holds tables; give one of table:.*-0\.parquet, .* and 2 more"):
        open_reader(str(tmp_path))


def test_a_json_in_a_folder_of_annotations_is_found(tmp_path: Path) -> None:
    (tmp_path / "Annotations").mkdir()
    path = write_coco(tmp_path, coco_document(), "result.json")
    path.rename(tmp_path / "Annotations/result.json")
    assert guess_spec(str(tmp_path)) == f"coco:{tmp_path}"
    assert len(open_reader(str(tmp_path))) == 2


def test_segments_of_pictures_are_no_pictures(tmp_path: Path) -> None:
    """Of COCO's root with panoptic annotations alone the PNGs were taken for pictures."""
    path = write_panoptic(tmp_path)
    (tmp_path / "annotations").mkdir(exist_ok=True)
    path.rename(tmp_path / "annotations" / path.name)
    with pytest.raises(
        UserError, match=f"describes its pictures; give one of panoptic:.*{path.name}, or folder:"
    ):
        guess_spec(str(tmp_path))


def test_parts_with_a_digest_are_one_table(tmp_path: Path) -> None:
    for part in (0, 1):
        (tmp_path / f"train-0000{part}-of-00002-abcdef0123456789.parquet").touch()
    with pytest.raises(UserError, match=r"holds tables; give one of table:[^,]*/train-\*\.parquet$"):
        guess_spec(str(tmp_path))
