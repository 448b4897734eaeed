"""What a labelling run made, to look at: `report.html`, `report.json` and a contact sheet."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from open_cloc.data.shards.read import ShardDataset
from open_cloc.draw import contact_sheet
from open_cloc.errors import UserError
from open_cloc.files import write_json, write_text, write_whole
from open_cloc.labelling.output import REPORT_NUMBERS, REPORT_PAGE, REPORT_SHEET, RunFolder
from open_cloc.labelling.stats import Totals, mean_of
from open_cloc.samples import RegionSample

# What the paper's 300 million labelled pictures have, by alt-text and by VESL.
PAPER = {
    "regions a picture": (5.1, 11.6),
    "tokens of a region's text": (3.9, 2.1),
    "tokens of a caption": (17.1, 44.9),
}
TOTALS = (
    "pictures",
    "written",
    "captions_cut",
    "phrases",
    "without_phrase",
    "raw_boxes",
    "regions",
    "without_region",
    "given_regions_replaced",
)
LEFT_OUT = ("not_read", "failures", "phrases_dropped", "boxes_dropped", "filtered")
PHRASES_SHOWN = 40
SHEET_SIZE = 16
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}
h1,h2{line-height:1.2}table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{padding:.2rem .9rem .2rem 0;
border-bottom:1px solid #ddd;text-align:left;vertical-align:top}td.n{text-align:right}img{max-width:100%}
code{background:#f2f2f2;padding:0 .2rem}.columns{columns:4 12rem}.bad{color:#a00}"""


def collect(run: RunFolder) -> dict[str, Any]:
    """The counts of all labelled shards, with the run's certificate, as JSON types."""
    totals, made = Totals(), {"recipe": run.certificate["recipe"], "made_by": {}, "software": {}}
    done = 0
    for done, (_, mark) in enumerate(run.marks(), start=1):
        totals.add(mark["counts"])
        if done == 1:
            made = {name: mark[name] for name in made}
    return {
        "name": run.certificate["name"],
        "source": run.certificate["source"],
        "units": len(run.units),
        "labelled_units": done,
        **made,
        "counts": totals.as_json(),
    }


def summary(counts: Mapping[str, Any]) -> dict[str, float | None]:
    """The means that the paper gives for its labels, of these; None where there is nothing to count."""
    tables = counts["histograms"]
    return {
        "regions a picture": mean_of(tables["regions a picture"]),
        "tokens of a region's text": mean_of(tables["region tokens"]),
        "tokens of a caption": mean_of(tables["caption tokens"]),
    }


def write_report(output: Path) -> dict[str, Any]:
    """Write the three files of a run's report; returns what `report.json` holds.

    Args:
        output: The run's folder.

    Raises:
        MissingFileError: If it holds no labelling run.
        UserError: If nothing is labelled in it yet.
    """
    run = RunFolder.load(output)
    report = collect(run)
    if not report["counts"]:
        raise UserError(f"nothing is labelled yet in {output}")
    report["summary"] = summary(report["counts"])
    write_json(output / REPORT_NUMBERS, report)
    sheet = _sheet(run)
    if sheet is not None:
        with write_whole(output / REPORT_SHEET) as part:
            sheet.save(part, quality=85)
    write_text(output / REPORT_PAGE, _page(report, sheet is not None))
    return report


def mean_text(value: float | None, digits: int) -> str:
    """A mean for people; `none` where there was nothing to count."""
    return "none" if value is None else f"{value:.{digits}f}"


def _sheet(run: RunFolder) -> Image.Image | None:
    samples = list(_evenly(run))
    return Image.fromarray(contact_sheet(samples)) if samples else None


