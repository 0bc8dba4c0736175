"""What is shown and stored holds no password, and nothing that a terminal or Rich would obey."""

from __future__ import annotations

import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from rich.console import Console

from tasks.running import progress
from tasks.running.addresses import part_credentials, printable, without_password
from tasks.storage.location import check_location
from tasks.tracking import runs as tracking


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:pw@host/x", "http://***@host/x"),
        ("see https://u:p@ss@host:5000, then", "see https://***@host:5000, then"),
        ("postgresql+psycopg://mars:pw@db/mlflow failed", "postgresql+psycopg://***@db/mlflow failed"),
        ("https://host/a.json?x=1&sig=abc%3D&y=2", "https://host/a.json?x=1&sig=***&y=2"),
        ("https://host/a?X-Amz-Signature=abc#top", "https://host/a?X-Amz-Signature=***#top"),
        ("https://host/a?token=abc", "https://host/a?token=***"),
        ("mail to a@b.org, see http://host/@name", "mail to a@b.org, see http://host/@name"),
    ],
)
def test_no_password_is_shown(text, shown):
    assert without_password(text) == shown


def test_what_moves_a_terminals_cursor_is_written_out():
    assert printable("a\x1b[2J\x07\r b\n\tc") == "a\\x1b[2J\\x07\\x0d b\n\tc"


def test_a_message_is_shown_letter_for_letter(monkeypatch, caplog):
    console = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    monkeypatch.setattr(progress, "console", console)
    progress.show_message("study [/red]x[/] [link=http://evil]here[/link] http://u:secret@host")
    assert console.export_text() == "study [/red]x[/] [link=http://evil]here[/link] http://***@host\n"


def test_a_login_is_parted_from_its_address():
    assert part_credentials("https://u%40x:p%2Fw@host:5000/m?a=1") == ("https://host:5000/m?a=1", "u@x", "p/w")
    assert part_credentials("http://host") == ("http://host", None, None)


class Refusing(BaseHTTPRequestHandler):
    """A server that lets nobody in."""

    def do_GET(self):
        self.send_error(401)

    def log_message(self, *_):
        pass


@pytest.fixture
def refusing():
    """Port of a server that is there and refuses every request."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_mlflows_errors_do_not_name_the_password_of_its_address(tmp_path, monkeypatch, refusing):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://mars:S3cret@127.0.0.1:{refusing}/path")
    tracking.use_store(tmp_path)
    assert mlflow.get_tracking_uri() == f"http://127.0.0.1:{refusing}/path"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("mars", "S3cret")
    with pytest.raises(MlflowException) as raised:
        mlflow.MlflowClient().get_experiment_by_name("x")
    assert "S3cret" not in str(raised.value)
    assert "S3cret" not in tracking.shown_uri(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.mark.parametrize(
    "location",
    [
        "s3://key:S3cret@bucket/study",
        "https://S3cret@host/data.json",
        "https://host/data.parquet?sig=S3cret",
        "https://host/data.parquet?a=1&X-Amz-Signature=S3cret",
    ],
)
def test_a_location_with_a_secret_is_refused_and_the_secret_is_not_repeated(location):
    with pytest.raises(ValueError, match=r"holds a (password|secret)") as raised:
        check_location(location)
    assert "S3cret" not in str(raised.value)


def test_a_container_before_the_host_is_no_secret():
    assert check_location("abfs://container@account.dfs.core.windows.net/study")
