"""Values of all kinds for property tests, and what Postgres' jsonb and other readers of JSON can hold of them."""

import math
from typing import Any

from hypothesis import strategies as st

text = st.text(st.characters(), max_size=20) | st.lists(
    st.sampled_from(["\0", "\ud800", "\udfff", "\U0001f600", "\\", '"', "u0000", "\n", "é", "漢", "NaN"]), max_size=6
).map("".join)
"""Any text, lone surrogates and NULs included, and rather often."""

_scalars = (
    st.none() | st.booleans() | text | st.integers() | st.integers(-(2**70), 2**70) | st.floats(allow_subnormal=True)
)

anything = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(text, inner, max_size=5), max_leaves=30
)
"""Anything that ``json.loads`` could give back, storable or not."""


def storable(value: Any, depth: int = 1) -> bool:
    """Whether jsonb takes the value and every reader can hold it: written apart from the code that is tested."""
    if isinstance(value, str):
        return "\0" not in value and not any(0xD800 <= ord(character) <= 0xDFFF for character in value)
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list):
        return depth <= 64 and all(storable(each, depth + 1) for each in value)
    if isinstance(value, dict):
        return depth <= 64 and all(storable(k) and storable(v, depth + 1) for k, v in value.items())
    return False
