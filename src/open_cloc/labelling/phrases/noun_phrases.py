"""Noun phrases of captions by the rules of the paper's VESL pipeline.

What the paper leaves open (hyphens, duplicates, captions that are no captions) is decided here; the rules in
their order are in docs/reference/phrases.md.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from open_cloc.config import require
from open_cloc.errors import UserError
from open_cloc.labelling.phrases.words import (
    GENERIC_WORDS,
    MAX_WORD_CHARACTERS,
    NO_WORDS,
    fingerprint,
    split_words,
)
from open_cloc.labelling.recipe import PhraseConfig
from open_cloc.labelling.types import Phrase, Phrases

VERSION = "noun_phrases/2"

GRAMMAR = "NP: <DT>? <JJ.*>* <NN.*>+"

HYPHENS = "-\u2010\u2011"

# Parts of a pipeline that a tagger needs, by their factories.
TAGGER_PARTS = ("tok2vec", "transformer", "curated_transformer", "tagger")

# How plurals end, and their singulars. An ending counts only if the singular stands in the same caption.
PLURAL_ENDINGS = (
    ("men", "man"),
    ("people", "person"),
    ("children", "child"),
    ("feet", "foot"),
    ("teeth", "tooth"),
    ("geese", "goose"),
    ("mice", "mouse"),
    ("ies", "y"),
    ("ves", "f"),
    ("ves", "fe"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("ses", "s"),
    ("xes", "x"),
    ("zes", "z"),
    ("oes", "o"),
    ("s", ""),
)

# Other things than a glass, a short, a wood.
NOT_PLURALS = frozenset(("glasses", "shorts", "woods"))


class Token(NamedTuple):
    """A token in lower case, and where it is in the caption, in characters."""

    text: str
    start: int
    end: int


class _Chunk(NamedTuple):
    """A phrase and its words for comparison: no determiner, plurals as singulars, the head noun last."""

    phrase: Phrase
    words: tuple[str, ...]


class NounPhrases:
    """The paper's rules on a spaCy tagger.

    Captions are tagged one by one, so that the tags of one never depend, by rounding, on its batch.

    Attributes:
        provenance: What makes the phrases, as in `types.PhraseRules`.
    """

    def __init__(self, config: PhraseConfig) -> None:
        """Load the tagger.

        Raises:
            UserError: If spaCy or its pipeline is not installed, or the pipeline has no tagger of Penn tags.
        """
        spacy = require("spacy", "label")
        self.config = config
        folder = find_pipeline(config.spacy_model)
        self._nlp = _load_tagger(folder)
        self._stop_words = frozenset(require("spacy.lang.en.stop_words", "label").STOP_WORDS)
        rules = {
            "version": VERSION,
            "grammar": GRAMMAR,
            "hyphens": HYPHENS,
            "longest_word": MAX_WORD_CHARACTERS,
            "no_words": NO_WORDS,
            "generic": GENERIC_WORDS,
            "stop": self._stop_words,
            "plurals": PLURAL_ENDINGS,
            "not_plurals": NOT_PLURALS,
        }
        self.provenance: Mapping[str, object] = {
            "rules": VERSION,
            "rules_sha256": fingerprint(rules),
            "spacy": spacy.__version__,
            "pipeline": f"{self._nlp.meta['lang']}_{self._nlp.meta['name']}",
            "pipeline_version": self._nlp.meta["version"],
            "pipeline_sha256": _hash_files(folder, self._nlp.pipe_names),
            "config": asdict(config),
        }

    def __call__(self, captions: Sequence[str]) -> list[Phrases]:
        """Captions -> the phrases of each; every caption by itself."""
        with self._nlp.memory_zone():  # or spaCy would remember every new word of every caption for good
            return [self._phrases(caption) for caption in captions]

    def _phrases(self, caption: str) -> Phrases:
        dropped: Counter[str] = Counter()
        compounds = drop_generic(join_hyphens(self._tokens(caption, dropped)), dropped)
        tags = self._tags(compounds)
        words = [_merge(compound) for compound in compounds]
        known = {word.text for word in words}
        chunks = []
        for start, end in match_noun_phrases(tags):
            if all(word.text in self._stop_words for word in words[start:end]):
                dropped["only stop words"] += 1
            else:
                chunks.append(_make_chunk(words[start:end], tags[start:end], known))
        kept = [chunk.phrase for chunk in merge_duplicates(chunks, dropped)]
        if len(kept) > self.config.max_phrases:
            dropped["over the limit"] += len(kept) - self.config.max_phrases
        return Phrases(tuple(kept[: self.config.max_phrases]), dict(dropped))

    def _tokens(self, caption: str, dropped: Counter[str]) -> list[Token]:
        return [
            Token(token.text, *word.span(token.idx, token.idx + len(token.text)))
            for word in split_words(caption, self.config.max_words, dropped)
            for token in self._nlp.tokenizer(word.text)
        ]

    def _tags(self, compounds: Sequence[Sequence[Token]]) -> list[str]:
        """A Penn tag for each compound; the tagger sees the parts apart, as it did when it was trained.

        It takes `|`, `•` and emoji for nouns, which would join what they part: without a letter, no noun.
        """
        tokens = [token for compound in compounds for token in compound]
        if not tokens:
            return []
        spaces = [left.end < right.start for left, right in pairwise(tokens)] + [False]
        doc_class = require("spacy.tokens", "label").Doc
        doc = self._nlp(doc_class(self._nlp.vocab, words=[token.text for token in tokens], spaces=spaces))
        tags = iter([token.tag_ if _has_letter(token.text) else "SYM" for token in doc])
        return [_compound_tag([next(tags) for _ in compound]) for compound in compounds]


def join_hyphens(tokens: Sequence[Token]) -> list[Sequence[Token]]:
    """Tokens grouped to words: spaCy takes `t-shirt` apart, here it is one compound of three tokens."""
    compounds, start = [], 0
    while start < len(tokens):
        end = start + 1
        while end + 1 < len(tokens) and _is_hyphenated(*tokens[end - 1 : end + 2]):
            end += 2
        compounds.append(tokens[start:end])
        start = end
    return compounds


def drop_generic(compounds: Sequence[Sequence[Token]], dropped: Counter[str]) -> list[Sequence[Token]]:
    """Leave out and count generic words, and compounds of nothing else: `stock-photo`, not `free-range`."""
    kept = [c for c in compounds if not _is_generic(c)]
    if len(kept) < len(compounds):
        dropped["generic word"] += len(compounds) - len(kept)
    return kept


def match_noun_phrases(tags: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where `GRAMMAR` matches Penn tags, greedily from left to right, as (first, one past the last).

    The three classes of tags share none, so nothing is ever won by trying a shorter match.
    """
    start = 0
    while start < len(tags):
        adjectives = start + (tags[start] == "DT")
        nouns = _skip(tags, adjectives, "JJ")
        end = _skip(tags, nouns, "NN")
        if end > nouns:
            yield start, end
        start = max(end, start + 1)


