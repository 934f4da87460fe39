"""Numbers, times and schedules as people say them."""

from datetime import datetime

from cron_descriptor import Options, get_description

from outbox.cron import NAMES


def number(count: float, most: int | None = None) -> str:
    """A count, with its thousands apart.

    :param most: how far was counted; that many may be more.
    """
    said = f"{count:,.0f}" if count >= 10 else f"{count:.1f}".removesuffix(".0")
    return f"{said} or more" if most is not None and count >= most else said


def span(seconds: float) -> str:
    """A length of time."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if seconds >= size:
            digits = 0 if seconds >= 10 * size else 1
            return f"{seconds / size:.{digits}f}".removesuffix(".0") + f" {unit}"
    return f"{seconds * 1000:.0f} ms"


def distance(moment: datetime, now: datetime) -> str:
    """How long ago, or in how long."""
    seconds = (now - moment).total_seconds()
    if abs(seconds) < 1:
        return "now"
    return f"in {span(-seconds)}" if seconds < 0 else f"{span(seconds)} ago"


def schedule(expression: str, tz: str) -> str:
    """When a cron expression fires, in a sentence; the expression itself where there is none."""
    options = Options()
    options.use_24hour_time_format = True
    try:
        said: str = get_description(NAMES.get(expression, expression), options)
    except Exception:  # noqa: BLE001 - it is only told; whether it fires is for others to say
        return expression
    return said if tz == "UTC" else f"{said}, {tz}"
