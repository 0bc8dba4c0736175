"""Metrics of the validation answers: by plain loops, and the same from a pack and from plain evaluation."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from mars_core.data.collate import collate
from mars_core.data.encode import encode_sample
from mars_core.data.records import Turn
from mars_core.evaluation.objectives.measurement import Measurement, first_answer_tokens, known_answers, letter_tokens
from mars_core.evaluation.objectives.record import AnswerRecord
from mars_core.evaluation.objectives.registry import SHIPPED, NamedMetric
from mars_core.evaluation.scores import evaluate
from mars_core.models.lora import add_adapters, remove_adapters
from mars_core.packing.adapter_batches import AdapterBatches
from mars_core.packing.run import PackRun
from mars_core.packing.train import train_pack
from mars_core.ranks import RankPair
from mars_core.training.recipe import Recipe

OPTIONS = "<image>\nWhat colour is the ground?\nA. red\nB. yellow\nC. green\nAnswer with a letter."


@pytest.fixture(scope="module")
def asked(samples):
    """The usual samples, three of them as multiple choice with two or three options."""
    choices = {0: (OPTIONS, "A"), 5: (OPTIONS.replace("C. green\n", ""), "B"), 7: (OPTIONS, "C")}
    return [
        replace(sample, turns=(Turn("user", choices[n][0]), Turn("assistant", choices[n][1])))
        if n in choices
        else sample
        for n, sample in enumerate(samples)
    ]


@pytest.fixture(scope="module")
def items(asked, shared_base):
    return [encode_sample(sample, shared_base.processor) for sample in asked]


@pytest.fixture(scope="module")
def measure(asked, items, shared_base):
    """Makes the measurement of a metric over these samples."""
    answers = known_answers(asked)
    tokenizer = shared_base.processor.tokenizer
    letters = letter_tokens(answers, lambda place: first_answer_tokens(items[place].labels), tokenizer)

    def make(metric, name="metric"):
        return Measurement(NamedMetric(name, name, metric), answers, letters, tokenizer.decode)

    return make


def batches(items, base, size):
    return [
        (collate(items[start : start + size], base.pad_token_id), [i.sample.task for i in items[start : start + size]])
        for start in range(0, len(items), size)
    ]


@pytest.fixture
def adapted(base, random_adapters):
    wrapped = add_adapters(base.model, base.partition, RankPair(4, 4), seed=0)
    random_adapters(wrapped, 0.02)
    yield wrapped
    remove_adapters(wrapped).eval()


def loop_over_answers(model, item):
    """(right tokens, logits at the first token) of each answer, one forward pass at a time."""
    inputs = {"input_ids": item.input_ids[None], "attention_mask": item.attention_mask[None], **item.image_inputs}
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    for start, end in item.answer_spans:
        right = [int(logits[place - 1].argmax()) == int(item.input_ids[place]) for place in range(start, end)]
        yield right, logits[start - 1]


def test_shipped_metrics_by_a_loop_over_answers(adapted, base, items, measure):
    tokenizer = base.processor.tokenizer
    rights, letters = [], []
    for item, offered in zip(items, ["ABC", "", "", "", "", "AB", "", "ABC"], strict=True):
        for right, first in loop_over_answers(adapted, item):
            rights.append(right)
            if offered:
                ids = [tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in offered]
                assert all(len(of_letter) == 1 for of_letter in ids)
                best = max(offered, key=lambda letter: first[ids[offered.index(letter)][0]])
                letters.append(best == item.sample.answers[0])
    tokens = [right for answer in rights for right in answer]
    expected = {
        "token_error": tokens.count(False) / len(tokens),
        "exact_match_error": sum(not all(right) for right in rights) / len(rights),
        "letter_error": letters.count(False) / 3,
    }
    for size in (1, 3, 8):
        found = {
            name: evaluate(adapted, batches(items, base, size), measurement=measure(metric)).objective
            for name, metric in SHIPPED.items()
        }
        assert found == pytest.approx(expected)
    assert 0 < expected["token_error"] < 1


def test_exact_match_error_is_one_less_the_accuracy_of_evaluation(adapted, base, items, measure):
    found = evaluate(adapted, batches(items, base, 4), measurement=measure(SHIPPED["exact_match_error"]))
    assert found.objective == pytest.approx(1 - found.overall.accuracy)


def test_a_record_says_what_was_asked_and_predicted(adapted, base, items, measure, asked):
    seen: list[AnswerRecord] = []
    evaluation = evaluate(
        adapted, batches(items, base, 3), measurement=measure(lambda records: seen.extend(records) or 0.5)
    )
    assert evaluation.objective == 0.5
    known = [(s.id, n, s.task, text) for s in asked for n, text in enumerate(s.answers)]
    assert [(one.sample_id, one.number, one.task, one.answer) for one in seen] == known
    nats = sum(sum(one.token_losses) for one in seen)
    assert nats == pytest.approx(evaluation.overall.loss * evaluation.overall.n_tokens)
    assert [one.letters for one in seen if one.letters] == ["ABC", "AB", "ABC"]
    assert all((one.letter in tuple(one.letters)) if one.letters else one.letter is None for one in seen)
    for one in seen:
        ids = base.processor.tokenizer(one.answer, add_special_tokens=False)["input_ids"]
        if all(one.token_right):
            assert list(one.predicted_ids[: len(ids)]) == ids
        assert one.predicted == base.processor.tokenizer.decode(one.predicted_ids).strip()


@pytest.mark.parametrize("adapter_batches", [AdapterBatches(1, 1), AdapterBatches(3, 1), AdapterBatches(2, 2)], ids=str)
def test_a_pack_measures_what_plain_evaluation_measures(base, items, measure, adapter_batches):
    """A metric of everything in the records, so that no answer may be mixed up between members or rows. Losses agree to
    1e-9 in fp64; tokens and letters must agree."""

    def weighted(records):
        return sum(
            (place + 1) * (sum(one.token_losses) + 3 * sum(one.token_right) + 7 * (one.letter == "B"))
            for place, one in enumerate(records)
        )

    pairs = [RankPair(2, 4), RankPair(8, 2), RankPair(4, 4)]
    recipe = Recipe(learning_rate=3e-3, batch_size=3, dtype="float64")
    steps = [[collate(items[:3], base.pad_token_id)], [collate(items[3:6], base.pad_token_id)]]
    kept = {}
    trained = train_pack(
        base.model,
        base.partition,
        [PackRun(pair, 0) for pair in pairs],
        train_steps=lambda done: steps[done:],
        validation=lambda: batches(items, base, 4),
        recipe=recipe,
        horizon=2,
        checkpoint_steps=(1, 2),
        adapter_batches=adapter_batches,
        measurement=measure(weighted),
        on_checkpoint=lambda state: kept.update({state.step: state}),
    )
    for number, pair in enumerate(pairs):
        last = trained.runs[number].checkpoints[-1]
        assert last.val_objective is not None
        wrapped = plain(base, pair, kept[2].tensors[f"{number}.weights"])
        try:
            found = evaluate(wrapped, batches(items, base, 8), measurement=measure(weighted))
        finally:
            remove_adapters(wrapped).eval()
        assert found.overall.loss == pytest.approx(last.val_loss, rel=1e-9)
        assert found.objective == pytest.approx(last.val_objective, rel=1e-9)
        restored = kept[2].runs[number]["checkpoints"]
        assert [checkpoint["val_objective"] for checkpoint in restored][-1] == last.val_objective


def plain(base, pair, flat):
    """The base model with a member's weights as PEFT holds them."""
    from mars_core.packing.adapters import layout_of, to_peft

    wrapped = add_adapters(base.model, base.partition, pair, seed=0)
    named = dict(wrapped.named_parameters())
    with torch.no_grad():
        for name, value in to_peft(flat, layout_of(base.partition, pair)).items():
            target = next(key for key in (name, name.replace(".weight", ".default.weight")) if key in named)
            named[target].copy_(value)
    return wrapped


