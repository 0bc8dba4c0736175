from __future__ import annotations

import copy
import math
from collections import defaultdict

import pytest
import torch

from mars_core.evaluation.answer_loss import answer_numbers, token_losses
from mars_core.evaluation.scores import Score, evaluate
from mars_core.models.lora import add_adapters, remove_adapters
from mars_core.ranks import RankPair


@pytest.fixture(scope="module")
def half_right(shared_base, encoded, batch_of):
    """A model of its own that has learnt some answers by heart, and one of sample 1's two answers wrong."""
    model = copy.deepcopy(shared_base.model)
    wrapped = add_adapters(model, shared_base.partition, RankPair(4, 16), seed=0)
    optimizer = torch.optim.Adam([p for p in wrapped.parameters() if p.requires_grad], lr=4e-3)
    batch = batch_of(0, 1, 3)
    start, end = encoded[1].answer_spans[1]
    batch["labels"][1, start:end] += 1
    for _ in range(25):
        loss = token_losses(wrapped, batch).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(wrapped.parameters(), 1.0)
        optimizer.step()
    return wrapped.eval()


def greedy_answer(model, item, start: int, end: int) -> list[int]:
    """What `generate` writes when it is given everything before an answer, at the answer's length at most."""
    inputs = {
        "input_ids": item.input_ids[None, :start],
        "attention_mask": item.attention_mask[None, :start],
        **item.image_inputs,
    }
    written = model.generate(**inputs, do_sample=False, max_new_tokens=end - start)
    return written[0, start:].tolist()


def test_an_answer_is_exact_when_greedy_decoding_writes_it(half_right, encoded, batch_of):
    outcomes = []
    for number, item in enumerate(encoded):
        right = [
            greedy_answer(half_right, item, start, end) == item.input_ids[start:end].tolist()
            for start, end in item.answer_spans
        ]
        score = evaluate(half_right, [(batch_of(number), [item.sample.task])]).overall
        assert (score.n_answers, score.accuracy) == (len(right), sum(right) / len(right))
        outcomes.append(right)
    assert outcomes[0] == [True]
    assert outcomes[1] == [True, False]


def test_loss_and_perplexity_by_a_loop_over_tokens(half_right, encoded, batch_of, scored):
    nats, tokens = defaultdict(float), defaultdict(int)
    for number, item in enumerate(encoded):
        inputs = {key: value for key, value in batch_of(number).items() if key != "labels"}
        with torch.no_grad():
            logits = half_right(**inputs).logits[0]
        for start, end in item.answer_spans:
            for place in range(start, end):
                probability = torch.softmax(logits[place - 1], dim=0)[item.input_ids[place]]
                for key in (item.sample.task, "all"):
                    nats[key] -= math.log(probability)
                    tokens[key] += 1
    evaluation = evaluate(half_right, scored(3)())
    scores = {**evaluation.by_task, "all": evaluation.overall}
    assert scores.keys() == tokens.keys()
    for key, score in scores.items():
        assert score.n_tokens == tokens[key]
        # fp64; padded rows and summation order make the difference.
        assert score.loss == pytest.approx(nats[key] / tokens[key], rel=1e-9)
        assert score.perplexity == pytest.approx(math.exp(nats[key] / tokens[key]), rel=1e-8)


def test_task_types_add_up_to_the_whole(half_right, scored, encoded):
    evaluation = evaluate(half_right, scored(4)())
    parts = evaluation.by_task.values()
    whole = evaluation.overall
    assert list(evaluation.by_task) == sorted({item.sample.task for item in encoded})
    assert whole.n_answers == sum(part.n_answers for part in parts) == sum(len(item.answer_spans) for item in encoded)
    assert whole.n_tokens == sum(part.n_tokens for part in parts)
    assert whole.loss == pytest.approx(sum(part.loss * part.n_tokens for part in parts) / whole.n_tokens)
    assert whole.accuracy == pytest.approx(sum(part.accuracy * part.n_answers for part in parts) / whole.n_answers)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_batch_size_changes_nothing(half_right, scored, size):
    reference, evaluation = evaluate(half_right, scored(2)()), evaluate(half_right, scored(size)())
    assert evaluation.overall.accuracy == reference.overall.accuracy
    assert evaluation.overall.n_tokens == reference.overall.n_tokens
    # fp64; attention over padding sums in another order.
    assert evaluation.overall.loss == pytest.approx(reference.overall.loss, rel=1e-9)
    for task, score in evaluation.by_task.items():
        assert score.loss == pytest.approx(reference.by_task[task].loss, rel=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_given_back_and_evaluation_is_without_dropout(base, scored, random_adapters, training):
    wrapped = add_adapters(base.model, base.partition, RankPair(2, 2), seed=0, dropout=0.5)
    try:
        random_adapters(wrapped)
        wrapped.train(training)
        first, second = evaluate(wrapped, scored(4)()), evaluate(wrapped, scored(4)())
        assert first == second
        assert wrapped.training is training
        with pytest.raises(ZeroDivisionError):
            evaluate(wrapped, scored(4)(), on_batch=lambda rows: 1 // 0)
        assert wrapped.training is training
    finally:
        remove_adapters(wrapped).eval()


def test_every_batch_is_announced_with_its_rows(base, scored):
    seen = []
    evaluate(base.model, scored(3)(), on_batch=seen.append)
    assert seen == [3, 3, 2]


def test_an_empty_set_is_refused(base):
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate(base.model, [])


def test_answers_are_numbered_by_runs_of_labels():
    x = -100
    labels = torch.tensor([[x, x, 5, 6, x, 7, x], [9, x, x, x, x, x, 8]])
    rows, numbers = answer_numbers(labels)
    assert list(zip(rows.tolist(), numbers.tolist(), strict=True)) == [(0, 0), (0, 0), (0, 1), (1, 0)]


@pytest.mark.parametrize(
    ("loss", "expected"), [(0.0, 1.0), (math.log(7), 7.0), (math.nan, math.inf), (math.inf, math.inf)]
)
def test_perplexity_is_the_exponential_of_the_loss(loss, expected):
    assert Score(loss, 0.0, 1, 1).perplexity == pytest.approx(expected)


def test_perplexity_of_a_huge_loss_is_a_number():
    assert math.isfinite(Score(1e4, 0.0, 1, 1).perplexity)
