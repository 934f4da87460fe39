"""When a cron expression fires: a pure function of the expression, the time zone and a moment. It asks no clock.

Five fields as in Debian's cron, or six with the seconds first; and ``@hourly @daily @midnight @weekly @monthly @yearly
@annually``. On the days when clocks change, a fixed local time that is missing fires at the next moment that is there,
and one that comes twice fires the first time only; where the minute or the hour is a ``*``, and with six fields, it
fires by the time that really passes.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cached_property
from itertools import islice
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

NAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}

EPOCH = datetime(2024, 1, 1, tzinfo=UTC)


class Cron:
    """An expression in a time zone.

    :raises ValueError: if the one or the other is none, or if it never fires.
    """

    def __init__(self, expression: str, tz: str = "UTC") -> None:
        self.expression = expression
        self.tz = tz
        if next(self.after(EPOCH), None) is None:
            raise ValueError(f"cron {expression!r}: never fires")

    @cached_property
    def _zone(self) -> tzinfo:
        if self.tz == "UTC":
            return UTC
        try:
            return ZoneInfo(self.tz)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"tz: {self.tz!r} is no time zone; write one as in Europe/Berlin") from None

    def after(self, moment: datetime) -> Iterator[datetime]:
        """All moments at which it fires after that one, in UTC."""
        yield from (each for each in self._walk(moment) if each > moment)

    def latest(self, moment: datetime) -> datetime | None:
        """The last moment at or before that one at which it fires."""
        # Backwards, a walk begins before the moment it starts at, unless that is within a second.
        start = moment if moment.microsecond else moment + timedelta(microseconds=1)
        before = (each for each in islice(self._walk(start, back=True), 10) if each <= moment)
        nearest = next(before, None)
        # In the hour that comes twice a walk back may pass over a moment that a walk forward does not.
        return max((each for each in self._between(nearest, moment)), default=nearest) if nearest else None

    def _between(self, start: datetime, end: datetime) -> Iterator[datetime]:
        for each in self.after(start):
            if each > end:
                return
            yield each

    def _walk(self, moment: datetime, *, back: bool = False) -> Iterator[datetime]:
        try:
            for each in CronSim(NAMES.get(self.expression, self.expression), moment.astimezone(self._zone), back):
                yield each.astimezone(UTC)
        except CronSimError as exc:
            raise ValueError(f"cron {self.expression!r}: {exc}; write five fields, as in '30 9 * * MON-FRI'") from None
        except OverflowError:  # the end of the calendar
            return