def _evenly(run: RunFolder) -> Iterator[RegionSample]:
    """Samples from all over a run; of its tars only those are opened that hold one of them."""
    sizes = {unit: mark["counts"]["written"] for unit, mark in run.marks()}
    total, first = sum(sizes.values()), 0
    count = min(SHEET_SIZE, total)
    chosen = [index * total // count for index in range(count)]
    for unit, size in sizes.items():
        inside = [index - first for index in chosen if first <= index < first + size]
        if inside:
            dataset = ShardDataset(str(run.tar(unit)))
            yield from (dataset[index] for index in inside)
        first += size


def _page(report: Mapping[str, Any], has_sheet: bool) -> str:
    counts = report["counts"]
    certificate = {name: report[name] for name in ("recipe", "made_by", "software")}
    parts = [
        f"<h1>Labels of {_text(report['source'])}</h1>",
        f"<p>Recipe <code>{_text(report['name'])}</code>, "
        f"{report['labelled_units']} of {report['units']} shards.</p>",
        _table(("", "count"), [(name.replace("_", " "), counts[name]) for name in TOTALS]),
        "<h2>Beside the paper's labels</h2>",
        _table(
            ("mean", "these", "paper, alt-text", "paper, VESL"),
            [(name, mean_text(value, 2), *PAPER[name]) for name, value in report["summary"].items()],
        ),
        "<h2>Contact sheet</h2><img src='sheet.jpg' alt='labelled pictures'>" if has_sheet else "",
        *_distributions(counts["histograms"]),
        *_left_out(counts),
        *_phrases(counts),
        f"<h2>Made by</h2><pre>{_text(json.dumps(certificate, indent=2, ensure_ascii=False))}</pre>",
    ]
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        f"<title>Labels: {_text(report['name'])}</title><style>{STYLE}</style>"
        + "\n".join(parts)
        + "</html>\n"
    )


def _distributions(histograms: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Histograms of what was counted; none where every picture has failed."""
    if not any(histograms.values()):
        return []
    return [
        "<h2>Distributions</h2>",
        f"<img alt='histograms' src='data:image/png;base64,{_plots(histograms)}'>",
    ]


def _left_out(counts: Mapping[str, Any]) -> list[str]:
    """What went no further at each stage, by cause, with examples of failures."""
    parts = ["<h2>Left out, by cause</h2>"]
    for name in LEFT_OUT:
        title = name.replace("_", " ")
        parts.append(f"<h3>{title}</h3>" + _table(("cause", "count"), counts[name].items()))
    examples = [message for messages in counts["failure_examples"].values() for message in messages]
    return parts + [f"<p class='bad'>{_text(message)}</p>" for message in examples]


def _phrases(counts: Mapping[str, Any]) -> list[str]:
    """The most frequent phrases, and the regions that the model itself does not find again."""
    common = sorted(counts["top_phrases"].items(), key=lambda item: (-item[1], item[0]))[:PHRASES_SHOWN]
    parts = ["<h2>Most frequent phrases</h2><div class='columns'>" + _table(("", ""), common) + "</div>"]
    if counts["worst_cycle"]:
        parts.append("<h2>Lowest cycle scores</h2>")
        parts.append(_table(("cycle", "sample", "phrase", "score"), counts["worst_cycle"]))
    return parts


def _table(head: Sequence[str], rows: Any) -> str:
    def cell(value: Any) -> str:
        number = isinstance(value, (int, float))
        text = f"{value:,}" if number else _text(str(value))
        return f"<td class='n'>{text}</td>" if number else f"<td>{text}</td>"

    body = "".join("<tr>" + "".join(map(cell, row)) + "</tr>" for row in rows)
    top = "<tr>" + "".join(f"<th>{_text(name)}</th>" for name in head) + "</tr>" if any(head) else ""
    return f"<table>{top}{body}</table>" if body else "<p>none</p>"


def _plots(histograms: Mapping[str, Mapping[str, int]]) -> str:
    from matplotlib.figure import Figure  # half a second

    names = [name for name, counts in histograms.items() if counts]
    figure = Figure(figsize=(12, 2.6 * -(-len(names) // 3)), layout="constrained")
    for place, name in enumerate(names):
        axes = figure.add_subplot(-(-len(names) // 3), 3, place + 1)
        values = sorted((float(key), count) for key, count in histograms[name].items())
        binned = name in ("score", "size", "cycle")
        axes.bar(
            [value for value, _ in values],
            [count for _, count in values],
            width=0.045 if binned else 0.9,
            align="edge" if binned else "center",
        )
        axes.set_title(name + (" (root of the area)" if name == "size" else ""))
    stream = io.BytesIO()
    figure.savefig(stream, dpi=90)
    return base64.b64encode(stream.getvalue()).decode()


def _text(value: str) -> str:
    return html.escape(str(value), quote=True)
