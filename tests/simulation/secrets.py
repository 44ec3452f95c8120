"""Secrets that are planted where a careless person or program would leave them, and the search for them."""

from pathlib import Path

HUB_TOKEN = "hf_" + "Planted0Secret" * 2
BEARER = "rk-live.Planted1Secret.Planted1Secret"
PASSWORD = "planted2secret"
PLANTED = (HUB_TOKEN, BEARER, PASSWORD)

TELLTALE = (
    f"401 Client Error for url https://bot:{PASSWORD}@hub.example/api, headers Authorization: Bearer {BEARER}, "
    f"token={HUB_TOKEN}"
)
"""What an exception in a replica says, with everything that it had at hand."""


def leaks(**places: str) -> list[str]:
    """Which planted secret is in which of these texts."""
    return [
        f"{secret[:6]}… is in {place}" for place, text in places.items() for secret in PLANTED if secret in text
    ]


def on_disk(folder: Path) -> str:
    """Everything below a folder, as one text."""
    return "\n".join(path.read_text(errors="replace") for path in sorted(folder.rglob("*")) if path.is_file())
