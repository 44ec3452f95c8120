"""What was rolled back by hand, as the loop keeps it: in `rollbacks.json` of the state directory, until it ends.

`RollbackStore.apply` lays it over each snapshot that the source gives. `RollbackHand` carries out the command: in
the reconciler that runs, behind `Operations`, or in the command itself where none runs.
"""

import dataclasses
import difflib
import json
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from reconciler.core import rollback as rules
from reconciler.core.desired import Snapshot
from reconciler.core.local_paths import folders_of
from reconciler.core.parse import parse_all
from reconciler.core.rollback import (
    ALL,
    LONGEST_REASON,
    LONGEST_SECONDS,
    Rollback,
    RollbackError,
    UnknownRevisionError,
    Version,
    in_words,
    short,
)
from reconciler.core.weights import Resolution, Wanted
from reconciler.host.errors import UserError
from reconciler.host.files import write_atomic
from reconciler.host.log import get_logger
from reconciler.host.nobody import nobody
from reconciler.loop.journal import MAX_REVISION_BYTES, Versions
from reconciler.loop.running import ANOTHER_VERSION, NoReconcilerError, ask

log = get_logger()

FILE = "rollbacks.json"
_ROWS = TypeAdapter(list[Rollback])
_LONGEST_NAME = 500
_ANSWER_SECONDS = 600.0
"""A revision of a repository may have to be fetched first."""
_MAX_COMPARED = 64


class RollbacksUnreadableError(UserError):
    """It cannot be told what was rolled back, so nothing may be touched; the message says what to do."""


