"""A causal language model that sees through CLOC: tokens of the picture, and one for each region.

As in LLaVA, the frozen tower's image tokens go through a two-layer MLP into the language model's embeddings.
As in the paper's Ferret, the Prompter is the visual sampler: its embedding of a box, through an MLP of its
own, stands for each `<region>` of a prompt. Nothing is added to the language model or its vocabulary.

Shapes: B prompts, N image tokens, R regions of a prompt, T tokens, C tower width, D shared embedding, W width
of the language model's embeddings, V its vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from open_cloc.errors import UserError
from open_cloc.inference.answer import Box
from open_cloc.inference.encoded import EncodedImage
from open_cloc.inference.inputs import boxes_of_picture
from open_cloc.inference.predictor import Predictor
from open_cloc.mllm import folder as on_disk
from open_cloc.mllm.language_model import check_language_model, most_tokens, name_of_cache, require_room
from open_cloc.mllm.projectors import OCTAVES, Projector, place_codes
from open_cloc.mllm.prompt import (
    IMAGE_ID,
    REGION,
    REGION_ID,
    box_text,
    boxes_in,
    check_places,
    token_ids,
    write_boxes,
)
from open_cloc.mllm.referring import boxes_of, in_pixels
from open_cloc.model.cloc import CLOC
from open_cloc.model.towers import image_tower_of
from open_cloc.pictures import Picture

Refer = Literal["tokens", "text", "both"]

IGNORED = -100  # as a label: no loss there
MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class MLLMConfig:
    """How a language model is asked; saved with it.

    Attributes:
        refer: What stands for a `<region>`: the Prompter's `tokens`, the box as `text`, or `both`, text
            first, as Ferret's hybrid form has it.
        bins: Steps along a side of boxes as text: numbers are from 0 to bins - 1.
        template: A prompt around `{question}`, with `<image>` once. A chat model's own form goes here.
        places: Add a learned projection of each patch's place to its image token. Towers without position
            embeddings (convolutional ones) need it for grounding (choice: LLaVA's ViT has its own).
    """

    refer: Refer = "tokens"
    bins: int = 1000
    template: str = "<image>\n{question}\n"
    places: bool = True

    def __post_init__(self) -> None:
        if self.refer not in get_args(Refer):
            raise UserError(f"refer must be {', '.join(get_args(Refer))}; got {self.refer!r}")
        if not 2 <= self.bins <= 100_000:
            raise UserError(f"bins must lie in [2, 100000]; got {self.bins}")
        if self.template.count("{question}") != 1 or self.template.count("<image>") != 1:
            raise UserError(
                f"template must say <image> and {{question}} once each; got {self.template!r:.80}"
            )


class Prompt(NamedTuple):
    """A question about a picture, ready for the language model. Prompts of one picture share its tokens.

    Attributes:
        ids: Token ids with `IMAGE_ID` and `REGION_ID` in them.
        image_tokens: (N, C) of the frozen tower, before pooling and projection.
        grid_size: (rows, columns), N = rows * columns.
        regions: (R, D) the Prompter's embeddings, of unit length; (0, D) where boxes are text alone.
    """

    ids: list[int]
    image_tokens: Tensor
    grid_size: tuple[int, int]
    regions: Tensor


class Inputs(NamedTuple):
    """What the language model reads.

    Attributes:
        embeddings: (B, T, W), zeros in the padding.
        mask: (B, T) int64, 0 in the padding.
        labels: (B, T) token ids where an answer stands, `IGNORED` elsewhere.
    """

    embeddings: Tensor
    mask: Tensor
    labels: Tensor


class Reply(NamedTuple):
    """An answer.

    Attributes:
        text: As the language model wrote it.
        boxes: Boxes that the text names, pixels of the picture, `xyxy`.
    """

    text: str
    boxes: list[Box]


class RegionLM(nn.Module):
    """A CLOC, a causal language model, and the projectors between them.

        model = RegionLM(open_cloc.load("runs/demo/cloc/model").model, lm, tokenizer)
        model.ask("photo.jpg", "what is in <region>?", [[10, 20, 200, 180]]).text

    Args:
        tower: Eyes, frozen and in eval mode for good.
        lm: Any causal language model of transformers that reads embeddings.
        tokenizer: Its tokenizer; without a pad token the end mark pads, which is masked out anyway.
        config: How it is asked.

    Raises:
        UserError: If the language model has no input embeddings or does not read them, or the tokenizer has
            no end mark.
    """

    def __init__(self, tower: CLOC, lm: Any, tokenizer: Any, config: MLLMConfig | None = None) -> None:
        super().__init__()
        self.config = config or MLLMConfig()
        width = check_language_model(lm, tokenizer)
        self.tower = tower.requires_grad_(False).eval()
        self.lm = lm
        self.tokenizer = tokenizer
        self.project_image = Projector(image_tower_of(tower.clip.visual).token_width, width)
        self.project_region = Projector(tower.embed_dim, width)
        self.project_place = nn.Linear(4 * OCTAVES, width, bias=False) if self.config.places else None
        self._predictor = Predictor(self.tower)

    def train(self, mode: bool = True) -> RegionLM:
        """As every module, but the frozen tower stays in eval mode."""
        super().train(mode)
        self.tower.eval()
        return self

    @property
    def device(self) -> torch.device:
        return self.tower.device

    def projectors(self) -> dict[str, nn.Module]:
        """The parts between tower and language model, by name."""
        names = ("project_image", "project_region", "project_place")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    # --- a picture and questions become prompts ---------------------------------------------------------

    def look(self, pictures: Sequence[Picture]) -> list[EncodedImage]:
        """Take pictures through the tower, all at once; raises as `Predictor.encode`."""
        return self._predictor.encode(list(pictures))

    def prompts(self, image: EncodedImage, asked: Sequence[tuple[str, np.ndarray]]) -> list[Prompt]:
        """Questions about a picture, ready for the language model.

        Args:
            image: The picture, from `look`.
            asked: Questions with one `<region>` for each of their boxes (R, 4), normalised `xyxy` of the
                picture.

        Raises:
            UserError: If a question has another number of `<region>` than of boxes, or a box lies outside.
        """
        texts, checked = [], []
        for question, given in asked:
            boxes = boxes_of_picture(given, image.size_hw, normalized=True)
            text = self.config.template.replace("{question}", question)
            check_places(text, len(boxes))
            texts.append(self._write(text, image.geometry.to_canvas(boxes)))
            checked.append(boxes)
        features = self._regions(image, checked)
        # Copies: tensors of inference mode cannot be trained on.
        tokens = image.state.image_tokens[0].clone()
        return [
            Prompt(token_ids(text, self.tokenizer), tokens, image.state.grid_size, own)
            for text, own in zip(texts, features)
        ]

    def _write(self, text: str, boxes: np.ndarray) -> str:
        """A prompt with its boxes (R, 4) of the canvas written out, as far as the config wants them so."""
        if self.config.refer == "tokens":
            return text
        written = [box_text(box, self.config.bins) for box in boxes]
        if self.config.refer == "both":
            written = [f"{box} {REGION}" for box in written]
        return write_boxes(text, written)

    def _regions(self, image: EncodedImage, boxes: Sequence[np.ndarray]) -> list[Tensor]:
        """The Prompter's embeddings of each question's boxes, all from one call: (R, D) each."""
        if self.config.refer == "text":
            return [torch.zeros(0, self.tower.embed_dim, device=self.device) for _ in boxes]
        features = torch.from_numpy(image.embed(np.concatenate(boxes), normalized=True)).to(self.device)
        return list(features.split([len(own) for own in boxes]))

    def answer_ids(self, text: str) -> list[int]:
        """Token ids of an answer with the end mark."""
        return [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]

    # --- prompts become embeddings ----------------------------------------------------------------------

    def inputs(
        self, prompts: Sequence[Prompt], answers: Sequence[list[int]] | None = None, *, pad_left: bool = False
    ) -> Inputs:
        """Embeddings of prompts and their answers, padded to the longest.

        Args:
            prompts: B prompts of pictures on one canvas.
            answers: Token ids behind each prompt.
            pad_left: Pad in front, for generation: the last token of each row must be the prompt's.
        """
        answers = [[]] * len(prompts) if answers is None else answers
        rows = [[*_spread(prompt), *answer] for prompt, answer in zip(prompts, answers)]
        labels = [[IGNORED] * (len(row) - len(answer)) + list(answer) for row, answer in zip(rows, answers)]
        require_room(self.lm, max(map(len, rows)))
        return self._embed(rows, labels, prompts, prompts, pad_left)

    def _embed(
        self,
        rows: Sequence[Sequence[int]],
        labels: Sequence[Sequence[int]],
        pictures: Sequence[Prompt],
        prompts: Sequence[Prompt],
        pad_left: bool = False,
    ) -> Inputs:
        """Rows of token ids, in which pictures' tokens and prompts' regions follow one another in order."""
        longest = max(map(len, rows))
        ids = torch.tensor([_padded(row, longest, 0, pad_left) for row in rows], device=self.device)  # (B, T)
        mask = [_padded([1] * len(row), longest, 0, pad_left) for row in rows]
        attended = torch.tensor(mask, device=self.device)
        embeddings = self.lm.get_input_embeddings()(ids.clamp(min=0)) * attended[..., None]  # (B, T, W)
        if pictures:
            seen = self._image_embeddings(pictures).flatten(0, 1)  # (B * N, W)
            embeddings = _put(embeddings, ids == IMAGE_ID, seen)
        if any(len(prompt.regions) for prompt in prompts):
            regions = self.project_region(torch.cat([prompt.regions for prompt in prompts]))
            embeddings = _put(embeddings, ids == REGION_ID, regions)
        wanted = [_padded(row, longest, IGNORED, pad_left) for row in labels]
        return Inputs(embeddings, attended, torch.tensor(wanted, device=self.device))

    def _image_embeddings(self, prompts: Sequence[Prompt]) -> Tensor:
        """Image tokens as the language model sees them: (B, N, W)."""
        tokens = torch.stack([prompt.image_tokens for prompt in prompts]).float()  # (B, N, C)
        embedded = self.project_image(tokens)
        if self.project_place is None:
            return embedded
        return embedded + self.project_place(place_codes(prompts[0].grid_size, self.device))

    # --- training and answering -------------------------------------------------------------------------

    def forward(self, prompts: Sequence[Prompt], answers: Sequence[list[int]], share: bool = False) -> Tensor:
        """Mean over answers of the mean cross-entropy of their tokens, end marks among them: a scalar.

        (choice) LLaVA counts each token once; a box of many tokens would then count more than a yes.

        Args:
            prompts: B prompts.
            answers: Token ids of each answer.
            share: Take each picture through the language model once for all of its prompts, which stand side
                by side, by the key-value cache: the same numbers, sooner.
        """
        # Padding stands behind: without position ids, which not every model takes, places are right.
        if share and (length := _shared_length(prompts)):
            logits, labels = self._shared(prompts, answers, length)
        else:
            given = self.inputs(prompts, answers)
            labels = given.labels
            logits = self.lm(inputs_embeds=given.embeddings, attention_mask=given.mask).logits  # (B, T, V)
        wanted = labels[:, 1:]
        losses = F.cross_entropy(  # (B, T - 1), zeros where no answer stands
            logits[:, :-1].transpose(1, 2).float(), wanted, ignore_index=IGNORED, reduction="none"
        )
        return (losses.sum(1) / (wanted != IGNORED).sum(1)).mean()

    def _shared(
        self, prompts: Sequence[Prompt], answers: Sequence[list[int]], length: int
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, T, V) and labels (B, T) of what stands behind the picture."""
        pictures: list[Prompt] = []
        numbers = []
        for prompt in prompts:
            if not pictures or prompt.image_tokens is not pictures[-1].image_tokens:
                pictures.append(prompt)
            numbers.append(len(pictures) - 1)
        front = [_spread(prompt)[:length] for prompt in pictures]
        given = self._embed(front, [[IGNORED] * length] * len(front), pictures, [])
        name = name_of_cache(self.lm)
        cache: Any = getattr(self.lm(inputs_embeds=given.embeddings, use_cache=True), name, None)
        if not hasattr(cache, "batch_select_indices"):
            kind = type(self.lm).__name__
            raise UserError(f"the language model {kind} keeps no keys and values to share: teach.share=False")
        cache.batch_select_indices(torch.tensor(numbers, device=self.device))
        behind = [_spread(prompt)[length:] for prompt in prompts]
        rows = [[*row, *answer] for row, answer in zip(behind, answers)]
        labels = [[IGNORED] * len(row) + list(answer) for row, answer in zip(behind, answers)]
        require_room(self.lm, length + max(map(len, rows)))
        rest = self._embed(rows, labels, [], prompts)
        mask = F.pad(rest.mask, (length, 0), value=1)
        return self.lm(
            inputs_embeds=rest.embeddings, attention_mask=mask, **{name: cache}
        ).logits, rest.labels

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int = MAX_NEW_TOKENS) -> list[str]:
        """The most probable answers, token by token; what one is does not depend on those beside it."""
        if not prompts:
            return []
        given = self.inputs(prompts, pad_left=True)
        room = most_tokens(self.lm) - given.mask.shape[1]
        end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        made = self.lm.generate(
            inputs_embeds=given.embeddings,
            attention_mask=given.mask,
            max_new_tokens=min(max_new_tokens, room),
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end if pad is None else pad,
        )
        return [text.strip() for text in self.tokenizer.batch_decode(made, skip_special_tokens=True)]

    def ask(
        self,
        picture: Picture,
        question: str,
        regions: Sequence[ArrayLike] = (),
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> Reply:
        """Ask about a picture.

        Args:
            picture: As `Predictor.encode` takes it.
            question: With one `<region>` for each of `regions`.
            regions: Boxes (4,) `xyxy`, points (2,), scribbles (K, 2) in pixels of the picture, or masks
                (H, W) of bool.
            max_new_tokens: Tokens of the longest answer.

        Raises:
            UserError: If the picture cannot be read, the question does not fit the regions, or one of them
                lies outside.
        """
        (image,) = self.look([picture])
        (prompt,) = self.prompts(image, [(question, boxes_of(regions, image.size_hw))])
        (text,) = self.generate([prompt], max_new_tokens)
        return Reply(text, [tuple(box) for box in in_pixels(self.boxes(image, text), image.size_hw).tolist()])

    def boxes(self, image: EncodedImage, text: str) -> np.ndarray:
        """Boxes that an answer names: (n, 4) normalised `xyxy` of the picture, not clipped."""
        return image.geometry.from_canvas(boxes_in(text, self.config.bins))

    def save_pretrained(self, folder: str | Path, tower: str = "") -> None:
        """Write language model, tokenizer, projectors and tower into a new folder; `load` opens it.

        Args:
            folder: New or empty.
            tower: A path or hub id of the tower to name there in place of a copy.

        Raises:
            ExistingFileError: If there is something in the folder.
        """
        on_disk.save(self, Path(folder), tower)


def load(folder: str | Path, device: str | torch.device | None = None) -> RegionLM:
    """Open what `RegionLM.save_pretrained` wrote; no code of the folder runs.

    Args:
        folder: The folder.
        device: Where to compute; None takes a GPU if there is one, else the CPU.

    Raises:
        MissingFileError: If there is no such folder, or a part of it is missing.
        UserError: If a part is damaged, or the parts do not fit each other.
    """
    return on_disk.load(Path(folder), device, MLLMConfig, RegionLM)


def _spread(prompt: Prompt) -> list[int]:
    """A prompt's ids with the picture's place as often as it has tokens."""
    image = [IMAGE_ID] * len(prompt.image_tokens)
    return [part for one in prompt.ids for part in (image if one == IMAGE_ID else [one])]


def _shared_length(prompts: Sequence[Prompt]) -> int:
    """Tokens up to the end of the picture, if all prompts begin alike and go on behind it; else 0."""
    starts = {tuple(prompt.ids[: prompt.ids.index(IMAGE_ID)]) for prompt in prompts}
    (start, *others) = starts
    goes_on = all(len(prompt.ids) > len(start) + 1 for prompt in prompts)
    if others or REGION_ID in start or not goes_on:
        return 0
    return len(start) + len(prompts[0].image_tokens)


def _padded(row: Sequence[int], length: int, value: int, left: bool) -> list[int]:
    padding = [value] * (length - len(row))
    return [*padding, *row] if left else [*row, *padding]


def _put(embeddings: Tensor, where: Tensor, values: Tensor) -> Tensor:
    """Embeddings (B, T, W) with values (X, W) in the X places that are true, in the order of rows."""
    return embeddings.masked_scatter(where[..., None], values.to(embeddings.dtype))
