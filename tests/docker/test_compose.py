"""compose.yaml: the specification, and what it promises about exposure, secrets, health and devices."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import mlflow.environment_variables
import pytest
import yaml
from mlflow.cli import cli as mlflow_cli
from prefect.settings import Settings
from prefect.settings.legacy import _get_settings_fields

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
FILES = ("compose.yaml", "compose.second-gpu.yaml")
ONE_SHOT = {"register"}
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|AUTH_STRING|API_KEY")


def read(name: str) -> dict:
    return yaml.safe_load((DOCKER / name).read_text())


def variables(text: str) -> dict[str, set[str]]:
    """Names of the variables of a text, each with the defaults it is used with ('' where it has none)."""
    found: dict[str, set[str]] = {}
    for name, default in re.findall(r"\$\{(\w+)(?::-([^}]*)|:\?[^}]*)?\}", text):
        found.setdefault(name, set()).add(default)
    return found


@pytest.mark.parametrize("name", FILES)
def test_follows_the_compose_specification(name):
    program = Path(sys.executable).with_name("check-jsonschema")
    command = [program, "--builtin-schema", "vendor.compose-spec", DOCKER / name]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_nothing_is_published_beyond_localhost(services):
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"prefect-server": ["127.0.0.1:4200:4200"], "mlflow-server": ["127.0.0.1:5000:5000"]}
    assert not any("network_mode" in service for service in services.values())


def test_only_the_servers_reach_postgresql(services):
    assert read("compose.yaml")["networks"]["database"]["internal"] is True
    reach = {name for name, service in services.items() if "database" in service["networks"]}
    assert reach == {"postgres", "prefect-server", "mlflow-server"}
    assert services["postgres"]["networks"] == ["database"]


def test_every_service_is_watched_and_restarted(services):
    for name, service in services.items():
        if name in ONE_SHOT:
            assert service["restart"].startswith("on-failure:"), name
            assert service["healthcheck"] == {"disable": True}, name
        else:
            assert service["restart"] == "unless-stopped", name
            assert {"test", "interval", "timeout", "retries", "start_period"} <= service["healthcheck"].keys(), name


def test_services_start_after_what_they_need_is_healthy(services):
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if needed in ONE_SHOT else "service_healthy"
            assert how == {"condition": expected}, f"{name} on {needed}"
    assert "register" in services["worker-gpu"]["depends_on"]


def test_no_service_is_root_or_gains_privileges(services):
    for name, service in services.items():
        assert service["user"].partition(":")[0] not in {"", "0", "root"}, name
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service, name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service.get("privileged"), name


def test_image_tags_name_a_version(services):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {service["image"] for service in services.values()}
    assert {f"mars-worker:{version}", f"mars-services:{version}"} < images
    for image in images:
        assert re.search(r":\d+\.\d+", image), image


def test_secrets_come_from_the_environment_file_only():
    for service in read("compose.yaml")["services"].values():
        for key, value in service.get("environment", {}).items():
            if SECRET.search(key) and not key.endswith("_USERNAME"):
                assert re.sub(r"\$\{[A-Z_]+(:\?[^}]*|:-)?\}", "", value) in {"", ":"}, key
    example = (DOCKER / ".env.example").read_text()
    secrets = [line for line in example.splitlines() if re.match(r"\w*(PASSWORD|SECRET|TOKEN)\w*=", line)]
    assert len(secrets) == 7
    assert all(line.endswith("=") for line in secrets)


def test_a_service_gets_no_secret_that_it_does_not_need(services, settings):
    def knows(secret: str) -> set[str]:
        return {
            name
            for name, service in services.items()
            if any(settings[secret] in str(value) for value in service["environment"].values())
        }

    clients = {"register", "worker-cpu", "worker-gpu"}
    assert knows("POSTGRES_PASSWORD") == {"postgres"}
    assert knows("PREFECT_DB_PASSWORD") == {"postgres", "prefect-server"}
    assert knows("MLFLOW_DB_PASSWORD") == {"postgres", "mlflow-server"}
    assert knows("MLFLOW_SECRET_KEY") == {"mlflow-server"}
    assert knows("PREFECT_PASSWORD") == clients | {"prefect-server"}
    assert knows("MLFLOW_PASSWORD") == clients | {"mlflow-server"}


def test_secrets_stand_on_no_command_line(services, settings):
    secrets = [value for key, value in settings.items() if key.endswith(("_PASSWORD", "_SECRET_KEY"))]
    for name, service in services.items():
        words = [*service.get("command", []), *service["healthcheck"].get("test", [])]
        assert not [secret for secret in secrets if secret in " ".join(words)], name


def test_the_example_file_has_every_variable_and_no_other(settings):
    used: dict[str, set[str]] = {}
    for name in FILES:
        for variable, defaults in variables((DOCKER / name).read_text()).items():
            used.setdefault(variable, set()).update(defaults)
    assert used.keys() == settings.keys()
    for variable, defaults in used.items():
        assert defaults <= {"", settings[variable]}, f"{variable}: compose.yaml and .env.example have other defaults"


def test_new_secrets_are_long_private_and_kept(tmp_path):
    for name in (".env.example", "new-env"):
        (tmp_path / name).write_bytes((DOCKER / name).read_bytes())
    (tmp_path / "new-env").chmod(0o755)

    def make() -> subprocess.CompletedProcess[str]:
        return subprocess.run([tmp_path / "new-env"], capture_output=True, text=True, check=False)

    assert make().returncode == 0
    made = (tmp_path / ".env").read_text()
    secrets = re.findall(r"^\w+_(?:PASSWORD|SECRET_KEY)=([0-9a-f]+)$", made, flags=re.MULTILINE)
    assert len(set(secrets)) == 6
    assert {len(secret) for secret in secrets} == {48}
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0
    assert make().returncode == 2
    assert (tmp_path / ".env").read_text() == made


def test_an_environment_file_cannot_be_committed_or_sent_to_a_builder():
    ignored = subprocess.run(["git", "check-ignore", "docker/.env"], cwd=ROOT, capture_output=True, check=False)
    assert ignored.returncode == 0, "docker/.env is not in .gitignore"
    allowed = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()
    assert not [line for line in allowed if "docker/.env".startswith(line[1:])]


def test_settings_of_the_servers_exist():
    prefect = set(_get_settings_fields(Settings))
    options = mlflow_cli.commands["server"].params
    known = {variable for option in options for variable in (option.envvar or "",) if isinstance(variable, str)}
    known |= {name for name in vars(mlflow.environment_variables) if name.startswith("MLFLOW_")}
    for service in read("compose.yaml")["services"].values():
        names = set(service.get("environment", {}))
        assert {name for name in names if name.startswith("PREFECT_") and "_DB_" not in name} <= prefect
        assert {name for name in names if name.startswith("MLFLOW_") and "_DB_" not in name} <= known


def test_mounted_files_exist_and_volumes_are_declared(services):
    declared = read("compose.yaml")["volumes"]
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert os.access(DOCKER / source, os.X_OK), f"{name}: {source}"
            else:
                assert source in declared, f"{name}: {source}"
    assert "study-data:/data" in services["worker-gpu"]["volumes"]


def test_gpu_workers_hold_one_gpu_each(services):
    def devices(service: dict) -> list[dict]:
        return service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])

    second = read("compose.second-gpu.yaml")["services"]["worker-gpu-1"]
    base = services[second["extends"]["service"]]
    assert devices(base) == [], "extends appends to lists: the base must have no device"
    assert devices(services["worker-gpu"]) == [{"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}]
    assert devices(second) == [{"driver": "nvidia", "device_ids": ["${MARS_GPU_1:-1}"], "capabilities": ["gpu"]}]
    assert second["command"] == services["worker-gpu"]["command"]
    for command in (second["command"], services["worker-gpu"]["command"]):
        assert command[command.index("--pool") + 1] == "mars-gpu"
        assert command[command.index("--limit") + 1] == "1"
    # The CUDA image asks for every GPU; whoever has none of its own must say so.
    for name in ("worker-cpu", "register"):
        assert services[name]["environment"]["NVIDIA_VISIBLE_DEVICES"] == "void"