def merge_duplicates(chunks: Sequence[_Chunk], dropped: Counter[str]) -> list[_Chunk]:
    """Near-identical phrases once, the first; and none whose head noun comes again with more modifiers.

    `a mug ... the red mug` is one thing, `a red mug ... a blue mug` two.
    """
    kept: dict[tuple[str, ...], _Chunk] = {}
    for chunk in chunks:
        if chunk.words in kept:
            dropped["duplicate"] += 1
        else:
            kept[chunk.words] = chunk
    heads: dict[str, list[frozenset[str]]] = {}
    for words in kept:
        modifiers = frozenset(words[:-1])
        others = heads.setdefault(words[-1], [])
        if modifiers not in others:
            others.append(modifiers)
    merged, seen = [], set()
    for words, chunk in kept.items():
        thing = (words[-1], frozenset(words[:-1]))
        if thing in seen or any(thing[1] < other for other in heads[words[-1]]):
            dropped["same head noun"] += 1
        else:
            seen.add(thing)
            merged.append(chunk)
    return merged


def find_pipeline(model: str) -> Path:
    """Folder of a spaCy pipeline's data.

    A package is only looked up, never imported: a pipeline is data, and no code of its package runs.

    Args:
        model: Name of an installed package, or a folder with a `config.cfg`.

    Raises:
        UserError: If there is neither.
    """
    if (Path(model) / "config.cfg").is_file():
        return Path(model)
    spec = importlib.util.find_spec(model) if model.isidentifier() else None
    for package in (spec.submodule_search_locations or ()) if spec else ():
        inside = sorted(Path(package).glob("*/config.cfg"))
        if len(inside) == 1:
            return inside[0].parent
    raise UserError(
        f"no spaCy pipeline {model!r} (phrases.spacy_model): neither an installed package nor a folder "
        "with a config.cfg; get one by `python -m spacy download en_core_web_sm`, or name another folder"
    )


