"""Secrets that lie in text of others: a failure of Ray Serve, an engine's log, a file that is quoted. Pure."""

import re
from typing import Final

# Where a key may begin: not within a word, for `disk-usage-classifier` has none; but after an escape of a URL.
_BEGIN: Final = r"(?:(?<![A-Za-z0-9])|(?<=%[0-9A-Fa-f][0-9A-Fa-f]))"
_SECRET: Final = re.compile(
    r"hf_[A-Za-z0-9]{8,}|gh[a-z]_[A-Za-z0-9]{16,}|(?:github_pat_|glpat-)[\w-]{16,}"
    rf"|{_BEGIN}(?:gh[a-z]_|sk-|rk-)[\w-]{{16,}}"
    r"|(?<=://)[^/@\s'\"]+(?=@)|(?<=(?i:bearer)\s)\s*\S+"
)


def without_secrets(text: str) -> str:
    """`text` with `***` in place of what looks like a token, a key, or a password within a URL."""
    return _SECRET.sub("***", text)
