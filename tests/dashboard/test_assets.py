"""The files that pages need are the ones that were published, are small, and are kept by browsers for good."""

import json
import re
from hashlib import sha256
from pathlib import Path

import httpx2

from outbox.dashboard import assets

ROOT = Path(__file__).parents[2]
TEMPLATES = Path(assets.__file__).parent / "templates"


def test_what_is_not_ours_is_as_it_was_published() -> None:
    listed = dict(
        re.findall(r"^\| (\S+) \|.*\| `([0-9a-f]{64})` \|$", (assets.FOLDER / "VENDORED.md").read_text(), re.M)
    )
    assert len(listed) == 3
    for name, digest in listed.items():
        assert sha256((assets.FOLDER / name).read_bytes()).hexdigest() == digest, name
        assert re.search(r"\d+\.\d+\.\d+", name)


def test_the_bill_of_materials_says_the_same_to_scanners() -> None:
    # They look for packages, and would not see those whose files lie among ours.
    listed = re.findall(
        r"^\| (\S+) \| \S+ (\S+) \| (\S+), \S+ \| (\S+) \| `([0-9a-f]{64})` \|$",
        (assets.FOLDER / "VENDORED.md").read_text(),
        re.M,
    )
    bill = json.loads((assets.FOLDER / "vendored.cdx.json").read_text())
    billed = [
        (Path(file["name"]).name, part["version"], part["name"], licence["license"]["id"], file["hashes"][0]["content"])
        for part in bill["components"]
        for licence in part["licenses"]
        for file in part["components"]
    ]
    assert billed == listed
    assert all((ROOT / file["name"]).exists() for part in bill["components"] for file in part["components"])
    references = [part["bom-ref"] for part in bill["components"]]
    assert references == [part["purl"] for part in bill["components"]]
    assert references == [f"pkg:npm/{part['name']}@{part['version']}" for part in bill["components"]]
    assert bill["dependencies"] == [{"ref": "pkg:pypi/outbox", "dependsOn": references}]


def test_nothing_foreign_lies_there_unlisted() -> None:
    named = {path.name for path in assets.FOLDER.iterdir() if re.search(r"\d+\.\d+\.\d+|\.min\.", path.name)}
    assert named == set(re.findall(r"^\| (\S+\.\S+) \|", (assets.FOLDER / "VENDORED.md").read_text(), re.M))


def test_all_of_it_is_small() -> None:
    files = [path for path in assets.FOLDER.iterdir() if path.suffix in (".js", ".css", ".svg")]
    assert sum(path.stat().st_size for path in files) < 150_000


def test_no_template_hands_out_what_is_not_escaped_nor_holds_a_script_or_a_style() -> None:
    templates = list(TEMPLATES.glob("*.html"))
    assert len(templates) > 10
    for template in templates:
        source = template.read_text()
        assert not re.search(r"\|\s*safe\b|autoescape|\bon[a-z]+=|style=|<style|javascript:|hx-on|http://", source), (
            template
        )
        assert set(re.findall(r"<script(?! src=\"\{\{ asset\()", source)) == set(), template


async def test_files_are_kept_for_good_under_an_address_that_changes_with_them(client: httpx2.AsyncClient) -> None:
    page = (await client.get("/outbox/login")).text + (await client.get("/outbox")).text
    files = set(re.findall(r'(?:src|href)="(/outbox/static/[^"]+)"', page))
    assert {Path(file).suffix for file in files} == {".js", ".css", ".svg"}
    for file in files:
        answer = await client.get(file)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["x-content-type-options"] == "nosniff"
        stale = re.sub(r"/[0-9a-f]{16}/", "/0000000000000000/", file)
        assert (await client.get(stale)).status_code == 404


async def test_nothing_else_is_served(client: httpx2.AsyncClient) -> None:
    for name in ("VENDORED.md", "../render.py", "..%2Frender.py", "%2e%2e/render.py", "none.js"):
        assert (await client.get(f"/outbox/static/0000000000000000/{name}")).status_code == 404
