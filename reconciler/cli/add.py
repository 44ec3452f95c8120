"""The commands that help to begin: add writes a model file, catalogue lists models to choose from."""

import asyncio
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError
from rich.markup import escape
from rich.table import Table

from reconciler.cli.common import ERROR, OK, PARTIAL, fail
from reconciler.cli.show import console, print_json
from reconciler.core import catalogue as models
from reconciler.core.catalogue import Entry
from reconciler.core.choose_files import (
    CONFIG,
    Listing,
    RepoFile,
    Rules,
    WeightsRefusedError,
    allowed,
    choose_files,
    indexes_to_read,
)
from reconciler.core.edit import EditError
from reconciler.core.new_file import (
    Facts,
    facts_of,
    facts_of_entry,
    gate,
    name_of,
    new_file,
    one_line,
    read_config,
    task_of,
)
from reconciler.core.parse import parse_all
from reconciler.core.spec import ModelSpec, Source
from reconciler.core.weights import DEFAULT_REVISION, Role, in_words
from reconciler.host.settings import Settings
from reconciler.sources.edit_folder import FolderEdits
from reconciler.sources.folder import FolderSource
from reconciler.weights.choosing import read_to_choose
from reconciler.weights.errors import Trouble, WeightsError
from reconciler.weights.hub import Hub

_LONGEST_LINE = 1000
_UNANSWERED = (Trouble.UNREACHABLE, Trouble.BUSY, Trouble.OFFLINE)


@dataclass(slots=True)
class _Found:
    """What was found out about a repository.

    Attributes:
        refusal: Why it would not be fetched; empty where it would.
        notes: What the operator should know.
    """

    facts: Facts
    refusal: str = ""
    notes: list[str] = field(default_factory=list)


def add(
    settings: Settings,
    repo: str,
    *,
    revision: str | None,
    name: str | None,
    stdout: bool,
    force: bool,
    output: str,
    hub: Hub | None = None,
) -> int:
    """Write a model file for a repository or a model of the catalogue; exit 3 where it would not be fetched.

    Args:
        settings: Where the folder of model files is, and what may be fetched.
        repo: As `owner/name`, or a name of the catalogue.
        revision: Branch, tag or commit; the default is the main branch.
        name: The model's name; the default is made from the repository's.
        stdout: Print the file instead of writing it.
        force: Replace a file that is there, and write one though the repository is refused.
        output: `text` or `json`.
        hub: Where to ask; the default is the hub of the environment.
    """
    entry = models.find(repo)
    wanted = entry.repo if entry is not None else repo
    chosen = name or (entry.name if entry is not None else name_of(wanted))
    _check(wanted, revision, chosen)
    # A name may have several parts, but the files lie in one folder.
    if settings.source == "git" and not stdout:
        fail("the model files come from git: --stdout prints the file, to be committed there")
    path = settings.models_dir / f"{chosen.replace('/', '--')}.yaml"
    if not (stdout or force) and (path.is_symlink() or path.exists()):
        fail(f"{path} exists; --force replaces it, --name chooses another name")
    found = _find_out(settings, hub or Hub(), wanted, revision, entry)
    if found.refusal and not force:
        _say(f"reconcile: {found.refusal}", err=True)
        click.echo("Nothing was written; --force writes the file all the same.", err=True)
        return PARTIAL
    text = new_file(found.facts, name=chosen, revision=revision or DEFAULT_REVISION, refused=bool(found.refusal))
    _check_file(settings.models_dir, path.name, text, alone=stdout)
    if not stdout:
        _write(FolderEdits(settings.models_dir, settings.state_dir), path.name, text)
    _report(found, None if stdout else path, text, output=output)
    return OK


def catalogue(settings: Settings, query: str, *, output: str) -> int:
    """List the catalogue's models that match; exit 1 with near names where none does."""
    del settings  # All commands are called alike.
    found = models.matches(query)
    near = () if found else models.near(query)
    if output == "json":
        print_json({"models": [asdict(each) for each in found], "near": [each.name for each in near]})
        return OK if found else ERROR
    if not found:
        names = ", ".join(each.name for each in near)
        click.echo(f"reconcile: no model of the catalogue matches {query!r}{_meant(names)}", err=True)
        return ERROR
    out = console()
    out.print(_table(found))
    out.print("[dim]reconcile add NAME writes a model file; any repository of the hub can be added as well.[/]")
    return OK


