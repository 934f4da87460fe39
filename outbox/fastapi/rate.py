"""How often somebody may ask, in the memory of this process.

Of each caller one moment is kept, at which they will have all their requests back: the generic cell rate algorithm, a
token bucket in a number. Whoever has waited for that long is as one who never came, so that no more callers are
remembered than a set number, and a request costs a few microseconds. (The windows of the ``limits`` library remember
every caller, and walk over all of them.)
"""

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

MOST = 10_000
"""Callers that are remembered; then those are forgotten first who have not asked for the longest time."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many requests in a time.

    :param requests: that come back in ``per``, evenly; above 0.
    :param per: seconds, above 0.
    :param burst: requests that may come at once when none has come for a while; at least 1.
    """

    requests: float
    per: float = 1.0
    burst: int = 1

    def __post_init__(self) -> None:
        if not (0 < self.requests < math.inf and 0 < self.per < math.inf):
            raise ValueError(f"rate: {self.requests} in {self.per} s; both must be above 0")
        if self.burst < 1:
            raise ValueError(f"rate: burst={self.burst}; must be at least 1")


class Throttle:
    """Counts the requests of callers, each apart; in whole nanoseconds, so that none is lost to rounding."""

    def __init__(self, rate: Rate) -> None:
        self._burst = rate.burst
        self._interval = max(1, round(rate.per / rate.requests * 1e9))  # in which one request comes back
        self._full: OrderedDict[Hashable, int] = OrderedDict()

    def take(self, caller: Hashable) -> float:
        """Count a request, if there is one left.

        :return: seconds after which there will be one; 0 if this one was counted.
        """
        now = time.monotonic_ns()
        if wait := self._wait(caller, now):
            return wait / 1e9
        self._full[caller] = now + self._owed(caller, now) + self._interval
        self._full.move_to_end(caller)
        if len(self._full) > MOST:
            self._full.popitem(last=False)
        return 0

    def wait(self, caller: Hashable) -> float:
        """Seconds after which there is a request left, 0 if there is one now."""
        return self._wait(caller, time.monotonic_ns()) / 1e9

    def headers(self, caller: Hashable) -> Mapping[str, str]:
        """What clients go by that wish to know how much is left, after the IETF draft of ``RateLimit`` fields."""
        now = time.monotonic_ns()
        left = self._burst - math.ceil(self._owed(caller, now) / self._interval)
        again = "" if left else f";t={math.ceil(self._wait(caller, now) / 1e9)}"
        return {
            "RateLimit-Policy": f'"key";q={self._burst};w={math.ceil(self._burst * self._interval / 1e9)}',
            "RateLimit": f'"key";r={left}{again}',
        }

    def _wait(self, caller: Hashable, now: int) -> int:
        return max(0, self._owed(caller, now) - (self._burst - 1) * self._interval)

    def _owed(self, caller: Hashable, now: int) -> int:
        """How long until the caller has all requests back."""
        return max(0, self._full.get(caller, 0) - now)


def network(host: str) -> str:
    """Whom an address stands for: itself, or with IPv6 its network, for whoever has one address there has 2^64."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
