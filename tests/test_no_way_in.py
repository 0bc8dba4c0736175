"""Nothing in the product unpickles, evaluates, unpacks an archive, starts a shell or reads YAML with tags.

Read off the source, so that a new line that does is found on the day it is written.
"""

from __future__ import annotations

import ast
import base64
import json
import lzma
import os
import pickle
from pathlib import Path

import pytest
from prefect._internal.result_records import ResultRecord
from prefect.serializers import CompressedSerializer, PickleSerializer

from deployments.automations import BODY, PAYLOAD
from flows.results import JSON_RESULTS

ROOT = Path(__file__).parents[1]
PRODUCT = ("mars_core", "tasks", "flows", "deployments")
MODULES = {
    "pickle": "pickle runs code",
    "cloudpickle": "pickle runs code",
    "dill": "pickle runs code",
    "joblib": "it pickles",
    "shelve": "it pickles",
    "marshal": "it is not safe for what others wrote",
    "zipfile": "an archive can be a bomb, and name files outside its folder",
    "tarfile": "an archive can be a bomb, and name files outside its folder",
    "xml": "entities can be a bomb",
    "telnetlib": "it is not encrypted",
}
CALLS = {
    "eval": "it runs text",
    "exec": "it runs text",
    "compile": "it runs text",
    "os.system": "a shell",
    "os.popen": "a shell",
    "subprocess.getoutput": "a shell",
    "subprocess.getstatusoutput": "a shell",
    "asyncio.create_subprocess_shell": "a shell",
    "yaml.load": "tags make objects",
    "yaml.unsafe_load": "tags make objects",
    "yaml.full_load": "tags make objects",
    "torch.load": "a pickle, even where it is restricted",
    "pd.read_pickle": "a pickle",
    "pandas.read_pickle": "a pickle",
    "np.load": "a pickle, where it is allowed",
    "shutil.unpack_archive": "an archive",
    "tempfile.mktemp": "somebody else may take the name first",
    "mlflow.pyfunc.load_model": "a pickle",
    "mlflow.pytorch.load_model": "a pickle",
    "mlflow.sklearn.load_model": "a pickle",
    "mlflow.transformers.load_model": "a pickle",
    "mlflow.artifacts.load_dict": "of whatever type",
}
KEYWORDS = {("shell", True), ("allow_pickle", True), ("weights_only", False), ("autoescape", False)}


def findings(source: str, name: str = "it") -> list[str]:
    """What in a module could let somebody in, with its line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
            found += [(node, MODULES[root]) for one in names if (root := one.partition(".")[0]) in MODULES]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in CALLS:
                found.append((node, CALLS[called]))
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if (keyword.arg, value) in KEYWORDS:
                    found.append((node, f"{keyword.arg}={value}"))
    return [f"{name}:{node.lineno}: {why}" for node, why in found]


@pytest.mark.parametrize("package", PRODUCT)
def test_no_module_lets_anybody_in(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    found = [one for file in files for one in findings(file.read_text(encoding="utf-8"), str(file.relative_to(ROOT)))]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from zipfile import ZipFile",
        "import subprocess\nsubprocess.run(f'ls {x}', shell=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text, Loader)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "Environment(autoescape=False)",
        "mlflow.pyfunc.load_model(uri)",
        "import xml.etree.ElementTree",
    ],
)
def test_the_search_finds_what_it_is_for(line):
    assert findings(line)


def test_html_is_made_in_two_places_and_escaped():
    """The card is Markdown: its own template escapes what others wrote (`plain`, `code`).

    The script for TRL is Python: it has values as literals (`tests/mars_core/export/test_tools.py`).
    """
    made = [
        (file.relative_to(ROOT).as_posix(), ast.unparse(node))
        for package in PRODUCT
        for file in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Environment")
    ]
    others = {"mars_core/export/card.py", "mars_core/export/tools/trl.py"}
    pages = {"mars_core/report/render.py", "mars_core/rankbench/page.py"}
    assert {file for file, _ in made} == pages | others
    assert all("autoescape=True" in call for file, call in made if file in pages)


def decorated(package: str) -> list[tuple[str, ast.Call]]:
    """Decorators `@flow(...)` and `@task(...)` with where they stand."""
    return [
        (f"{file.relative_to(ROOT)}:{call.lineno}", call)
        for file in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        for call in getattr(node, "decorator_list", [])
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("flow", "task")
    ]


def test_what_flows_and_tasks_keep_is_json():
    """Prefect's own default is a pickle, which whoever can write to the result store could have run."""
    assert JSON_RESULTS["result_serializer"] == "json"
    found = [one for package in ("flows", "tasks", "deployments") for one in decorated(package)]
    assert len(found) > 30
    for place, call in found:
        written = ast.unparse(call)
        safe = (
            ("**JSON_RESULTS",) if written.startswith("flow") else ("persist_result=False", "result_serializer='json'")
        )
        assert any(way in written for way in safe), place


class Attack:
    """What makes a folder where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_pickle_that_somebody_put_into_the_result_store_is_not_read(tmp_path):
    """A stored result says itself how it is to be read."""
    mark = tmp_path / "was-run"
    pickled = base64.encodebytes(pickle.dumps(Attack(mark)))
    pickle.loads(base64.decodebytes(pickled))  # noqa: S301 - it is a real attack
    mark.rmdir()
    metadata = {"serializer": {"type": "pickle"}, "storage_key": "x"}
    planted = json.dumps({"metadata": metadata, "result": pickled.decode()}).encode()
    with pytest.raises(ValueError, match="is a pickle"):
        ResultRecord.deserialize(planted)
    compressed = CompressedSerializer(serializer=PickleSerializer())
    with pytest.raises(ValueError, match="is a pickle"):
        compressed.loads(base64.encodebytes(lzma.compress(pickled)))
    assert not mark.exists()


@pytest.mark.parametrize("other", [{"jsonlib": "cloudpickle"}, {"object_decoder": "builtins.exec"}])
def test_nor_by_a_function_that_it_names(other):
    metadata = {"serializer": {"type": "json"} | other, "storage_key": "x"}
    with pytest.raises(ValueError, match="names"):
        ResultRecord.deserialize(json.dumps({"metadata": metadata, "result": "{}"}).encode())


def test_what_flows_return_is_read():
    metadata = {"serializer": {"type": "json"}, "storage_key": "x"}
    stored = json.dumps({"metadata": metadata, "result": '{"pair": [2, 4]}'}).encode()
    assert ResultRecord.deserialize(stored).result == {"pair": [2, 4]}


def test_a_webhooks_body_is_json_whatever_a_run_is_called():
    """Prefect fills it in; names are values in it and never part of the template."""
    from prefect.server.utilities.user_templates import render_user_template_sync

    attack = '"}, {"x": "{{ 7 * 7 }}{% for x in range(10) %}" \n <script>'
    run = {"name": attack, "id": "1", "state": {"name": attack}}
    values = {"automation": {"name": attack, "description": attack}, "flow_run": run}
    text = render_user_template_sync(PAYLOAD.replace("flow_run | ui_url", "flow_run.name"), values)
    sent = json.loads(text)
    assert sent["flow_run"] == sent["subject"] == sent["state"] == attack
    assert "49" not in text
    assert attack in render_user_template_sync(BODY.replace("flow_run | ui_url", "flow_run.name"), values)
