"""The verb: it says where it listens, logs JSON, and ends at a signal with all answers out."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from open_cloc.cli.serve import Options, load_both, make_app, read_token
from open_cloc.errors import UserError
from open_cloc.model.load import dtype_of
from tests.server.conftest import png
from tests.tiny import picture, tiny_model

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "tiny-model"
    tiny_model().save_pretrained(folder)
    return folder


def start(weights: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "open_cloc.cli", "serve", "--weights", str(weights), *options]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


@pytest.fixture(scope="module")
def serving(weights: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = start(weights, "--port", "0")
    assert process.stderr is not None
    said = process.stderr.readline()
    assert said.startswith("serving at http://127.0.0.1:"), said
    yield process, said.split()[-1]
    process.kill()
    process.wait()


def test_a_server_takes_the_type_of_its_index(weights: Path, tmp_path: Path) -> None:
    pytest.importorskip("lancedb", reason="lancedb is not installed")
    from open_cloc.index.region_index import RegionIndex
    from open_cloc.inference.predictor import load

    assert dtype_of(load_both(Options(str(weights), dtype="bf16"))[0].model) == "bf16"
    place = str(tmp_path / "ix")
    RegionIndex.build(place, load(weights, "cpu", dtype="bf16"))
    predictor, index = load_both(Options(str(weights), index=place))
    assert index is not None
    assert (dtype_of(predictor.model), index.predictor) == ("bf16", predictor)
    with pytest.raises(UserError, match="model"):
        load_both(Options(str(weights), index=place, dtype="fp32"))


def test_the_pages_examples(serving: tuple[subprocess.Popen[str], str], tmp_path: Path) -> None:
    """Of docs/guides/serve.md, in Python and by curl, asked of the server that runs here."""
    page = (Path(__file__).parents[2] / "docs" / "guides" / "serve.md").read_text(encoding="utf-8")
    (python,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    curl, _ = re.findall(r"^curl .*$", page, flags=re.MULTILINE)
    (tmp_path / "photo.jpg").write_bytes(png(picture()))
    found = []
    for command in ([sys.executable, "-c", at(serving[1], python)], shlex.split(at(serving[1], curl))):
        if shutil.which(command[0]):
            done = subprocess.run(
                command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
            )
            found.append(done.stdout)
    assert "'phrase': 'a red mug'" in found[0]
    assert len(found) == 1 or json.loads(found[1])["phrases"][0]["phrase"] == "a red mug"


def at(address: str, text: str) -> str:
    """A page's text, with the server's own address."""
    assert "http://127.0.0.1:8000/" in text
    return text.replace("http://127.0.0.1:8000/", address)


def test_it_answers_and_ends_at_a_signal(serving: tuple[subprocess.Popen[str], str], weights: Path) -> None:
    process, address = serving
    assert httpx.get(f"{address}ready").json() == {"status": "READY"}
    info = httpx.get(f"{address}v1/info").json()
    assert info["model"] == "tiny-model"
    assert str(weights.parent) not in json.dumps(info)
    assert httpx.get(f"{address}health", headers={"host": "evil.example.org"}).status_code == 400
    port = address.rstrip("/").rpartition(":")[2]
    taken = subprocess.run(
        [sys.executable, "-m", "open_cloc.cli", "serve", "--weights", str(weights), "--port", port],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert taken.returncode == 2
    assert f"cannot listen at 127.0.0.1:{port}" in taken.stderr
    assert "Traceback" not in taken.stderr
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    lines = errors.strip().splitlines()
    logged = [json.loads(line) for line in lines[:-1]]
    wanted = {"route": "/ready", "status": 200, "method": "GET"}
    assert any(wanted.items() <= line.items() for line in logged)
    assert process.returncode == 143
    assert lines[-1] == "open-cloc serve: stopped by SIGTERM"


def test_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPEN_CLOC_TOKEN", "of-the-environment ")
    assert read_token(None) == "of-the-environment"
    file = tmp_path / "token"
    file.write_text("of-the-file\nmore\n")
    assert read_token(file) == "of-the-file"
    file.write_text("\n")
    with pytest.raises(UserError, match="must have a token in its first line"):
        read_token(file)


def test_an_open_address_without_a_token_is_said(
    weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPEN_CLOC_TOKEN", raising=False)
    make_app(Options(str(weights), host="0.0.0.0", device="cpu"))
    assert "anybody who reaches this address may ask" in capsys.readouterr().err
    make_app(Options(str(weights), device="cpu"))
    assert capsys.readouterr().err == ""
