"""A run, written down: the frozen dataclasses that a recipe returns and the command line overrides."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from open_cloc.data.collate import LoaderConfig
from open_cloc.errors import UserError
from open_cloc.model.create import ModelConfig
from open_cloc.objectives import PAPER_TERMS, Term
from open_cloc.precision import PRECISIONS, Precision

PARALLEL = ("ddp", "fsdp")
Compile = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class DataConfig:
    """What the run reads.

    Attributes:
        train: Data sets as FORMAT:PATH (`shards:...`, `coco:...`, `scenes:train`); several are mixed.
        weights: Share of each set among the samples of the run, in any unit; none shows every sample of every
            set once an epoch.
        probe: A data set with captions, FORMAT:PATH, on which image-text retrieval is measured before the
            first step and after the last, to see what training did to the image level; empty for none.
        loader: How batches are made. `loader.num_regions` 0 trains a plain CLIP.
    """

    train: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    probe: str = ""
    loader: LoaderConfig = field(default_factory=LoaderConfig)

    def __post_init__(self) -> None:
        matched = len(self.weights) in (0, len(self.train))
        _require(
            "data.weights", self.weights, matched, f"one for each of {len(self.train)} sets of data.train"
        )


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up and cosine decay (the paper, Table A).

    Attributes:
        lr: Peak learning rate.
        prompter_lr: Peak learning rate of the Prompter; 0 means `lr`.
        betas: AdamW's decay rates of the first and the second moment.
        eps: AdamW's small number in the denominator.
        weight_decay: AdamW's, applied to matrices; never to biases, norms, or the logit scale.
        warmup: Steps over which the rate rises from 0 to its peak.
        grad_clip: Largest norm of the whole gradient; 0 for no limit.
        layer_decay: Each tower layer learns at this factor of the next one's rate; 1 for all alike.
        lock_image: Freeze the image tower; a timm tower's projection still learns.
        lock_text: Freeze the text tower; a Hugging Face tower's projection still learns.
        lora_rank: The towers that are not locked learn by adapters of this rank beside their layers, and
            stay as they are (LoRA; extra `lora`); 0 for none. The projection learns as with a lock.
        max_logit_scale: Upper limit of the learned logit scale, as in CLIP.
    """

    lr: float = 5e-4
    prompter_lr: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.2
    warmup: int = 2000
    grad_clip: float = 1.0
    layer_decay: float = 1.0
    lock_image: bool = False
    lock_text: bool = False
    lora_rank: int = 0
    max_logit_scale: float = 100.0

    def __post_init__(self) -> None:
        _require("optim.lr", self.lr, self.lr > 0, "above 0")
        _require("optim.warmup", self.warmup, self.warmup >= 0, "at least 0")
        _require("optim.lora_rank", self.lora_rank, 0 <= self.lora_rank <= 1024, "in [0, 1024]")
        _require("optim.grad_clip", self.grad_clip, self.grad_clip >= 0, "at least 0")
        _require("optim.layer_decay", self.layer_decay, 0 < self.layer_decay <= 1, "in (0, 1]")
        _require("optim.max_logit_scale", self.max_logit_scale, self.max_logit_scale >= 1, "at least 1")


@dataclass(frozen=True)
class RunConfig:
    """How long, how precise, where to.

    Attributes:
        samples: Images that all ranks together see in the whole run; cost is counted in these.
        global_batch_size: Images of a step over all ranks; each rank takes its share.
        output: Run folder, which must be new or be resumed.
        seed: Fixes starting weights and, with step and rank, dropout; the loader has a seed of its own.
        compile: `on` compiles the towers' blocks and the Prompter's layer at their first call, which costs a
            minute once; `auto` does so on GPUs.
        precision: `fp32`, `tf32` (for products on GPUs) or `bf16` (autocast); losses stay in fp32.
        grad_checkpointing: Recompute the towers' activations in the backward pass.
        accumulate: Forward and backward a rank's batch in this many parts, for memory's sake; the gradients
            are those of the whole batch.
        parallel: With several processes, `ddp` (the model whole on each) or `fsdp` (weights, gradients and
            optimizer state in shards).
        max_skipped_steps: Updates of the whole run that may be left out because they are not finite.
        device: `cuda`, `cpu`, ...; empty takes the GPU if there is one.
        save_steps: Checkpoint every so many steps; 0 leaves it to `save_minutes`.
        save_minutes: Checkpoint every so many minutes.
        keep: Newest checkpoints to keep.
        log_steps: Log every so many steps.
        health_steps: Log signs of the run's health every so many steps, under `health/`; 0 for never.
        report_to: Any of `tensorboard`, `wandb`; `log.jsonl` is always written.
        progress: Show a progress bar.
    """

    samples: int = 0
    global_batch_size: int = 64
    output: str = ""
    seed: int = 0
    compile: Compile = "auto"
    precision: Precision = "fp32"
    grad_checkpointing: bool = False
    accumulate: int = 1
    parallel: Literal["ddp", "fsdp"] = "ddp"
    max_skipped_steps: int = 10
    device: str = ""
    save_steps: int = 0
    save_minutes: float = 10.0
    keep: int = 2
    log_steps: int = 10
    health_steps: int = 100
    report_to: tuple[str, ...] = ("tensorboard",)
    progress: bool = True

    def __post_init__(self) -> None:
        _require("run.global_batch_size", self.global_batch_size, self.global_batch_size >= 1, "at least 1")
        _require("run.seed", self.seed, self.seed >= 0, "at least 0")
        _require("run.precision", self.precision, self.precision in PRECISIONS, " or ".join(PRECISIONS))
        _require(
            "run.compile", self.compile, self.compile in get_args(Compile), " or ".join(get_args(Compile))
        )
        _require("run.parallel", self.parallel, self.parallel in PARALLEL, " or ".join(PARALLEL))
        _require("run.accumulate", self.accumulate, self.accumulate >= 1, "at least 1")
        _require("run.max_skipped_steps", self.max_skipped_steps, self.max_skipped_steps >= 0, "at least 0")
        _require("run.save_steps", self.save_steps, self.save_steps >= 0, "at least 0")
        _require("run.save_minutes", self.save_minutes, self.save_minutes > 0, "above 0")
        _require("run.keep", self.keep, self.keep >= 1, "at least 1")
        _require("run.log_steps", self.log_steps, self.log_steps >= 1, "at least 1")
        _require("run.health_steps", self.health_steps, self.health_steps >= 0, "at least 0")

    def rank_batch_size(self, num_ranks: int) -> int:
        """Images of a step on each of so many ranks.

        Raises:
            UserError: If they cannot share them equally.
        """
        size, rest = divmod(self.global_batch_size, num_ranks)
        if rest:
            raise UserError(
                f"run.global_batch_size must be a multiple of the {num_ranks} ranks; got "
                f"{self.global_batch_size}"
            )
        return size


def _require(name: str, value: object, good: bool, expected: str) -> None:
    if not good:
        raise UserError(f"{name} must be {expected}; got {value!r}")


@dataclass(frozen=True)
class Recipe:
    """Everything that a training run depends on; saved as `recipe.json` with it.

    Attributes:
        name: The run's name, and its folder's unless `run.output` names another.
        model: Towers and Prompter to start from.
        data: What is read, and how batches are made.
        objectives: Terms of the loss; the paper's eq. 4 unless told otherwise.
        optim: Optimizer and schedule.
        run: Length, precision, processes and output of the run.
    """

    name: str
    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    objectives: tuple[Term, ...] = PAPER_TERMS
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
