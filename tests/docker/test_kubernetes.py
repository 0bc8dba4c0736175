"""The Kubernetes files: valid for Kubernetes, and taken as they are by Prefect's own worker and server code."""

from __future__ import annotations

import asyncio
import copy
import json
import tomllib
import uuid
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from prefect.client.schemas.objects import FlowRun
from prefect.server.schemas.actions import DeploymentCreate, WorkPoolCreate
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.utilities.schema_tools.validation import ValidationError
from prefect_kubernetes.settings import KubernetesSettings
from prefect_kubernetes.worker import KubernetesWorker, KubernetesWorkerJobConfiguration

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker" / "kubernetes"
KUBERNETES = "1.34"
LOGIN = "mars:not-to-be-seen"


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    return json.loads((FOLDER / "base-job-template.json").read_text())


def render(template: dict[str, Any], **values: Any) -> dict[str, Any]:
    """Job manifest of a flow run with these job variables, as the worker submits it."""

    async def configure() -> KubernetesWorkerJobConfiguration:
        # A template without block references never asks the client for anything.
        configuration = await KubernetesWorkerJobConfiguration.from_template_and_values(
            template, values, client=object()
        )
        run = FlowRun(id=uuid.uuid4(), flow_id=uuid.uuid4(), name="calm-otter")
        configuration.prepare_for_flow_run(run)
        worker = KubernetesWorker(work_pool_name="mars-gpu")
        settings = KubernetesSettings().worker
        await worker._replace_env_variable_with_secret(
            env_variable_name="PREFECT_API_AUTH_STRING",
            configuration=configuration,
            secret_name=settings.api_auth_string_secret_name,
            secret_key=settings.api_auth_string_secret_key,
        )
        return configuration

    with temporary_settings({PREFECT_API_URL: "http://prefect.example/api", PREFECT_API_AUTH_STRING: LOGIN}):
        return asyncio.run(configure()).job_manifest


@pytest.fixture(autouse=True)
def worker_settings(monkeypatch):
    """The settings that worker.yaml gives the worker."""
    *_, deployment = documents()
    for entry in deployment["spec"]["template"]["spec"]["containers"][0]["env"]:
        if "value" in entry:
            monkeypatch.setenv(entry["name"], entry["value"])


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / "worker.yaml").read_text()))


def check(manifest: dict[str, Any]) -> None:
    """Validate a job; Prefect demands two keys in the pod that Kubernetes does not know there, and drops."""
    known = copy.deepcopy(manifest)
    assert (pod(known).pop("parallelism"), pod(known).pop("completions")) == (1, 1)
    kubernetes_validate.validate(known, KUBERNETES, strict=True)


def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"]["template"]["spec"]


def test_worker_manifests_are_valid():
    kinds = [document["kind"] for document in documents()]
    assert kinds == ["PersistentVolumeClaim", "ServiceAccount", "Role", "RoleBinding", "Deployment"]
    for document in documents():
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_variables_are_a_valid_schema_with_valid_defaults(template):
    schema = template["variables"]
    jsonschema.Draft202012Validator.check_schema(schema)
    defaults = {name: field["default"] for name, field in schema["properties"].items() if "default" in field}
    jsonschema.validate(defaults, schema)
    for name, field in schema["properties"].items():
        assert field["description"], name


def test_server_accepts_the_template_and_deployments_on_it(template):
    pool = WorkPoolCreate(name="mars-gpu", type="kubernetes", base_job_template=template)
    deployment = DeploymentCreate(name="calibrate", flow_id=uuid.uuid4(), job_variables={"gpu_count": 2})
    deployment.check_valid_configuration(pool.base_job_template)
    wrong = DeploymentCreate(name="calibrate", flow_id=uuid.uuid4(), job_variables={"gpu_count": "two"})
    with pytest.raises(ValidationError, match="gpu_count"):
        wrong.check_valid_configuration(pool.base_job_template)