class RollbackStore:
    """The rollbacks of one state directory, at most one a model and one of all.

    Attributes:
        wake: Called after each change, for the loop to look anew.
    """

    def __init__(
        self, folder: Path, *, wall_clock: Callable[[], float] = time.time, read_only: bool = False
    ) -> None:
        """Read what was kept.

        Args:
            folder: The state directory.
            wall_clock: Seconds since the epoch.
            read_only: What ended is left out, and stays in the file.

        Raises:
            RollbacksUnreadableError: It cannot be read.
        """
        self._file = folder / FILE
        self._wall_clock = wall_clock
        self._read_only = read_only
        self._kept = {each.about: each for each in _read(self._file)}
        self.wake: Callable[[], None] = nobody

    def active(self) -> tuple[Rollback, ...]:
        """What holds, as of the last snapshot."""
        return tuple(self._kept.values())

    def apply(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with what was rolled back laid over it; what it ends is dropped first.

        Args:
            snapshot: What the source says.
        """
        now = self._wall_clock()
        ended = {about: why for about, each in self._kept.items() if (why := rules.why_ended(each, snapshot, now))}
        if ended:
            gone = [each for about, each in self._kept.items() if about in ended]
            self._kept = {about: each for about, each in self._kept.items() if about not in ended}
            if not self._read_only:
                self._save_what_is_left()
                for each in gone:
                    log.info("rollback.ended", model=each.about, revision=each.revision_to, why=ended[each.about])
        return rules.apply(snapshot, self._kept.values())

    def resolutions(self, wanted: Collection[Wanted]) -> dict[Wanted, Resolution]:
        """The commits that branches and tags were, of what was rolled back; see `core.rollback.resolutions`."""
        return rules.resolutions(self._kept.values(), wanted)

    def give(self, rollback: Rollback) -> None:
        """Have a rollback hold, in the place of an earlier one of the same. That of all ends those of models.

        Raises:
            OSError: It cannot be written, so it does not hold.
        """
        others = {} if rollback.model is None else self._kept
        kept = {**others, rollback.about: rollback}
        _write(self._file, kept)
        self._kept = kept
        log.info(
            "rollback.given",
            model=rollback.about,
            revision=rollback.revision_to,
            before=rollback.revision_from,
            until=rollback.until,
            reason=rollback.reason,
        )
        self.wake()

    def end(self, about: str) -> Rollback | None:
        """End the rollback of a model, or with `ALL` that of all; gives what ended.

        Raises:
            OSError: It cannot be written, so it still holds.
        """
        ended = self._kept.get(about)
        if ended is None:
            return None
        kept = {name: each for name, each in self._kept.items() if name != about}
        _write(self._file, kept)
        self._kept = kept
        log.info("rollback.ended", model=about, revision=ended.revision_to, why="by hand")
        self.wake()
        return ended

    def _save_what_is_left(self) -> None:
        try:
            _write(self._file, self._kept)
        except OSError as error:
            # It has ended all the same, and ends anew after a restart.
            log.warning("rollbacks.unsaved", file=str(self._file), reason=str(error))


class RollbackAsked(BaseModel):
    """A command: `model` or `to` or both, or the end of what holds."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: Annotated[str, Field(min_length=1, max_length=_LONGEST_NAME)] | None = None
    to: Annotated[str, Field(min_length=1, max_length=_LONGEST_NAME)] | None = None
    end: bool = False
    seconds: Annotated[float, Field(ge=1, le=LONGEST_SECONDS, allow_inf_nan=False)] | None = None
    reason: Annotated[str, Field(max_length=LONGEST_REASON)] = ""


@dataclass(frozen=True, slots=True)
class RollbackGiven:
    """What a command did.

    Attributes:
        about: The model, or `*` for all.
        revision: What was gone back to, or was until now.
        until: Seconds since the epoch at which it ends; None where only a change or a command ends it.
        text: What holds now, in words.
        files: The files that it is about.
    """

    about: str
    revision: str
    until: float | None
    text: str
    files: tuple[str, ...] = ()


class RollbackHand:
    """Carries out `reconcile rollback`."""

    def __init__(
        self,
        store: RollbackStore,
        versions: Versions,
        source: Callable[[], Awaitable[Snapshot]],
        at: Callable[[str], Awaitable[Snapshot]] | None = None,
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Carry out nothing yet.

        Args:
            store: Keeps what holds, and wakes the loop.
            versions: What served.
            source: Reads the source.
            at: The files of an earlier revision, for a source that has a history: `unreadable` says why not.
            wall_clock: Seconds since the epoch.
        """
        self._store = store
        self._versions = versions
        self._source = source
        self._at = at
        self._wall_clock = wall_clock

    async def carry_out(self, asked: RollbackAsked) -> RollbackGiven:
        """Carry out a command. What it answers is on disk by then.

        Raises:
            RollbackError: There is nothing to go back to, or to end.
            OSError: It could not be written down, so it does not hold.
        """
        if not asked.reason.isprintable():
            raise RollbackError("a reason is one line")
        source = await self._source()
        self._store.apply(source)
        model = None if asked.model is None else self._named(asked.model, source)
        if asked.end:
            return self._end(ALL if model is None else model)
        if model is not None:
            rollback = await self._of_model(model, source, asked.to)
        elif asked.to is not None:
            rollback = await self._of_all(source, asked.to)
        else:
            raise RollbackError("say which model goes back, or with --to to which revision all do")
        now = rollback.since
        until = None if asked.seconds is None else now + asked.seconds
        rollback = replace(rollback, until=until, reason=asked.reason)
        self._store.give(rollback)
        files = tuple(sorted(rollback.files))
        return RollbackGiven(rollback.about, rollback.revision_to, until, in_words(rollback, now), files)

    def _end(self, about: str) -> RollbackGiven:
        ended = self._store.end(about)
        if ended is None:
            held = ", ".join(sorted(each.about for each in self._store.active()))
            what = "the models together were" if about == ALL else f"{about} was"
            raise RollbackError(f"{what} not rolled back" + (f"; what holds is that of {held}" if held else ""))
        text = f"the rollback to {short(ended.revision_to)} has ended; the source holds again"
        return RollbackGiven(about, ended.revision_to, None, text, tuple(sorted(ended.files)))

    def _named(self, name: str, source: Snapshot) -> str:
        """The model of that name, or with that alias."""
        valid = parse_all(source.files).valid
        if name in valid or self._versions.of(name):
            return name
        aliases = {alias: model for model, file in valid.items() for alias in file.spec.aliases}
        if name in aliases:
            return aliases[name]
        known = sorted({*valid, *aliases, *self._versions.all()})
        near = tuple(difflib.get_close_matches(name[:_MAX_COMPARED], known, n=3))
        raise RollbackError(f"no model file declares or declared {name[:_MAX_COMPARED]!r}", near)

    async def _of_model(self, model: str, source: Snapshot, to: str | None) -> Rollback:
        current = next((each for each in self._store.active() if each.model == model), None)
        versions, now = self._versions.of(model), self._wall_clock()
        try:
            return rules.to_version(model, versions, source, current, to=to, now=now)
        except UnknownRevisionError:
            assert to is not None
            found = await self._files_of(to)
            if found is None:
                raise
            revision, files, objects = found
        contents = {path: text.encode() for path, text in files.items()}
        declares = parse_all(contents).valid.get(model)
        if declares is None:
            raise RollbackError(f"{short(revision)} does not declare {model} validly")
        file, folders = declares.path, folders_of(declares.spec, objects)
        declared = rules.file_in(model, source.files)
        # The version that it was then, where it served, with its commits.
        pins = next((each.pins for each in versions if (each.file, each.text) == (file, files[file])), ())
        version = Version(model, file, files[file], revision, now, pins=pins, objects=folders)
        return rules.back_to(version, source, declared or (file if file in source.files else ""), now=now)

    async def _of_all(self, source: Snapshot, to: str) -> Rollback:
        found = await self._files_of(to)
        if found is None:
            kept = ", ".join(map(short, self._versions.revisions())) or "none"
            raise UnknownRevisionError(f"revision {to[:_MAX_COMPARED]} is not kept; kept are: {kept}")
        versions = [version for each in self._versions.all().values() for version in each]
        revision, files, objects = found
        return rules.to_revision(revision, files, versions, source, now=self._wall_clock(), objects=objects)

    async def _files_of(self, revision: str) -> tuple[str, dict[str, str], Mapping[str, str]] | None:
        """A revision's own name, the text of its files and where its folders lie; None where nobody knows it.

        Raises:
            RollbackError: The source knows it, and cannot give its files.
        """
        if self._at is None:
            kept = self._versions.revision(revision)
            return None if kept is None else (*kept, {})
        snapshot = await self._at(revision)
        if snapshot.unreadable or snapshot.problems:
            reason = snapshot.unreadable or str(snapshot.problems[0])
            raise RollbackError(f"the files of {revision[:_MAX_COMPARED]} cannot be had: {reason}")
        if sum(map(len, snapshot.files.values())) > MAX_REVISION_BYTES:
            raise RollbackError(f"the files of {short(snapshot.revision)} are too large to be kept")
        try:
            texts = {path: content.decode() for path, content in snapshot.files.items()}
        except UnicodeDecodeError as error:
            raise RollbackError(f"a file of {short(snapshot.revision)} is no text") from error
        return snapshot.revision, texts, snapshot.objects


async def ask_rollback(state_dir: Path, asked: RollbackAsked) -> RollbackGiven:
    """Give the command to the reconciler that runs here.

    Raises:
        NoReconcilerError: None answers.
        RefusedError: It says no.
    """
    answer = await ask(state_dir, "POST", "/rollback", asked.model_dump(), seconds=_ANSWER_SECONDS)
    try:
        return TypeAdapter(RollbackGiven).validate_python(answer)
    except ValidationError as error:
        raise NoReconcilerError(ANOTHER_VERSION) from error


def _write(file: Path, kept: dict[str, Rollback]) -> None:
    write_atomic(file, json.dumps([dataclasses.asdict(each) for each in kept.values()], indent=1))


def _read(file: Path) -> list[Rollback]:
    # One that is lost puts a version back to work that somebody took away.
    try:
        rows = _ROWS.validate_json(file.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValidationError) as error:
        what = error.strerror if isinstance(error, OSError) else f"{error.error_count()} mistakes in it"
        raise RollbacksUnreadableError(
            f"{file} does not say what was rolled back ({what}); mend it, or remove it, which ends every rollback"
        ) from error
    return [each for each in rows if rules.is_sound(each)]
