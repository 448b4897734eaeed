"""What makes two numbers comparable: the named protocols that people quote, and what else changes numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any, Literal

from open_cloc.config import lookup
from open_cloc.data.annotations import SampleDataset
from open_cloc.errors import UserError
from open_cloc.files import versions
from open_cloc.model.prompts.box import ROI_SIZE
from open_cloc.texts import TextCleaning

LIBRARIES = ("open-cloc", "torch", "torchvision", "open_clip_torch", "timm", "transformers", "pillow")

Duplicates = Literal["own", "any", "merge"]
OPENAI_IMAGENET = "openai-imagenet"  # in place of templates: the 80 of CLIP's own evaluation


@dataclass(frozen=True)
class DenseRules:
    """How places of a picture are named, for segmentation. Lengths are in sides of the model's canvas.

    Attributes:
        short_side: Of the resized picture; 1.5 are 336 pixels for a model of 224.
        stride: From a window, as large as the canvas, to the next.
        scale: What cosines are multiplied by before their softmax.
        average: What is averaged where windows overlap: cosines, or their probabilities.
        background: Probability below which a place is of the first class; 0 where that is one like others.
        sizes: Sides of a resized picture that are no whole number are `rounded`, halves up, or `cut` to one
            below.
        interpolation: How a picture is resized; empty takes the model's own way.
        whole: The resized picture is seen at once, and not in windows.
        least_area: Share of all places of other classes than the first below which such a class is dropped.
    """

    short_side: float = 1.5
    stride: float = 0.5
    scale: float = 40.0
    average: Literal["cosines", "probabilities"] = "cosines"
    background: float = 0.0
    least_area: float = 0.0
    sizes: Literal["rounded", "cut"] = "rounded"
    interpolation: Literal["", "bilinear", "bicubic"] = ""
    whole: bool = False


@dataclass(frozen=True)
class Protocol:
    """The rules of an evaluation, whatever the model and the data.

    Attributes:
        name: As `--protocol` takes it; empty for rules that were set one by one.
        source: The script or paper that it follows.
        metrics: Tasks that it is for, each with the number that is quoted; empty for any task.
        templates: How a class name, or an expression that refers to a box, becomes texts, whose features are
            averaged; or `openai-imagenet`.
        lower_case: Texts are lower-cased once they are written out, also for a model that reads capitals.
        crowds: Boxes that COCO calls crowds are counted as well.
        areas: Least and largest area in pixels of a box that region classification counts; 0 for no limit.
        duplicates: How region retrieval reads texts that repeat; see `EvaluationConfig`.
        recall_k: The K of recall@K; empty takes the task's own.
        candidates: Among which boxes an expression chooses: the `annotated` ones, or `detected` ones.
        ties: What a right answer counts among others that are exactly as near: its `share`, a `hit`, or a hit
            if it is the `last` of them.
        roi_size: Bins a side that RoIAlign pools a box to; another size is refused.
        several_boxes: Which box of a phrase that has several an answer must be near: `any` of them, or the
            one around all, `merged`.
        mentions: Each mention of a phrase in a sentence is asked for; data that do not tell them are refused.
        dense: How segmentation names places.
        subset: Of which pictures the quoted numbers are; the rules hold for others just as well.
        skips: What the script leaves out without a word, and we do not.
        folder: In which alone the script looks for pictures that name a folder: regions of others are counted
            as what it would have skipped. Empty where it looks everywhere.
    """

    name: str = ""
    source: str = ""
    metrics: Mapping[str, str] = field(default_factory=dict)
    templates: tuple[str, ...] = ("{}",)
    lower_case: bool = False
    crowds: bool = False
    areas: tuple[float, float] = (0.0, 0.0)
    duplicates: Duplicates = "own"
    recall_k: tuple[int, ...] = ()
    candidates: Literal["annotated", "detected"] = "annotated"
    ties: Literal["share", "hit", "last"] = "share"
    roi_size: int = ROI_SIZE
    several_boxes: Literal["any", "merged"] = "any"
    mentions: bool = False
    dense: DenseRules = DenseRules()
    subset: str = ""
    skips: str = ""
    folder: str = ""

    def texts_of(self, name: str) -> list[str]:
        """A class name in each of the templates."""
        texts = [template.replace("{}", name) for template in _written_out(self.templates)]
        return [text.lower() for text in texts] if self.lower_case else texts


SEGMENTATION = {"segmentation": "miou"}
OF_RECLIP = "a photo of {}"  # its executor.py, whatever the expression begins with
BILINEAR = DenseRules(interpolation="bilinear")
OF_TIPS = DenseRules(1.0, scale=1.0, sizes="cut", interpolation="bicubic")
REFERRING = "RefCOCO and RefCOCO+ val, testA, testB; RefCOCOg val and test of umd"
# Of TCL (arXiv 2212.00785): seven of CLIP's, and two for several things.
TCL_TEMPLATES = (
    "itap of a {}.",
    "a bad photo of a {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
    "a photo of many {}.",
    "a photo of {}s.",
)

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "cloc",
            "CLOC (ICML 2025), section 5: bare names, mean accuracy of classes, recall@10 of regions",
            {
                "zeroshot_region_classification": "mean_per_class_recall",
                "region_retrieval": "region_to_text_recall@10",
                "zeroshot_retrieval": "text_retrieval_recall@1",
            },
            subset="COCO val2017 and LVIS v1 val; retrieval of regions: 2,000 pictures of GRIT",
        ),
        Protocol(
            "fgclip",
            "FG-CLIP, eval/coco_box_ddp.py and in1k/lvis_box_cls_ddp.py: top-1 over all boxes, crowds too",
            {"zeroshot_region_classification": "acc1"},
            templates=(OPENAI_IMAGENET,),
            lower_case=True,
            crowds=True,
            roi_size=1,
            subset="COCO val2017; LVIS v1 val, whose pictures lie in train2017 too",
            skips="boxes on which the script raises, and pictures that are not in its one folder",
            folder="val2017",
        ),
        Protocol(
            "fgclip-fgovd",
            "FG-CLIP, fgovd_bbox_roi.py: one sentence against ten; the first has to be the maximum",
            {"fine_grained": "acc1"},
            lower_case=True,
            ties="hit",
            roi_size=1,
            subset="1_attributes, 2_attributes, 3_attributes, shuffle_negatives: hard, medium, easy, trivial",
        ),
        Protocol(
            "fgclip-long",
            "FG-CLIP, dci_retrieval.py and share1k_retrieval.py: one long caption a picture, recall@1",
            {"zeroshot_retrieval": "text_retrieval_recall@1"},
            lower_case=True,
            recall_k=(1,),
            ties="last",
            subset="all of DCI; of ShareGPT4V the first 1,000 entries, sharegpt4v:FILE,first=1000",
        ),
        Protocol(
            "clipself",
            "CLIPSelf, training/zero_shot.py: panoptic things and stuff, each the mean of its classes",
            {"zeroshot_region_classification": "mean_per_class_recall/thing"},
            templates=(OPENAI_IMAGENET,),
            crowds=True,
            areas=(8.0**2, 1024.0**2),
            roi_size=1,
            subset="COCO panoptic val2017; a ViT-B/16 sees pictures of 1,024 pixels",
            skips="segments past the hundredth of a picture; its texts are a file, here 80 templates",
        ),
        Protocol(
            "flair",
            "FLAIR's retrieval of DCI, DOCCI, IIW, Urban1k and ShareGPT4V: any of a picture's texts hits",
            {"zeroshot_retrieval": "text_retrieval_recall@1"},
            subset="of DCI all of splits.json, dci:FOLDER,captions=flair; DOCCI, IIW and Urban1k whole; of "
            "ShareGPT4V the first 1,000 or 10,000, sharegpt4v:FILE,captions=flair,first=1000",
        ),
        Protocol(
            "reclip-gt",
            "ReCLIP (arXiv 2204.05991), main.py: every sentence, IoU above 0.5, among all annotated boxes",
            {"referring": "acc@0.5"},
            templates=(OF_RECLIP,),
            lower_case=True,
            subset=REFERRING,
        ),
        Protocol(
            "reclip-det",
            "the same among MAttNet's detections; a picture without one has itself",
            {"referring": "acc@0.5"},
            templates=(OF_RECLIP,),
            lower_case=True,
            candidates="detected",
            subset=REFERRING,
        ),
        Protocol(
            "clip",
            "CLIP's zero-shot evaluation, as CLIP_benchmark does it: 80 templates, Karpathy's captions",
            {"zeroshot_classification": "acc1", "zeroshot_retrieval": "text_retrieval_recall@1"},
            templates=(OPENAI_IMAGENET,),
            subset="ImageNet's validation set; Karpathy's test splits of COCO and Flickr30k",
        ),
        Protocol(
            "flickr30k-any",
            "Flickr30k Entities as MDETR and GLIP have it: each mention, IoU of 0.5 with any of its boxes",
            {"grounding": "acc@0.5"},
            mentions=True,
            subset="Flickr30k Entities, test.txt",
            skips="phrases without a box",
        ),
        Protocol(
            "flickr30k-merged",
            "the same with the one box around all of them",
            {"grounding": "acc@0.5"},
            mentions=True,
            several_boxes="merged",
            subset="Flickr30k Entities, test.txt",
            skips="phrases without a box",
        ),
        Protocol(
            "sclip",
            "SCLIP, clip_segmentor.py: VOC20, Context59, COCO-Stuff 10k, ADE20k",
            SEGMENTATION,
            templates=(OPENAI_IMAGENET,),
            dense=BILINEAR,
            subset="validation sets of VOC (20 classes), Context (59), ADE20k (150); COCO-Stuff 10k test",
        ),
        Protocol(
            "sclip-stuff",
            "the same with a short side of 448 pixels",
            SEGMENTATION,
            templates=(OPENAI_IMAGENET,),
            dense=replace(BILINEAR, short_side=2.0),
            subset="COCO-Stuff (171) of COCO val2017",
        ),
        Protocol(
            "sclip-cityscapes",
            "the same with a short side of 560 pixels",
            SEGMENTATION,
            templates=(OPENAI_IMAGENET,),
            dense=replace(BILINEAR, short_side=2.5),
            subset="Cityscapes val",
        ),
        Protocol(
            "sclip-background",
            "the same for Context60 and COCO-Object, whose first class is what is like no other",
            SEGMENTATION,
            templates=(OPENAI_IMAGENET,),
            dense=replace(BILINEAR, scale=50.0, background=0.1),
            subset="validation sets of Context (60) and COCO-Object (81)",
        ),
        Protocol(
            "sclip-voc21",
            "the same for VOC21, where a class of a tenth of the foreground or less is dropped too",
            SEGMENTATION,
            templates=(OPENAI_IMAGENET,),
            dense=replace(BILINEAR, scale=65.0, background=0.1, least_area=0.1),
            subset="VOC 2012 val (21)",
        ),
        Protocol(
            "tips",
            "TIPS, TIPS_zeroshot_segmentation.ipynb, sliding: windows of 448 pixels 336 apart",
            SEGMENTATION,
            templates=TCL_TEMPLATES,
            dense=replace(OF_TIPS, stride=0.75, average="probabilities"),
            subset="ADE20k validation",
        ),
        Protocol(
            "tips-whole",
            "the same script's other mode: the picture at once, its short side 448 pixels",
            SEGMENTATION,
            templates=TCL_TEMPLATES,
            dense=replace(OF_TIPS, whole=True),
            subset="ADE20k validation",
        ),
    )
}


def find_protocol(name: str) -> Protocol:
    """A named protocol.

    Raises:
        UserError: If there is none of that name, then lists them; or if `package.module:Name` is none.
    """
    found = lookup(PROTOCOLS, name, "protocol")
    if not isinstance(found, Protocol):
        raise UserError(f"{name} is no open_cloc.evaluation.protocols.Protocol but {type(found).__name__}")
    return found


def check_fit(protocol: Protocol, task: str, dataset: SampleDataset) -> None:
    """Refuse a task or a data set that a protocol is not for: the number would carry a wrong name.

    Raises:
        UserError: If it says nothing of the task, counts other boxes than the reader gives, or quotes the
            number of a group of classes that the data do not have.
    """
    if not protocol.name:
        return
    if task not in protocol.metrics:
        able = ", ".join(name for name, other in PROTOCOLS.items() if task in other.metrics) or "none"
        raise UserError(
            f"protocol {protocol.name} is for {', '.join(protocol.metrics)}; for {task} there is {able}"
        )
    if protocol.crowds and not hasattr(dataset, "num_crowds"):
        raise UserError(
            f"protocol {protocol.name} counts crowds, and these data do not say whether they have some: of "
            "shards dataset.json does, which `open-cloc data convert` writes"
        )
    group = protocol.metrics[task].partition("/")[2]
    if group and group not in getattr(dataset, "class_groups", {}):
        raise UserError(
            f"protocol {protocol.name} quotes {protocol.metrics[task]}, and these data have no group of "
            f"classes {group!r}: open them as panoptic:PATH"
        )
    if getattr(dataset, "num_crowds", 0) and getattr(dataset, "crowds", False) != protocol.crowds:
        how, option = ("counts", "true") if protocol.crowds else ("leaves out", "false")
        raise UserError(f"protocol {protocol.name} {how} crowds: open the data with ,crowds={option}")


def common_protocol(
    rules: Protocol, described: dict[str, Any], cleaning: TextCleaning, dataset: SampleDataset, batch: int
) -> dict[str, Any]:
    """The part of a result's protocol that no task needs to write.

    Args:
        rules: How it was measured.
        described: What the method says of itself, without its model's name and weights.
        cleaning: How the method wants its texts.
        dataset: The data that was measured on.
        batch: Pictures of a forward pass.
    """
    return {
        "name": rules.name,
        "rules": json.loads(json.dumps(asdict(rules))),  # lists for tuples, as files hold them
        "lower_case": cleaning.lower_case or rules.lower_case,
        **described,
        "left_out_by_reader": dict(getattr(dataset, "left_out", {})),
        "batch_size": batch,
        "versions": versions(*LIBRARIES),
    }


@cache
def _written_out(templates: tuple[str, ...]) -> tuple[str, ...]:
    if OPENAI_IMAGENET not in templates:
        return templates
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    eighty = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    return tuple(text for each in templates for text in (eighty if each == OPENAI_IMAGENET else [each]))
