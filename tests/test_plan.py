"""The planner: its formulas on numbers that can be checked by hand, and the command on a real recipe."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from open_cloc.cli import main
from open_cloc.training import plan
from open_cloc.training.plan import Hardware, Measured, make_plan
from open_cloc.training.recipes import paper_vit_b16, scenes_cloc

MEASURED = Measured(
    batch_sizes=(4, 8),
    seconds=(0.3, 0.5),  # 0.1 s, and 0.05 s an image
    activations=(500 * 2**20, 900 * 2**20),  # 100 MiB, and 100 MiB an image
    parameters=150_000_000,
    learning=100_000_000,
    shares={"image tower": 0.7, "text tower": 0.2, "Prompter": 0.1},
    loader_rate=100.0,
    product_rate=1e12,
)


def _recipe(batch_size: int = 32, parallel: str = "ddp", accumulate: int = 1):  # type: ignore[no-untyped-def]
    recipe = paper_vit_b16()
    loader = replace(recipe.data.loader, batch_size=batch_size, num_regions=4, workers=8)
    run = replace(recipe.run, samples=1_000_000, parallel=parallel, accumulate=accumulate)
    return replace(recipe, data=replace(recipe.data, loader=loader), run=run)


def test_one_device_by_hand() -> None:
    made = make_plan(_recipe(), Hardware(1, memory_gb=80), MEASURED, embed_dim=512)
    assert made.state_bytes == 4 * 150e6 + 12 * 100e6  # weights; gradients and two moments of what learns
    assert made.activation_bytes == pytest.approx(3300 * 2**20)
    assert made.compute_seconds == pytest.approx(1.7)
    assert made.sent_bytes == 0
    assert made.loss_seconds == 8 * 128 * 128 * 512 / 1e12
    assert made.images_per_second == pytest.approx(32 / (1.7 + made.loss_seconds))
    assert made.hours == pytest.approx(1e6 / made.images_per_second / 3600)
    assert made.bound == "computation"
    free = 0.9 * 80 * 2**30 - made.state_bytes - made.loss_bytes
    assert made.largest_batch == int((free / 2**20 - 100) / 100) // 8 * 8


def test_the_papers_run_by_hand() -> None:
    """32,768 images, four regions each, on 1,024 accelerators."""
    made = make_plan(_recipe(), Hardware(1024, memory_gb=80, bandwidth=25), MEASURED, embed_dim=512)
    pairs = 131_072
    texts, gradients = 2 * pairs * 512, 2 * 100e6
    assert made.sent_bytes == pytest.approx((texts + gradients) * 4 * 1023 / 1024)
    assert made.send_seconds == pytest.approx(made.sent_bytes / 25e9)
    assert made.loss_seconds == pytest.approx(8 * 512 * pairs * 128 / 1e12)
    assert made.loss_bytes == (2 * pairs + 2 * 128) * 512 * 4


def test_sharding_divides_states_and_sends_more() -> None:
    whole, sharded = (
        make_plan(_recipe(parallel=kind), Hardware(8, 80), MEASURED, embed_dim=512)
        for kind in ("ddp", "fsdp")
    )
    assert sharded.state_bytes == whole.state_bytes / 8
    assert sharded.sent_bytes > whole.sent_bytes


def test_accumulation_trades_time_for_memory() -> None:
    whole, parts = (
        make_plan(_recipe(accumulate=m), Hardware(1, 80), MEASURED, embed_dim=512) for m in (1, 4)
    )
    assert parts.activation_bytes == pytest.approx((100 + 800) * 2**20)
    assert parts.compute_seconds > whole.compute_seconds


def test_what_bounds_the_run() -> None:
    slow_data = replace(MEASURED, loader_rate=1.0)
    assert make_plan(_recipe(), Hardware(1, 80), slow_data, 512).bound == "data"
    slow_links = make_plan(_recipe(), Hardware(8, 80, bandwidth=0.1), MEASURED, 512)
    assert slow_links.bound == "communication"
    assert make_plan(_recipe(), Hardware(1, 80), replace(MEASURED, product_rate=1e6), 512).bound == "the loss"


def test_nothing_fits() -> None:
    assert make_plan(_recipe(), Hardware(1, memory_gb=1), MEASURED, 512).largest_batch == 0


def test_command_measures_a_recipe_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "plan.json"
    small = ["--data.loader.batch-size", "8", "--run.samples", "800"]
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
    loader = replace(recipe.data.loader, batch_size=4, num_regions=3)
    run = plan.start(replace(recipe, data=replace(recipe.data, train=(), loader=loader)))
    batch = plan.make_batch(run, 4)
    assert batch.images.shape == (4, 3, 64, 64)
    assert batch.region_mask.all()
    assert ((batch.boxes[..., 2:] - batch.boxes[..., :2]) >= 0).all()
    assert (batch.caption_index >= 0).all()


def test_wrong_hardware_is_named(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(ValueError, match="needs devices >= 1"):
        Hardware(devices=0)
    assert main(["plan", "scenes-cloc", "--data.loader.batch-size", "1"]) == 2
    assert "at least 2 images" in capsys.readouterr().err
