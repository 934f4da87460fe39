"""Nothing that is read is ever run: the library takes JSON, and looks names up in what was declared."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import outbox

LIBRARY = Path(outbox.__file__).parent

MODULES = {
    "code",
    "cloudpickle",
    "dill",
    "jsonpickle",
    "marshal",
    "multiprocessing",
    "pickle",
    "runpy",
    "shelve",
    "xmlrpc",
    "yaml",
}
"""What makes objects, and with them code, of bytes."""

NAMES = {"__import__", "compile", "eval", "exec"}

CALLS = {"import_module", "system", "popen", "create_subprocess_shell", "find_spec", "ProcessPoolExecutor"}
"""By whatever way they are reached."""

ALLOWED = {
    "cli/target.py": "import_module",  # the Outbox that a person names on the command line
    "cli/openapi.py": "import_module",  # two modules whose names stand there: an extra that may be missing
    "child.py": "import_module",  # the module of a handler that the worker has declared, as the worker says
}


def offences(code: str) -> Iterator[str]:
    """What in this code could run something that is not written in it."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Import(names=names):
                yield from (each.name for each in names if each.name.partition(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module), names=names):
                if module.partition(".")[0] in MODULES:
                    yield module
                # Under another name it would not be known again.
                yield from (each.name for each in names if each.name in CALLS | NAMES and each.asname is not None)
            case ast.Name(id=name) if name in NAMES | CALLS:
                yield name
            case ast.Attribute(attr=name) if name in CALLS:
                yield name
            case ast.Attribute(attr=name, value=ast.Name(id="builtins")) if name in NAMES:
                yield name
            case ast.Call(keywords=keywords):
                yield from ("shell" for each in keywords if each.arg == "shell")


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_nothing_in_the_library_runs_what_it_reads(path: Path) -> None:
    allowed = ALLOWED.get(path.relative_to(LIBRARY).as_posix())
    assert {each for each in offences(path.read_text()) if each != allowed} == set()


def test_what_is_allowed_is_there() -> None:
    for path, allowed in ALLOWED.items():
        assert allowed in set(offences((LIBRARY / path).read_text())), path


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import yaml.loader as y",
        "from marshal import loads",
        "from multiprocessing.connection import Client",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "run = eval",
        "builtins.eval(text)",
        "importlib.import_module(name)",
        "from importlib import import_module as load",
        "import_module(name)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "asyncio.create_subprocess_shell(text)",
        "compile(text, '', 'exec')",
    ],
)
def test_what_would_is_found(code: str) -> None:
    assert list(offences(code)), code


def test_what_would_not_is_not() -> None:
    assert not list(offences("import re, json\nre.compile('a')\njson.loads(text)\nsubprocess.run([program])"))