def _load_tagger(folder: Path) -> Any:
    """The pipeline, without what tags do not need."""
    spacy = require("spacy", "label")
    try:
        components = spacy.util.load_config(folder / "config.cfg")["components"]
        exclude = [name for name, part in components.items() if part.get("factory") not in TAGGER_PARTS]
        nlp = spacy.load(folder, exclude=exclude)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"spaCy pipeline {folder} cannot be loaded: {error}") from error
    taggers = [nlp.get_pipe(name) for name in nlp.pipe_names if components[name]["factory"] == "tagger"]
    if len(taggers) != 1 or not {"DT", "JJ", "NN"} <= set(taggers[0].labels):
        raise UserError(
            f"spaCy pipeline {folder} has no tagger of Penn tags (DT, JJ, NN, ...); expected an English one"
        )
    return nlp


def _hash_files(folder: Path, parts: Sequence[str]) -> str:
    """sha256 of all files of some parts of a pipeline, in the order of their paths."""
    digest = hashlib.sha256()
    for part in sorted(parts):
        for path in sorted(path for path in (folder / part).rglob("*") if path.is_file()):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _has_letter(text: str) -> bool:
    return any(character.isalpha() for character in text)


def _is_generic(compound: Sequence[Token]) -> bool:
    parts = [part.text for part in compound[::2]]  # without the hyphens
    return all(part in GENERIC_WORDS for part in parts) or "".join(parts) in GENERIC_WORDS


def _is_hyphenated(left: Token, hyphen: Token, right: Token) -> bool:
    touching = left.end == hyphen.start and hyphen.end == right.start
    return touching and hyphen.text in HYPHENS and left.text[-1].isalnum() and right.text[0].isalnum()


def _compound_tag(tags: Sequence[str]) -> str:
    """The tag of a compound's last part; a verb there makes an adjective, as in `blue-eyed`."""
    return "JJ" if len(tags) > 1 and tags[-1].startswith("VB") else tags[-1]


def _merge(compound: Sequence[Token]) -> Token:
    return Token("".join(part.text for part in compound), compound[0].start, compound[-1].end)


def _skip(tags: Sequence[str], start: int, prefix: str) -> int:
    """Index of the first tag from `start` on that does not begin with the prefix."""
    while start < len(tags) and tags[start].startswith(prefix):
        start += 1
    return start


def _make_chunk(words: Sequence[Token], tags: Sequence[str], known: set[str]) -> _Chunk:
    text = words[0].text
    for left, right in pairwise(words):
        text += (" " if left.end < right.start else "") + right.text
    compared = [
        _singular(word.text, known) if tag in ("NNS", "NNPS") else word.text
        for word, tag in zip(words, tags)
        if tag != "DT"
    ]
    return _Chunk(Phrase(text, words[0].start, words[-1].end), tuple(compared))


def _singular(plural: str, known: set[str]) -> str:
    """The singular of a plural if it is among the caption's words, else the plural itself."""
    if plural in NOT_PLURALS:
        return plural
    for ending, replacement in PLURAL_ENDINGS:
        singular = plural[: -len(ending)] + replacement
        if plural.endswith(ending) and singular in known:
            return singular
    return plural
