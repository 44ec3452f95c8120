"""What is wanted: the model files of one revision, parsed and compiled to targets."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from reconciler.core.parse import InvalidFile, ParsedSet, Problem, parse_all
from reconciler.core.provenance import Commit, Provenance
from reconciler.core.render import Renderer, RenderError
from reconciler.core.target import Target
from reconciler.core.weights import Resolutions, Wanted, wanted_of


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The model files as a source read them, all at one time.

    Attributes:
        revision: What names this state: a commit, or a digest of the contents.
        files: Content by path, relative to `folder`.
        folder: Absolute folder that relative paths inside model files start at.
        unreadable: Why the source could not be read; empty when it could. Then `files` says nothing.
        problems: Files that could not be read (no regular file, no permission), which hold their models.
        objects: Where folders of the source lie that model files may name by a relative path, by that path as it
            is from `folder`; each place belongs to its content, so that another revision of the same folder lies
            elsewhere. Where a source has none, such paths start at `folder`.
        provenance: Where the files come from, where the source can tell.
        taken_back: Of files that were rolled back by hand: the revision that their text is of, by path.
    """

    revision: str
    files: Mapping[str, bytes]
    folder: str
    unreadable: str = ""
    problems: tuple[Problem, ...] = ()
    objects: Mapping[str, str] = field(default_factory=dict)
    provenance: Provenance | None = None
    taken_back: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Desired:
    """What the operator wants.

    Attributes:
        targets: The wanted version of each model, by name.
        invalid: Files that speak for no model; what they served before stays.
        problems: Every mistake of every file, in the order of files and lines.
        digest: Digest of everything that this was made from.
        provenance: Where the files come from, where the source can tell.
        order: Of models that may start now: their places in the order in which all of them find room.
        taken_back: As in `Snapshot`.
    """

    targets: Mapping[str, Target] = field(default_factory=dict)
    invalid: tuple[InvalidFile, ...] = ()
    problems: tuple[Problem, ...] = ()
    revision: str = ""
    unreadable: str = ""
    digest: str = ""
    order: Mapping[str, int] = field(default_factory=dict)
    provenance: Provenance | None = None
    taken_back: Mapping[str, str] = field(default_factory=dict)

    def revision_of(self, file: str) -> str:
        """The revision that a file's text is of: the source's, unless it was rolled back by hand."""
        return self.taken_back.get(file, self.revision)

    def changed_last(self, file: str) -> Commit | None:
        """The commit that changed a file last; None where that is not known, or its text is an older one."""
        if self.provenance is None or file in self.taken_back:
            return None
        return self.provenance.changed.get(file)

    @property
    def declared(self) -> int:
        """How many model files there are, valid or not."""
        return len(self.targets) + len(self.invalid)


def compile_desired(
    snapshot: Snapshot,
    renderer: Renderer,
    resolutions: Resolutions | None = None,
    *,
    parsed: ParsedSet | None = None,
) -> Desired:
    """Parse and compile a snapshot. Never raises for what is in the files: mistakes are reported as problems.

    Args:
        snapshot: The model files.
        renderer: Makes applications of them.
        resolutions: Which commits the wanted revisions are. Without, engines fetch what they need themselves.
        parsed: The files, where they were parsed already.
    """
    parsed = parsed or parse_all(snapshot.files)
    targets: dict[str, Target] = {}
    invalid = [*parsed.invalid, *_unread(snapshot.problems)]
    problems = [*parsed.problems, *snapshot.problems]
    for name, file in sorted(parsed.valid.items()):
        try:
            targets[name] = renderer.compile_target(
                file.spec,
                file=file.path,
                folder=snapshot.folder,
                resolutions=resolutions,
                objects=snapshot.objects,
            )
        except RenderError as error:
            problem = Problem(file.path, 1, 1, str(error))
            problems.append(problem)
            invalid.append(InvalidFile(file.path, file.digest, (problem,), frozenset({name})))
    problems.sort(key=lambda problem: (problem.path, problem.line, problem.column))
    return Desired(
        targets=targets,
        invalid=tuple(invalid),
        problems=tuple(problems),
        revision=snapshot.revision,
        unreadable=snapshot.unreadable,
        digest=_digest(target.application for target in targets.values()) + _digest(snapshot.files),
    )


def wanted_in(parsed: ParsedSet) -> frozenset[Wanted]:
    """Every repository that a valid file asks for."""
    return frozenset(each for file in parsed.valid.values() for each in wanted_of(file.spec))


def models_of_invalid_files(desired: Desired) -> frozenset[str] | None:
    """The models that invalid files certainly speak for; None where one may speak for any."""
    if any(file.claims is None for file in desired.invalid):
        return None
    return frozenset(name for file in desired.invalid for name in file.claims or ())


def revision_of(files: Mapping[str, bytes]) -> str:
    """A revision for a source that has none of its own: 12 hexadecimal digits over names and contents."""
    hasher = hashlib.sha256()
    for path, content in sorted(files.items()):
        hasher.update(f"{path}\0{len(content)}\0".encode() + content)
    return hasher.hexdigest()[:12]


def _unread(problems: Iterable[Problem]) -> Iterable[InvalidFile]:
    for problem in problems:
        yield InvalidFile(problem.path, "", (problem,), None)


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()[:12]
