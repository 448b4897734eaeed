"""Pascal VOC's folders, and what other tools make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from open_cloc.data.readers import guess_spec, open_reader
from open_cloc.errors import MissingFileError, SampleError, UserError
from tests.data.readers.made import VOC, picture_of, samples, write_voc

BOX, OTHER = (0.1, 0.1, 0.3, 0.3), (0.5, 0.5, 1.0, 1.0)


def test_voc(tmp_path: Path) -> None:
    dataset: Any = open_reader(f"voc:{write_voc(tmp_path)}")
    (sample,) = samples(dataset)
    assert sample.image == tmp_path / "JPEGImages" / "2008_000008.jpg"
    assert [(region.text, pytest.approx(region.box)) for region in sample.regions] == [
        ("horse", BOX),
        ("person", OTHER),
    ]
    assert dataset.left_out == {"parts of objects": 1}
    assert len(open_reader(f"voc:{tmp_path},split=val")) == 1


def test_xml_files_beside_renamed_pictures(tmp_path: Path) -> None:
    """As LabelImg and Roboflow leave them: the name inside is another machine's."""
    (tmp_path / "a.xml").write_text(VOC.replace("2008_000008.jpg", "C:\\\\photos\\\\old.jpg"))
    picture_of(tmp_path, "a.png")
    (sample,) = samples(open_reader(f"voc:{tmp_path}"))
    assert sample.image == tmp_path / "a.png"
    assert guess_spec(str(tmp_path)) == f"voc:{tmp_path}"


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>"])
def test_a_size_that_is_not_there_is_the_pictures(tmp_path: Path, size: str) -> None:
    write_voc(tmp_path)
    start, end = VOC.index("<size>"), VOC.index("</size>") + len("</size>")
    (tmp_path / "Annotations" / "2008_000008.xml").write_text(VOC[:start] + size + VOC[end:])
    (sample,) = samples(open_reader(f"voc:{tmp_path}"))
    assert sample.regions[0].box == pytest.approx(BOX)


def test_splits(tmp_path: Path) -> None:
    write_voc(tmp_path)
    with pytest.raises(MissingFileError, match=r"no list 'train' in .*there is val"):
        open_reader(f"voc:{tmp_path},split=train")
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("x 1\n2008_000008 -1\n")
    with pytest.raises(UserError, match=r"names 1 of 2 pictures without XML: \['x'\]"):
        open_reader(f"voc:{tmp_path},split=train")


def test_objects_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    write_voc(tmp_path)
    path = tmp_path / "Annotations" / "2008_000008.xml"
    path.write_text(VOC.replace("<xmin>10</xmin>", "<xmin>ten</xmin>"))
    with pytest.raises(SampleError, match=r"object 0: xmin must be a number; got 'ten' \(.*2008_000008\.xml"):
        open_reader(f"voc:{tmp_path}")[0]
    path.write_text(VOC.replace("<xmax>30</xmax>", "<xmax>300</xmax>"))
    with pytest.raises(SampleError, match=r"outside.*2008_000008\.xml, object 0"):
        open_reader(f"voc:{tmp_path}")[0]
    path.write_text("<annotation>")
    with pytest.raises(UserError, match=r"no entry can be used; the first: .*is not XML"):
        open_reader(f"voc:{tmp_path}")
    path.unlink()
    with pytest.raises(MissingFileError, match="no XML files"):
        open_reader(f"voc:{tmp_path}")
    write_voc(tmp_path / "valid")
    with pytest.raises(MissingFileError, match=f"give one of voc:{tmp_path}/valid"):
        open_reader(f"voc:{tmp_path}")


def test_turned_boxes_and_outlines_are_named(tmp_path: Path) -> None:
    write_voc(tmp_path)
    turned = "<object><name>ship</name><robndbox><cx>5</cx></robndbox></object>"
    outline = "<object><name>lake</name><polygon><x1>1</x1></polygon></object>"
    content = VOC.replace("</annotation>", f"{turned}{outline}<object><name>x</name></object></annotation>")
    (tmp_path / "Annotations" / "2008_000008.xml").write_text(content)
    dataset: Any = open_reader(f"voc:{tmp_path}")
    assert dataset.left_out == {
        "parts of objects": 1,
        "objects with robndbox in place of a box": 1,
        "objects with polygon in place of a box": 1,
        "objects with nothing in place of a box": 1,
    }


def test_pictures_without_xml_are_counted(tmp_path: Path) -> None:
    folder = write_voc(tmp_path)
    for name in ("JPEGImages/2008_000009.jpg", "JPEGImages/2008_000010.jpg", "elsewhere/1.jpg"):
        picture_of(folder, name)
    (folder / "JPEGImages/._2008_000009.jpg").touch()
    dataset: Any = open_reader(f"voc:{folder}")
    assert dataset.left_out["pictures without an XML, not annotated"] == 2
    assert "pictures without" not in str(open_reader(f"voc:{folder},split=val").left_out)  # type: ignore[attr-defined]


@pytest.mark.parametrize("suffix", [".JPEG", ".JPG", ".PNG"])
def test_pictures_may_end_in_capitals(tmp_path: Path, suffix: str) -> None:
    """ImageNet's do, and the name in its XML has no end."""
    folder, name = tmp_path / "CLS-LOC" / "val", "ILSVRC2012_val_00000001"
    folder.mkdir(parents=True)
    (folder / f"{name}.xml").write_text(VOC.replace("2008_000008.jpg", name))
    picture_of(tmp_path, f"Data/{name}{suffix}")
    (sample,) = samples(open_reader(f"voc:{folder},images={tmp_path / 'Data'}"))
    assert sample.image == tmp_path / "Data" / f"{name}{suffix}"


def test_marks_of_difficult_objects_are_told(tmp_path: Path) -> None:
    write_voc(tmp_path)
    marked = VOC.replace("<name>horse</name>", "<name>horse</name><difficult>1</difficult>")
    (tmp_path / "Annotations" / "2008_000008.xml").write_text(marked)
    dataset: Any = open_reader(f"voc:{tmp_path}")
    assert dataset.left_out["marks of objects as difficult, which are boxes like others"] == 1
    assert len(dataset[0].regions) == 2
