"""Going back by hand: the text of a file, or of all, as it was, laid over what the source says. Pure.

`loop.rollbacks` keeps what holds and lays it over each snapshot before anything is parsed. A rollback is declared
drift: nothing is written into the operator's files, and the next change of what it is about ends it.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from reconciler.core.desired import Desired, Snapshot
from reconciler.core.local_paths import folders_of
from reconciler.core.parse import ParsedFile, parse_all, parse_model
from reconciler.core.plan import Note
from reconciler.core.provenance import Provenance
from reconciler.core.state import Json, Observed
from reconciler.core.weights import Resolution, Wanted
from reconciler.core.words import in_time

ALL = "*"
"""In place of a model's name: all of them."""
LONGEST_REASON = 200
LONGEST_SECONDS = 366 * 86400.0
SHORTEST_REVISION = 7
"""Characters of a revision that tell it from others."""
_SHOWN = 12
_MAX_LISTED = 10


class RollbackError(ValueError):
    """There is nothing to go back to; the message says why, and what there is.

    Attributes:
        near: Names of models that were perhaps meant.
    """

    def __init__(self, reason: str, near: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.near = near


class UnknownRevisionError(RollbackError):
    """Nobody kept that revision here; a source with a history may know it."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """Which commit of a repository a version was read from."""

    model: str
    repo: str
    revision: str
    commit: str


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a model's file that served.

    Attributes:
        file: Its path, as the source names it.
        text: The file, whole.
        revision: The source's revision at which it came to serve.
        at: Seconds since the epoch at which it did.
        digest: Digest of what it declares, with every default and commit filled in.
        commit: The commit that wrote the text, 12 digits; empty where the source cannot tell.
        pins: What its branches and tags were.
        objects: Where the folders of the source lay that it names, by relative path.
    """

    model: str
    file: str
    text: str
    revision: str
    at: float
    digest: str = ""
    commit: str = ""
    pins: tuple[Pinned, ...] = ()
    objects: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rollback:
    """What holds instead of what the source says.

    Attributes:
        model: The model it is about; None for all.
        files: Text by path. For a model its own file; for all every file that there is to be.
        revision_from: The source's revision when it was given.
        revision_to: The revision that it goes back to.
        since: Seconds since the epoch, when it was given.
        until: Seconds since the epoch at which it ends; None where only a change or a command ends it.
        reason: Why, in the operator's words.
        source: Of a model: by path the digest of the source's text when it was given, empty where there was none.
        pins: The commits that branches and tags were at the time.
    """

    model: str | None
    files: Mapping[str, str]
    revision_from: str
    revision_to: str
    since: float
    until: float | None = None
    reason: str = ""
    source: Mapping[str, str] = field(default_factory=dict)
    pins: tuple[Pinned, ...] = ()

    @property
    def about(self) -> str:
        """The model's name, or `ALL`."""
        return ALL if self.model is None else self.model

    def covers(self, file: str) -> bool:
        """It decides what `file` says."""
        return self.model is None or file in self.files


# --- what it does -----------------------------------------------------------------------------------------


def apply(snapshot: Snapshot, rollbacks: Iterable[Rollback]) -> Snapshot:
    """The snapshot with the texts of what holds. The revision stays the source's.

    A source that could not be read stays so: nothing is concluded from it.
    """
    if snapshot.unreadable:
        return snapshot
    # That of a model is the more particular one.
    for each in sorted(rollbacks, key=lambda each: each.model is not None):
        texts = {path: text.encode() for path, text in each.files.items()}
        if each.model is None:
            taken_back = dict.fromkeys(texts, each.revision_to)
            snapshot = replace(snapshot, files=texts, problems=(), taken_back=taken_back)
            continue
        kept = {path: content for path, content in snapshot.files.items() if path not in each.source}
        problems = tuple(problem for problem in snapshot.problems if problem.path not in texts)
        taken_back = {**snapshot.taken_back, **dict.fromkeys(texts, each.revision_to)}
        snapshot = replace(snapshot, files={**kept, **texts}, problems=problems, taken_back=taken_back)
    return snapshot


def why_ended(rollback: Rollback, snapshot: Snapshot, now: float) -> str:
    """Why it holds no longer; empty while it does.

    Args:
        rollback: What holds.
        snapshot: What the source says, without any rollback.
        now: Seconds since the epoch.
    """
    if rollback.until is not None and rollback.until <= now:
        return "its time is over"
    if snapshot.unreadable:
        return ""
    if rollback.model is None:
        moved = snapshot.revision != rollback.revision_from
        return f"the source moved on to {short(snapshot.revision)}" if moved else ""
    unknown = {problem.path for problem in snapshot.problems}
    for path, digest in rollback.source.items():
        if path not in unknown and _digest_in(snapshot, path) != digest:
            what = "changed" if path in snapshot.files else "was removed"
            return f"{path} {what} in the source"
    return ""


def resolutions(rollbacks: Iterable[Rollback], wanted: Collection[Wanted]) -> dict[Wanted, Resolution]:
    """The commits that branches and tags of what was rolled back were then: the same text is the same version.

    Args:
        rollbacks: What holds.
        wanted: What the files ask for, with the rollbacks laid over them.
    """
    pins = {
        (pin.model, pin.repo, pin.revision): pin.commit
        # Where both say something, that of the model has the last word.
        for each in sorted(rollbacks, key=lambda each: each.model is not None)
        for pin in each.pins
    }
    found = ((each, pins.get((each.model, each.repo, each.revision))) for each in wanted)
    return {each: Resolution(commit) for each, commit in found if commit is not None}


def in_words(rollback: Rollback, now: float) -> str:
    """What holds, until when and why: for status, plan and log."""
    what = "all models were" if rollback.model is None else "it was"
    file = next(iter(rollback.source), "")
    end = "with the source's next revision" if rollback.model is None else f"when {file} changes in the source"
    left = "" if rollback.until is None else f", or in {in_time(rollback.until - now)}"
    before = f" (before: {short(rollback.revision_from)})" if rollback.revision_from else ""
    why = f"; {rollback.reason}" if rollback.reason else ""
    return f"{what} rolled back by hand to {short(rollback.revision_to)}{before}; ends {end}{left}{why}"


def notes(rollbacks: Iterable[Rollback], now: float) -> tuple[Note, ...]:
    """Each for the plan: it is drift, and declared."""
    return tuple(Note(each.about, in_words(each, now)) for each in rollbacks)


def short(revision: str) -> str:
    """A revision as people write it."""
    return revision[:_SHOWN]


# --- how it is made ---------------------------------------------------------------------------------------


def to_version(
    name: str,
    versions: Sequence[Version],
    source: Snapshot,
    current: Rollback | None,
    *,
    to: str | None,
    now: float,
) -> Rollback:
    """Take a model back: to the version before the one that is declared, or to that of a revision.

    Args:
        name: The model.
        versions: Those that served, the newest first.
        source: What the source says, without any rollback.
        current: What it was rolled back to already.
        to: The revision, or the first digits of it; None for the version before.
        now: Seconds since the epoch.

    Raises:
        UnknownRevisionError: No version is known of that revision.
        RollbackError: There is none to go back to.
    """
    if source.unreadable:
        raise RollbackError(f"the model files cannot be read: {source.unreadable}")
    file = _file_of(name, versions, source)
    if to is None:
        return back_to(_before(name, versions, source, current, file), source, file, now=now)
    # A commit that changed only a folder is another version of the same text.
    found = next((each for each in versions if is_revision(to, each.revision)), None)
    found = found or next((each for each in versions if is_revision(to, each.commit)), None)
    if found is None:
        raise UnknownRevisionError(f"no version of {name} is known of revision {to}; {_listed(name, versions)}")
    if found is versions[0] and file and _declares_the_same(found, file, source):
        raise RollbackError(f"{short(found.revision)} is what {file} declares now")
    return back_to(found, source, file, now=now)


def back_to(version: Version, source: Snapshot, file: str, *, now: float) -> Rollback:
    """Take a model back to one version; `file` is where the source declares it now, empty where it does not.

    Raises:
        RollbackError: Its path is another model's by now, it is not valid beside the other files, or a folder that
            it names holds something else now.
    """
    _refuse_other_folder(version.objects, source, version.revision)
    if version.file != file and version.file in source.files:
        raise RollbackError(
            f"{version.model} was declared in {version.file}, which declares another model by now; "
            "change the files instead"
        )
    paths = [file, version.file] if file else [version.file]
    made = Rollback(
        version.model,
        {version.file: version.text},
        source.revision,
        version.revision,
        now,
        source={path: _digest_in(source, path) for path in dict.fromkeys(paths)},
        pins=version.pins,
    )
    parsed = parse_all(apply(source, [made]).files)
    if version.model not in parsed.valid:
        problem = next(
            (each for each in parsed.problems if each.path == version.file), "it declares another model"
        )
        raise RollbackError(f"the text of {short(version.revision)} would not do now: {problem}")
    return made


def to_revision(
    revision: str,
    files: Mapping[str, str],
    versions: Iterable[Version],
    source: Snapshot,
    *,
    now: float,
    objects: Mapping[str, str] | None = None,
) -> Rollback:
    """Take all models back to the files of a revision.

    Args:
        revision: The revision.
        files: The text of each of its files.
        versions: Those of all models, the newest of each first.
        source: What the source says, without any rollback.
        now: Seconds since the epoch.
        objects: Where its folders lie, by relative path.

    Raises:
        RollbackError: That is where the source stands, not a file of it declares a model, or a folder that one
            names holds something else now.
    """
    if source.unreadable:
        raise RollbackError(f"the model files cannot be read: {source.unreadable}")
    if revision == source.revision:
        raise RollbackError(f"{short(revision)} is what the source says now")
    valid = parse_all({path: text.encode() for path, text in files.items()}).valid
    if not valid:
        raise RollbackError(f"{short(revision)} declares no model")
    for file in valid.values():
        _refuse_other_folder(folders_of(file.spec, objects or {}), source, revision)
    pins: dict[tuple[str, str, str], Pinned] = {}
    for version in versions:
        if files.get(version.file) == version.text:
            for pin in version.pins:
                pins.setdefault((pin.model, pin.repo, pin.revision), pin)
    return Rollback(None, dict(files), source.revision, revision, now, pins=tuple(pins.values()))


def version_of(
    model: str,
    desired: Desired,
    observed: Observed,
    files: Mapping[str, bytes],
    provenance: Provenance | None = None,
    *,
    objects: Mapping[str, str] | None = None,
) -> Version | None:
    """The version of a model that serves, where it is what its file declares: one to come back to.

    Args:
        model: The model.
        desired: What is wanted.
        observed: What is there.
        files: The text that `desired` was made of, by path.
        provenance: Where it comes from, where that is known.
        objects: Where folders of the source lie, by relative path.
    """
    target, record = desired.targets.get(model), observed.records.get(model)
    if target is None or record is None or record.previous is not None:
        return None
    if (record.application, record.file, record.spec) != (target.application, target.file, target.fields):
        return None
    try:
        text = files[target.file].decode()
    except (KeyError, UnicodeDecodeError):
        return None
    by = provenance.changed.get(target.file) if provenance is not None else None
    pins = sorted(
        {Pinned(model, copy.repo, revision, copy.commit) for copy, revision in target.copies.items()}, key=str
    )
    return Version(
        model,
        target.file,
        text,
        desired.revision,
        observed.now,
        digest_of_fields(target.fields),
        by.short if by is not None else "",
        tuple(pins),
        folders_of(target.spec, objects or {}),
    )


def file_in(name: str, files: Mapping[str, bytes]) -> str:
    """The path of the valid file that declares a model; empty where none does."""
    found = parse_all(files).valid.get(name)
    return found.path if found is not None else ""


def is_revision(asked: str, *known: str) -> bool:
    """Whether `asked` is one of the revisions, or the beginning of one."""
    long_enough = len(asked) >= SHORTEST_REVISION
    return any(each and (each == asked or (long_enough and each.startswith(asked))) for each in known)


def is_sound(rollback: Rollback) -> bool:
    """It is such as commands make it: for one that was read from a file."""
    until_is_later = rollback.until is None or rollback.since < rollback.until
    return bool(rollback.files) and until_is_later and (rollback.model is None) == (not rollback.source)


def digest_of(content: bytes) -> str:
    """The digest by which a text is told from others."""
    return hashlib.sha256(content).hexdigest()


def digest_of_fields(fields: Json) -> str:
    """What tells a model's declared state from others: 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _file_of(name: str, versions: Sequence[Version], source: Snapshot) -> str:
    """Where the source declares the model now, validly or not; empty where it does not."""
    parsed = parse_all(source.files)
    if name in parsed.valid:
        return parsed.valid[name].path
    claiming = (file.path for file in parsed.invalid if file.claims is not None and name in file.claims)
    # A file that says nothing readable speaks for the model that it declared when it did.
    known = versions[0].file if versions and versions[0].file in source.files else ""
    return next(claiming, known)


def _before(
    name: str, versions: Sequence[Version], source: Snapshot, current: Rollback | None, file: str
) -> Version:
    """The version before the one that is declared."""
    if not versions:
        raise RollbackError(f"no version of {name} has served yet that could come back")
    at = -1
    if current is not None and current.model == name:
        # One more step back.
        texts = set(current.files.items())
        places = (
            index
            for index, each in enumerate(versions)
            if each.revision == current.revision_to
            and (each.file, each.text) in texts
            and each.pins == current.pins
        )
        at = next(places, -1)
    elif file and _declares_the_same(versions[0], file, source):
        at = 0
    if at + 1 >= len(versions):
        raise RollbackError(f"no version of {name} before {short(versions[-1].revision)} is kept")
    return versions[at + 1]


def _declares_the_same(version: Version, file: str, source: Snapshot) -> bool:
    content = source.files.get(file, b"")
    if _other_folder(version.objects, source):
        return False
    # A comment makes no version.
    if version.text.encode() == content:
        return True
    now, then = parse_model(file, content), parse_model(version.file, version.text.encode())
    return isinstance(now, ParsedFile) and isinstance(then, ParsedFile) and now.spec == then.spec


def _other_folder(objects: Mapping[str, str], source: Snapshot) -> str:
    """The first folder that holds something else now; empty where none does."""
    return next((path for path, place in objects.items() if source.objects.get(path) != place), "")


def _refuse_other_folder(objects: Mapping[str, str], source: Snapshot, revision: str) -> None:
    if path := _other_folder(objects, source):
        raise RollbackError(
            f"{path} holds something else now than at {short(revision)}, and only files are taken back; "
            "bring the folder back in the source instead"
        )


def _digest_in(snapshot: Snapshot, path: str) -> str:
    content = snapshot.files.get(path)
    return digest_of(content) if content is not None else ""


def _listed(name: str, versions: Sequence[Version]) -> str:
    known = list(dict.fromkeys(short(each.revision) for each in versions))[:_MAX_LISTED]
    return f"kept are those of {', '.join(known)}" if known else f"none of {name} is kept"
