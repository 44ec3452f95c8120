"""What can be asked of the reconciler that runs, without a wire: command line, API and page are clients of it.

The control socket (`loop.control`) and the management API (`reconciler.api`) only translate to and from these.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, fields

from reconciler.core.keep import what_to_keep
from reconciler.core.overrides import Kind
from reconciler.core.rollback import RollbackError
from reconciler.core.saved_plan import SavedPlanError, saved_from_text
from reconciler.core.state import Json
from reconciler.core.suspension import ALL
from reconciler.core.turn import Options, Wishes
from reconciler.core.weights import Copy, CopyState, Phase
from reconciler.core.weights_json import states_to_json
from reconciler.loop.applying import apply_now
from reconciler.loop.by_hand import (
    BAD_REQUEST,
    CONFLICT,
    FAULT,
    NOT_FOUND,
    STARTING,
    UNAVAILABLE,
    ByHand,
    CommandRefusedError,
    NoLeaseHereError,
)
from reconciler.loop.directory import build_directory
from reconciler.loop.journal import Journal
from reconciler.loop.lease import Keeper
from reconciler.loop.loop import Look, Loop
from reconciler.loop.rollbacks import RollbackAsked, RollbackGiven, RollbackHand
from reconciler.loop.running import Given, Resumed, Suspended
from reconciler.loop.told import freshness_to_json, told_to_json
from reconciler.ray_serve.client import ServeUnreachableError
from reconciler.weights.store import WeightStore

_LONGEST_NAME = 500


class Operations:
    """The operations, each of which says with a `CommandRefusedError` why it is not carried out."""

    def __init__(
        self,
        loop: Loop,
        weights: WeightStore,
        by_hand: ByHand,
        *,
        rollback: RollbackHand,
        sync: Callable[[], Awaitable[dict[str, object]]],
        lease: Keeper,
        journal: Journal,
    ) -> None:
        """Do nothing yet.

        Args:
            loop: Takes turns when it is asked to.
            weights: Says how far downloads are.
            by_hand: Carries out commands about models.
            rollback: Takes models back to earlier versions.
            sync: Looks at the source, and says what it found.
            lease: Without it nothing is written, and nobody is to wait for it.
            journal: Remembers that a plan was applied, or a new revision fetched, by hand.
        """
        self._loop, self._weights, self._by_hand = loop, weights, by_hand
        self._rollback, self._sync, self._lease, self._journal = rollback, sync, lease, journal

    # --- looking ------------------------------------------------------------------------------------------

    def last(self) -> Look:
        """What the last turn saw and decided.

        Raises:
            CommandRefusedError: Nobody has looked yet.
        """
        if self._loop.last is None:
            raise CommandRefusedError(UNAVAILABLE, STARTING)
        return self._loop.last

    async def fresh(self) -> Look:
        """Look now, between two turns, and change nothing.

        Raises:
            CommandRefusedError: The cluster does not answer.
        """
        try:
            return await self._loop.look_apart()
        except ServeUnreachableError as error:
            raise CommandRefusedError(UNAVAILABLE, str(error)) from error

    def named(self, name: str) -> str:
        """A model's own name, from it or from an alias or adapter of it.

        Raises:
            CommandRefusedError: There is no such model, or nobody has looked yet.
        """
        look = self.last()
        directory = build_directory(look.desired, look.observed, look.plan, created=0)
        entry = directory.find(name)
        if entry is None:
            raise CommandRefusedError(
                NOT_FOUND, f"there is no model {name[:_LONGEST_NAME]!r}", directory.near(name)
            )
        return entry.name

    def downloads(self) -> Json:
        """How far downloads are, and which revisions cannot be resolved."""
        problems = [
            {"repo": repo, "revision": revision, **asdict(problem)}
            for (repo, revision), problem in self._weights.revisions.problems.items()
        ]
        return {"copies": states_to_json(self._weights.known()), "revisions": problems}

    def traffic(self) -> Json:
        """What only this process knows of traffic and source; see `loop.told`.

        Raises:
            CommandRefusedError: Nobody has looked yet.
        """
        last = self.last()
        return {"traffic": told_to_json(last.observed), "source": freshness_to_json(last.desired)}

    def models(self) -> Json:
        """Where each model stands, and what holds for it by hand.

        Raises:
            CommandRefusedError: Nobody has looked yet.
        """
        return self._by_hand.models()

    # --- the whole ----------------------------------------------------------------------------------------

    async def reconcile(self, wishes: Wishes) -> Look:
        """Look at the source and take turns until all is settled, with these wishes in force.

        Raises:
            CommandRefusedError: We may not write to the cluster.
        """
        options = Options(
            **{field.name: getattr(wishes, field.name) for field in fields(Wishes)},
            asked_at=time.time(),
            max_loads=self._loop.options.max_loads,
        )
        self._must_write()
        await self._sync()  # Who asks by hand asks for what is wanted now.
        return await self._loop.reconcile_now(options)

    async def apply(self, saved: str) -> Look:
        """Carry out a saved plan, if it still is what would be planned.

        Args:
            saved: As `core.saved_plan` writes it.

        Raises:
            StaleError: It is not what would be planned now.
            CommandRefusedError: It is no plan, or cannot be applied now.
        """
        try:
            plan = saved_from_text(saved)
        except SavedPlanError as error:
            raise CommandRefusedError(BAD_REQUEST, str(error)) from error
        self._must_write()
        self.last()
        options = Options(asked_at=time.time(), max_loads=self._loop.options.max_loads)
        try:
            look = await apply_now(self._loop, plan, options)
        except ServeUnreachableError as error:
            raise CommandRefusedError(UNAVAILABLE, str(error)) from error
        self._journal.command("apply", ALL, "a saved plan was applied by hand", look.plan.revision)
        return look

    def soon(self) -> None:
        """Take the next turn now, for one who does not wait for it.

        Raises:
            CommandRefusedError: We may not write to the cluster.
        """
        self._must_write()
        self._loop.wake()

    async def sync(self) -> Json:
        """Look at the source, and say what was found."""
        found = await self._sync()
        if found.get("new"):
            self._journal.command("sync", ALL, "the source was looked at by hand", str(found.get("commit", "")))
        return found

    # --- one model ----------------------------------------------------------------------------------------

    def give(self, kind: Kind, name: str, seconds: float | None) -> Given:
        """Load, unload, pin or unpin a model; see `ByHand.give`."""
        return self._by_hand.give(kind, name, seconds)

    def suspend(self, name: str | None, seconds: float | None, reason: str) -> Suspended:
        """Leave a model, or with None all of them, as they are; see `ByHand.suspend`."""
        return self._by_hand.suspend(name, seconds, reason)

    def resume(self, name: str | None) -> Resumed:
        """End a model's suspension, or with None every one; see `ByHand.resume`."""
        return self._by_hand.resume(name)

    async def rollback(self, asked: RollbackAsked) -> RollbackGiven:
        """Take a model, or all of them, back, or end that; see `RollbackHand.carry_out`.

        Raises:
            CommandRefusedError: There is nothing to go back to or to end, or it could not be written down.
        """
        try:
            return await self._rollback.carry_out(asked)
        except RollbackError as error:
            raise CommandRefusedError(NOT_FOUND if error.near else CONFLICT, str(error), error.near) from error
        except OSError as error:
            raise CommandRefusedError(FAULT, f"the command could not be written down: {error}") from error

    async def pull(self, name: str) -> Mapping[Copy, CopyState]:
        """Have the weights of a model fetched, whether or not it is to come up; gives how far each copy is.

        Raises:
            CommandRefusedError: No valid file declares it, or it is not known which commit it is made of.
        """
        look = self.last()
        target = look.desired.targets.get(self.named(name))
        if target is None:
            raise CommandRefusedError(NOT_FOUND, f"no valid model file declares {name[:_LONGEST_NAME]!r}")
        for wanted, resolution in target.unresolved.items():
            why = resolution.problem or "that is being asked; try again shortly"
            raise CommandRefusedError(
                CONFLICT, f"it is not known which commit {wanted.repo}@{wanted.revision} is: {why}"
            )
        there = await self._weights.states(target.copies)
        missing = {copy: target.copies[copy] for copy, state in there.items() if state.phase is not Phase.READY}
        # What is under way for others goes on: this only adds to it.
        self._weights.fetch(missing, still_wanted=None, keep=what_to_keep(look.desired, look.observed))
        return await self._weights.states(target.copies)

    def _must_write(self) -> None:
        if not self._lease.holds():
            raise NoLeaseHereError(self._lease.why_not())
