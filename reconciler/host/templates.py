"""Templates: the operator's own where there is one, else those that came with the package."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def read_template(name: str, own: Path | None) -> str:
    """The text of a template.

    Args:
        name: File name, such as `application.json.j2`.
        own: The operator's folder, if any.

    Raises:
        FileNotFoundError: `own` is no folder.
    """
    if own is not None:
        if not own.is_dir():
            raise FileNotFoundError(f"templates_dir {own} is not a folder")
        if (own / name).is_file():
            return (own / name).read_text(encoding="utf-8")
    # In an installed wheel they lie inside the package, in a checkout beside it.
    for folder in (_PACKAGE / "_templates", _PACKAGE.parent / "templates"):
        if (folder / name).is_file():
            return (folder / name).read_text(encoding="utf-8")
    raise FileNotFoundError(f"no template {name}")
