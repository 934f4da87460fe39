"""The list of events is what operators alert on: it names all of them."""

import re
from pathlib import Path

from outbox import events

LIBRARY = Path(events.__file__).parent


def test_every_event_that_is_emitted_is_listed_and_the_other_way_round() -> None:
    emitted = set()
    for module in LIBRARY.rglob("*.py"):
        # The name is the first string after the level, which may be a variable.
        emitted |= set(re.findall(r"events\.emit\(\s*[\w.]+,\s*\"(\w+)\"", module.read_text()))
    listed = set(re.findall(r"^    (\w+)  +\w", events.__doc__ or "", re.MULTILINE))
    assert emitted == listed
