"""A model's score of every sample of the target and upstream tasks, stored so that any two models can be compared.

One table per model, STUDY/revisions/001/forgetting/NAME.parquet, columns of `SCHEMA`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor, nn

from mars_core.data.dataset import EncodedDataset
from mars_core.data.encode import encode_sample
from mars_core.data.records import Sample
from mars_core.evaluation.forgetting import TaskScores
from mars_core.evaluation.forgetting.cider import cider_d
from mars_core.evaluation.generation.greedy import decoding_for, greedy_tokens, prompt_of
from mars_core.evaluation.generation.questions import Question, batches, short_questions
from mars_core.evaluation.scores import Totals, totals_of
from mars_core.models.loading import Base
from tasks.inputs.data import scored_batches
from tasks.inputs.opened import Inputs
from tasks.running.memory import EVALUATION, out_of_memory
from tasks.running.progress import show_message
from tasks.settings.upstream import UpstreamTask
from tasks.storage.files import replacing

SCHEMA = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("answers", pa.int64(), nullable=False),
        pa.field("nats", pa.float64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
    ]
)
"""One row per sample. score: points. answers: what it counts. nats: loss summed over its answer tokens."""

LONGEST_CAPTION = 64  # answer tokens, end of turn included
POINTS = 100.0


@out_of_memory("the evaluation", EVALUATION)
def score_model(inputs: Inputs, base: Base, model: nn.Module) -> pa.Table:
    """Every sample's score under a model: the test split by task type (`target`), then each upstream task."""
    rows = list(_target_rows(inputs, base, model))
    for task in inputs.config.upstream:
        rows += upstream_rows(inputs, base, model, task.name)
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def upstream_rows(inputs: Inputs, base: Base, model: nn.Module, name: str) -> list[dict[str, Any]]:
    """Rows of one upstream task."""
    (task,) = (one for one in inputs.config.upstream if one.name == name)
    samples = inputs.upstream[task]
    totals = _per_sample(inputs, base, model, samples)
    if task.metric == "accuracy":
        return [_row(name, "upstream", "accuracy", *both) for both in zip(samples, totals, strict=True)]
    return [
        _row(name, "upstream", "cider-d", samples[number], totals[number]) | {"score": score, "answers": 1}
        for number, score in _captions(inputs, base, model, task, samples)
    ]


def _target_rows(inputs: Inputs, base: Base, model: nn.Module) -> Iterator[dict[str, Any]]:
    samples = inputs.usable("test")
    for sample, total in zip(samples, _per_sample(inputs, base, model, samples), strict=True):
        yield _row(f"target: {sample.task}", "target", "accuracy", sample, total)


def _row(task: str, kind: str, metric: str, sample: Sample, total: Totals) -> dict[str, Any]:
    return {
        "task": task,
        "kind": kind,
        "metric": metric,
        "sample_id": sample.id,
        "score": POINTS * total.exact / max(total.answers, 1),
        "answers": total.answers,
        "nats": total.nats,
        "tokens": total.tokens,
    }


def _per_sample(inputs: Inputs, base: Base, model: nn.Module, samples: Sequence[Sample]) -> list[Totals]:
    """Sums of each sample, in order: scored as if every sample were a task type of its own."""
    scored = scored_batches(EncodedDataset(samples, base.processor), base, inputs.config.evaluation_batch_size)

    def numbered() -> Iterator[tuple[dict[str, Tensor], list[str]]]:
        first = 0
        for batch, tasks in scored():
            yield batch, [str(first + row) for row in range(len(tasks))]
            first += len(tasks)

    totals = totals_of(model, numbered())
    return [totals[str(number)] for number in range(len(samples))]


