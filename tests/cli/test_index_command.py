"""`open-cloc index`: what it prints and draws, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from open_cloc.cli.main import main
from open_cloc.errors import UserError
from open_cloc.inference.predictor import load
from tests.labelling.detectors.made import make_owl
from tests.tiny import picture, tiny_model

pytest.importorskip("lancedb", reason="lancedb is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, four photos and an index of them."""
    path = tmp_path_factory.mktemp("index")
    tiny_model().save_pretrained(path / "model")
    (path / "photos").mkdir()
    for number in range(4):
        Image.fromarray(picture(seed=number)).save(path / "photos" / f"{number}.png")
    argv = ["--data", str(path / "photos"), "--weights", str(path / "model"), "--regions", "grid:20"]
    assert main(["index", "build", str(path / "ix"), *argv, "--tokens", str(path / "tokens")]) == 0
    return path


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["index", *map(str, argv)])
    out, err = capsys.readouterr()
    return code, out, err


def test_build_says_what_it_made(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--data", folder / "photos", "--weights", folder / "model"]
    code, out, err = run(capsys, "build", tmp_path / "grid", *argv)
    assert "has no boxes of its own: a grid" in err
    assert out.startswith("added 4 pictures with ")
    assert " 0 regions" not in out
    argv += ["--regions", "labels"]
    code, out, err = run(capsys, "build", tmp_path / "ix", *argv)
    assert (code, out) == (0, "added 4 pictures with 0 regions\n")
    assert "--regions grid makes boxes" in err
    code, out, _ = run(capsys, "search", tmp_path / "ix", "a dog")
    assert (code, out) == (
        0,
        "nothing found: the index has no regions; --rows pictures looks for whole pictures\n",
    )
    code, out, err = run(capsys, "build", tmp_path / "ix", *argv)
    assert (code, out) == (2, "")
    assert "index must be a new or empty folder" in err


def test_an_index_keeps_to_the_type_of_its_model(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--data", folder / "photos", "--regions", "grid:20"]
    made = ["--weights", folder / "model", "--dtype", "bf16"]
    assert run(capsys, "build", tmp_path / "ix", *argv, *made)[0] == 0
    assert run(capsys, "add", tmp_path / "ix", *argv)[0] == 0
    code, out, _ = run(capsys, "search", tmp_path / "ix", "a dog", "--json")
    exact = run(capsys, "search", folder / "ix", "a dog", "--json")[1]
    scores, others = ([hit["score"] for hit in json.loads(text)["hits"]] for text in (out, exact))
    assert code == 0
    assert scores != others
    np.testing.assert_allclose(scores[:3], others[:3], atol=0.02)
    assert "type of weights: bf16" in run(capsys, "info", tmp_path / "ix")[1].splitlines()


def test_add_goes_on(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--data", folder / "photos", "--regions", "grid:20"]
    assert run(capsys, "build", tmp_path / "ix", *argv, "--weights", folder / "model")[0] == 0
    code, out, _ = run(capsys, "add", tmp_path / "ix", *argv)
    assert (code, out) == (0, "added 0 pictures with 0 regions; 4 known already, left as they are\n")
    code, out, _ = run(capsys, "info", tmp_path / "ix")
    lines = out.splitlines()
    assert lines[0] == "pictures: 4"
    assert lines[2:] == [f"model: {folder / 'model'}", "columns of metadata: none"]


def test_search_prints_hits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "search", folder / "ix", "a dog", "--limit", 3)
    assert code == 0
    lines = out.splitlines()
    assert [line.split(".")[0] for line in lines] == ["1", "2", "3"]
    document = json.loads(run(capsys, "search", folder / "ix", "a dog", "--limit", 3, "--json")[1])
    for line, hit in zip(lines, document["hits"]):
        assert f"{hit['score']:.3f} {hit['path']} box" in line
        assert line.endswith(f"[{hit['id']}]")


def test_search_by_sums_and_differences(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = folder / "photos" / "2.png"
    hits = json.loads(run(capsys, "search", folder / "ix", "a dog", "--limit", 1, "--json")[1])["hits"]
    argv = [
        "a dog",
        "a mat",
        "--minus",
        "a cat",
        "--image",
        photo,
        "--box",
        "5.5,3,60,40",
        "--like",
        hits[0]["id"],
    ]
    found = json.loads(run(capsys, "search", folder / "ix", *argv, "--json", "--no-fold", "--exact")[1])[
        "hits"
    ]
    predictor = load(folder / "model", "cpu")
    dog, mat, cat = predictor.encode_text(["a dog", "a mat", "a cat"])
    like = predictor.encode(hits[0]["path"]).embed([hits[0]["box"]])[0]
    query = dog + mat - 0.5 * cat + predictor.encode(photo).embed([[5.5, 3, 60, 40]])[0] + like
    query /= np.linalg.norm(query)
    for hit in found:
        own = predictor.encode(hit["path"]).embed([hit["box"]])[0]
        assert hit["score"] == pytest.approx(float(own @ query), abs=1e-4)
    (same, *_) = json.loads(run(capsys, "search", folder / "ix", "--image", photo, "--json")[1])["hits"]
    assert (same["path"], same["source"]) == (str(photo.resolve()), "picture")


def test_the_sheet_and_reranking(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "sheet.png"
    argv = ["a dog", "--rerank", "--tokens", folder / "tokens", "--output", output]
    code, out, _ = run(capsys, "search", folder / "ix", *argv)
    assert code == 0
    assert len(out.splitlines()) > 1
    assert np.asarray(Image.open(output)).std() > 10
    code, out, _ = run(
        capsys, "search", folder / "ix", "a dog", "--where", "area > 2", "--output", tmp_path / "x.png"
    )
    assert (code, out) == (0, "nothing found: the filter 'area > 2' leaves nothing\n")
    assert not (tmp_path / "x.png").exists()


def test_export(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "export", folder / "ix", tmp_path / "out")
    vectors = np.load(tmp_path / "out" / "region_emb" / "region_emb_0.npy")
    assert (code, out) == (0, f"wrote {len(vectors)} regions to {tmp_path / 'out'}\n")
    assert run(capsys, "export", folder / "ix", tmp_path / "out")[0] == 2


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["search", "IX"], "nothing to look for"),
        (["search", "IX", "a", "--box", "1,2,3,4"], "--box needs --image"),
        (["search", "IX", "a", "--limit", "0"], "--limit must be at least 1"),
        (["search", "IX", "--like", "x", "--rerank"], "--rerank needs a text"),
        (["search", "IX", "--like", "x"], "the index has no region 'x'"),
        (["search", "IX", "a", "--where", "nope = 1"], "no column is named nope"),
        (["search", "IX", "a", "--output", "x.txt"], "output must end in"),
        (["search", "IX", "a", "--image", "IX", "--box", "1,2"], "four numbers"),
        (["search", "none", "a"], "no index at none"),
        (["info", "none"], "no index at none"),
        (["build", "new", "--data", "none", "--weights", "MODEL"], "none"),
        (["build", "new", "--data", "PHOTOS", "--weights", "none"], "none"),
        (
            ["build", "new", "--data", "PHOTOS", "--weights", "MODEL", "--regions", "grids"],
            "unknown source of boxes",
        ),
        (
            ["build", "new", "--data", "PHOTOS", "--weights", "MODEL", "--columns", "year"],
            "column 'year' must be",
        ),
        (
            ["build", "new", "--data", "PHOTOS", "--weights", "MODEL", "--thumbnail", "-1"],
            "thumbnail must be",
        ),
        (["add", "IX", "--data", "PHOTOS", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["add", "IX", "--data", "PHOTOS", "--max-bad-fraction", "2"], "--max-bad-fraction must be in"),
        (["add", "IX", "--data", "PHOTOS", "--regions", "detector:none"], "lacks the option phrases"),
        (["add", "IX", "--data", "PHOTOS", "--regions", "detector:none,phrases=a"], "none"),
        (["add", "IX", "--data", "PHOTOS", "--regions", "detector:none,phrases=,"], "phrases must be"),
    ],
)
def test_one_line_says_what_is_wrong(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"IX": folder / "ix", "MODEL": folder / "model", "PHOTOS": folder / "photos"}
    code, out, err = run(capsys, *(places.get(word, word) for word in argv))
    last = err.strip().splitlines()[-1]
    assert (code, out) == (2, "")
    assert last.startswith("open-cloc index: ")
    assert reason in last
    assert not (tmp_path / "new").exists()  # nothing that a second try would stumble over


def test_a_full_disk_is_the_machines(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lancedb.table import LanceTable

    argv = ["--data", folder / "photos", "--weights", folder / "model"]

    def full(*args: Any, **options: Any) -> None:
        raise OSError(
            "lance error: LanceError(IO): No space left on device (os error 28), /rust/src/x.rs:1:2"
        )

    monkeypatch.setattr(LanceTable, "add", full)
    code, out, err = run(capsys, "build", tmp_path / "ix", *argv)
    assert (code, out) == (1, "")
    assert err.strip().splitlines()[-1].endswith("No space left on device (os error 28)")
    monkeypatch.undo()
    assert run(capsys, "add", tmp_path / "ix", *argv[:2])[1].startswith("added 4 pictures")


def test_a_detector_gives_regions_with_text_and_score(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from open_cloc.labelling.detectors import open_detector
    from open_cloc.labelling.recipe import DetectorConfig

    owl = make_owl(tmp_path / "tiny-owl", "owlv2")
    (tmp_path / "phrases.txt").write_text("a dog\n\nthe red car\na dog\n")
    argv = ["--data", folder / "photos", "--weights", folder / "model", "--regions"]
    spec = f"detector:{owl},phrases={tmp_path / 'phrases.txt'},min_score=0.02,max_regions=6"
    assert run(capsys, "build", tmp_path / "ix", *argv, spec)[0] == 0
    document = json.loads(
        run(capsys, "search", tmp_path / "ix", "a", "--limit", 99, "--no-fold", "--json")[1]
    )
    phrases = ["a dog", "the red car"]
    detector = open_detector(DetectorConfig(weights=str(owl), raw_score=0.02, max_boxes=6), "cpu")
    expected = []
    for number in range(4):
        (found,) = detector([picture(seed=number)], [phrases])
        for box, scores in zip(found.boxes * [90, 50, 90, 50], found.scores):
            expected.append((number, box, phrases[scores.argmax()], float(scores.max())))
    assert len(document["hits"]) == len(expected) > 15
    for hit in document["hits"]:
        assert hit["source"] == "tiny-owl"
        number, score = int(Path(hit["path"]).stem), hit["label_score"]
        assert any(
            number == other
            and text == hit["text"]
            and abs(score - best) < 1e-4
            and abs(box - hit["box"]).max() < 1e-2
            for other, box, text, best in expected
        )


def test_phrases_joined_or_in_a_file(tmp_path: Path) -> None:
    from open_cloc.cli.detected import from_detector, read_phrases

    assert read_phrases("a dog, a cat,,a dog") == ["a dog", "a cat"]
    assert read_phrases("x, " * 3000) == ["x"]  # longer than a name may be
    (tmp_path / "list.txt").write_text("a dog, sitting\na cat\n")
    assert read_phrases(str(tmp_path / "list.txt")) == ["a dog, sitting", "a cat"]
    with pytest.raises(UserError, match="min_score in"):
        from_detector("x", ["a"], "auto", 1.5, 10, "cpu")
    with pytest.raises(UserError, match="lacks its weights"):
        from_detector("", ["a"], "auto", 0.5, 10, "cpu")


def test_a_stop_says_what_goes_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from open_cloc.index.store import Store

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "add", stop)
    argv = ["--data", folder / "photos", "--weights", folder / "model"]
    code, out, err = run(capsys, "build", tmp_path / "ix", *argv)
    assert (code, out) == (130, "")
    assert err.strip().splitlines()[-1] == "open-cloc index: interrupted; index add goes on with what is left"


def test_remove_takes_pictures_out(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--data", folder / "photos", "--regions", "grid:20"]
    assert run(capsys, "build", tmp_path / "ix", *argv, "--weights", folder / "model")[0] == 0
    code, out, _ = run(capsys, "remove", tmp_path / "ix", "--where", "path LIKE '%/1.png'")
    assert (code, out) == (0, "removed 1 pictures; 3 are left\n")
    assert run(capsys, "info", tmp_path / "ix")[1].startswith("pictures: 3\n")
    code, out, err = run(capsys, "remove", tmp_path / "ix", "--where", "pth LIKE '%'")
    assert (code, out) == (2, "")
    assert "did you mean path?" in err
    code, out, _ = run(capsys, "remove", tmp_path / "ix", "--where", "area > 2")
    assert (code, out) == (0, "removed 0 pictures; 3 are left\n")


def test_a_misspelt_option_is_told_where_it_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["index", "search", "ix", "a dog", "--limt", "3"])
    said = capsys.readouterr().err
    assert "--limit INT" in said
    assert "open-cloc index search --help" in said
    assert "open-cloc search" not in said
