"""The planner: its formulas on numbers that can be checked by hand, and the command on a real recipe."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from open_cloc.cli.main import main
from open_cloc.cli.plan import suggestions
from open_cloc.training import measure
from open_cloc.training.plan import Hardware, Measured, make_plan
from open_cloc.training.recipes import paper_vit_b16, scenes_cloc

MEASURED = Measured(
    batch_sizes=(4, 8),
    seconds=(0.3, 0.5),  # 0.1 s, and 0.05 s an image
    activations=(500 * 2**20, 900 * 2**20),  # 100 MiB, and 100 MiB an image
    parameters=150_000_000,
    learning=100_000_000,
    gathered=40_000_000,
    shares={"image tower": 0.7, "text tower": 0.2, "Prompter": 0.1},
    loader_rate=100.0,
    product_rate=1e12,
)


def _recipe(  # type: ignore[no-untyped-def]
    devices: int = 1, parallel: str = "ddp", accumulate: int = 1, grad_checkpointing: bool = False
):
    recipe = paper_vit_b16()
    loader = replace(recipe.data.loader, num_regions=4, workers=8)
    run = replace(
        recipe.run,
        global_batch_size=32 * devices,
        samples=1_000_000,
        parallel=parallel,
        accumulate=accumulate,
        grad_checkpointing=grad_checkpointing,
    )
    return replace(recipe, data=replace(recipe.data, loader=loader), run=run)


def test_one_device_by_hand() -> None:
    made = make_plan(_recipe(), Hardware(1, memory_gb=80), MEASURED, embed_dim=512)
    assert made.state_bytes == 4 * 150e6 + 12 * 100e6  # weights; gradients and two moments of what learns
    assert made.activation_bytes == pytest.approx(3300 * 2**20)
    assert made.compute_seconds == pytest.approx(1.7)
    assert made.sent_bytes == 0
    assert made.loss_seconds == (12 * 128 * 128 + 8 * 32 * 32) * 512 / 1e12  # regions, and captions
    assert made.images_per_second == pytest.approx(32 / (1.7 + made.loss_seconds))
    assert made.hours == pytest.approx(1e6 / made.images_per_second / 3600)
    assert made.bound == "computation"
    free = 0.9 * 80 * 2**30 - made.state_bytes - made.loss_bytes
    assert made.largest_batch == int((free / 2**20 - 100) / 100) // 8 * 8


def test_the_papers_run_by_hand() -> None:
    """32,768 images, four regions each, on 1,024 accelerators."""
    made = make_plan(
        _recipe(devices=1024), Hardware(1024, memory_gb=80, bandwidth=25), MEASURED, embed_dim=512
    )
    texts = 32_768 + 131_072  # forward in bfloat16, gradients in float32
    assert made.sent_bytes == pytest.approx((texts * 512 * (2 + 4) + 2 * 100e6 * 4) * 1023 / 1024)
    assert made.send_seconds == pytest.approx(made.sent_bytes / 25e9)
    assert made.loss_seconds == pytest.approx(512 * (12 * 131_072 * 128 + 8 * 32_768 * 32) / 1e12)
    assert made.loss_bytes == (2 * texts + 2 * 160) * 512 * 4


def test_sharding_divides_states_and_sends_more() -> None:
    whole, sharded = (
        make_plan(_recipe(parallel=kind, devices=8), Hardware(8, 80), MEASURED, embed_dim=512)
        for kind in ("ddp", "fsdp")
    )
    # Blocks one by one; what lies outside of them is whole all the time, weights and gradients.
    assert sharded.state_bytes == whole.state_bytes / 8 + 8 * 40e6
    assert sharded.sent_bytes - whole.sent_bytes == pytest.approx((2 * 150e6 * 2 - 100e6 * 4) * 7 / 8)


def test_sharding_in_parts_sends_weights_for_every_pass() -> None:
    one, four = (
        make_plan(_recipe(parallel="fsdp", accumulate=m, devices=8), Hardware(8, 80), MEASURED, 512)
        for m in (1, 4)
    )
    # Three parts forward, forward again and backward, the last once each way; gradients of all four.
    assert four.sent_bytes - one.sent_bytes == pytest.approx((9 * 150e6 * 2 + 3 * 100e6 * 4) * 7 / 8)
    ddp = [
        make_plan(_recipe(accumulate=m, devices=8), Hardware(8, 80), MEASURED, 512).sent_bytes for m in (1, 4)
    ]
    assert ddp[0] == ddp[1]


def test_accumulation_trades_time_for_memory() -> None:
    whole, parts = (
        make_plan(_recipe(accumulate=m, grad_checkpointing=True), Hardware(1, 80), MEASURED, embed_dim=512)
        for m in (1, 4)
    )
    assert parts.activation_bytes == pytest.approx((100 + 800) * 2**20)
    # Three of four parts once more forward, a quarter of a step that recomputes activations.
    assert parts.compute_seconds == pytest.approx(whole.compute_seconds * (1 + 3 / 4 / 4))
    made = make_plan(_recipe(accumulate=4), Hardware(1, 80), MEASURED, embed_dim=512)
    assert made.compute_seconds == pytest.approx(whole.compute_seconds * 1.25)


def test_what_bounds_the_run() -> None:
    slow_data = replace(MEASURED, loader_rate=1.0)
    assert make_plan(_recipe(), Hardware(1, 80), slow_data, 512).bound == "data"
    slow_links = make_plan(_recipe(devices=8), Hardware(8, 80, bandwidth=0.1), MEASURED, 512)
    assert slow_links.bound == "communication"
    assert make_plan(_recipe(), Hardware(1, 80), replace(MEASURED, product_rate=1e6), 512).bound == "the loss"


def test_computation_and_loss_add_up() -> None:
    """Each is shorter than the wait for data, both together longer."""
    flops = (12 * 16 + 8) * 32 * 32 * 512
    slow = replace(MEASURED, loader_rate=2.0, product_rate=flops / 1.6)  # 2.0 s; 1.6 s
    made = make_plan(_recipe(), Hardware(1, 80), slow, 512)
    assert made.data_seconds == 2.0
    assert made.images_per_second == pytest.approx(32 / (1.7 + 1.6))
    assert made.bound == "computation"


def test_without_workers_data_come_on_top() -> None:
    recipe = _recipe()
    loader = replace(recipe.data.loader, workers=0)
    recipe = replace(recipe, data=replace(recipe.data, loader=loader))
    made = make_plan(recipe, Hardware(1, 80), MEASURED, 512)
    assert made.images_per_second == pytest.approx(32 / (1.7 + made.loss_seconds + 0.32))


def test_workers_that_a_rank_needs_follow_from_the_rest_of_the_step() -> None:
    slow = replace(MEASURED, loader_rate=1.0)  # eight workers: 4 s a batch, where 1.7 s are left
    lines = suggestions(_recipe(), Hardware(1, 80), slow, make_plan(_recipe(), Hardware(1, 80), slow, 512))
    assert lines[-1] == "data: one worker prepares 1 images/s; a rank needs 19"


def test_nothing_fits() -> None:
    assert make_plan(_recipe(), Hardware(1, memory_gb=1), MEASURED, 512).largest_batch == 0


def test_activations_lost_in_noise_do_not_mean_that_nothing_fits() -> None:
    noise = replace(MEASURED, activations=(9 * 2**20, 8 * 2**20))
    made = make_plan(_recipe(), Hardware(1, memory_gb=80), noise, 512)
    assert made.activation_bytes == 9 * 2**20
    assert made.largest_batch > 10_000


def _fails_from(size: int):  # type: ignore[no-untyped-def]
    def measure_step(run: object, batch_size: int) -> tuple[float, int]:
        if batch_size >= size:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.1 * batch_size, 1000 * batch_size

    return measure_step


def test_a_batch_that_does_not_fit_is_planned_from_smaller_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = scenes_cloc()
    monkeypatch.setattr(measure, "measure_step", _fails_from(16))
    assert measure.measure(recipe)[0].batch_sizes == (4, 8)
    monkeypatch.setattr(measure, "measure_step", _fails_from(8))
    with pytest.raises(ValueError, match="8 images do not fit this device"):
        measure.measure(recipe)


def test_less_data_than_a_batch_in_lanes_and_parts() -> None:
    """What training takes, a plan takes."""
    recipe = scenes_cloc()
    loader = replace(recipe.data.loader, shuffle=True, lanes=8)
    data = replace(recipe.data, train=("scenes:train,num_samples=3",), loader=loader)
    recipe = replace(recipe, data=data, run=replace(recipe.run, global_batch_size=8, accumulate=4))
    frozen = replace(recipe.optim, lock_image=True)  # its batch norms do not learn
    run = measure.start(replace(recipe, optim=frozen))
    assert len(measure.make_batch(run, 8).images) == 8


def test_command_measures_a_recipe_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "plan.json"
    small = ["--run.global-batch-size", "8", "--run.samples", "800"]
    assert main(["plan", "scenes-cloc", *small, "--check", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    for words in ("memory a rank", "bound by", "images/s", "checked at 8 images"):
        assert words in printed
    result = json.loads(output.read_text())
    assert result["measured"]["parameters"] > 1e6
    assert 0 < result["plan"]["images_per_second"] < 1e5
    assert result["checked"]["seconds"] > 0
    assert sum(result["measured"]["shares"].values()) == pytest.approx(1)


def test_made_up_batches_have_the_papers_shape() -> None:
    """For recipes that name no data."""
    recipe = scenes_cloc()
    loader = replace(recipe.data.loader, num_regions=3)
    run = measure.start(replace(recipe, data=replace(recipe.data, train=(), loader=loader)))
    batch = measure.make_batch(run, 4)
    assert batch.images.shape == (4, 3, 64, 64)
    assert batch.region_mask.all()
    assert ((batch.boxes[..., 2:] - batch.boxes[..., :2]) >= 0).all()
    assert (batch.caption_index >= 0).all()


def test_wrong_hardware_is_named(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(ValueError, match="needs devices >= 1"):
        Hardware(devices=0)
    assert main(["plan", "scenes-cloc", "--run.global-batch-size", "1"]) == 2
    assert "at least 2 images" in capsys.readouterr().err
