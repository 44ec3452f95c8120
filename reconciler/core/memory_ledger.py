"""Main memory where engines compute on the CPU: what is free, what is promised, what would be given back. Pure."""

from collections.abc import Collection

from reconciler.core.main_memory import main_memory_of
from reconciler.core.state import Json, Observed, Status, coming_up


class MemoryLedger:
    """Bytes of main memory in one turn.

    What comes up has taken a part of what it needs, and nobody knows how much: all of it counts as promised, and
    as nothing given back where it would go.
    """

    def __init__(self, observed: Observed) -> None:
        self._free = observed.main_memory
        self._folder_bytes = observed.folder_bytes
        self._applications = observed.applications
        self._promises = {
            app.name: self.of(app.config)
            for app in observed.applications.values()
            if app.model is not None
            and app.config is not None
            and app.status is not Status.DELETING
            and coming_up(app)
        }

    def of(self, config: Json) -> int:
        """Bytes that an application takes; 0 where its engine computes on a GPU."""
        return main_memory_of(config, self._folder_bytes)

    def promise(self, name: str, config: Json) -> None:
        """Set aside what an application will take."""
        self._promises[name] = self.of(config)

    def left(self, without: Collection[str] = (), *, at_best: bool = False) -> int | None:
        """Bytes that nobody has or was promised.

        Args:
            without: Once these applications are gone.
            at_best: What comes up counts as having taken all of its memory already.

        Returns:
            None where nobody knows: not what is free, or not what one that is being deleted gives back.
        """
        if self._free is None:
            return None
        left = self._free - sum(size for name, size in self._promises.items() if name not in without)
        for name in without:
            app = self._applications.get(name)
            if app is None:
                continue
            if app.config is None:
                return None
            if at_best or name not in self._promises:
                left += self.of(app.config)
        return left
