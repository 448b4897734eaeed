"""A transformers image-to-text or vision-language model on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from open_cloc.errors import UserError
from open_cloc.files import versions
from open_cloc.labelling.captioners.answers import EMPTY, Answer, read_answer
from open_cloc.labelling.captioners.pictures import decoded, one_line
from open_cloc.labelling.hub import Checkpoint, find_checkpoint, load_safetensors, read_model_type
from open_cloc.labelling.recipe import CaptionConfig
from open_cloc.labelling.types import Caption, Failure
from open_cloc.model.foreign import open_safely
from open_cloc.texts import sound_text

# Trained to caption a picture and nothing else: a prompt would become part of the caption.
PROMPTLESS = ("blip", "blip-2", "git", "vision-encoder-decoder")
# Settings without meaning in greedy decoding.
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")


class LocalCaptioner:
    """Captions by greedy decoding; attributes as in `types.Captioner`.

    A vision-language model is asked the prompt in its own chat template, where it has one. On a CPU it
    computes in float32, elsewhere in the type of its weights. A caption does not depend on the rest of its
    batch, up to rounding: prompts of different lengths are padded on the left and masked.
    """

    def __init__(self, config: CaptionConfig, device: str = "cpu") -> None:
        """Load the model; code that comes with it is never run.

        Args:
            config: Names the model's folder or hub id as `weights`.
            device: Where it runs.

        Raises:
            MissingFileError: If the model is not there, or has no `.safetensors`.
            UserError: If it is no image-to-text model that transformers knows, or lacks weights.
        """
        if not config.weights:
            raise UserError("caption.weights must be a folder or hub id where caption.kind is local")
        self._config = config
        checkpoint = find_checkpoint(config.weights)
        model_type = read_model_type(checkpoint)
        self._model = _load_model(checkpoint, model_type)
        if torch.device(device).type == "cpu":
            self._model.float()
        self._model.to(device).eval()
        self._load_processor(checkpoint, model_type)
        self.provenance: Mapping[str, object] = {
            "name": "local",
            "weights": config.weights,
            "revision": checkpoint.revision,
            "sha256": checkpoint.sha256,
            "prompt": self._prompt,
            "max_new_tokens": config.max_new_tokens,
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "versions": versions("torch", "transformers"),
        }

    def __call__(self, images: Sequence[bytes], captions: Sequence[Sequence[str]]) -> list[Caption | Failure]:
        """Encoded pictures -> a new caption each; the given ones are not shown to the model."""
        pictures = [decoded(image) for image in images]
        texts = iter(self._texts([picture for picture in pictures if not isinstance(picture, Failure)]))
        answers = [picture if isinstance(picture, Failure) else next(texts) for picture in pictures]
        source = f"local {self._config.weights}"
        return [
            answer if isinstance(answer, Failure) else Caption(answer.text, source, answer.is_cut)
            for answer in answers
        ]

    def _load_processor(self, checkpoint: Checkpoint, model_type: str) -> None:
        from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

        self._promptless = model_type in PROMPTLESS
        self._prompt: str | None = None
        if self._promptless:
            self._processor: Any = open_safely(AutoImageProcessor, checkpoint.folder)
            self._tokenizer: Any = open_safely(AutoTokenizer, checkpoint.folder)
            return
        self._processor = open_safely(AutoProcessor, checkpoint.folder)
        self._tokenizer = getattr(self._processor, "tokenizer", None)
        if self._tokenizer is None:
            raise UserError(f"{checkpoint.folder} has no processor for pictures with text")
        if not self._model.config.is_encoder_decoder:
            # The caption goes on where the prompt ends.
            self._tokenizer.padding_side = "left"
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._prompt = self._whole_prompt()

    def _whole_prompt(self) -> str:
        """What the model reads: the prompt, in its chat template where it has one."""
        if not getattr(self._processor, "chat_template", None):
            return self._config.prompt
        content = [{"type": "image"}, {"type": "text", "text": self._config.prompt}]
        conversation = [{"role": "user", "content": content}]
        return self._processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)

    def _texts(self, pictures: Sequence[Image.Image]) -> list[Answer | Failure]:
        """A text of each picture; where the processor refuses the batch, each is tried alone."""
        if not pictures:
            return []
        try:
            inputs = self._prepare(pictures)
        except ValueError as error:  # such as a picture that is too narrow to cut into patches
            if len(pictures) > 1:
                return [text for picture in pictures for text in self._texts([picture])]
            return [Failure("refused by model", one_line(str(error)))]
        return [self._read(text, is_cut) for text, is_cut in self._generate(inputs)]

    def _read(self, text: str, is_cut: bool) -> Answer | Failure:
        """A caption; those who know nothing but to caption do not think, chat or refuse."""
        if not self._promptless:
            return read_answer(text, is_cut)
        line = one_line(sound_text(text))
        return Answer(line) if line else Failure(EMPTY, "the model wrote nothing")

    def _prepare(self, pictures: Sequence[Image.Image]) -> Any:
        if self._promptless:
            return self._processor(images=list(pictures), return_tensors="pt")
        assert self._prompt is not None
        start = self._tokenizer.bos_token
        return self._processor(
            text=[self._prompt] * len(pictures),
            images=[[picture] for picture in pictures],
            padding=True,
            return_tensors="pt",
            add_special_tokens=not (start and self._prompt.startswith(start)),  # templates write their own
        )

    @torch.inference_mode()
    def _generate(self, inputs: Any) -> list[tuple[str, bool]]:
        """The text of each picture, and whether its end was cut off."""
        inputs = inputs.to(self._model.device, self._model.dtype)
        tokens = self._model.generate(
            **inputs, do_sample=False, num_beams=1, max_new_tokens=self._config.max_new_tokens
        )  # (B, T)
        asked = inputs.get("input_ids")
        if asked is not None and torch.equal(tokens[:, : asked.shape[1]], asked):  # most repeat the prompt
            tokens = tokens[:, asked.shape[1] :]
        texts = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return list(zip(texts, self._are_cut(tokens)))

    def _are_cut(self, tokens: Tensor) -> list[bool]:
        """Whether each answer (B, T) went on to the limit without an end."""
        if tokens.shape[1] < self._config.max_new_tokens:
            return [False] * len(tokens)
        ends = self._model.generation_config.eos_token_id
        stops = torch.tensor(ends if isinstance(ends, list) else [] if ends is None else [ends])
        return (~torch.isin(tokens.cpu(), stops).any(1)).tolist()


def _load_model(checkpoint: Checkpoint, model_type: str) -> Any:
    """Load from safetensors alone.

    Raises:
        MissingFileError: If there are none.
        UserError: If transformers has no such image-to-text model, or weights are missing.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    folder = checkpoint.folder
    if model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise UserError(
            f"{folder} holds a model of type {model_type!r}, which is no image-to-text model of transformers "
            f"{transformers.__version__}"
        )
    # captions need no poolers
    model = load_safetensors(transformers.AutoModelForImageTextToText, checkpoint, without=".pooler.")
    for name in SAMPLING:
        setattr(model.generation_config, name, None)
    return model
