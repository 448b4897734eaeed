"""`open-cloc index build | add | search | export | info`: find regions among many pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tqdm import tqdm

from open_cloc.cli.data import open_source
from open_cloc.cli.parse import parse_command
from open_cloc.cli.predict import parse_box
from open_cloc.cli.screen import say, say_json
from open_cloc.config import require
from open_cloc.data.bad_samples import listed, tell_opening
from open_cloc.draw import check_output, write_picture
from open_cloc.errors import UserError
from open_cloc.inference.predictor import load

if TYPE_CHECKING:
    from open_cloc.index.query import Query
    from open_cloc.index.region_index import RegionIndex
    from open_cloc.index.search import Hit

Place = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX", help="Its folder or URL.")]
Data = Annotated[str, tyro.conf.arg(metavar="PATH|FORMAT:PATH", help="Pictures; a folder of them will do.")]


def build(
    index: Place,
    data: Data,
    weights: str,
    regions: tuple[str, ...] = ("labels",),
    columns: tuple[str, ...] = (),
    thumbnail: int = 320,
    tokens: Path | None = None,
    batch_size: int = 16,
    max_bad_fraction: float = 0.0,
    device: str | None = None,
) -> int:
    """Make an index of the regions of pictures.

    Args:
        weights: Model folder or hub id.
        regions: Where regions come from, one or more of labels, grid:COUNT and module:function.
        columns: Metadata to filter by, such as split=text year=number.
        thumbnail: Longer side of the small pictures that the index keeps; 0 keeps none.
        tokens: Folder that keeps what the tower makes of each picture.
        batch_size: Pictures that go through the tower together.
        max_bad_fraction: Share of unusable pictures to leave out.
        device: cpu, cuda, ...; a GPU if there is one.
    """
    require("lancedb", "index")
    from open_cloc.index.region_index import RegionIndex

    kinds = dict(column.partition("=")[::2] for column in columns)
    if thumbnail < 0:
        raise UserError(f"--thumbnail must be at least 0; got {thumbnail}")
    _check_numbers(batch_size, max_bad_fraction)
    predictor = load(weights, device)
    known_at = str(Path(weights).resolve()) if Path(weights).is_dir() else weights
    made = RegionIndex.build(
        index, predictor, weights=known_at, columns=kinds, thumbnail=thumbnail, tokens=tokens
    )
    return _add(made, data, regions, batch_size, max_bad_fraction)


def add(
    index: Place,
    data: Data,
    regions: tuple[str, ...] = ("labels",),
    weights: str = "",
    tokens: Path | None = None,
    batch_size: int = 16,
    max_bad_fraction: float = 0.0,
    device: str | None = None,
) -> int:
    """Add pictures to an index; those that are there are left, so a stopped run goes on.

    Args:
        regions: Where regions come from, one or more of labels, grid:COUNT and module:function.
        weights: Model folder or hub id; the one that the index was made by unless given.
        tokens: Folder that keeps what the tower makes of each picture.
        batch_size: Pictures that go through the tower together.
        max_bad_fraction: Share of unusable pictures to leave out.
        device: cpu, cuda, ...; a GPU if there is one.
    """
    _check_numbers(batch_size, max_bad_fraction)
    return _add(_open(index, weights, tokens, device), data, regions, batch_size, max_bad_fraction)


def search(
    index: Place,
    text: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    minus: tuple[str, ...] = (),
    image: Path | None = None,
    box: str = "",
    like: str = "",
    limit: int = 10,
    where: str = "",
    rows: Literal["auto", "regions", "pictures", "all"] = "auto",
    exact: bool = False,
    fold: bool = True,
    rerank: bool = False,
    output: Path | None = None,
    json: bool = False,
    weights: str = "",
    tokens: Path | None = None,
    device: str | None = None,
) -> int:
    """Find regions by texts, by a box of a picture, by a picture, or by several of these together.

    Args:
        text: What to look for; several are added up.
        minus: What not to look for; taken away.
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
    if output is not None:
        check_output(output, [image] if image else [])
    if not (text or image or like):
        raise UserError("nothing to look for; give a text, --image (with --box), or --like")
    if box and image is None:
        raise UserError("--box needs --image: it is a box of that picture")
    if rerank and not text:
        raise UserError("--rerank needs a text to look for")
    opened = _open(index, weights, tokens, device)
    query = _query(opened, text, minus, image, box, like)
    hits = opened.search(
        query,
        limit,
        where=where,
        rows=None if rows == "auto" else rows,
        exact=exact,
        fold=fold,
        rerank_by=", ".join(text) if rerank else "",
    )
    if output is not None and hits:
        write_picture(output, opened.sheet(hits))
    if json:
        say_json({"hits": [hit.as_json() for hit in hits]})
    else:
        say("\n".join(_line(number, hit) for number, hit in enumerate(hits, 1)) or "nothing found")
    return 0


