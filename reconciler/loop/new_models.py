"""A model file that does not exist yet, made from what the hub says: for `reconcile add`, the API and the page."""

from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

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
from reconciler.core.new_file import (
    Facts,
    facts_of,
    facts_of_entry,
    gate,
    name_of,
    new_file,
    one_line,
    read_config,
)
from reconciler.core.spec import ModelSpec, Source
from reconciler.core.weights import DEFAULT_REVISION, Role
from reconciler.host.errors import UserError
from reconciler.host.settings import Settings
from reconciler.weights.choosing import read_to_choose
from reconciler.weights.errors import Trouble, WeightsError
from reconciler.weights.hub import Hub

LONGEST_LINE = 1000
_UNANSWERED = (Trouble.UNREACHABLE, Trouble.BUSY, Trouble.OFFLINE)


class NewModelError(UserError):
    """No file can be made of that; the message says why."""


@dataclass(frozen=True, slots=True)
class NewModel:
    """A file that could be written.

    Attributes:
        name: The model's name.
        file: The file's name in the folder of model files.
        text: What it would say.
        facts: What it was made of.
        refusal: Why the weights would not be fetched; empty where they would.
        notes: What the operator should know.
    """

    name: str
    file: str
    text: str
    facts: Facts
    refusal: str
    notes: tuple[str, ...]


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


def name_for(repo: str, name: str | None, revision: str | None) -> tuple[str, str, Entry | None]:
    """The repository that is meant, the model's name, and what the catalogue knows of it. Asks nobody.

    Raises:
        NewModelError: A model file would not take it.
    """
    entry = models.find(repo)
    wanted = entry.repo if entry is not None else repo
    chosen = name or (entry.name if entry is not None else name_of(wanted))
    _check(wanted, revision, chosen)
    return wanted, chosen, entry


def file_for(name: str) -> str:
    """The name of a model's file. A model's name may have several parts, but the files lie in one folder."""
    return f"{name.replace('/', '--')}.yaml"


def new_model(
    settings: Settings, repo: str, *, name: str | None = None, revision: str | None = None, hub: Hub | None = None
) -> NewModel:
    """A model file for a repository of the hub, or for a name of the catalogue. Waits for the hub; writes nothing.

    Args:
        settings: What may be fetched.
        repo: As `owner/name`, or a name of the catalogue.
        name: The model's name; the default is made from the repository's.
        revision: Branch, tag or commit; the default is the main branch.
        hub: Where to ask; the default is the hub of the environment.

    Raises:
        NewModelError: There is no such repository, or a model file would not take one of these.
    """
    wanted, chosen, entry = name_for(repo, name, revision)
    found = _find_out(settings, hub or Hub(), wanted, revision, entry)
    text = new_file(found.facts, name=chosen, revision=revision or DEFAULT_REVISION, refused=bool(found.refusal))
    return NewModel(chosen, file_for(chosen), text, found.facts, found.refusal, tuple(found.notes))


def _check(repo: str, revision: str | None, name: str) -> None:
    """Refuse what the model file would not take, before anybody is asked about it."""
    try:
        ModelSpec(name=name, source=Source(repo=repo, revision=revision))
    except ValidationError as error:
        raise NewModelError(_wrong(error.errors()[0]["loc"][0], repo, revision, name)) from None


def _wrong(field_name: object, repo: str, revision: str | None, name: str) -> str:
    if field_name == "name":
        return f"{name!r} is no name: letters, digits and . _ - between them, with / between parts, 96 in all"
    if field_name == "revision":
        return f"{revision!r} is no branch, tag or commit"
    names = ", ".join(each.name for each in models.near(repo))
    meant = f" (did you mean {names}?)" if names else ""
    return f"{repo!r} is neither owner/name, as on the hub, nor a name of the catalogue{meant}"


def _find_out(settings: Settings, hub: Hub, repo: str, revision: str | None, entry: Entry | None) -> _Found:
    """Ask the hub; where it does not answer, the catalogue."""
    try:
        return _ask(settings, hub, repo, revision, entry)
    except WeightsError as error:
        if entry is None or error.trouble not in _UNANSWERED:
            raise NewModelError(one_line(str(error), LONGEST_LINE)) from None
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
