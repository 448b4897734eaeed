"""A model whose Prompter answers, and differs from its start."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from open_cloc.canvas import CanvasConfig
from open_cloc.model.cloc import CLOC
from open_cloc.model.prompter import PrompterConfig

PRIOR = PrompterConfig(readout="prompt", box_prior=True, box_content="none", pooled_residual=True)


@pytest.fixture
def model(tiny_model_cfg: dict[str, Any]) -> CLOC:
    made = CLOC(tiny_model_cfg, PRIOR, CanvasConfig((64, 48))).eval()
    with torch.no_grad():
        for parameter in made.prompter.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made
