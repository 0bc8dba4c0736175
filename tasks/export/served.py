"""Ask a served model some of the test questions and hold its answers against those that MARS scored.

Served weights can differ from scored ones without a word: vLLM leaves adapters of the vision encoder out unless asked
for them, and a merged checkpoint may be an old one. The server speaks OpenAI's protocol, as vLLM, SGLang and others do.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import pyarrow.parquet as pq

from mars_core.data.chat import chat_messages
from mars_core.data.images import load_image
from mars_core.data.records import ImageRef
from mars_core.evaluation.generation.marking import mark
from mars_core.evaluation.generation.questions import Question
from mars_core.records import Record
from tasks.final.answers import answers_path, asked_questions
from tasks.running.progress import progress_bar
from tasks.settings.study import StudyConfig
from tasks.study.opened import Study, reopen_study

TIMEOUT_SECONDS = 300.0
SHOWN = 5
ALIKE = 0.9
"""Share of equal answers below which the served model is taken for another one: rounding and batching change some."""


@dataclass(frozen=True)
class Served(Record):
    """Answers of a served model beside MARS's.

    equal: answers that are the same text. equal_to_base: as the base model's own, None where those were not kept.
    correct, correct_served: of the same questions. different: the first few, as question, MARS's
    answer and the served one.
    """

    url: str
    model: str
    asked: int
    equal: int
    equal_to_base: int | None
    correct: int
    correct_served: int
    alike: bool
    finding: str
    different: tuple[dict[str, str], ...]


def check_served(config: StudyConfig, url: str, *, model: str | None, answers: int) -> Served:
    """Ask the model at `url` (up to and with /v1) some test questions, spread over all, and compare.

    Raises:
        ValueError: the study has no generated answers, or the server has no such model.
        RuntimeError: the server cannot be reached or refuses.
    """
    study = reopen_study(config)
    ours, base = _stored(study, "chosen"), _stored(study, "base")
    if ours is None:
        raise ValueError(
            f"no generated answers of the chosen pair in {study.revision.folder}: run `mars evaluate` first (with "
            "evaluation.answer_tokens above 0)"
        )
    questions = asked_questions(study.inputs).questions
    if len(questions) != len(ours):
        raise ValueError(
            f"the study has {len(ours)} stored answers for {len(questions)} questions: run `mars evaluate`"
        )
    places = _spread(len(questions), answers)
    with httpx.Client(base_url=url.rstrip("/"), timeout=TIMEOUT_SECONDS) as client:
        name = model or _only_model(client)
        with progress_bar(f"asking {name}", len(places)) as advance:
            said = []
            for done, place in enumerate(places, start=1):
                said.append(_answer(client, name, questions[place], config.evaluation.answer_tokens))
                advance(done)
    return _compared(url, name, [questions[place] for place in places], said, [ours[place] for place in places],
                     None if base is None else [base[place] for place in places])  # fmt: skip


def _stored(study: Study, role: str) -> list[dict[str, Any]] | None:
    path = answers_path(study.revision, role)
    return pq.read_table(path).to_pylist() if path.is_file() else None


def _spread(available: int, wanted: int) -> list[int]:
    count = min(available, max(wanted, 1))
    return sorted({number * available // count for number in range(count)})


def _only_model(client: httpx.Client) -> str:
    names = [str(one["id"]) for one in _got(client, "GET", "/models").get("data", [])]
    if len(names) != 1:
        raise ValueError(f"the server has the models {', '.join(names) or 'none'}: name one with --served-model")
    return names[0]


def _answer(client: httpx.Client, model: str, question: Question, longest: int) -> str:
    asked = {
        "model": model,
        "messages": _messages(question),
        "temperature": 0,
        "max_tokens": longest,
    }
    reply = _got(client, "POST", "/chat/completions", json=asked)
    return str(reply["choices"][0]["message"]["content"] or "").strip()


def _messages(question: Question) -> list[dict[str, Any]]:
    """The conversation before the answer, its images inline."""
    images = iter(question.sample.images)
    messages = chat_messages(tuple(question.sample.turns)[:-1])
    for message in messages:
        if message["role"] == "assistant":
            message["content"] = "".join(block["text"] for block in message["content"])
        else:
            message["content"] = [_block(block, images) for block in message["content"]]
    return messages


def _block(block: dict[str, str], images: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": _inline(next(images))}} if block["type"] == "image" else block


def _inline(image: ImageRef) -> str:
    encoded = io.BytesIO()
    load_image(image).save(encoded, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _got(client: httpx.Client, method: str, path: str, **content: Any) -> dict[str, Any]:
    try:
        reply = client.request(method, path, **content)
        reply.raise_for_status()
        found: dict[str, Any] = reply.json()
    except httpx.HTTPStatusError as error:
        raise RuntimeError(
            f"{error.request.url} answers {error.response.status_code}: {error.response.text[:300]}"
        ) from error
    except (httpx.TransportError, ValueError) as error:
        raise RuntimeError(
            f"{client.base_url} cannot be asked ({error}): give the server's address up to /v1"
        ) from error
    return found


def _compared(
    url: str,
    model: str,
    questions: Sequence[Question],
    said: Sequence[str],
    ours: Sequence[dict[str, Any]],
    base: Sequence[dict[str, Any]] | None,
) -> Served:
    marked = [mark(question, text, ()) for question, text in zip(questions, said, strict=True)]
    equal = [text == row["prediction"] for text, row in zip(said, ours, strict=True)]
    as_base = None if base is None else sum(text == row["prediction"] for text, row in zip(said, base, strict=True))
    alike = sum(equal) >= ALIKE * len(said)
    return Served(
        url=url,
        model=model,
        asked=len(said),
        equal=sum(equal),
        equal_to_base=as_base,
        correct=sum(bool(row["correct"]) for row in ours),
        correct_served=sum(bool(row["correct"]) for row in marked),
        alike=alike,
        finding=_finding(sum(equal), as_base, alike),
        different=tuple(
            {"question": row["question"], "mars": row["prediction"], "served": text}
            for text, row, same in zip(said, ours, equal, strict=True)
            if not same
        )[:SHOWN],
    )


def _finding(equal: int, as_base: int | None, alike: bool) -> str:
    if alike:
        return "the served model answers as the scored one does"
    if as_base is not None and as_base > equal:
        return (
            "the served model answers as the base model does: the adapter, or its part in the vision encoder, is not "
            "applied (vLLM: --enable-tower-connector-lora, or serve the merged checkpoint)"
        )
    return (
        "the served model answers otherwise than the scored one: look at its number format, its chat template, the "
        "size that it scales images to, and whether all of the adapter is applied"
    )
