"""Processes on a Ray cluster: places for all of them, and what is told of one that fails."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from open_cloc.cli.main import main as open_cloc
from open_cloc.data.shards.read import ShardDataset
from open_cloc.errors import MissingFileError, NotFiniteError, SampleError, UserError, WorkerDiedError
from open_cloc.files import locked
from open_cloc.labelling.actors import plan_actors, readers
from open_cloc.labelling.captioners.server import NoServerError
from open_cloc.labelling.pipeline import label
from open_cloc.labelling.recipe import (
    CaptionConfig,
    DetectorConfig,
    LabelRecipe,
    LabelRunConfig,
)
from open_cloc.labelling.source import plan_units, read_batches
from open_cloc.labelling.stages import CaptionStage, DetectStage, PhraseStage
from open_cloc.labelling.worker import OnRows, as_sent
from tests.labelling.made import (
    COUNT,
    Labelled,
    captions_only,
    copy_of,
    recipe,
)


@pytest.mark.parametrize("kind", ["given", "server", "local"])
@pytest.mark.parametrize("detectors", [0, 1, 3, 7])
@pytest.mark.parametrize("cpus", [1, 2, 8])
@pytest.mark.parametrize("gpus", [0, 1, 2, 8])
def test_all_actors_find_a_place(kind: str, detectors: int, cpus: int, gpus: int) -> None:
    run = LabelRunConfig(detectors=detectors, captioners=1 if kind != "server" else 2)
    actors = plan_actors(LabelRecipe("", CaptionConfig(kind=kind), run=run), {"CPU": cpus, "GPU": gpus})
    for resource, there in (("num_cpus", cpus - 0.1), ("num_gpus", gpus)):  # some is left to read
        units = [round(a.resources.get(resource, 0) * 10_000) * a.processes for a in actors]  # as Ray counts
        assert sum(units) <= there * 10_000, (resource, actors)
    assert actors[-1].processes == (detectors or max(1, (gpus or cpus) - (kind == "local")))
    assert (actors[-1].resources.get("num_gpus", 0) > 0) == (gpus > 0)
    device = "cuda" if gpus else "cpu"
    assert [step[1][-1] for step in (actors[0].steps[0], actors[-1].steps[0])] == [device, device]


def test_many_light_actors_leave_a_place_to_read() -> None:
    run = LabelRunConfig(phrasers=20, detectors=1)
    plan = plan_actors(LabelRecipe("", CaptionConfig(kind="given"), run=run), {"CPU": 1}, [1.0])
    assert sum(a.resources["num_cpus"] * a.processes for a in plan) <= 0.9


@pytest.mark.parametrize("detectors", [0, 1, 2, 5, 7])
@pytest.mark.parametrize("machines", [(2, 2, 2), (2, 2), (1, 8), (1, 1, 1, 1, 1), (3, 5, 64), (4,)], ids=str)
@pytest.mark.parametrize("kind", ["given", "local"])
def test_each_actor_finds_a_machine(detectors: int, machines: tuple[int, ...], kind: str) -> None:
    """Wherever the light ones stand: two detectors of 2.8 CPUs waited for ever on three machines of two."""
    recipe = LabelRecipe("", CaptionConfig(kind=kind), run=LabelRunConfig(detectors=detectors))
    plan = plan_actors(recipe, {"CPU": sum(machines)}, machines)
    asked = [a.resources["num_cpus"] for a in plan for _ in range(a.processes)]
    assert min(asked) > 0
    light = [cpus for cpus in asked if cpus <= 0.1]
    heavy = [cpus for cpus in asked if cpus > 0.1]
    for full in range(len(machines)):
        left = [0.999 * cpus for cpus in machines]
        left[full] -= sum(light)
        for cpus in heavy:
            place = next(i for i, free in enumerate(left) if free >= cpus - 1e-3)
            left[place] -= cpus
    assert max(heavy, default=0) <= max(machines)


def test_actors_that_find_no_place_are_refused() -> None:
    run = LabelRunConfig(gpus_per_actor=1)
    local = LabelRecipe("", CaptionConfig(kind="local"), run=run)
    with pytest.raises(ValueError, match=r"1 captioners and 1 detectors .* need 2 GPUs; this machine has 1"):
        plan_actors(local, {"CPU": 8, "GPU": 1})
    growing = replace(local, run=replace(run, address="here:6379", detectors=4))
    assert [a.resources.get("num_gpus") for a in plan_actors(growing, {"CPU": 8})] == [1, None, None, 1]


def test_pictures_are_decoded_beside_a_gpu() -> None:
    def stages(cluster: dict[str, float], cycle: str = "") -> dict[str, tuple[int, object]]:
        plan = plan_actors(LabelRecipe("", cycle_weights=cycle), cluster)
        return {step[0].__name__: (actors.processes, step[1][0]) for actors in plan for step in actors.steps}

    assert "DecodeStage" not in stages({"CPU": 16})
    assert stages({"CPU": 16, "GPU": 1})["DecodeStage"] == (8, DetectorConfig())
    assert stages({"CPU": 16, "GPU": 1}, "detector")["DecodeStage"] == (8, DetectorConfig())
    assert stages({"CPU": 128, "GPU": 8})["DecodeStage"][0] == 64
    assert stages({"CPU": 1, "GPU": 1})["DecodeStage"][0] == 1
    assert stages({"CPU": 16, "GPU": 1}, "folder")["DecodeStage"] == (8, None)  # it wants the picture whole


@pytest.mark.parametrize("cpus", [2, 8, 1000])
@pytest.mark.parametrize(("detectors", "expected"), [(1, 1), (4, 1), (5, 2), (64, 16)])
def test_units_under_way_follow_from_the_detectors_and_not_from_cpus_that_could_read(
    cpus: int, detectors: int, expected: int
) -> None:
    plan = plan_actors(LabelRecipe("", run=LabelRunConfig(detectors=detectors)), {"CPU": cpus})
    assert readers(plan) == expected


def test_detectors_on_gpus_are_read_for_one_by_one() -> None:
    plan = plan_actors(LabelRecipe(""), {"CPU": 64, "GPU": 8})
    assert readers(plan) == 9


def test_a_folder_in_which_a_process_works_is_left_alone(tmp_path: Path) -> None:
    source, _ = captions_only(tmp_path / "in", 2)
    with locked(tmp_path / "out"), pytest.raises(UserError, match="another process works in"):
        label(recipe(tmp_path), source, tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())


def test_what_fails_in_a_stage_comes_back_in_its_place(tmp_path: Path) -> None:
    """Ray would start a failing actor again and again; what failed goes on as a row instead."""
    source, _ = captions_only(tmp_path / "in", 2)
    mine = recipe(tmp_path)
    steps = [
        (CaptionStage, (mine.caption, "cpu")),
        (PhraseStage, (mine.phrases,)),
        (DetectStage, (mine.detect, "", "cpu")),
    ]
    row = {"batch": pickle.dumps(next(read_batches(plan_units(source, 1000)[0], 2)))}
    on_rows = OnRows(pickle.dumps(steps), ())
    (tmp_path / "raise").write_text("out of sockets")
    failed = on_rows(row)
    error = pickle.loads(failed["batch"]).error()
    assert type(error) is WorkerDiedError
    assert str(error) == "a labelling worker failed: RuntimeError: out of sockets"
    assert on_rows(failed) == failed  # through all stages behind it
    (tmp_path / "raise").unlink()
    assert len(pickle.loads(on_rows(row)["batch"]).pictures) == 2


def test_a_writer_that_fails_stops_the_run_in_one_sentence(
    cluster: None, labelled: Labelled, tmp_path: Path
) -> None:
    output = copy_of(labelled, tmp_path / "out")
    raw = output / "raw" / "00001_boxes.parquet"
    whole = raw.read_bytes()
    raw.write_bytes(b"")
    strict = recipe(labelled.folder, min_score=0.5)
    with pytest.raises(UserError, match=r"00001_boxes\.parquet"):
        label(strict, labelled.source, output)
    raw.write_bytes(whole)
    label(strict, labelled.source, output)
    assert len(ShardDataset(str(output))) == COUNT


class MissingPictureError(MissingFileError):
    """An error of ours that pickle cannot make again."""

    def __init__(self, path: str, line: int) -> None:
        super().__init__(f"{path}, line {line}")


def caught(error: Exception) -> Exception:
    try:
        raise error
    except Exception as same:
        return pickle.loads(pickle.dumps(as_sent(same))).error()


def test_errors_of_ours_keep_their_type_on_their_way() -> None:
    for error in (
        UserError("wrong"),
        MissingFileError("no such file: a"),
        NoServerError("no server answers"),
        NotFiniteError("nan"),
    ):
        sent = caught(error)
        assert type(sent) is type(error)
        assert str(sent) == str(error)
    sent = caught(MissingPictureError("a.txt", 3))
    assert type(sent) is UserError
    assert str(sent) == "a.txt, line 3"


class NoSuchThingError(UserError):
    """One that says something else once it has been pickled: its message is made of its argument."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no such thing: {name}")


