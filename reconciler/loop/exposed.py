"""What this process would listen on, judged before it does: beyond loopback only with a key."""

import time

from reconciler.core.exposure import Listen, is_loopback, refusals
from reconciler.core.keys import Scope
from reconciler.host.errors import UserError
from reconciler.host.key_file import KeyFile
from reconciler.host.settings import Settings


def keys_of(settings: Settings) -> KeyFile:
    """The keys, which are always asked for where strangers reach the front door."""
    keys = KeyFile(settings.state_dir)
    keys.strangers_come = not is_loopback(settings.listen_host)
    return keys


def check_exposure(settings: Settings, *, front_door_alone: bool = False) -> None:
    """Refuse to listen where strangers come by without a key.

    Args:
        settings: The operator's.
        front_door_alone: There is no API in this process.

    Raises:
        UserError: Something would be open; the message says what, and the command that makes a key.
        KeyFileError: It cannot be told which keys there are.
    """
    listens = [Listen("listen_host", settings.listen_host, Scope.INFERENCE, "the front door")]
    if not front_door_alone:
        listens.append(Listen("api_host", settings.api_host, Scope.ADMIN, "the API and the page"))
    problems = list(refusals(listens, KeyFile(settings.state_dir).ring(), time.time()))
    if not is_loopback(settings.serve_host) and not settings.trust_serve_network:
        problems.append(
            f"serve_host = {settings.serve_host}: Serve's HTTP asks nobody for a key, and has every path of vLLM. "
            "Where only machines of yours reach that address, say so: RECONCILE_TRUST_SERVE_NETWORK=true"
        )
    if problems:
        raise UserError("\n  ".join(problems))
