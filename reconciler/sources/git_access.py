"""How the git source reaches a repository: what git and ssh are told, and how the token gets there unseen.

A token goes through the environment, as a header for the one server that it is meant for: arguments can be read
by every user of the machine, and so can a URL in git's own messages.
"""

import base64
import os
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.core.git_names import GitError

_UNSAFE_PATH = re.compile(r"[\s\"'\\%$~]|[^\x20-\x7e]")


@dataclass(frozen=True, slots=True)
class Access:
    """How a repository is reached.

    Attributes:
        url: Where it is, checked.
        protocol: Its protocol, the only one that is allowed.
        username: What goes with the token over http.
        token: "" for none.
        ssh_key: Private key; without, the agent of our environment is asked.
        known_hosts: Keys of the servers that are trusted.
        ca_file: Certificates of the authorities that are trusted instead of the system's.
    """

    url: str
    protocol: str
    username: str = ""
    token: str = field(default="", repr=False)
    ssh_key: Path | None = None
    known_hosts: Path | None = None
    ca_file: Path | None = None

    def settings(self) -> dict[str, str]:
        """What git has to be told to reach it and nothing else."""
        settings = {f"protocol.{self.protocol}.allow": "always"}
        if self.ca_file is not None:
            settings["http.sslCAInfo"] = str(self.ca_file)
        return settings

    def environment(self) -> dict[str, str]:
        """What goes through the environment: the token, and the command for ssh.

        Raises:
            GitError: A path cannot be handed to ssh, or there are no known hosts.
        """
        if self.protocol == "ssh":
            return {"GIT_SSH_COMMAND": self._ssh(), "GIT_SSH_VARIANT": "ssh", **_agent(self.ssh_key)}
        if not self.token or self.protocol == "file":
            return {}
        # Only for this very server, should git ever talk to another one.
        origin = "/".join(self.url.split("/", 3)[:3])
        return {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"http.{origin}/.extraHeader",
            "GIT_CONFIG_VALUE_0": f"Authorization: Basic {self._basic()}",
        }

    def secrets(self) -> tuple[str, ...]:
        """What no message may repeat."""
        return (self._basic(), self.token) if self.token else ()

    def _basic(self) -> str:
        return base64.b64encode(f"{self.username}:{self.token}".encode()).decode()

    def _ssh(self) -> str:
        if self.known_hosts is None:
            raise GitError("ssh needs a known hosts file with the server's key")
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": _plain(self.known_hosts),
            "GlobalKnownHostsFile": "/dev/null",
            "UpdateHostKeys": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "ForwardAgent": "no",
            "PermitLocalCommand": "no",
            "ControlMaster": "no",
            "ControlPath": "none",
            "ConnectTimeout": "20",
            "ServerAliveInterval": "15",
            "LogLevel": "ERROR",
        }
        words = ["ssh", "-F", "/dev/null"]
        if self.ssh_key is not None:
            options |= {"IdentitiesOnly": "yes", "IdentityAgent": "none"}
            words += ["-i", _plain(self.ssh_key)]
        for name, value in options.items():
            words += ["-o", f"{name}={value}"]
        return shlex.join(words)


def _agent(key: Path | None) -> dict[str, str]:
    agent = os.environ.get("SSH_AUTH_SOCK", "")
    return {"SSH_AUTH_SOCK": agent} if agent and key is None else {}


def _plain(path: Path) -> str:
    # Within ssh's own options quotes, spaces and percent signs have a meaning.
    text = str(path.absolute())
    if _UNSAFE_PATH.search(text):
        raise GitError("a path for ssh must have no spaces, quotes, backslashes, '%', '$' or '~'")
    return text
