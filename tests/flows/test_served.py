"""`mars export --check`: a small server of OpenAI's protocol, which answers as told, is held against the study."""

from __future__ import annotations

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from flows.cli.main import app
from mars_core.evaluation.generation.marking import SCHEMA


class Server:
    """Answers each question from a table of the last user text and the picture's bytes; keeps what it was asked."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.asked: list[dict] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments) -> None:
                pass

            def do_GET(self) -> None:
                self.reply({"data": [{"id": "mine"}]})

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append(asked)
                self.reply({"choices": [{"message": {"content": f" {answers[str(len(server.asked) - 1)]}\n"}}]})

            def reply(self, value: dict) -> None:
                body = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def serve():
    """Starts servers that give these answers, in this order."""
    started = []

    def start(answers: list[str]) -> Server:
        started.append(Server({str(number): text for number, text in enumerate(answers)}))
        return started[-1]

    yield start
    for server in started:
        server.close()


def rows(finished, role: str) -> list[dict]:
    folder = Path(finished.study) / "revisions" / "001" / "evaluation"
    return pq.read_table(folder / f"answers-{role}.parquet").to_pylist()


def check(finished, server: Server, *options: str) -> dict:
    result = CliRunner().invoke(app, ["export", finished.study, "--check", server.url, *options, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout[result.stdout.index("{") :])


def test_a_server_that_answers_as_scored_is_alike(finished, serve):
    ours = rows(finished, "chosen")
    server = serve([row["prediction"] for row in ours])
    found = check(finished, server, "--answers", "1000")
    assert (found["asked"], found["equal"], found["alike"]) == (len(ours), len(ours), True)
    assert found["correct"] == found["correct_served"] == sum(row["correct"] for row in ours)
    assert found["model"] == server.asked[0]["model"] == "mine"


def test_what_is_asked_is_the_question_with_its_picture(finished, serve):
    server = serve(["x"] * 3)
    found = check(finished, server, "--answers", "3")
    assert (found["asked"], found["alike"], found["equal"]) == (3, False, 0)
    assert len(found["different"]) == 3
    pictures = []
    for asked, different in zip(server.asked, found["different"], strict=True):
        assert (asked["temperature"], asked["max_tokens"] > 0) == (0, True)
        parts = asked["messages"][-1]["content"]
        assert next(part["text"] for part in parts if part["type"] == "text") in different["question"]
        urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        pictures += [base64.b64decode(url.removeprefix("data:image/png;base64,")) for url in urls]
        assert len(urls) == different["question"].count("<image>")
    assert {Image.open(io.BytesIO(picture)).mode for picture in pictures} == {"RGB"}
    assert "the served model answers otherwise" in found["finding"]


def test_an_adapter_that_is_not_applied_is_told_by_the_base_models_answers(copied, serve):
    """The small study's adapter changes no answer, so the stored answers of its base are made others."""
    base = [row | {"prediction": f"base {number}"} for number, row in enumerate(rows(copied, "base"))]
    file = Path(copied.study) / "revisions" / "001" / "evaluation" / "answers-base.parquet"
    pq.write_table(pa.Table.from_pylist(base, schema=SCHEMA), file)
    found = check(copied, serve([row["prediction"] for row in base]), "--answers", "1000")
    assert (found["equal"], found["equal_to_base"]) == (0, len(base))
    assert "answers as the base model does" in found["finding"]


def test_a_server_that_is_not_there_is_one_message(finished):
    result = CliRunner().invoke(app, ["export", finished.study, "--check", "http://127.0.0.1:9/v1"])
    assert result.exit_code == 1
    assert "cannot be asked" in " ".join(result.output.split())
