"""Metrics as Prometheus reads them: by its own parser, one value for each series."""

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

Series = tuple[str, frozenset[tuple[str, str]]]
"""A name and its labels."""

Samples = Mapping[Series, float]


def series(name: str, **labels: str) -> Series:
    """What a sample is stored under."""
    return name, frozenset(labels.items())


def scraped(text: str) -> Samples:
    """Every sample of the library's own, by its series; no series is told twice."""
    told = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    ours = [
        (series(sample.name, **sample.labels), sample.value) for sample in told if sample.name.startswith("outbox_")
    ]
    assert len(dict(ours)) == len(ours)
    return dict(ours)