def test_keeps_every_variable_of_prefect_s_own_template(template):
    own = KubernetesWorker.get_default_base_job_template()
    assert own["variables"]["properties"].keys() <= template["variables"]["properties"].keys()
    assert own["job_configuration"].keys() == template["job_configuration"].keys()


def test_every_variable_is_used_and_every_placeholder_is_a_variable(template):
    text = json.dumps(template["job_configuration"])
    for name in template["variables"]["properties"]:
        assert f"{{{{ {name} }}}}" in text, name
    assert text.count("{{") == sum(text.count(f"{{{{ {name} }}}}") for name in template["variables"]["properties"])


def test_default_job_is_a_valid_gpu_job(template):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    manifest = render(template)
    check(manifest)
    (container,) = pod(manifest)["containers"]
    assert manifest["metadata"]["namespace"] == "mars"
    assert container["image"] == f"mars-worker:{version}"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["args"] == ["prefect", "flow-run", "execute"]
    assert pod(manifest)["securityContext"]["runAsNonRoot"] is True
    assert pod(manifest)["securityContext"]["runAsUser"] == 1000
    assert "runtimeClassName" not in pod(manifest)
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {"/data": "study", "/models": "study", "/dev/shm": "shared-memory", "/home/mars": "home"}


def test_variables_reach_the_job(template):
    manifest = render(
        template,
        image="registry.example/mars-worker:9",
        gpu_count=4,
        cpu_limit="16",
        memory_limit="200Gi",
        node_selector={"nvidia.com/gpu.product": "NVIDIA-H200"},
        tolerations=[{"key": "batch", "operator": "Exists"}],
        runtime_class_name="nvidia",
        image_pull_secrets=[{"name": "registry"}],
        shared_memory="32Gi",
        study_claim="other-study",
        client_secret="other-client",
        run_as_user=2000,
        env={"HF_HUB_OFFLINE": "1"},
    )
    check(manifest)
    (container,) = pod(manifest)["containers"]
    assert container["image"] == "registry.example/mars-worker:9"
    assert container["resources"]["limits"] == {"cpu": "16", "memory": "200Gi", "nvidia.com/gpu": 4}
    assert pod(manifest)["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H200"}
    assert pod(manifest)["tolerations"] == [{"key": "batch", "operator": "Exists"}]
    assert pod(manifest)["runtimeClassName"] == "nvidia"
    assert pod(manifest)["imagePullSecrets"] == [{"name": "registry"}]
    assert pod(manifest)["securityContext"]["fsGroup"] == 2000
    study, memory, _home = pod(manifest)["volumes"]
    assert study["persistentVolumeClaim"] == {"claimName": "other-study"}
    assert memory["emptyDir"] == {"medium": "Memory", "sizeLimit": "32Gi"}
    assert container["envFrom"] == [{"secretRef": {"name": "other-client"}}]
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in container["env"]
    # A deployment's own variables add to the pool's: workers still share what runs return.
    assert {"name": "PREFECT_RESULTS_LOCAL_STORAGE_PATH", "value": "/data/.prefect/results"} in container["env"]


def test_login_is_referred_to_and_never_written_into_a_job(template):
    manifest = render(template)
    assert LOGIN not in json.dumps(manifest)
    environment = {entry["name"]: entry for entry in pod(manifest)["containers"][0]["env"]}
    reference = environment["PREFECT_API_AUTH_STRING"]["valueFrom"]["secretKeyRef"]
    assert reference == {"name": "mars-client", "key": "PREFECT_API_AUTH_STRING"}
    assert environment["PREFECT_API_URL"]["value"] == "http://prefect.example/api"


def test_worker_and_jobs_share_secret_volume_and_image_version(template):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    claim, *_, deployment = documents()
    assert claim["metadata"]["name"] == template["variables"]["properties"]["study_claim"]["default"]
    worker = deployment["spec"]["template"]["spec"]["containers"][0]
    assert worker["image"] == f"mars-services:{version}"
    secrets = {entry["valueFrom"]["secretKeyRef"]["name"] for entry in worker["env"] if "secretKeyRef" in str(entry)}
    assert secrets == {template["variables"]["properties"]["client_secret"]["default"]}
