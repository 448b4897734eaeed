"""`open-cloc index build | add | search | remove | export | info`: find regions among many pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tqdm import tqdm

from open_cloc.cli.data import open_source
from open_cloc.cli.detected import detectors
from open_cloc.cli.parse import parse_command
from open_cloc.cli.predict import parse_box
from open_cloc.cli.screen import say, say_json
from open_cloc.data.annotations import SampleDataset
from open_cloc.data.bad_samples import listed, read_usable, tell_opening
from open_cloc.draw import check_output, write_picture
from open_cloc.errors import UserError
from open_cloc.inference.predictor import load
from open_cloc.model.load import Dtype

if TYPE_CHECKING:
    from open_cloc.index.query import Query
    from open_cloc.index.region_index import RegionIndex
    from open_cloc.index.search import Hit
    from open_cloc.index.store import Store
    from open_cloc.model.region_sources import RegionSource

Place = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX", help="Its folder or URL.")]
LOOKED_AT = 100  # samples, to see whether data has boxes

Data = Annotated[str, tyro.conf.arg(metavar="PATH|FORMAT:PATH", help="Pictures; a folder of them will do.")]


@dataclass(frozen=True)
class AddOptions:
    """Which regions of pictures are added, and how.

    Attributes:
        data: Pictures.
        regions: Where regions come from, one or more of labels; grid:COUNT; detector:WEIGHTS,phrases=A,B or a
            file with one a line; and module:function. Unless given, labels, or a grid where there are none.
        tokens: Folder that keeps what the tower makes of each picture.
        batch_size: Pictures that go through the tower together.
        max_bad_fraction: Share of unusable pictures to leave out.
        device: cpu, cuda, ...; a GPU if there is one.
    """

    data: Data
    regions: tuple[str, ...] = ()
    tokens: Path | None = None
    batch_size: int = 16
    max_bad_fraction: float = 0.0
    device: str | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"--batch-size must be at least 1; got {self.batch_size}")
        if not 0 <= self.max_bad_fraction <= 1:
            raise UserError(f"--max-bad-fraction must be in [0, 1]; got {self.max_bad_fraction}")


@dataclass(frozen=True)
class SearchOptions:
    """What is looked for, and what is done with the hits.

    Attributes:
        text: What to look for; several are added up.
        minus: What not to look for; half of it is taken away.
        image: A picture to look for others like it, or whose box is looked for.
        box: Box of --image, four pixel numbers joined by commas: 10,20,200,180.
        like: A region of the index to look for others like it, by its id.
        limit: Most hits.
        where: A filter in SQL, such as "area > 0.1 AND source = 'coco'".
        rows: Regions, whole pictures, or all; auto takes pictures for --image alone.
        exact: Compare with every region, also where an approximate index is there.
        fold: One hit for boxes that overlap much, and for copies of a picture.
        rerank: Look for the texts in the pictures of the best 100, and rank them again.
        output: Draw the hits on this picture, .png, .jpg or .webp.
        json: Print JSON instead of lines.
        weights: Model folder or hub id; the one that the index was made by unless given.
        tokens: Folder that keeps what the tower makes of each picture.
        device: cpu, cuda, ...; a GPU if there is one.
    """

    text: tyro.conf.Positional[tuple[str, ...]] = ()
    minus: tuple[str, ...] = ()
    image: Path | None = None
    box: str = ""
    like: str = ""
    limit: int = 10
    where: str = ""
    rows: Literal["auto", "regions", "pictures", "all"] = "auto"
    exact: bool = False
    fold: bool = True
    rerank: bool = False
    output: Path | None = None
    json: bool = False
    weights: str = ""
    tokens: Path | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if not (self.text or self.image or self.like):
            raise UserError("nothing to look for; give a text, --image (with --box), or --like")
        if self.box and self.image is None:
            raise UserError("--box needs --image: it is a box of that picture")
        if self.rerank and not self.text:
            raise UserError("--rerank needs a text to look for")
        if self.limit < 1:
            raise UserError(f"--limit must be at least 1; got {self.limit}")


ToAdd = Annotated[AddOptions, tyro.conf.arg(name="")]
ToSearch = Annotated[SearchOptions, tyro.conf.arg(name="")]


def build(
    index: Place,
    options: ToAdd,
    weights: str,
    columns: tuple[str, ...] = (),
    thumbnail: int = 320,
    dtype: Dtype = "fp32",
) -> int:
    """Make an index of the regions of pictures.

    Args:
        weights: Model folder or hub id.
        columns: Metadata to filter by, such as split=text year=number.
        thumbnail: Longer side of the small pictures that the index keeps; 0 keeps none.
        dtype: Type of the towers' weights; bf16 is several times as fast where the processor has it.
    """
    from open_cloc.index.region_index import RegionIndex, check_thumbnail
    from open_cloc.index.store import check_place, require_lancedb

    require_lancedb()
    kinds = dict(column.partition("=")[::2] for column in columns)
    check_thumbnail(thumbnail)
    check_place(index)
    dataset, sources = _opened(options)  # all that may be wrong, before there is an index
    predictor = load(weights, options.device, dtype=dtype)
    known_at = str(Path(weights).resolve()) if Path(weights).is_dir() else weights
    made = RegionIndex.build(
        index, predictor, weights=known_at, columns=kinds, thumbnail=thumbnail, tokens=options.tokens
    )
    return _add(made, dataset, sources, options)


def add(index: Place, options: ToAdd, weights: str = "") -> int:
    """Add pictures to an index; those that are there are left, so a stopped run goes on.

    Args:
        weights: Model folder or hub id; the one that the index was made by unless given.
    """
    store = _open(index)
    dataset, sources = _opened(options)
    return _add(_with_model(store, weights, options.tokens, options.device), dataset, sources, options)


def search(index: Place, options: ToSearch) -> int:
    """Find regions by texts, by a box of a picture, by a picture, or by several of these together."""
    if options.output is not None:
        check_output(options.output, [options.image] if options.image else [])
    box = parse_box(options.box) if options.box else None
    store = _open(index)
    store.count(options.where)  # a wrong filter is told before the model is loaded
    opened = _with_model(store, options.weights, options.tokens, options.device)
    hits = opened.search(
        _query(opened, options, box),
        options.limit,
        where=options.where,
        rows=None if options.rows == "auto" else options.rows,
        exact=options.exact,
        fold=options.fold,
        rerank=options.rerank,
    )
    if options.output is not None and hits:
        write_picture(options.output, opened.sheet(hits))
        say(f"drew the hits on {options.output}", to_errors=True)
    if options.json:
        say_json({"hits": [hit.as_json() for hit in hits]})
    else:
        say("\n".join(_line(number, hit) for number, hit in enumerate(hits, 1)) or _nothing(store, options))
    return 0


def remove(index: Place, where: str) -> int:
    """Take pictures out of an index, each with all of its regions.

    Args:
        where: A filter in SQL that names them, such as "path LIKE '/photos/private/%'"; a picture goes if one
            of its regions does.
    """
    store = _open(index)
    removed = store.remove(where)
    from open_cloc.index.rows import PICTURES

    say(f"removed {removed} pictures; {store.count(PICTURES)} are left")
    return 0


def export(index: Place, output: tyro.conf.Positional[Path]) -> int:
    """Write embeddings as .npy and what they are of as .parquet, row by row.

    Args:
        output: New or empty folder.
    """
    store = _open(index)
    from open_cloc.index.export import export_index
    from open_cloc.index.rows import REGIONS

    with _progress(store.count(REGIONS), "regions") as bar:
        count = export_index(store, output, progress=bar.update)
    say(f"wrote {count} regions to {output}")
    return 0


def info(index: Place) -> int:
    """Say what an index holds."""
    store = _open(index)
    from open_cloc.index.rows import PICTURES, REGIONS

    say(f"pictures: {store.count(PICTURES)}")
    say(f"regions: {store.count(REGIONS)}")
    say(f"model: {store.about.weights or store.about.model}")
    if store.about.dtype != "fp32":
        say(f"type of weights: {store.about.dtype}")
    columns = ", ".join(f"{name} ({kind})" for name, kind in store.about.columns.items())
    say(f"columns of metadata: {columns or 'none'}")
    return 0


def main(argv: Sequence[str]) -> int:
    """Run one of the commands; returns the exit code."""
    commands: dict[str, Callable[..., int]] = {
        "build": build,
        "add": add,
        "search": search,
        "remove": remove,
        "export": export,
        "info": info,
    }
    return parse_command(commands, argv, "open-cloc index", __doc__ or "")()


def _open(index: str) -> Store:
    from open_cloc.index.store import Store

    return Store.open(index)


def _with_model(store: Store, weights: str, tokens: Path | None, device: str | None) -> RegionIndex:
    from open_cloc.index.region_index import RegionIndex

    weights = weights or store.about.weights
    if not weights:
        raise UserError("this index does not say where its model is: give --weights")
    return RegionIndex(store, load(weights, device, dtype=store.about.dtype or None), tokens)


def _opened(options: AddOptions) -> tuple[SampleDataset, list[RegionSource]]:
    """The pictures, and where their regions come from."""
    from open_cloc.model.region_sources import open_regions

    sources = [open_regions(spec, {"detector": detectors(options.device)}) for spec in options.regions]
    dataset = open_source(options.data)
    if not sources:
        spec = "labels" if _has_regions(dataset) else "grid"
        if spec == "grid":
            say(
                f"{options.data} has no boxes of its own: a grid of boxes is laid over each picture",
                to_errors=True,
            )
        sources = [open_regions(spec)]
    hint = "--max-bad-fraction leaves them out"
    tell_opening(dataset, options.data, options.max_bad_fraction, hint)
    return dataset, sources


def _has_regions(dataset: SampleDataset) -> bool:
    """Whether any of a hundred samples, evenly spaced, has a box; a folder of pictures has none."""
    step = max(1, len(dataset) // LOOKED_AT)
    samples = (read_usable(dataset, number)[0] for number in range(0, len(dataset), step))
    return any(sample is not None and sample.regions for sample in samples)


def _add(
    index: RegionIndex, dataset: SampleDataset, sources: Sequence[RegionSource], options: AddOptions
) -> int:
    with _progress(len(dataset), "images") as bar:
        try:
            added = index.add(
                dataset,
                *sources,
                batch_size=options.batch_size,
                max_bad_fraction=options.max_bad_fraction,
                progress=bar.update,
            )
        except KeyboardInterrupt as stop:
            stop.args = ("index add goes on with what is left",)
            raise
    known = f"; {added.known} known already, left as they are" if added.known else ""
    left_out = f"; left out {added.causes.total()} ({listed(added.causes)})" if added.causes else ""
    say(f"added {added.pictures} pictures with {added.regions} regions{known}{left_out}")
    if added.pictures and not added.regions:
        say(
            "no picture has regions: whole pictures can be found; --regions grid makes boxes of all sizes",
            to_errors=True,
        )
    return 0


def _query(index: RegionIndex, options: SearchOptions, box: Sequence[float] | None) -> Query:
    from open_cloc.index.query import total

    parts = [index.text(each) for each in options.text]
    if options.image is not None:
        parts.append(index.picture(options.image) if box is None else index.box(options.image, box))
    if options.like:
        parts.append(index.row(options.like))
    return total(parts, [index.text(each) for each in options.minus])


def _line(number: int, hit: Hit) -> str:
    box = ",".join(f"{side:.0f}" for side in hit.box)
    text = f" {' '.join(hit.text.split())}" if hit.text else ""
    more = f" (+{len(hit.folded)} alike)" if hit.folded else ""
    found = "" if hit.overlap is None else f" overlap {hit.overlap:.2f}"
    return f"{number}. {hit.score:.3f}{found} {hit.path or hit.key} box {box}{text}{more} [{hit.id}]"


def _nothing(store: Store, options: SearchOptions) -> str:
    """Why there is no hit, as far as the index knows."""
    from open_cloc.index.rows import REGIONS

    if not store.count():
        return "nothing found: the index is empty"
    if options.where and not store.count(options.where):
        return f"nothing found: the filter {options.where!r} leaves nothing"
    if not store.count(REGIONS):
        return "nothing found: the index has no regions; --rows pictures looks for whole pictures"
    return "nothing found"


def _progress(total: int, unit: str) -> tqdm:
    """A bar on a terminal, silence in a log."""
    return tqdm(total=total, unit=f" {unit}", disable=None, leave=False)
