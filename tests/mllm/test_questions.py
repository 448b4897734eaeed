"""Questions from regions: answers against the boxes, the balance of yes and no, the same by each seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from open_cloc.data.readers import open_reader
from open_cloc.errors import UserError
from open_cloc.mllm.prompt import REGION
from open_cloc.mllm.questions import (
    KINDS,
    TEMPLATES,
    Question,
    QuestionConfig,
    iou,
    make_questions,
    questions_of,
)
from open_cloc.samples import Region, RegionSample

NUM = 150


@pytest.fixture(scope="module")
def scenes() -> list[RegionSample]:
    dataset = open_reader(f"scenes:train,num_samples={NUM}")
    return [dataset[index] for index in range(NUM)]


@pytest.fixture(scope="module")
def asked(scenes: list[RegionSample]) -> list[Question]:
    return make_questions(scenes, QuestionConfig(per_kind=2))


def of_kind(asked: Sequence[Question], kind: str) -> list[Question]:
    found = [question for question in asked if question.kind == kind]
    assert len(found) > NUM / 2
    return found


def phrase_in(question: Question) -> str:
    """The phrase that a question names, by taking its template away."""
    for template in TEMPLATES[question.kind]:
        before, _, behind = template.partition("{phrase}")
        if question.text.startswith(before) and question.text.endswith(behind):
            return question.text[len(before) : len(question.text) - len(behind)]
    raise AssertionError(question.text)


def test_what_is_in_a_box_is_its_phrase(scenes: list[RegionSample], asked: list[Question]) -> None:
    for question in of_kind(asked, "what"):
        (box,) = question.boxes
        assert [r.text for r in scenes[question.image].regions if r.box == box] == [question.answer]


def test_where_a_phrase_is(scenes: list[RegionSample], asked: list[Question]) -> None:
    for question in of_kind(asked, "where"):
        phrase = phrase_in(question)
        assert [r.box for r in scenes[question.image].regions if r.text == phrase] == [question.answer_box]
        assert not question.boxes
        assert not question.answer


def test_yes_and_no_about_boxes(scenes: list[RegionSample], asked: list[Question]) -> None:
    found = of_kind(asked, "in_region")
    elsewhere = 0
    for question in found:
        phrase, (box,) = phrase_in(question), question.boxes
        regions = scenes[question.image].regions
        named = [r.text for r in regions if r.box == box]
        assert (phrase in named) == (question.answer == "yes")
        if question.answer == "no":  # nor does it reach into the box
            assert all(iou(r.box, box) == 0 for r in regions if r.text == phrase)
            elsewhere += any(r.text == phrase for r in regions)
    assert Counter(q.answer for q in found) == {"yes": len(found) / 2, "no": len(found) / 2}
    assert 0.3 < elsewhere / (len(found) / 2) < 0.6


def test_yes_and_no_about_pictures(scenes: list[RegionSample], asked: list[Question]) -> None:
    found = of_kind(asked, "in_picture")
    for question in found:
        named = {r.text for r in scenes[question.image].regions}
        assert (phrase_in(question) in named) == (question.answer == "yes")
    by_picture = Counter((q.image, q.answer) for q in found)
    assert all(by_picture[image, "yes"] == by_picture[image, "no"] for image, _ in by_picture)


def test_which_of_two(scenes: list[RegionSample], asked: list[Question]) -> None:
    found = of_kind(asked, "which")
    for question in found:
        named = {r.box: r.text for r in scenes[question.image].regions}
        row = ["the first", "the second"].index(question.answer)
        texts = [named[box] for box in question.boxes]
        phrase = phrase_in(question)
        assert texts[row] == phrase
        assert texts[1 - row] != phrase
    share = np.mean([question.answer == "the first" for question in found])
    assert 0.35 < share < 0.65


def test_things_are_listed_from_left_to_right(scenes: list[RegionSample], asked: list[Question]) -> None:
    for question in of_kind(asked, "list"):
        named = {r.text: (r.box[0] + r.box[2]) / 2 for r in scenes[question.image].regions}
        phrases = question.answer.split(", ")
        assert sorted(phrases) == sorted(named)
        middles = [named[phrase] for phrase in phrases]
        assert middles == sorted(middles)
    many = [region(f"thing {i}", i / 10, 0, (i + 1) / 10, 1) for i in range(7)]
    assert questions_of(0, many, [], QuestionConfig(kinds=("list",))) == []
    assert len(questions_of(0, many[:6], [], QuestionConfig(kinds=("list",)))) == 1


def test_each_box_has_its_place(asked: list[Question]) -> None:
    assert {q.kind for q in asked} == set(KINDS)
    assert all(question.text.count(REGION) == len(question.boxes) for question in asked)
    assert not any("{" in question.text for question in asked)


def test_the_same_by_the_same_seed(scenes: list[RegionSample], asked: list[Question]) -> None:
    assert make_questions(scenes, QuestionConfig(per_kind=2)) == asked
    assert make_questions(scenes, QuestionConfig(per_kind=2, seed=1)) != asked
    only = make_questions(scenes, QuestionConfig(kinds=("what",)))
    assert {question.kind for question in only} == {"what"}
    # What is asked of a picture follows from its number, whatever else is asked.
    pool = [r.text for sample in scenes for r in sample.regions]
    own = questions_of(7, scenes[7].regions, pool, QuestionConfig(per_kind=2))
    assert own == [question for question in asked if question.image == 7]


def region(text: str, *box: float) -> Region:
    return Region(box, text)  # type: ignore[arg-type]


def test_what_nobody_could_answer_is_not_asked() -> None:
    """A phrase of two boxes, a box of two phrases, a wrong phrase that reaches into the box."""
    twice = [region("dog", 0, 0, 0.2, 0.2), region("Dog", 0.5, 0.5, 0.9, 0.9)]
    kinds = {q.kind for q in questions_of(0, twice, ["cat", "dog"], QuestionConfig(per_kind=5))}
    assert kinds == {"what", "in_region", "in_picture", "list"}
    same = [region("dog", 0, 0, 0.5, 0.5), region("puppy", 0, 0, 0.5, 0.49)]
    kinds = {q.kind for q in questions_of(0, same, ["cat"], QuestionConfig(per_kind=5))}
    assert kinds == {"where", "in_picture", "list"}
    near = [region("man", 0, 0, 0.5, 1), region("hat", 0.1, 0, 0.3, 0.2)]
    for seed in range(20):
        for question in questions_of(0, near, ["cat"], QuestionConfig(kinds=("in_region",), seed=seed)):
            assert question.answer == "yes" or phrase_in(question) == "cat"


def test_phrases_that_are_nowhere_else_give_no_wrong_ones() -> None:
    alone = [region("dog", 0, 0, 0.2, 0.2)]
    assert {q.kind for q in questions_of(0, alone, ["dog", "DOG "], QuestionConfig())} == {
        "what",
        "where",
        "list",
    }
    assert questions_of(0, [], ["dog"], QuestionConfig()) == []


def test_data_without_phrases(scenes: list[RegionSample]) -> None:
    empty = [
        RegionSample("a", scenes[0].image),
        RegionSample("b", scenes[0].image, regions=(region(" ", 0, 0, 1, 1),)),
    ]
    with pytest.raises(UserError, match="no question can be asked"):
        make_questions(empty, QuestionConfig())


@pytest.mark.parametrize(
    ("config", "said"),
    [({"kinds": ("who",)}, "got who"), ({"kinds": ()}, "got none"), ({"per_kind": 0}, "at least 1")],
)
def test_wrong_configs(config: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        QuestionConfig(**config)


def test_iou_by_hand() -> None:
    assert iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert iou((0, 0, 1, 1), (1, 0, 2, 1)) == 0
    assert iou((0, 0, 1, 1), (0, 0, 1, 1)) == 1
