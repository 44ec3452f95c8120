"""What is still to be told: the outcome of a button, kept for the page that comes after the redirect."""

from collections import OrderedDict
from dataclasses import dataclass

_MOST = 1000


@dataclass(frozen=True, slots=True)
class Message:
    """An outcome in words."""

    text: str
    bad: bool = False


class Told:
    """One message a session, forgotten once it was shown; of many sessions the oldest loses its own."""

    def __init__(self) -> None:
        self._messages: OrderedDict[str, Message] = OrderedDict()

    def tell(self, session: str, text: str, *, bad: bool = False) -> None:
        """Keep a message for the next page of a session."""
        self._messages[session] = Message(text, bad)
        self._messages.move_to_end(session)
        while len(self._messages) > _MOST:
            self._messages.popitem(last=False)

    def take(self, session: str) -> Message | None:
        """What is to be told, once."""
        return self._messages.pop(session, None)