def export(index: Place, output: tyro.conf.Positional[Path]) -> int:
    """Write embeddings as .npy and what they are of as .parquet, row by row.

    Args:
        output: New or empty folder.
    """
    require("lancedb", "index")
    from open_cloc.index.export import export_index
    from open_cloc.index.store import Store

    store = Store.open(index)
    with _progress(store.count(), "rows") as bar:
        count = export_index(store, output, progress=bar.update)
    say(f"wrote {count} regions to {output}")
    return 0


def info(index: Place) -> int:
    """Say what an index holds."""
    require("lancedb", "index")
    from open_cloc.index.rows import PICTURE
    from open_cloc.index.store import Store

    store = Store.open(index)
    pictures = store.count(f"source = '{PICTURE}'")
    say(f"pictures: {pictures}")
    say(f"regions: {store.count() - pictures}")
    say(f"model: {store.about.weights or store.about.model}")
    columns = ", ".join(f"{name} ({kind})" for name, kind in store.about.columns.items())
    say(f"columns of metadata: {columns or 'none'}")
    return 0


def main(argv: Sequence[str]) -> int:
    """Run one of the commands; returns the exit code."""
    commands: dict[str, Callable[..., int]] = {
        "build": build,
        "add": add,
        "search": search,
        "export": export,
        "info": info,
    }
    return parse_command(commands, argv, "open-cloc index", __doc__ or "")()


def _check_numbers(batch_size: int, max_bad_fraction: float) -> None:
    if batch_size < 1:
        raise UserError(f"--batch-size must be at least 1; got {batch_size}")
    if not 0 <= max_bad_fraction <= 1:
        raise UserError(f"--max-bad-fraction must be in [0, 1]; got {max_bad_fraction}")


def _open(index: str, weights: str, tokens: Path | None, device: str | None) -> RegionIndex:
    require("lancedb", "index")
    from open_cloc.index.region_index import RegionIndex
    from open_cloc.index.store import Store

    store = Store.open(index)
    weights = weights or store.about.weights
    if not weights:
        raise UserError("this index does not say where its model is: give --weights")
    return RegionIndex(store, load(weights, device), tokens)


def _add(
    index: RegionIndex, data: str, regions: Sequence[str], batch_size: int, max_bad_fraction: float
) -> int:
    dataset = open_source(data)
    tell_opening(dataset, data, max_bad_fraction, "--max-bad-fraction leaves them out")
    with _progress(len(dataset), "images") as bar:
        added = index.add(
            dataset,
            *regions,
            batch_size=batch_size,
            max_bad_fraction=max_bad_fraction,
            progress=bar.update,
        )
    known = f"; {added.known} were there" if added.known else ""
    left_out = f"; left out {added.causes.total()} ({listed(added.causes)})" if added.causes else ""
    say(f"added {added.pictures} pictures with {added.regions} regions{known}{left_out}")
    if added.pictures and not added.regions:
        say(
            "no picture has regions: whole pictures can be found; --regions grid makes boxes of all sizes",
            to_errors=True,
        )
    return 0


def _query(
    index: RegionIndex, text: Sequence[str], minus: Sequence[str], image: Path | None, box: str, like: str
) -> Query:
    parts = [index.text(each) for each in text]
    if image is not None:
        parts.append(index.box(image, parse_box(box)) if box else index.picture(image))
    if like:
        parts.append(index.row(like))
    query = parts[0]
    for part in parts[1:]:
        query = query + part
    for each in minus:
        query = query - index.text(each)
    return query


def _line(number: int, hit: Hit) -> str:
    box = ",".join(f"{side:.0f}" for side in hit.box)
    more = f" (+{len(hit.folded)} alike)" if hit.folded else ""
    return f"{number}. {hit.score:.3f} {hit.path or hit.key} box {box} {hit.text}{more} [{hit.id}]"


def _progress(total: int, unit: str) -> tqdm:
    """A bar on a terminal, silence in a log."""
    return tqdm(total=total, unit=f" {unit}", disable=None, leave=False)
