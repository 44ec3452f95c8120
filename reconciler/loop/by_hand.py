"""What operators ask for by hand, of the reconciler that runs: from the control socket and from the front door."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from reconciler.activator import errors
from reconciler.activator.directory import Directory
from reconciler.core.overrides import Kind, OverrideError, in_words
from reconciler.core.spec import Policy
from reconciler.core.suspension import ALL, Suspension, suspension_of
from reconciler.core.suspension import in_words as suspension_in_words
from reconciler.core.target import Target
from reconciler.loop.loop import Loop
from reconciler.loop.overrides import OverrideStore
from reconciler.loop.running import Given, Resumed, Suspended
from reconciler.loop.suspensions import SuspensionError, SuspensionStore

BAD_REQUEST, NOT_FOUND, CONFLICT, FAULT, UNAVAILABLE = 400, 404, 409, 500, 503
STARTING = "the reconciler has not finished its first look yet; try again shortly"
_LONGEST_NAME = 500


class CommandRefusedError(Exception):
    """A command by hand that is not carried out; the message says why, and `status` is its HTTP status."""

    def __init__(self, status: int, reason: str, near: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.status = status
        self.near = near


class NoLeaseHereError(CommandRefusedError):
    """The reconciler that runs may not write to the cluster; the message says who may."""

    def __init__(self, reason: str) -> None:
        super().__init__(UNAVAILABLE, reason)


class ByHand:
    """Commands about one model, from the control socket and from the front door."""

    def __init__(
        self,
        loop: Loop,
        overrides: OverrideStore,
        suspensions: SuspensionStore,
        directory: Callable[[], Directory],
    ) -> None:
        """Carry out nothing yet.

        Args:
            loop: Knows what is declared.
            overrides: Keeps what is asked for, and wakes the loop.
            suspensions: The same for what is to be left alone.
            directory: What the front door says of models, as of the last turn.
        """
        self._loop = loop
        self._overrides = overrides
        self._suspensions = suspensions
        self._directory = directory

    def give(self, kind: Kind, name: str, seconds: float | None) -> Given:
        """Carry out a command.

        Args:
            kind: The command.
            name: The model, or an alias or adapter of it.
            seconds: How long it is to hold; None where nothing was said.

        Raises:
            CommandRefusedError: It is not carried out.
        """
        if self._loop.last is None:
            raise CommandRefusedError(UNAVAILABLE, STARTING)
        target = _target(self._loop.last.desired.targets, name)
        if target is None:
            near = self._directory().near(name)
            raise CommandRefusedError(NOT_FOUND, f"no valid model file declares {name[:_LONGEST_NAME]!r}", near)
        self._must_not_be_suspended(kind, target.model)
        policy = target.spec.lifecycle.policy
        window = self._loop.last.observed.windows.get(target.model)
        if window is not None and window.open and kind in (Kind.UNLOAD, Kind.UNPIN):
            policy = Policy.PINNED  # Until the window closes.
        now = time.time()
        try:
            given = self._overrides.give(kind, target.model, policy, seconds)
        except OverrideError as error:
            raise CommandRefusedError(CONFLICT, str(error)) from error
        except OSError as error:
            raise CommandRefusedError(FAULT, f"the command could not be written down: {error}") from error
        if given is None:
            text = f"what was asked for by hand is ended; its file says {policy}"
            return Given(target.model, kind, None, None, text)
        # As it is at the moment it is given, however long it took to write it down.
        text = in_words(given, policy, max(now, given.since))
        return Given(target.model, kind, given.since, given.until, text)

    async def command(self, verb: str, model: str) -> None:
        """For the front door: load or unload a model.

        Args:
            verb: `load` or `unload`.
            model: Its name, or an alias or adapter of it.

        Raises:
            Refusal: It is not carried out. Whether to try again is in its status.
        """
        try:
            self.give(Kind(verb), model, None)
        except CommandRefusedError as refused:
            raise errors.command_refused(str(refused), refused.status) from refused

    def models(self) -> dict[str, Any]:
        """Where each model stands, and what holds for it by hand.

        Raises:
            CommandRefusedError: Nobody has looked yet.
        """
        if self._loop.last is None:
            raise CommandRefusedError(UNAVAILABLE, STARTING)
        overrides = self._overrides.active()
        rows = [
            {
                "model": entry.name,
                "state": entry.state.value,
                "reason": entry.reason,
                "expected_wait": entry.expected_wait,
                "override": asdict(overrides[entry.name]) if entry.name in overrides else None,
            }
            for entry in self._directory().entries
        ]
        return {"looked_at": self._loop.last.observed.now, "models": rows}

    def suspend(self, name: str | None, seconds: float | None, reason: str) -> Suspended:
        """Leave a model, or all of them, exactly as they are.

        Args:
            name: The model, or an alias or adapter of it; None for all.
            seconds: For how long; None until `resume`.
            reason: Why.

        Raises:
            CommandRefusedError: It is not carried out.
        """
        model = ALL if name is None else self._known(name)
        try:
            given = self._suspensions.suspend(model, seconds=seconds, reason=reason)
        except SuspensionError as error:
            raise CommandRefusedError(CONFLICT, str(error)) from error
        except OSError as error:
            raise CommandRefusedError(FAULT, f"the command could not be written down: {error}") from error
        return suspended(given)

    def resume(self, name: str | None) -> Resumed:
        """End a model's suspension, or with None every one.

        Raises:
            CommandRefusedError: It is not carried out.
        """
        try:
            if name is None:
                return Resumed(tuple(each.model for each in self._suspensions.resume_everything()))
            model = name if name in {each.model for each in self._suspensions.active()} else self._known(name)
            if self._suspensions.resume(model) is not None:
                return Resumed((model,))
        except OSError as error:
            raise CommandRefusedError(FAULT, f"the command could not be written down: {error}") from error
        everything = any(each.model == ALL for each in self._suspensions.active())
        hint = "; all models are, and `reconcile resume --all` ends that" if everything else ""
        raise CommandRefusedError(CONFLICT, f"{model} itself is not suspended{hint}")

    def _must_not_be_suspended(self, kind: Kind, model: str) -> None:
        now = time.time()
        held = suspension_of(self._suspensions.active(), model, now)
        if held is not None and kind in (Kind.LOAD, Kind.UNLOAD):
            words = suspension_in_words(held, now)
            raise CommandRefusedError(CONFLICT, f"{model}: {words}; `reconcile resume` comes first")

    def _known(self, name: str) -> str:
        """The model of that name, alias or adapter: one that is declared, or that runs."""
        if self._loop.last is None:
            raise CommandRefusedError(UNAVAILABLE, STARTING)
        target = _target(self._loop.last.desired.targets, name)
        if target is not None:
            return target.model
        if self._loop.last.observed.of_model(name):
            return name
        near = self._directory().near(name)
        raise CommandRefusedError(NOT_FOUND, f"no model {name[:_LONGEST_NAME]!r} is declared, and none runs", near)


def suspended(given: Suspension) -> Suspended:
    """What a suspension means, for whoever asked for it."""
    return Suspended(given.model, given.until, suspension_in_words(given, given.since))


def _target(targets: Mapping[str, Target], name: str) -> Target | None:
    """The declared model of that name, or with that alias or adapter."""
    if name in targets:
        return targets[name]
    return next((target for target in targets.values() if name in target.spec.other_names), None)