def test_an_error_that_would_say_something_else_is_sent_as_its_text() -> None:
    assert str(pickle.loads(pickle.dumps(NoSuchThingError("a")))) == "no such thing: no such thing: a"
    sent = caught(NoSuchThingError("a"))
    assert (type(sent), str(sent)) == (UserError, "no such thing: a")
    sample = caught(SampleError("cut short", "broken picture"))
    assert (type(sample), sample.cause) == (SampleError, "broken picture")  # type: ignore[attr-defined]


def test_other_errors_say_what_they_were_and_keep_their_traceback() -> None:
    for error in (
        ValueError("too few values to unpack"),
        KeyError("x"),
        FileNotFoundError(2, "No such file"),
    ):
        sent = caught(error)
        assert type(sent) is WorkerDiedError
        assert str(sent) == f"a labelling worker failed: {type(error).__name__}: {error}"
        assert "in caught" in sent.__notes__[0]
        assert "\n" not in str(sent)


def test_a_missing_model_is_the_users_to_mend(without_ray: None, tmp_path: Path) -> None:
    source, _ = captions_only(tmp_path / "in", 2)
    mine = recipe(tmp_path)
    absent = replace(mine, detect=DetectorConfig(weights=str(tmp_path / "absent")))
    with pytest.raises(MissingFileError, match="weights not found: no folder"):
        label(absent, source, tmp_path / "out")


def test_an_absent_server_is_one_line(
    cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = captions_only(tmp_path / "in", 2)
    options = {
        "--caption.url": "http://127.0.0.1:9/v1",
        "--caption.retries": "0",
        "--detect.weights": str(tmp_path / "absent"),  # a later stage that fails too is not what is told
        "--phrases.kind": "ngrams",
        "--run.detectors": "1",
    }
    given = [text for option in options.items() for text in option]
    assert open_cloc(["label", "vesl-recaption", source, str(tmp_path / "out"), *given]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("open-cloc label: no server answers at http://127.0.0.1:9/v1/models")
