"""What all workers of a run share: how fast they may ask, and how much they may spend.

`Meter` is the arithmetic and runs as one Ray actor, `Pace` is what a worker holds of it. Requests and tokens are
spaced evenly (the leaky bucket of GCRA without burst tolerance, ITU-T I.371): a limit of n per minute lets
through one every 60/n seconds, so no minute sees more than n, whatever the number of workers.
"""

import time
from typing import Any

import ray

PATIENCE_S = 300.0
POLL_S = 0.2


class Meter:
    """Times and money of one run."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None, money: float | None) -> None:
        """None is no limit."""
        self._seconds_per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._seconds_per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._request_at = self._token_at = self._held_until = 0.0
        self._money = money
        self._open = 0
        self._refused = 0

    def reserve(self, tokens: int, now: float | None = None) -> float:
        """Take the next free moment for a request of `tokens` tokens; returns the seconds until then."""
        now = time.monotonic() if now is None else now
        at = max(now, self._request_at, self._token_at, self._held_until)
        self._request_at = at + self._seconds_per_request
        self._token_at = at + tokens * self._seconds_per_token
        return at - now

    def hold(self, seconds: float, now: float | None = None) -> None:
        """Let no request through for `seconds` seconds: the endpoint asked for that."""
        now = time.monotonic() if now is None else now
        self._held_until = max(self._held_until, now + seconds)

    def held(self, now: float | None = None) -> float:
        """Seconds for which nothing may go out, not even what has waited for its moment."""
        return max(self._held_until - (time.monotonic() if now is None else now), 0.0)

    def admit(self, most: float, wait: bool = True) -> bool | None:
        """Put `most` money aside for a call; False when that much is not left.

        None when calls in flight may still give back enough, and the caller can `wait`: ask again.
        """
        if self._money is None:
            return True
        if most > self._money:
            if wait and self._open:
                return None
            self._refused += 1
            return False
        self._money -= most
        self._open += 1
        return True

    def settle(self, most: float, spent: float) -> None:
        """Give back what an admitted call did not spend."""
        if self._money is not None:
            self._money += most - spent
            self._open -= 1

    def refused(self) -> int:
        """Calls that were not admitted."""
        return self._refused


class Pace:
    """A worker's view of the run's meter. All methods may be called by several threads."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None, money: float | None) -> None:
        self._meter: Any = ray.remote(num_cpus=0)(Meter).remote(requests_per_minute, tokens_per_minute, money)

    def wait(self, tokens: int) -> None:
        """Return when a request of `tokens` tokens may go out."""
        left = ray.get(self._meter.reserve.remote(tokens))
        while left > 0:
            time.sleep(left)
            left = ray.get(self._meter.held.remote())

    def hold(self, seconds: float) -> None:
        """See `Meter.hold`."""
        ray.get(self._meter.hold.remote(seconds))

    def admit(self, most: float, wait: bool = True) -> bool:
        """See `Meter.admit`; waits for calls in flight, at most PATIENCE_S: a worker may have died in one."""
        until = time.monotonic() + PATIENCE_S
        while True:
            admitted: bool | None = ray.get(self._meter.admit.remote(most, wait))
            if admitted is not None or time.monotonic() > until:
                return bool(admitted)
            time.sleep(POLL_S)

    def settle(self, most: float, spent: float) -> None:
        """See `Meter.settle`."""
        ray.get(self._meter.settle.remote(most, spent))

    def refused(self) -> int:
        """See `Meter.refused`."""
        count: int = ray.get(self._meter.refused.remote())
        return count