def test_without_a_metric_nothing_is_measured(adapted, base, items):
    assert evaluate(adapted, batches(items, base, 4)).objective is None


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda records: "good", "returned 'good', expected a number"),
        (lambda records: -0.5, "must be 0 or more, with lower better"),
        (lambda records: 1 // 0, "fails on answers that are all right: ZeroDivisionError"),
    ],
)
def test_a_metric_that_cannot_be_used_is_found_before_training(measure, metric, message):
    with pytest.raises(ValueError, match=message):
        measure(metric).check()


def test_a_metric_without_a_value_gives_nan(measure):
    measured = measure(lambda records: float("nan"))
    measured.check()
    assert measured.value_of([]) != measured.value_of([])


def test_letter_error_needs_letters(measure, samples):
    measured = replace(measure(SHIPPED["letter_error"]), answers=known_answers(samples))
    with pytest.raises(ValueError, match="needs multiple-choice questions"):
        measured.check()


def test_letters_that_are_no_tokens_of_their_own_are_not_used(asked, items):
    class Pieces:
        def __call__(self, text, add_special_tokens):
            return {"input_ids": [1, 2]}

    answers = known_answers(asked)
    assert letter_tokens(answers, lambda place: first_answer_tokens(items[place].labels), Pieces()) == {}


def test_shipped_metrics_are_0_for_perfect_answers(measure):
    for metric in SHIPPED.values():
        measured = copy.copy(measure(metric))
        measured.check()
        records = [measured._perfect(known) for sample in measured.answers for known in sample]
        assert measured.value_of(records) == 0.0
