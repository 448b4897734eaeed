"""The Ray cluster: where its files lie, and what is told of its failures."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from open_cloc.errors import RunError, UserError, WorkerDiedError
from open_cloc.labelling.cluster import connected, folder_for_sockets
from open_cloc.labelling.pipeline import label
from open_cloc.labelling.recipe import CaptionConfig
from tests.labelling.made import COUNT, Labelled, recipe


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_ray_gets_a_short_folder_where_the_usual_one_is_too_long(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of sockets have 107 characters at most, of which Ray takes most."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp")
    with folder_for_sockets() as told:
        assert told == {}
    long = tmp_path / ("of_a_job_" * 9)
    for folder in (long, tmp_path / "gone"):
        monkeypatch.setenv(name, str(folder))
        with folder_for_sockets() as told:
            made = Path(told["_temp_dir"])
            assert made.is_dir()
            assert len(str(made)) < 20
        assert not made.exists()


def test_a_worker_that_dies_again_and_again_ends_the_run_in_one_sentence(
    cluster_renewed: None, labelled: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And long before all captions are made: stages work at the same time."""
    monkeypatch.setattr("open_cloc.labelling.actors.RETRIES_HERE", 1)
    (tmp_path / "die always").touch()
    caption = CaptionConfig(kind="tests.labelling.labelling_fakes:PatientCaptioner", weights=str(tmp_path))
    with pytest.raises(WorkerDiedError) as caught:
        label(replace(recipe(tmp_path), caption=caption), labelled.source, tmp_path / "out")
    assert str(caught.value).startswith("a worker was killed again and again over the same pictures")
    assert "\n" not in str(caught.value)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert next(place for place, call in enumerate(calls) if call != "captions") < COUNT / 2 - 1


@pytest.mark.parametrize(("address", "kind"), [("", RunError), ("nowhere:6379", UserError)])
def test_a_cluster_that_does_not_start_is_told_in_one_sentence(
    address: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")

    def busy(**options: object) -> None:
        raise Exception("The current node timed out during startup.\nSee the logs.")  # as Ray does

    monkeypatch.setattr(ray, "init", busy)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # the tests' own cluster goes on
    with (
        pytest.raises(kind, match=r"Ray.*: The current node timed out during startup\.$"),
        connected(address),
    ):
        raise AssertionError("not to be reached")


def test_ray_takes_no_signals_from_whoever_had_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """It prints its stack at SIGTERM, and goes on."""
    ray = pytest.importorskip("ray")

    def ours(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    def takes_signals(**options: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: None)

    monkeypatch.setattr(ray, "init", takes_signals)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    before = signal.signal(signal.SIGTERM, ours)
    try:
        with connected(""):
            assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)
