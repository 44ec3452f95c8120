"""Whether what is configured may listen, before anything does: beyond loopback only with keys. Pure."""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from reconciler.core.keys import KeyRing, Scope

_COMMANDS = {
    Scope.INFERENCE: "reconcile keys add NAME",
    Scope.METRICS: "reconcile keys add NAME --scope metrics",
    Scope.ADMIN: "reconcile keys add NAME --scope admin",
}


@dataclass(frozen=True, slots=True)
class Listen:
    """One address that is to be listened on.

    Attributes:
        setting: The setting that says where, by its name.
        host: The address or host name; empty means every address.
        scope: What a key must open for whoever comes there.
        what: What listens, for the message: `the front door`.
    """

    setting: str
    host: str
    scope: Scope
    what: str


def refusals(listens: Iterable[Listen], ring: KeyRing, now: float) -> tuple[str, ...]:
    """Why these may not listen so, one sentence each; nothing where all may.

    Args:
        listens: All that is to be listened on.
        ring: The keys that there are.
        now: Seconds since the epoch.
    """
    return tuple(
        _refusal(listen, ring)
        for listen in listens
        if not is_loopback(listen.host)
        and not any(key.opens(listen.scope) and key.is_valid(now) for key in ring.keys)
    )


def is_loopback(host: str) -> bool:
    """Only this machine reaches it: 127.0.0.0/8, ::1, localhost. No other name, for it may resolve to anything."""
    if host.casefold() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return address.is_loopback


def _refusal(listen: Listen, ring: KeyRing) -> str:
    made = any(key.opens(listen.scope) for key in ring.keys)
    why = f"every {listen.scope} key is revoked or has expired" if made else f"there is no {listen.scope} key"
    where = f"{listen.setting} = {listen.host!r} lets other machines reach {listen.what}"
    return f"{where}, and {why}: make one with `{_COMMANDS[listen.scope]}`, or listen on 127.0.0.1"
