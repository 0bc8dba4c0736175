"""What surrounds a command: proxies, a home that cannot be written to, a damaged database, signals of schedulers."""

from __future__ import annotations

import os
import signal
import sqlite3
from pathlib import Path

import pytest

from flows.cli import errors
from flows.cli.environment import spare_loopback_the_proxy
from flows.cli.temporary_server import start_temporary_server
from tasks.service.doctor import examine


@pytest.fixture
def no_server(monkeypatch, tmp_path) -> Path:
    """No Prefect server is set, and Prefect's folder is an empty one."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    return tmp_path / "prefect"


PROXIES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy")


@pytest.fixture
def no_proxy(monkeypatch):
    for name in PROXIES:
        monkeypatch.setenv(name, "")  # so that what the code sets is taken back too
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("no_proxy")
def test_our_own_servers_are_spared_the_proxy(monkeypatch):
    """Python's own opinion on which hosts go past a proxy."""
    from urllib.request import proxy_bypass_environment

    monkeypatch.setenv("HTTP_PROXY", "http://10.255.255.1:3128")
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    spare_loopback_the_proxy()
    assert all(proxy_bypass_environment(host) for host in ("127.0.0.1", "localhost", "intranet.example"))
    assert not proxy_bypass_environment("huggingface.co")
    found = {finding["check"]: finding for finding in examine()}["proxy"]
    assert "127.0.0.1" in found["found"]


@pytest.mark.usefixtures("no_proxy")
def test_without_a_proxy_nothing_is_set():
    spare_loopback_the_proxy()
    assert not any(name in os.environ for name in PROXIES)


def test_a_home_that_cannot_be_written_to_is_named(no_server, monkeypatch):
    no_server.write_text("a file where the folder would be")
    with pytest.raises(ValueError, match=r"Prefect keeps its records in .*prefect, .*: name a folder of yours with"):
        start_temporary_server()


def test_a_damaged_database_is_named_with_what_to_do(no_server):
    no_server.mkdir()
    (no_server / "prefect.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 4000)
    with pytest.raises(ValueError, match=r"database .*prefect\.db is damaged \(.*\): move it away and run again"):
        start_temporary_server()


def test_a_whole_database_passes(no_server):
    from flows.cli.temporary_server import _require_whole

    no_server.mkdir()
    with sqlite3.connect(no_server / "prefect.db") as connection:
        connection.execute("CREATE TABLE runs (id INTEGER)")
    for pragma in ("schema_version", "quick_check"):
        _require_whole(no_server / "prefect.db", pragma)


@pytest.fixture
def handlers():
    """The signals' handlers as they were, after the test."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_scheduler_s_signal_ends_a_command_as_ctrl_c_does(number, capsys):
    for one in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, signal.SIG_DFL)
    with pytest.raises(errors.typer.Exit) as ended:
        errors.one_message(lambda: os.kill(os.getpid(), number))()
    assert ended.value.exit_code == 130
    assert "interrupted: what was finished is kept" in capsys.readouterr().err


@pytest.mark.usefixtures("handlers")
def test_a_signal_that_the_user_has_set_to_be_ignored_stays_so():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    errors.one_message(lambda: os.kill(os.getpid(), signal.SIGHUP))()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