def _captions(
    inputs: Inputs, base: Base, model: nn.Module, task: UpstreamTask, samples: Sequence[Sample]
) -> Iterator[tuple[int, float]]:
    """Number of each sample in `samples` with the CIDEr-D of its first answer, but for answers too long to ask for.

    What is shown and asked is captioned once, and is one reference set: the first answers of all samples that show and
    ask it. So samples that repeat a picture do not make its words common.

    Raises:
        ValueError: fewer than two different pictures are left.
    """
    asked = _short_captions(base, task, samples)
    sets = _by_shown(asked.values())
    written = _written(inputs, base, model, [same[0] for same in sets.values()])
    references = [[question.expected for question in same] for same in sets.values()]
    scores = dict(zip(sets, cider_d(written, references), strict=True))
    for number, question in asked.items():
        yield number, float(scores[_shown(question)])


def _short_captions(base: Base, task: UpstreamTask, samples: Sequence[Sample]) -> dict[int, Question]:
    """First answers short enough to ask for, by the sample's number: ids of samples may stand twice."""
    found: dict[int, Question] = {}
    for number, sample in enumerate(samples):
        for question in short_questions([sample], base.processor, LONGEST_CAPTION).questions:
            if question.number == 0:
                found[number] = question
    short = f"{len(found)} of {len(samples)} captions have at most {LONGEST_CAPTION} tokens"
    counted, n_shown = f"upstream task {task.name!r}: {short}", len(_by_shown(found.values()))
    if n_shown < 2:
        raise ValueError(
            f"{counted} and show {n_shown} different pictures or questions, and at least 2 are needed: give "
            "shorter captions of more pictures, or set its metric to accuracy"
        )
    if len(found) < len(samples):
        show_message(f"{counted}; the others are not scored")
    return found


def _written(inputs: Inputs, base: Base, model: nn.Module, asked: Sequence[Question]) -> list[str]:
    """The model's caption for each question, in order."""
    example = encode_sample(asked[0].sample, base.processor)
    decoding = decoding_for(base.model, base.processor, example, base.pad_token_id, LONGEST_CAPTION)
    written: dict[str, str] = {}
    for batch in batches(sorted(asked, key=lambda one: one.prompt_tokens), inputs.config.evaluation_batch_size):
        prompts = [prompt_of(encode_sample(question.sample, base.processor)) for question in batch]
        for question, tokens in zip(batch, greedy_tokens(model, prompts, decoding), strict=True):
            written[_shown(question)] = base.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    return [written[_shown(question)] for question in asked]


def _by_shown(asked: Iterable[Question]) -> dict[str, list[Question]]:
    found: dict[str, list[Question]] = defaultdict(list)
    for question in asked:
        found[_shown(question)].append(question)
    return dict(found)


def _shown(question: Question) -> str:
    return "\n".join([*map(str, question.sample.images), question.text])


def upstream_loss(inputs: Inputs, base: Base, model: nn.Module) -> float:
    """Mean over upstream tasks of the loss under a model, nats per answer token; nothing is generated."""
    losses = []
    for samples in inputs.upstream.values():
        totals = _per_sample(inputs, base, model, samples)
        losses.append(sum(total.nats for total in totals) / sum(total.tokens for total in totals))
    return sum(losses) / len(losses)


def write_scores(table: pa.Table, path: Path) -> None:
    """Store a model's scores."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def task_scores(base: pa.Table, tuned: pa.Table) -> list[TaskScores]:
    """Both models' scores task by task, on the same samples.

    Raises:
        ValueError: the tables are not of the same samples.
    """
    before, after = base.to_pandas(), tuned.to_pandas()
    keys = ["task", "sample_id"]
    if before[keys].to_numpy().tolist() != after[keys].to_numpy().tolist():
        raise ValueError("the two models were asked different samples: score both with the present study")
    after = after.assign(before=before["score"])
    return [
        TaskScores(
            str(name),
            rows["kind"].iloc[0],
            rows["metric"].iloc[0],
            rows["before"].to_numpy(dtype=np.float64),
            rows["score"].to_numpy(dtype=np.float64),
            rows["answers"].to_numpy(dtype=np.float64),
        )
        for name, rows in after.groupby("task", sort=False)
    ]