def _table(entries: tuple[Entry, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("NAME", "TASK", "SIZE", "CONTEXT", "LICENCE", "REPO"):
        right = heading in ("SIZE", "CONTEXT")
        table.add_column(heading, overflow="fold", no_wrap=heading != "REPO", justify="right" if right else "left")
    for entry in entries:
        table.add_row(
            escape(entry.name),
            entry.task.value,
            f"{entry.size_gib:g} GiB",
            str(entry.context),
            escape(entry.licence) + (" [yellow](gated)[/]" if entry.gated else ""),
            escape(entry.repo),
        )
    return table


def _meant(names: str) -> str:
    return f" (did you mean {names}?)" if names else ""


def _check(repo: str, revision: str | None, name: str) -> None:
    """End with what the model file would not take, before anybody is asked about it."""
    try:
        ModelSpec(name=name, source=Source(repo=repo, revision=revision))
    except ValidationError as error:
        wrong = error.errors()[0]["loc"][0]
        if wrong == "name":
            fail(f"{name!r} is no name: letters, digits and . _ - between them, with / between parts, 96 in all")
        if wrong == "revision":
            fail(f"{revision!r} is no branch, tag or commit")
        names = ", ".join(each.name for each in models.near(repo))
        fail(f"{repo!r} is neither owner/name, as on the hub, nor a name of the catalogue{_meant(names)}")


def _find_out(settings: Settings, hub: Hub, repo: str, revision: str | None, entry: Entry | None) -> _Found:
    """Ask the hub; where it does not answer, the catalogue."""
    try:
        return _ask(settings, hub, repo, revision, entry)
    except WeightsError as error:
        if entry is None or error.trouble not in _UNANSWERED:
            fail(one_line(str(error), _LONGEST_LINE))
        found = _Found(facts_of_entry(entry))
        found.notes.append(f"written from the catalogue, because the hub could not be asked: {error}")
        if entry.gated:
            found.notes.append(f"{repo} is gated: {gate(repo)}")
        if entry.pickle and not allowed(repo, settings.allow_pickle):
            found.refusal = (
                f"{repo} has its weights only as pickles, which can run code when they are loaded; allow it with "
                f"RECONCILE_ALLOW_PICKLE='[\"{repo}\"]'"
            )
        return found


def _ask(settings: Settings, hub: Hub, repo: str, revision: str | None, entry: Entry | None) -> _Found:
    info = hub.info(repo, revision)
    notes = []
    if (canonical := _text(info.id)) != repo and "/" in canonical:
        notes.append(f"the hub calls {repo} {canonical!r}, and so does the file")
        _check(canonical, revision, name_of(canonical))
        repo = canonical
    listing = hub.listing(repo, info.sha or revision or DEFAULT_REVISION)
    refusal, denied, weight_bytes = "", "", None
    contents: dict[str, bytes] = {}
    try:
        denied = _read(hub, listing, contents)
        rules = Rules(settings.allow_pickle, settings.allow_code)
        weight_bytes = _weight_bytes(choose_files(listing, Role.MODEL, contents, rules))
    except WeightsRefusedError as error:
        refusal = str(error)
    config = read_config(contents[CONFIG]) if CONFIG in contents else getattr(info, "config", None)
    facts = facts_of(
        repo,
        listing.commit,
        config if isinstance(config, dict) else {},
        pipeline_tag=_text(info.pipeline_tag),
        tags=[tag for tag in info.tags or () if isinstance(tag, str)],
        weight_bytes=weight_bytes,
        licence=_licence(info),
        gated=bool(info.gated),
        entry=entry,
    )
    if denied:
        notes.append(f"{denied}; its configuration could not be read, so the file says less than it could")
    elif facts.gated:
        notes.append(f"{repo} is gated; the token here may read it, and the reconciler needs one that may")
    return _Found(facts, refusal, notes)


def _read(hub: Hub, listing: Listing, contents: dict[str, bytes]) -> str:
    """Fill in the contents that the choice of files needs; gives the reason where they may not be read.

    Raises:
        WeightsError: The hub does not answer.
        WeightsRefusedError: A file is too large to be what it is called.
    """
    for name in indexes_to_read(listing, Role.MODEL):
        try:
            contents[name] = read_to_choose(hub, listing, name)
        except WeightsError as error:
            if error.trouble is Trouble.REFUSED:
                raise WeightsRefusedError(str(error)) from error
            # A gated repository lists its files to everybody.
            if error.trouble is not Trouble.DENIED:
                raise
            return str(error)
    return ""


def _weight_bytes(files: tuple[RepoFile, ...]) -> int:
    """Bytes of the safetensors; where the operator allows pickles instead, of all."""
    return sum(file.size for file in files if file.path.endswith(".safetensors")) or sum(
        file.size for file in files
    )


def _licence(info: Any) -> str:  # noqa: ANN401 -- huggingface_hub.ModelInfo
    tags = [tag for tag in info.tags or () if isinstance(tag, str)]
    licence = next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), "")
    # Of a licence that the hub does not know, the model's card tells the name.
    own = _text(getattr(info.card_data, "license_name", None)) if licence in ("", "other") else ""
    return own or licence


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _check_file(folder: Path, file: str, text: str, *, alone: bool) -> None:
    """End with the reason where the file would be invalid, or claims a name that another file has."""
    files: dict[str, bytes] = {}
    if not alone and folder.exists():
        snapshot = asyncio.run(FolderSource(folder).read())
        if snapshot.unreadable:
            fail(snapshot.unreadable)
        files |= snapshot.files
    path = f"{folder.name}/{file}"
    parsed = parse_all({**files, path: text.encode()})
    for problem in parsed.problems:
        if problem.path == path:
            hint = f" ({problem.hint})" if problem.hint else ""
            fail(f"{problem.message}{hint}; --name chooses another name")


def _write(folder: FolderEdits, name: str, text: str) -> None:
    try:
        folder.write(name, text.encode(), before=folder.read(name))
    except EditError as error:
        fail(str(error))


def _report(found: _Found, path: Path | None, text: str, *, output: str) -> None:
    facts = found.facts
    notes = [*([found.refusal] if found.refusal else []), *found.notes]
    if output == "json":
        print_json(
            {
                "path": None if path is None else str(path),
                "text": text,
                "facts": {**asdict(facts), "task": task_of(facts).value},
                "notes": notes,
            }
        )
        return
    if path is None:
        click.echo(text, nl=False)
    else:
        size = in_words(facts.weight_bytes) if facts.weight_bytes else "size unknown"
        _say(f"Wrote {path}: {facts.repo}, {task_of(facts).value}, {size}, licence {facts.licence or 'unknown'}.")
    for note in notes:
        _say(f"note: {note}", err=path is None)
    if path is not None:
        click.echo("Look it over; `reconcile --dry-run` shows what it would do.")


def _say(text: str, *, err: bool = False) -> None:
    # What the hub says is in it, and must not steer the terminal.
    click.echo(one_line(text, _LONGEST_LINE), err=err)
