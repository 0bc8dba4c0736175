"""Generate the short answers of the test split and keep every one of them, resumable after a kill."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import nn

from mars_core.data.encode import encode_sample
from mars_core.evaluation.generation.accuracy import Accuracies, summary
from mars_core.evaluation.generation.greedy import Decoding, decoding_for, greedy_tokens, prompt_of
from mars_core.evaluation.generation.marking import SCHEMA, mark
from mars_core.evaluation.generation.questions import Question, QuestionSet, batches, short_questions
from mars_core.evaluation.generation.scienceqa import subgroups
from mars_core.metrics.identity import content_hash
from mars_core.models.loading import Base
from tasks.inputs.opened import Inputs
from tasks.running.progress import progress_bar
from tasks.storage.files import file_hash, replacing
from tasks.storage.folder import Revision
from tasks.study.opened import Study

PART_ANSWERS = 128
"""Answers stored at a time: what a kill can lose."""


def asked_questions(inputs: Inputs) -> QuestionSet:
    """The test split's answers that are scored by generation; none where `evaluation.answer_tokens` is 0."""
    longest, samples = inputs.config.evaluation.answer_tokens, inputs.usable("test")
    if longest == 0:
        return QuestionSet((), 0)
    with progress_bar("measuring the test answers", len(samples)) as advance:
        return short_questions(samples, inputs.processor, longest, progress=advance)


def generate_answers(
    study: Study,
    base: Base,
    model: nn.Module,
    role: str,
    adapter: Path | None,
    asked: QuestionSet,
) -> Accuracies | None:
    """`write_answers` for a model of the evaluation, by its role, into the evaluation's own folder."""
    return write_answers(answers_path(study.revision, role), study.inputs, base, model, role, adapter, asked)


def write_answers(
    path: Path,
    inputs: Inputs,
    base: Base,
    model: nn.Module,
    name: str,
    weights: Path | None,
    asked: QuestionSet,
) -> Accuracies | None:
    """Generate, mark and store a model's answers in `path`; returns their accuracies, None where nothing is asked.

    What an interrupted call has stored is taken up again by a call for the same model, data and settings.

    name: of the model, for the progress bar. weights: the folder that its adapter or its own weights were read from,
    None for the base model.
    """
    if not asked.questions:
        path.unlink(missing_ok=True)
        return None
    folder = path.with_name(f"parts-{path.stem}-{_identity(inputs, weights, asked)}")
    decoding = _decoding(inputs, base, asked)
    with progress_bar(f"generating {len(asked.questions)} answers ({name})", len(asked.questions)) as advance:
        parts = _parts(
            folder, asked, lambda some: _rows(some, base, model, decoding, inputs.config.evaluation_batch_size)
        )
        rows = pa.concat_tables(_counted(parts, advance))
    with replacing(path) as temporary:
        pq.write_table(rows, temporary)
    for leftover in path.parent.glob(f"parts-{path.stem}-*"):
        shutil.rmtree(leftover)
    return summary(rows.to_pandas(), asked.n_long)


def _identity(inputs: Inputs, weights: Path | None, asked: QuestionSet) -> str:
    # An adapter is one file, a full-rank checkpoint may be several.
    files = sorted(weights.glob("*.safetensors")) if weights is not None else []
    hashes = {file.name: file_hash(file) for file in files}
    data = [inputs.data.data_hash, len(asked.questions), inputs.config.evaluation.answer_tokens]
    return content_hash([inputs.fingerprint, hashes, *data])


def _decoding(inputs: Inputs, base: Base, asked: QuestionSet) -> Decoding:
    example = encode_sample(asked.questions[0].sample, base.processor)
    return decoding_for(base.model, base.processor, example, base.pad_token_id, inputs.config.evaluation.answer_tokens)


def _parts(folder: Path, asked: QuestionSet, answer: Callable[[list[Question]], pa.Table]) -> Iterable[pa.Table]:
    for start in range(0, len(asked.questions), PART_ANSWERS):
        path = folder / f"{start:07d}.parquet"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = answer(list(asked.questions[start : start + PART_ANSWERS]))
            with replacing(path) as temporary:
                pq.write_table(rows, temporary)
        yield pq.read_table(path)


def _counted(parts: Iterable[pa.Table], advance: Callable[[int], Any]) -> Iterable[pa.Table]:
    done = 0
    for part in parts:
        done += part.num_rows
        advance(done)
        yield part


def _rows(questions: list[Question], base: Base, model: nn.Module, decoding: Decoding, size: int) -> pa.Table:
    rows = []
    for batch in batches(questions, size):
        prompts = [prompt_of(encode_sample(question.sample, base.processor)) for question in batch]
        for question, tokens in zip(batch, greedy_tokens(model, prompts, decoding), strict=True):
            text = base.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
            rows.append(mark(question, text, subgroups(question.sample)))
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def answers_path(revision: Revision, role: str) -> Path:
    """Every generated answer of a model, one row each (`mars_core.evaluation.generation.marking.SCHEMA`)."""
    return revision.path("evaluation", f"answers-{role}.parquet")
