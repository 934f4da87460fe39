"""The API is what docs/openapi.json says, and answers whatever is sent to it without an error of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fastapi import FastAPI
from pydantic import TypeAdapter

from api.handlers import outbox
from tests.service.servers import service

ROOT = Path(__file__).parents[2]
WRITTEN = ROOT / "docs" / "openapi.json"

REF = "#/components/schemas/{model}"

EXAMPLES = int(os.environ.get("OUTBOX_TEST_API_EXAMPLES", "10"))


def test_it_is_what_is_written_down(app: FastAPI) -> None:
    said = json.dumps(app.openapi(), indent=1, ensure_ascii=False) + "\n"
    if os.environ.get("OUTBOX_TEST_WRITE_OPENAPI"):
        WRITTEN.write_text(said)
    assert WRITTEN.read_text() == said, "it has changed: see whether that is meant, then run make openapi"


def test_every_operation_has_a_name_of_its_own_that_says_what_it_does(app: FastAPI) -> None:
    operations = [each for path in app.openapi()["paths"].values() for each in path.values()]
    names = [each["operationId"] for each in operations]
    assert len(set(names)) == len(names)
    for each in operations:
        assert each.get("description") or each.get("summary"), each["operationId"]


def test_what_may_go_wrong_is_written_down_as_a_problem(app: FastAPI) -> None:
    for path, methods in app.openapi()["paths"].items():
        for operation in methods.values():
            for status, answer in operation["responses"].items():
                if status >= "400" and path.startswith("/v1/jobs"):
                    assert "application/problem+json" in answer.get("content", {}), (path, status)


def test_the_answer_about_a_job_shows_the_result_of_its_task(app: FastAPI) -> None:
    described = app.openapi()
    schemas = described["components"]["schemas"]
    answer = described["paths"]["/v1/jobs/{job_id}"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    *typed, anything = (schemas[each["$ref"].rpartition("/")[2]] for each in answer["anyOf"])
    shown = {each["properties"]["task"]["const"]: each["properties"]["result"]["anyOf"] for each in typed}
    assert anything["properties"]["task"] == {"type": "string", "title": "Task"}  # a job of somebody else's task
    assert shown.keys() == {task.name for task in outbox if task.shows_result}
    assert {"send_receipt", "compute_revenue", "import_customers", "report_yesterday"} <= shown.keys()
    for name, (result, nothing) in shown.items():
        expected = TypeAdapter(outbox[name].result_type).json_schema(mode="serialization", ref_template=REF)
        found = schemas[result["$ref"].rpartition("/")[2]] if "$ref" in result else result
        assert found.get("properties") == expected.get("properties"), name
        assert (found["type"], found.get("required")) == (expected["type"], expected.get("required")), name
        assert nothing == {"type": "null"}  # it has not ended yet, or may not be seen


@pytest.mark.timeout(600)
def test_nothing_that_is_sent_makes_it_fail(database_url: str, tmp_path: Path) -> None:
    """Requests made from the description, valid and not: no 500, and no answer that is not in the description."""
    with service(database_url, tmp_path) as (url, _):
        # A ceiling is apart from the others: with one, those are right to answer that the queue is full.
        for which in (("exclude", "queues_ceiling"), ("include", "queues_ceiling")):
            done = schemathesis(url, tmp_path, which)
            assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]


def schemathesis(url: str, folder: Path, which: tuple[str, str]) -> "subprocess.CompletedProcess[str]":
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    verb, operation = which
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--generation-deterministic"]
    options = ["--max-examples", str(EXAMPLES), "--checks", checks, "--suppress-health-check", "all"]
    # A stream has no end.
    chosen = [f"--{verb}-operation-id", operation, "--exclude-operation-id", "jobs_events"]
    return subprocess.run([*command, *options, *chosen], cwd=folder, capture_output=True, text=True, check=False)
