"""Where model files come from. A source gives a snapshot of all of them, read at one time."""

from typing import Protocol

from reconciler.core.desired import Snapshot


class Source(Protocol):
    """Gives the model files."""

    @property
    def place(self) -> str:
        """Where they are, for people: a folder, or a repository without credentials."""

    async def read(self) -> Snapshot:
        """All model files as they are now. Never raises: what cannot be read is said in the snapshot."""
