"""What a labelling run does, as frozen dataclasses; `recipes.RECIPES` holds ours by name.

Each stage's `kind` may also be `package.module:factory`, a function that takes the config (and, for
captioners and detectors, the device) and returns what `types` asks for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from open_cloc.precision import Choice

# As `detect.kind`: the architecture that the weights name.
AUTO = "auto"
# As `cycle_weights`: the detecting model itself.
OWN = "detector"


@dataclass(frozen=True)
class CaptionConfig:
    """Re-captioning.

    Attributes:
        kind: `given` keeps the first given caption; `local` a transformers model on this machine; `server`
            any server that speaks the OpenAI chat-completions protocol with images.
        weights: Folder or hub id of the model (`local`), or the name that the server gives to it.
        prompt: What a vision-language model is asked.
        max_new_tokens: Longest new caption, in tokens.
        url: Address of the server, up to and including `/v1`.
        api_key_env: Environment variable that holds the server's key; it may be unset.
        requests: Requests that each actor has under way at a time, at most.
        timeout: Seconds that one request may take.
        retries: How often a request that failed for a passing reason is made again.
    """

    kind: str = "given"
    weights: str = ""
    prompt: str = "Describe this picture in detail."
    max_new_tokens: int = 128
    url: str = "http://localhost:8000/v1"
    api_key_env: str = "OPENAI_API_KEY"
    requests: int = 32
    timeout: float = 60.0
    retries: int = 5


@dataclass(frozen=True)
class PhraseConfig:
    """From a caption to phrases.

    Attributes:
        kind: `noun_phrases` (the paper's rules) or `ngrams` (the recipe that it is compared with).
        spacy_model: Installed spaCy pipeline, or a folder, with an English tagger of Penn tags.
        max_phrases: Most phrases of a picture.
        max_words: Longest caption, in words; what is beyond is cut off, and counted.
        ngram_words: Longest n-gram, in words.
    """

    kind: str = "noun_phrases"
    spacy_model: str = "en_core_web_sm"
    max_phrases: int = 20
    max_words: int = 512
    ngram_words: int = 4


@dataclass(frozen=True)
class DetectorConfig:
    """From phrases to raw boxes.

    Attributes:
        kind: `auto` takes the architecture that the weights name; or one of `detectors.DETECTORS`, such as
            `owlv2` or `cloc`.
        weights: Folder or hub id of the model.
        revision: Revision of the model on the hub.
        raw_score: Boxes whose best score is not above this are not even stored.
        max_boxes: Most raw boxes of a picture, best first.
        prompt: What a phrase is asked as; `{}` stands for it.
        precision: `fp32`, `tf32` (for products on GPUs) or `bf16` (autocast), each faster and coarser; `auto`
            takes `bf16` on GPUs.
        image_size: Side of the square that an OWL model sees; 0 as its checkpoint says. The paper took 448.
    """

    kind: str = AUTO
    weights: str = "google/owlv2-large-patch14-finetuned"
    revision: str | None = None
    raw_score: float = 0.02
    max_boxes: int = 300
    prompt: str = "{}"
    precision: Choice = "auto"
    image_size: int = 0


@dataclass(frozen=True)
class FilterConfig:
    """From raw boxes to regions; a change here reruns nothing but this.

    Attributes:
        min_score: Score that a region must be above.
        nms_iou: Of two boxes with one phrase that overlap more than this, the better stays; 1 keeps all.
        min_side: Smallest side of a region, relative to the picture's.
        max_area: Largest area of a region, relative to the picture's.
        min_cycle: Smallest cycle score; needs `cycle_weights`, -1 keeps all.
        max_regions: Most regions of a picture, best first; 0 for no limit.
    """

    min_score: float = 0.1
    nms_iou: float = 1.0
    min_side: float = 0.0
    max_area: float = 1.0
    min_cycle: float = -1.0
    max_regions: int = 0


@dataclass(frozen=True)
class LabelRunConfig:
    """How the work is done; nothing here changes a label, but `batch_size` in the last digits.

    Attributes:
        batch_size: Pictures that share a forward pass. It is fixed by the input, never by scheduling.
        samples_per_shard: Pictures of an output shard, where the input has no shards of its own.
        captioners: Actors of the captioning stage.
        detectors: Actors of the detection stage; 0 takes one a GPU, or one a CPU, that captioners leave.
        phrasers: Actors of the phrase stage.
        writers: Shards that are written at a time.
        gpus_per_actor: GPUs of each captioning (`local`) and detecting actor; -1 takes 1 where there are any,
            or a share of one where there are more actors than GPUs.
        max_bad_fraction: Share of unusable pictures past which the run stops.
        address: Address of a Ray cluster; empty runs on this machine alone.
    """

    batch_size: int = 8
    samples_per_shard: int = 1000
    captioners: int = 1
    detectors: int = 0
    phrasers: int = 1
    writers: int = 2
    gpus_per_actor: float = -1
    max_bad_fraction: float = 0.1
    address: str = ""


@dataclass(frozen=True)
class LabelRecipe:
    """All of a labelling run but its input and output.

    Attributes:
        name: Name that is recorded with the labels.
        caption: How pictures get their captions.
        phrases: How captions become phrases.
        detect: How phrases are found in pictures.
        cycle_weights: A CLOC model that grounds each phrase again and compares; empty for no cycle score,
            `detector` for the detecting model itself.
        filter: How raw boxes become regions.
        run: How the work is done.
    """

    name: str
    caption: CaptionConfig = field(default_factory=CaptionConfig)
    phrases: PhraseConfig = field(default_factory=PhraseConfig)
    detect: DetectorConfig = field(default_factory=DetectorConfig)
    cycle_weights: str = ""
    filter: FilterConfig = field(default_factory=FilterConfig)
    run: LabelRunConfig = field(default_factory=LabelRunConfig)
