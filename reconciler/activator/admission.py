"""Which application a request goes to: at once where its model is up, else after a wait, or a refusal."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from reconciler.activator import errors, progress
from reconciler.activator.directory import Directory, Entry
from reconciler.activator.guard import Caller
from reconciler.activator.holding import Holding, Waiter
from reconciler.activator.inbound import ClientGoneError
from reconciler.activator.reply import BrokenOffError, Reply
from reconciler.core.state import Waiting

# The edge sends requests again to a reconciler that has just started; by then it has had its first look.
_FIRST_LOOK_SECONDS = 60.0
# How long a stream waits in silence, and how far apart comments are at least: an answer within it needs none.
_PAUSE_SECONDS = 1.0
# Proxies and clients give up on silence; 15 s is the least that is common.
_COMMENT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Asking:
    """A request that wants a model.

    Attributes:
        caller: Who asks, by the key.
        model: The name that the client used.
        size: Bytes of the body.
        patience: Seconds that the client will wait; None where it did not say.
        streams: The answer is a stream of events, so that comments may come before it.
        reply: Where they go.
        gone: Done when the client has gone.
    """

    caller: Caller
    model: str
    size: int
    patience: float | None
    streams: bool
    reply: Reply
    gone: asyncio.Task[None]


class Admission:
    """What is known about models, and the requests that wait for one of them."""

    def __init__(self, wake: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        """See `Holding`."""
        self._directory = Directory(settled=False)
        self._holding = Holding(wake, clock)
        self._clock = clock

    @property
    def directory(self) -> Directory:
        """What is known about models; a new one wakes the requests that it concerns."""
        return self._directory

    @directory.setter
    def directory(self, directory: Directory) -> None:
        self._directory = directory
        self._holding.update(directory)

    def waiting(self) -> dict[str, Waiting]:
        """See `Holding.waiting`."""
        return self._holding.waiting()

    def stop(self) -> None:
        """Let every request go that waits, and hold none any more."""
        self._holding.stop()

    async def admit(self, asking: Asking) -> tuple[Entry, str]:
        """The model and the application that has its traffic, as of now: nothing is awaited after the last look.

        Raises:
            Refusal: There is no such model, or it is not up and the request cannot wait, or not any longer.
            ClientGoneError: The client left while it waited.
            BrokenOffError: The server stops; whoever sent the request can send it again.
        """
        if (found := self._look(asking)) is not None and found.application is not None:
            return found, found.application
        waiter = Waiter(asking.model, self._clock(), asking.size, follows=asking.streams)
        served = False
        try:
            admitted = await self._hold(asking, waiter)
            served = True
            return admitted
        finally:
            self._holding.leave(waiter, served=served)

    def _look(self, asking: Asking) -> Entry | None:
        """The model, which is up or worth waiting for; None before the first look.

        Raises:
            Refusal: There is no such model, at least for who asks, whose key does not hold any more, or waiting
                for it would not help.
        """
        asking.caller.check()
        name, directory = asking.model, self._directory
        if not directory.settled:
            return None
        entry = directory.find(name)
        if entry is None or not asking.caller.may_use(entry.name):
            raise errors.unknown_model(name, asking.caller.visible(directory).near(name))
        if entry.application is None and not entry.holds:
            raise errors.not_up(entry, name)
        return entry

    async def _hold(self, asking: Asking, waiter: Waiter) -> tuple[Entry, str]:
        said, said_at = "", waiter.arrived
        limit, known = _least(_FIRST_LOOK_SECONDS, asking.patience), False
        while True:
            entry = self._look(asking)
            if entry is not None and entry.application is not None:
                return entry, entry.application
            if self._holding.stopped:
                raise errors.stopping() if asking.reply.commented else BrokenOffError
            if entry is not None and not known:
                known = True
                self._check_patience(asking, entry, self._clock() - waiter.arrived)
                limit = _least(entry.wait_timeout, asking.patience)
            self._holding.join(waiter, entry)
            ends = waiter.arrived + limit
            if (now := self._clock()) >= ends:
                raise self._too_long(asking, entry, now - waiter.arrived)
            waiter.arm()
            until = ends
            if asking.streams:
                words = progress.words(entry, *self._holding.place(waiter))
                due = said_at + (_COMMENT_SECONDS if words == said else _PAUSE_SECONDS)
                if now >= due:
                    await _tell(asking.reply, words, ends - now)
                    said, said_at = words, self._clock()
                    due = said_at + _COMMENT_SECONDS
                until = min(ends, due)
            await waiter.wait(asking.gone, until - self._clock())
            if asking.gone.done():
                raise ClientGoneError

    def _check_patience(self, asking: Asking, entry: Entry, waited: float) -> None:
        if asking.patience is None:
            return
        left = asking.patience - waited
        if left <= 0 or (entry.expected_wait is not None and entry.expected_wait > left):
            self._holding.expect(entry)
            raise errors.patience_too_short(entry, asking.model, asking.patience)

    def _too_long(self, asking: Asking, entry: Entry | None, waited: float) -> errors.Refusal:
        if entry is None:
            return errors.starting()
        self._holding.expect(entry)
        return errors.wait_timeout(entry, asking.model, waited)


async def _tell(reply: Reply, words: str, seconds: float) -> None:
    """Send a comment. A client that does not read must not keep its place for longer than one that does."""
    try:
        async with asyncio.timeout(seconds):
            await reply.comment(words)
    except TimeoutError:
        pass


def _least(seconds: float, patience: float | None) -> float:
    return seconds if patience is None else min(seconds, patience)
