"""Settings of the libraries underneath, made before they are imported. What the user has set is kept."""

from __future__ import annotations

import os
import warnings

DEFAULTS = {
    # Errors reach the user as one message; Prefect's own console lines would repeat them with a traceback.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_HANDLERS_DEBUG_LEVEL": "CRITICAL",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    # The temporary server applies its database migrations on the first start.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # For Prefect's temporary server: it imports nothing from where the command was started.
    "PYTHONSAFEPATH": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore::FutureWarning:transformers.modeling_utils",  # for the processes of parallel runs
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def prepare_environment(*, debug: bool) -> None:
    """Set the defaults; with `debug`, leave the libraries' own logging as it is."""
    logging_settings = {name for name in DEFAULTS if "LOGGING" in name or "VERBOSITY" in name}
    spare_loopback_the_proxy()
    for name, value in DEFAULTS.items():
        if not (debug and name in logging_settings):
            os.environ.setdefault(name, value)
    if not debug:
        # transformers warns about names that PEFT and its own Trainer use.
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)


LOOPBACK = ("127.0.0.1", "localhost", "::1")


def spare_loopback_the_proxy() -> None:
    """Where a proxy is set, keep calls to this machine's own servers from it: it cannot reach them."""
    if not any(os.environ.get(name) for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")):
        return
    known = [host.strip() for host in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",")]
    hosts = ",".join(dict.fromkeys(host for host in (*known, *LOOPBACK) if host))
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*" if "*" in known else hosts


def services_environment() -> dict[str, str]:
    """This process's environment for servers and workers: without what was set for a quiet command line."""
    return {name: value for name, value in os.environ.items() if DEFAULTS.get(name) != value}
