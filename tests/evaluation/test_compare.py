"""Results side by side: paired differences against a slow reference, and what may not be compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from open_cloc.cli.main import main
from open_cloc.errors import UserError
from open_cloc.evaluation.compare import compare
from open_cloc.evaluation.intervals import LEVEL, RESAMPLES, SEED
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.run import evaluate
from open_cloc.model.cloc import CLOC
from open_cloc.samples import Region
from tests.evaluation.test_protocols import Seen
from tests.evaluation.tiny_data import NAMES, Samples

TASK = "zeroshot_region_classification"


def measured(model: Any, samples: Samples, task: str = TASK, **config: Any) -> dict[str, Any]:
    samples.class_names = NAMES
    return evaluate(model, samples, task, EvaluationConfig(**config), dataset_name="mine", draws=True)


def test_the_difference_is_drawn_over_the_same_images(model: CLOC, samples: Samples) -> None:
    first, second = measured(model, samples), measured(Seen(), samples)
    rows = compare([first, second], ["a", "b"])["acc1"]
    assert (rows[0].value, rows[0].difference, rows[0].interval) == (first["metrics"]["acc1"], 0.0, None)
    # Hits of each region again, and every draw by itself.
    hits = []
    for one in (model, Seen()):
        own = [measured(one, Samples([s])) if s.regions else None for s in samples] if one is model else None
        hits.append(own)
    counts = np.array([len(s.regions) for s in samples])
    right = [
        np.array([0 if r is None else r["metrics"]["acc1"] for r in hits[0]]) * counts,
        _hits_of_seen(samples),
    ]
    rng = np.random.default_rng(SEED)
    drawn = rng.integers(0, len(samples), (RESAMPLES, len(samples)))
    moved = []
    for images in drawn:
        total = counts[images].sum()
        if total:
            moved.append((right[1][images].sum() - right[0][images].sum()) / total)
    assert rows[1].difference == pytest.approx((right[1].sum() - right[0].sum()) / counts.sum())
    low, high = np.quantile(moved, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    assert rows[1].interval == pytest.approx((low, high), abs=1e-6)
    beyond = min(np.sum(np.array(moved) <= 1e-9), np.sum(np.array(moved) >= -1e-9))
    assert rows[1].p == pytest.approx(min(1, 2 * (beyond + 1) / (len(moved) + 1)))


def _hits_of_seen(samples: Samples) -> np.ndarray:
    method = Seen()
    names = [name.lower() for name in NAMES]
    boxes = method.embed_regions(None, [np.zeros((len(s.regions), 4)) for s in samples])
    best = (boxes @ method.embed_texts(names).T).argmax(1).tolist()
    found, place = [], 0
    for sample in samples:
        own = best[place : place + len(sample.regions)]
        place += len(own)
        found.append(sum(names[b] == r.text.lower() for b, r in zip(own, sample.regions)))
    return np.array(found)


def test_a_result_differs_from_itself_by_nothing(model: CLOC, samples: Samples) -> None:
    result = measured(model, samples)
    for rows in compare([result, json.loads(json.dumps(result))], ["a", "b"]).values():
        assert rows[1].difference == 0
        assert rows[1].interval == (0, 0)
        assert rows[1].p == 1


def test_what_was_not_measured_alike_is_refused(model: CLOC, samples: Samples) -> None:
    plain = measured(model, samples)
    fewer = Samples(samples[:-1])
    moved = Samples([*samples[:-1], replace(samples[-1], regions=(Region((0, 0, 1, 1), NAMES[0]),))])
    boxes = replace(samples[-2].regions[0], box=(0, 0, 0.5, 0.5)), *samples[-2].regions[1:]
    halved = Samples([*samples[:-2], replace(samples[-2], regions=boxes), samples[-1]])
    for other, told in (
        (measured(model, samples, protocol="fgclip"), "their rules differ, no protocol and protocol fgclip"),
        (
            measured(model, samples, templates=("a {}",)),
            r"their rules differ, \{'templates': \['\{\}'\]\} and \{'templates': \['a \{\}'\]\}",
        ),
        (measured(model, samples, "region_retrieval"), "their tasks differ"),
        (measured(model, fewer), "their pictures differ"),
        (measured(model, moved), "their boxes or texts differ"),
        (measured(model, halved), "their boxes or texts differ"),
        (measured(model, samples, "region_retrieval"), "their tasks differ"),
        (measured(model, samples, classes=(*NAMES, "one more")), "their classes differ"),
    ):
        with pytest.raises(UserError, match=f"a and b cannot be compared: {told}"):
            compare([plain, other], ["a", "b"])
    with pytest.raises(UserError, match="at least two results; got 1"):
        compare([plain], ["a"])


def test_results_without_draws_are_compared_without_intervals(model: CLOC, samples: Samples) -> None:
    samples.class_names = NAMES
    plain = evaluate(model, samples, TASK)
    row = compare([plain, measured(Seen(), samples) | {"draws": {}}], ["a", "b"])["acc1"][1]
    assert row.interval is None
    assert row.p is None


def test_the_command(model: CLOC, samples: Samples, tmp_path: Path, capsys: Any) -> None:
    places = []
    for name, one in (("one", model), ("two", Seen())):
        places.append(tmp_path / f"{name}.json")
        places[-1].write_text(json.dumps(measured(one, samples)))
    argv = ["compare", *map(str, places)]
    assert main([*argv, "--output", str(tmp_path / "c.json")]) == 0
    out = capsys.readouterr().out
    assert f"{TASK} on mine, against {places[0]}" in out
    assert "paired by image" in out
    assert "ms a region" in out
    document = json.loads((tmp_path / "c.json").read_text())
    assert document["results"] == list(map(str, places))
    assert document["metrics"]["acc1"][1]["p"] is not None
    (tmp_path / "other.json").write_text("[]")
    for given, told in (
        ([str(places[0])], "at least two results"),
        ([str(places[0]), str(tmp_path / "other.json")], "is no result of open-cloc eval"),
        ([str(places[0]), str(tmp_path / "nothing.json")], "nothing.json"),
    ):
        assert main(["compare", *given]) == 2
        assert told in capsys.readouterr().err
    odd = json.loads(places[1].read_text())
    odd["metrics"]["acc1"] = "0.9"
    (tmp_path / "odd.json").write_text(json.dumps(odd))
    assert main(["compare", str(places[0]), str(tmp_path / "odd.json")]) == 2
    assert "metric acc1 must be a number; got '0.9'" in capsys.readouterr().err
    damaged = json.loads(places[1].read_text())
    damaged["draws"]["acc1"] = "?"
    places[1].write_text(json.dumps(damaged))
    assert main(argv) == 2
    assert "the draws of acc1 are damaged" in capsys.readouterr().err


def test_class_lists_of_equal_length_are_told_apart(model: CLOC, samples: Samples) -> None:
    """Capitals do not matter: some models read them and others do not."""
    one = measured(model, samples, classes=(*NAMES, "a mug"))
    same = measured(model, samples, classes=(*NAMES, "A Mug"))
    other = measured(model, samples, classes=(*NAMES, "a cup"))
    compare([one, same], ["a", "b"])
    with pytest.raises(UserError, match="their class names differ"):
        compare([one, other], ["a", "b"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda r: r["metrics"].update(acc1=0.999), "acc1 is 0.999, and its draws lie between"),
        (lambda r: r["metrics"].update(acc1=float("nan")), "metric acc1 must be a number; got nan"),
        (lambda r: r["protocol"].update(name="fgclip"), "says protocol 'fgclip' and has the rules of ''"),
        (lambda r: r["draws"].update(acc1=r["draws"]["acc1"][:400]), "acc1 has 75 draws, not 1000"),
        (lambda r: r["draws"].update(acc1=7), "draws of acc1 are damaged"),
    ],
)
def test_a_file_that_was_changed_is_refused(
    change: Any, told: str, samples: Samples, tmp_path: Path, capsys: Any
) -> None:
    result = measured(Seen(), samples)
    places = [str(tmp_path / name) for name in ("good.json", "changed.json")]
    Path(places[0]).write_text(json.dumps(result))
    change(result)
    Path(places[1]).write_text(json.dumps(result))
    assert main(["compare", *places]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert places[1] in error
