"""What the operator says of a git source: which repository, how it is reached, and what it may cost."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.core.git_names import GitError, check_path, check_ref, check_url
from reconciler.sources.git_access import Access
from reconciler.sources.git_remote import Limits, UnreachableError
from reconciler.sources.git_signatures import Trust, Verify

_LONGEST_TOKEN = 4096


@dataclass(frozen=True, slots=True)
class GitOptions:
    """Which repository is followed, how it is reached, and what it may cost.

    Attributes:
        url: `https://host/path`, `ssh://user@host/path` or `user@host:path`, without credentials.
        folder: Where fetched revisions are kept.
        ref: Branch, tag or commit; "" for the branch that the repository itself names.
        path: Folder of the model files within the repository; "" for its root.
        token: Gives the token for https, anew for each use; "" for none.
        username: What goes with the token. Servers that take tokens mostly take any.
        ssh_key: Private key for ssh; without, the agent of the environment is asked.
        known_hosts: The servers' keys for ssh, without which it is not used.
        ca_file: Authorities for https instead of the system's.
        verify: What must be signed: "head", the commit; "tag", the annotated tag that is followed; or "no".
        allowed_signers: ssh keys whose signatures count.
        gpg_keys: Armored public keys whose signatures count.
        timeout: Seconds that one command may take.
        max_mib: MiB that one fetch, and the files of one commit, may take.
        max_files: Files and folders that one commit may have.
        depth: Commits of history that are fetched, to say who changed a file last.
        keep: Revisions kept on disk besides the one served.
        in_use: A file that names, by their ids, the folders that running versions read; they stay on disk too.
        protocols: Which may be used. "http" to other machines and "file" have to be named here.
    """

    url: str
    folder: Path
    ref: str = ""
    path: str = "models.d"
    token: Callable[[], str] = field(default=lambda: "", repr=False)
    username: str = "x-access-token"
    ssh_key: Path | None = None
    known_hosts: Path | None = None
    ca_file: Path | None = None
    verify: Verify = "no"
    allowed_signers: Path | None = None
    gpg_keys: Path | None = None
    timeout: float = 60.0
    max_mib: int = 64
    max_files: int = 10_000
    depth: int = 50
    keep: int = 20
    in_use: Path | None = None
    protocols: tuple[str, ...] = ("https", "ssh")

    def check(self) -> None:
        """Raise GitError where an option cannot be meant so; the message repeats none of the values."""
        protocol = check_url(self.url, self.protocols)
        check_ref(self.ref)
        check_path(self.path)
        if protocol == "ssh" and self.known_hosts is None:
            raise GitError("ssh needs a known hosts file with the server's key")
        if ":" in self.username or not self.username.isprintable():
            raise GitError("the username must be printable and have no colon")
        if self.verify != "no" and self.allowed_signers is None and self.gpg_keys is None:
            raise GitError("to verify signatures, give allowed signers or GPG keys")

    def access(self) -> Access:
        """How the repository is reached, with the token as it is now.

        Raises:
            UnreachableError: The token cannot be read, or is none.
        """
        protocol = check_url(self.url, self.protocols)
        token = ""
        if protocol in ("https", "http"):
            try:
                token = self.token().strip()
            except OSError as error:
                raise UnreachableError(f"the token cannot be read: {error.strerror or error}") from None
            except ValueError:
                raise UnreachableError("the token cannot be read: it is not text") from None
            if not token.isascii() or (token and not token.isprintable()) or len(token) > _LONGEST_TOKEN:
                raise UnreachableError("the token is not one line of printable ASCII characters")
        return Access(
            url=self.url,
            protocol=protocol,
            username=self.username,
            token=token,
            ssh_key=self.ssh_key,
            known_hosts=self.known_hosts,
            ca_file=self.ca_file,
        )

    def limits(self) -> Limits:
        """What one command, and one commit, may cost."""
        return Limits(self.timeout, self.max_mib << 20, self.max_files, self.depth)

    def trust(self) -> Trust:
        """Whose signatures count."""
        return Trust(self.verify, self.allowed_signers, self.gpg_keys)
