"""RefCOCO in Parquet, as the hub has it: `jxu124/refcoco` with names of pictures, `lmms-lab/RefCOCO` with
the pictures in it.

Neither names the other boxes of a picture, so an expression is the text of its box: for training and for
grounding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from open_cloc.data.annotations import Problem, RawRegion, RawSample, finish
from open_cloc.data.fields import FieldError, as_box, as_id, as_text, field_of, shown
from open_cloc.data.readers.packed import Entry, PackedDataset, of_image, picture_folders, problem_in
from open_cloc.data.readers.referring import FOLDERS, NUMBERED, reference_of, require_one_name
from open_cloc.data.readers.rows import Row, Rows, open_rows, parts_of
from open_cloc.errors import SampleError, UserError
from open_cloc.files import parse_json
from open_cloc.samples import RegionSample

SOURCE = "refcoco"
NAMED = ("image_id", "file_name", "ref_id", "ann_id", "split", "sentences", "bbox", "raw_anns")
HELD = ("question_id", "image", "answer", "bbox", "file_name")
SLACK = 1.0  # pixels by which two notes of one box may differ


def recognises(text: str) -> bool:
    """Whether this is Parquet with the columns of either."""
    file = Path(text)
    if file.suffix.lower() != ".parquet" or not (file.is_file() or parts_of(file)):
        return False
    try:
        columns = set(open_rows(file).columns)
    except UserError:  # no Parquet, or nothing to read it with: said by who opens it
        return False
    return columns >= set(NAMED) or columns >= set(HELD)


def open_refcoco_table(
    path: str, split: str = "", images: Path | None = None, outside: bool = False
) -> PackedDataset | HeldReferences:
    """Open references in Parquet.

    Args:
        path: The file; with a `*` in its name all such files.
        split: One of the column `split`, such as `train` or `testA`; all unless given.
        images: Folder of COCO's train2014; beside the file unless given.
        outside: Allow pictures that do not lie in the data set's folder.

    Raises:
        MissingFileError: If the file or the pictures are missing.
        UserError: If the columns are others, or there is no such split.
    """
    rows = open_rows(Path(path))
    if set(rows.columns) >= set(NAMED):
        problems: list[Problem] = []
        entries = list(_entries(rows, split, problems))
        folders = picture_folders(rows.file, images, *FOLDERS)
        return PackedDataset(
            rows.file, folders, entries, box_format="xyxy", problems=problems, outside=outside
        )
    if not set(rows.columns) >= set(HELD):
        raise UserError(
            f"needs the columns {', '.join(NAMED)}, or {', '.join(HELD)}; got {', '.join(rows.columns)} "
            f"({rows.file})"
        )
    if split:
        raise UserError(f"split: a file of this form is one split; drop split={split} ({rows.file})")
    return HeldReferences(rows)


def _entries(rows: Rows, split: str, problems: list[Problem]) -> Iterator[Entry]:
    """A picture with a region for each expression."""
    pictures: dict[str, tuple[str, list[RawRegion]]] = {}
    names: dict[str, str] = {}
    splits: Counter[str] = Counter()
    for number, row in enumerate(rows.scan(NAMED)):
        if isinstance(row, SampleError):
            problems.append(Problem(row.cause, str(row)))
            continue
        try:
            own = as_text(field_of(row, "split"), "split")
            splits[own] += 1
            if split and own != split:
                continue
            reference = reference_of(row, f"row {number}")
            box = _box(row)
            name = NUMBERED.sub("", as_text(field_of(row, "file_name"), "file_name"))
            image = as_id(field_of(row, "image_id"), "image_id")
            require_one_name(names, image, name)
        except FieldError as error:
            problems.append(problem_in(error, f"row {number}", rows.file))
            continue
        regions = pictures.setdefault(image, (name, []))[1]
        regions += [RawRegion(box, text, f"row {number}", source=SOURCE) for text in reference.expressions]
    if split and split not in splits:
        raise UserError(f"no split {split!r} in {rows.file}; it has {', '.join(sorted(splits)) or 'none'}")
    for image, (name, regions) in pictures.items():
        yield Entry(name, regions, (), None, of_image(image))


def _box(row: Mapping[str, Any]) -> tuple[float, ...]:
    """A reference's box `xyxy`, as the row and its COCO annotation both have it.

    The row has corners on the hub, and sides in copies: either is the annotation's box, which is `xywh`.

    Raises:
        FieldError: If they say different things.
    """
    box = as_box(field_of(row, "bbox"), "bbox")
    written = as_text(field_of(row, "raw_anns"), "raw_anns")
    try:
        annotation = parse_json(written.encode(), "raw_anns")
    except UserError as error:
        raise FieldError(str(error)) from None
    if not isinstance(annotation, dict):
        raise FieldError(f"raw_anns must be an object; got {shown(annotation)}")
    sides = as_box(field_of(annotation, "bbox"), "bbox [x, y, w, h] of raw_anns")
    corners = (*sides[:2], sides[0] + sides[2], sides[1] + sides[3])
    if not any(max(abs(a - b) for a, b in zip(box, same)) <= SLACK for same in (corners, sides)):
        raise FieldError(
            f"bbox {list(box)} and raw_anns' {list(sides)} are different boxes, read as xyxy or as xywh",
            "other box",
        )
    return corners


class HeldReferences:
    """Rows with a picture, a box `xywh` in pixels and its expressions each.

    Attributes:
        problems: None: what is wrong belongs to a row.
        left_out: Likewise none.
        class_names: None.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows, self.where = rows, str(rows.file)
        self.problems: list[Problem] = []
        self.left_out: Counter[str] = Counter()
        self.class_names: tuple[str, ...] = ()
        if not len(rows):
            raise UserError(f"table has no rows ({self.where})")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> RegionSample:
        """A sample; raises `SampleError` where the row is broken."""
        return finish(self.raw(index))

    def raw(self, index: int) -> RawSample:
        """A sample with its box as in the file.

        Raises:
            SampleError: If the row cannot be read, or has no picture, box or expression.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)} ({self.where})")
        where = f"{self.where}, row {index}"
        row = self._rows[index]
        try:
            picture = _picture(row)
            box = as_box(field_of(row, "bbox"), "bbox [x, y, w, h]")
            answers = row.get("answer")
            if not isinstance(answers, list) or not answers:
                raise FieldError(f"answer must be a list of expressions; got {shown(answers)}")
            texts = [as_text(text, "answer").strip() for text in answers]
            name = as_text(field_of(row, "file_name"), "file_name")
        except FieldError as error:
            raise SampleError(f"{error} ({where})", error.cause) from error
        return RawSample(
            key=f"{index:09d}",
            image=picture,
            size_hw=None,
            where=where,
            regions=tuple(RawRegion(box, text, f"answer {n}", source=SOURCE) for n, text in enumerate(texts)),
            box_format="xywh",
            normalized=False,
            metadata={"file_name": name},
        )


def _picture(row: Row) -> bytes:
    """The encoded picture in a row."""
    value = row.get("image")
    encoded = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(encoded, bytes) or not encoded:
        raise FieldError(f"image must hold a picture's bytes; got {shown(value)}", "no picture")
    return encoded
