"""Why a replica did not start, in one sentence, out of Serve's message and the replica's own log. Pure.

Serve reports the traceback of the outermost process, which often only says that another process failed. The
engine and worker processes print theirs to the replica's log; the innermost one is the reason.
"""

import re

_FAILED = ("A replica failed to start", "The deployment failed to start", "failed to start")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_EXCEPTION = re.compile(r"^(?:[\w.]+\.)?(?P<kind>[A-Z]\w*(?:Error|Exception|Interrupt|Exit)): (?P<text>.+)$")
_LOG_PREFIX = re.compile(
    r"^\([\w-]+(?: [\w=:,-]+)* pid=\d+\) |^(?:\(\w+[^)]*\) )?(?:ERROR|CRITICAL) \d\d-\d\d [\d:]+ \[[^\]]+\] ?"
)
_WRAPPED = re.compile(r"Worker failed with error '(?P<text>.+?)', please check", re.DOTALL)
_VAGUE = ("see root cause above", "engine core initialization failed", "see stack trace", "died unexpectedly")
_NOISE = (
    re.compile(r"\s*\[type=\w+, input_value=.*$", re.DOTALL),
    re.compile(r"\s*For further information visit https://errors\.pydantic\.dev\S*"),
    re.compile(r"^\d+ validation errors? for \w+\s*"),
    re.compile(r"^Value error, "),
    re.compile(r"^Failed to create vLLM engine config: "),
)
_LONGEST = 600


def reason_from_message(message: str, *, certain: bool = False) -> str:
    """The reason in a Serve deployment's message; empty where the message tells of no failed replica.

    Args:
        message: Serve's message, usually with a traceback.
        certain: It is known that something failed, so that any text is a reason.
    """
    if not certain and not any(mark in message for mark in _FAILED):
        return ""
    return _last_exception(message) or _shorten(message.strip().splitlines()[-1] if message.strip() else "")


def reason_from_log(log: str) -> str:
    """The innermost error that a replica's processes printed; empty where there is none worth quoting."""
    reasons = [reason for reason in _exceptions(_strip_prefixes(log)) if not is_vague(reason)]
    return reasons[-1] if reasons else ""


def is_vague(reason: str) -> bool:
    """The sentence points elsewhere instead of giving a reason."""
    return not reason or any(mark in reason.lower() for mark in _VAGUE)


def _last_exception(text: str) -> str:
    found = _exceptions(_ANSI.sub("", text))
    return found[-1] if found else ""


def _exceptions(text: str) -> list[str]:
    found: list[str] = []
    lines = text.splitlines()
    for index, line in enumerate(lines):
        match = _EXCEPTION.match(line.strip())
        if match is None:
            continue
        # The text of an exception may go on; it ends with the next traceback or log line.
        rest = [match["text"]]
        for follower in lines[index + 1 : index + 8]:
            if not follower.startswith((" ", "\t")) or follower.lstrip().startswith(("File ", "^")):
                break
            rest.append(follower.strip())
        found.append(_clean(match["kind"], " ".join(rest)))
    return found


def _clean(kind: str, text: str) -> str:
    wrapped = _WRAPPED.search(text)
    if wrapped is not None:
        text = wrapped["text"]
    changed = True
    while changed:
        before = text
        for noise in _NOISE:
            text = noise.sub("", text)
        changed = text != before
    plain = kind in ("RuntimeError", "ValueError", "Exception", "ValidationError", "RayTaskError")
    return _shorten(text if plain else f"{kind}: {text}")


def _strip_prefixes(log: str) -> str:
    stripped: list[str] = []
    for raw in _ANSI.sub("", log).splitlines():
        line = raw
        while (match := _LOG_PREFIX.match(line)) is not None:
            line = line[match.end() :]
        stripped.append(line)
    return "\n".join(stripped)


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
