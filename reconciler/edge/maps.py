"""Routes as HAProxy keeps them: the map file, the socket's answer, and the commands from one to another. Pure."""

import re
from collections.abc import Iterable, Mapping

MAP_NAME = "routes.map"
"""How the template names the map, and so its name on the socket."""

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:+@-]{0,255}")
_APPLICATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_FIELDS_OF_A_LINE = 2
_FIELDS_OF_AN_ENTRY = 3


def check_routes(routes: Mapping[str, str]) -> None:
    """Let nothing into a map or a command that HAProxy could read as something else.

    Args:
        routes: Model name to application name.

    Raises:
        ValueError: A name has characters, or a length, that cannot be a model's or an application's.
    """
    for model in routes:
        if not _MODEL.fullmatch(model):
            raise ValueError(f"{model!r} cannot be the name of a model in a route")
    check_applications(routes.values())


def check_applications(names: Iterable[str]) -> None:
    """Let no name into a command that HAProxy could read as something else.

    Raises:
        ValueError: One has characters, or a length, that cannot be an application's.
    """
    for name in names:
        if not _APPLICATION.fullmatch(name):
            raise ValueError(f"{name!r} cannot be the name of an application in a route")


def format_map(routes: Mapping[str, str]) -> str:
    """The map file: a line for each route, sorted, so that equal routes are equal files.

    Raises:
        ValueError: As `check_routes`.
    """
    check_routes(routes)
    return "".join(f"{model} {application}\n" for model, application in sorted(routes.items()))


def parse_map(text: str) -> dict[str, str]:
    """Routes from a map file. Empty lines, comments and lines that are no route are left out."""
    fields = (line.split() for line in text.splitlines() if not line.lstrip().startswith("#"))
    return {found[0]: found[1] for found in fields if len(found) == _FIELDS_OF_A_LINE}


def parse_entries(answer: str) -> dict[str, str]:
    """Routes from the answer to `show map`: an address, the model and the application on each line.

    Of two entries with one name the first counts, as it does in HAProxy.
    """
    routes: dict[str, str] = {}
    for line in answer.splitlines():
        found = line.split()
        if len(found) == _FIELDS_OF_AN_ENTRY:
            routes.setdefault(found[1], found[2])
    return routes


def commands_between(live: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """What to tell HAProxy so that `live` becomes `wanted`.

    A name in both is changed by one `set`, which HAProxy does in place: there is no moment without an entry.

    Raises:
        ValueError: As `check_routes`, for `wanted`.
    """
    check_routes(wanted)
    changed = [f"set map {MAP_NAME} {name} {to}" for name, to in wanted.items() if live.get(name, to) != to]
    gone = [f"del map {MAP_NAME} {name}" for name in live if name not in wanted]
    new = [f"add map {MAP_NAME} {name} {to}" for name, to in wanted.items() if name not in live]
    return changed + gone + new
