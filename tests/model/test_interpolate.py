"""What must not be averaged: random codes of two seeds, and models that read the same weights another way."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import PROMPTERS, TOWERS

from open_cloc.errors import UserError
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.model.interpolate import interpolate
from open_cloc.model.prompter import PrompterConfig
from open_cloc.model.weights import read_state

FREQUENCIES = "prompter.prompts.box.position.frequencies"


def save(folder: Path, seed: int, prompter: PrompterConfig = PROMPTERS["prompt"], **changes: Any) -> Path:
    """A model's folder."""
    torch.manual_seed(seed)
    build_model(ModelConfig(TOWERS | changes, prompter=prompter)).save_pretrained(folder)
    return folder


def test_random_codes_of_two_seeds_are_not_averaged(tmp_path: Path) -> None:
    one, other = save(tmp_path / "one", 1), save(tmp_path / "other", 2)
    with pytest.raises(UserError, match=r"random codes of places.*--towers-only") as error:
        interpolate(one, other, 0.5, tmp_path / "mixed")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "mixed").exists()


def test_towers_alone_of_two_seeds_are_averaged(tmp_path: Path) -> None:
    one, other = save(tmp_path / "one", 1), save(tmp_path / "other", 2)
    interpolate(one, other, 0.5, tmp_path / "mixed", towers_only=True)
    first, second, mixed = (
        read_state(folder / "model.safetensors") for folder in (one, other, tmp_path / "mixed")
    )
    assert torch.equal(mixed[FREQUENCIES], second[FREQUENCIES])
    assert not torch.equal(first[FREQUENCIES], second[FREQUENCIES])
    torch.testing.assert_close(
        mixed["clip.visual.proj"], first["clip.visual.proj"].lerp(second["clip.visual.proj"], 0.5)
    )


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"readout": "mean"}, "prompter.readout"),
        ({"patch_positions": False}, "prompter.patch_positions"),
    ],
)
def test_prompters_that_read_the_same_weights_another_way_are_not_averaged(
    tmp_path: Path, changes: dict[str, Any], names: str
) -> None:
    """They have the same tensors, so that their shapes tell nothing."""
    one = save(tmp_path / "one", 1)
    other = save(tmp_path / "other", 1, replace(PROMPTERS["prompt"], **changes))
    with pytest.raises(UserError, match=names):
        interpolate(one, other, 0.5, tmp_path / "mixed")
    interpolate(one, other, 0.5, tmp_path / "towers", towers_only=True)


def test_towers_of_another_activation_are_not_averaged(tmp_path: Path) -> None:
    one, other = save(tmp_path / "one", 1), save(tmp_path / "other", 1, quick_gelu=True)
    for towers_only in (False, True):
        with pytest.raises(UserError, match=r"model_cfg.quick_gelu"):
            interpolate(one, other, 0.5, tmp_path / "mixed", towers_only=towers_only)


def test_towers_that_read_texts_another_way_are_not_averaged(tmp_path: Path) -> None:
    one = save(tmp_path / "one", 1)
    torch.manual_seed(1)
    config = ModelConfig(TOWERS, prompter=PROMPTERS["prompt"], lower_case=False)
    build_model(config).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=r"texts.lower_case is True in .*one and False in"):
        interpolate(one, tmp_path / "other", 0.5, tmp_path / "mixed")


def test_what_only_training_reads_may_differ(tmp_path: Path) -> None:
    one = save(tmp_path / "one", 1)
    other = save(tmp_path / "other", 1, replace(PROMPTERS["prompt"], dropout=0.1, layer_drop=0.5))
    interpolate(one, other, 0.5, tmp_path / "mixed")


def test_a_full_disk_leaves_no_part_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    one, other = save(tmp_path / "one", 1), save(tmp_path / "other", 2)
    monkeypatch.setattr("open_cloc.model.weights.write_text", full)
    with pytest.raises(OSError, match="No space left"):
        interpolate(one, other, 0.5, tmp_path / "mixed", towers_only=True)
    assert not (tmp_path / "mixed").exists()
