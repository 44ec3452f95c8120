"""Secrets that lie in text of others: a failure of Ray Serve, an engine's log, a file that is quoted. Pure."""

import re
from typing import Final

_SECRET: Final = re.compile(
    r"hf_[A-Za-z0-9]{8,}|(?<=://)[^/@\s'\"]+(?=@)|(?<=[Bb]earer )[^\s'\"]+"
    r"|(?<![A-Za-z0-9])(?:gh[a-z]_|github_pat_|glpat-|sk-)[A-Za-z0-9_-]{16,}"
)


def without_secrets(text: str) -> str:
    """`text` with `***` in place of what looks like a token, a key, or a password within a URL."""
    return _SECRET.sub("***", text)
