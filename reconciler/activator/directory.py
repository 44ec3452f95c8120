"""What the activator knows about models: an immutable snapshot that the loop replaces whole. Pure data."""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

_MAX_NEAR = 3
# Above difflib's usual 0.6: a hint that is no likely typo only sends the reader astray.
_NEAR_ENOUGH = 0.7
# difflib's cost grows with the square of the length, and the name comes from whoever sent the request.
_LONGEST_NAME_COMPARED = 200


class ModelState(StrEnum):
    """Where a model stands, in the words that `/v1/models` shows."""

    LOADED = "loaded"
    LOADING = "loading"
    SLEEPING = "sleeping"
    UNLOADED = "unloaded"
    UNLOADING = "unloading"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Entry:
    """One declared model.

    Attributes:
        name: The model's name, which is also the `model_id` of its Serve application.
        state: What `/v1/models` shows.
        application: The Serve application that has the traffic; None when none has. Requests go by this alone: a
            model whose next version is loading still answers from its old one.
        reason: Why it is in that state, for whoever is refused.
        retry_after: Seconds after which another try makes sense.
        aliases: Other names of it.
        adapters: Names of its LoRA adapters, which its application knows them by.
        task: What it does: generate, embed, …
        description: The operator's words.
        created: Unix time of its creation, as OpenAI's listing wants one.
        max_model_len: Context length in tokens, where known.
        holds: A request for it may wait: it comes up, or a request is enough to bring it up.
        expected_wait: Seconds until it answers, for a request that comes now, as far as earlier loads tell.
        max_waiting: How many requests may wait at a time.
        wait_timeout: Seconds that a request may wait.
    """

    name: str
    state: ModelState
    application: str | None
    reason: str = ""
    retry_after: float = 5.0
    aliases: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    task: str = "generate"
    description: str = ""
    created: int = 0
    max_model_len: int | None = None
    holds: bool = False
    expected_wait: float | None = None
    max_waiting: int = 1000
    wait_timeout: float = 600.0

    def served_as(self, asked: str) -> str:
        """The name by which its application knows what was asked for: an adapter keeps its own."""
        return asked if asked in self.adapters else self.name


class Directory:
    """Every declared model, by name, by alias and by adapter. Never changed after it is made."""

    def __init__(self, entries: Iterable[Entry] = (), *, settled: bool = True) -> None:
        """Build the look-ups once.

        Args:
            entries: The declared models, in the order of the listing. A name wins over an equal alias.
            settled: False until the reconciler has finished its first look: what is missing may still turn up, so
                nothing is called unknown.
        """
        self.entries = tuple(entries)
        self.settled = settled
        self._by_name = {entry.name: entry for entry in self.entries}
        for entry in self.entries:
            for other in (*entry.aliases, *entry.adapters):
                self._by_name.setdefault(other, entry)
        self._by_folded = _folded(self._by_name)

    def only(self, allowed: Callable[[str], bool]) -> "Directory":
        """The same, for somebody who may know of some models only. A name stands for the same model or for none.

        Args:
            allowed: Whether the model of that own name is one of them.
        """
        part = Directory(settled=self.settled)
        part.entries = tuple(entry for entry in self.entries if allowed(entry.name))
        # Not made anew of those entries: one's alias may be hidden behind the name of a model that is left out.
        part._by_name = {name: entry for name, entry in self._by_name.items() if allowed(entry.name)}
        part._by_folded = _folded(part._by_name)
        return part

    def find(self, name: str) -> Entry | None:
        """The model of that name or alias, or with that adapter."""
        return self._by_name.get(name)

    def near(self, name: str) -> tuple[str, ...]:
        """Names, aliases and adapters that `name` may be a slip for, the nearest first; at most three."""
        folded = name[:_LONGEST_NAME_COMPARED].casefold()
        matches = difflib.get_close_matches(folded, self._by_folded, n=_MAX_NEAR, cutoff=_NEAR_ENOUGH)
        return tuple(self._by_folded[match] for match in matches)


def _folded(names: Iterable[str]) -> dict[str, str]:
    # Two names may differ by case only; the first one speaks for both.
    folded: dict[str, str] = {}
    for name in names:
        folded.setdefault(name.casefold(), name)
    return folded
