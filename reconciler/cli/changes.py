"""What `add` and `remove` share: who asks for a change of a model file, and what is said of a proposed one."""

import getpass
import os
import sys

import click

from reconciler.core.edit import Edit

_SHORT = 12


def user() -> str:
    """Who runs this command, for the commit or the log."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # A user without a name, as in containers.
        return f"user {os.getuid()}"


def say_patch(edit: Edit) -> None:
    """Print the commit that a change would be, where nobody may push it."""
    # To a file it goes as it is; a terminal is not to be steered by it.
    patch = edit.patch or ""
    click.echo(plain(patch) if sys.stdout.isatty() else patch.encode(), nl=False)
    click.echo("Nothing was changed: this is the commit, for `git am --keep-cr` in a clone.", err=True)


def say_branch(edit: Edit, verb: str) -> None:
    """Say where a change was pushed to.

    Args:
        edit: The change, as it was carried out.
        verb: What it does to the file: `adds`, `removes`.
    """
    click.echo(
        f"Pushed {edit.branch} (commit {(edit.commit or '')[:_SHORT]}), which {verb} {edit.path}: merge it."
    )


def plain(text: str) -> str:
    """What others wrote, without what would steer a terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else "?" for char in text)
