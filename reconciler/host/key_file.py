"""`keys.json` of the state directory: who may infer, and who may operate. Read anew when it changes.

    commands, API -> `KeyFile` -> keys.json -> `KeyFile.ring` -> activator, edge, API, page

It holds hashes and no key. What cannot be read is never taken for "no keys", which would open the front door.
"""

import contextlib
import fcntl
import os
import pwd
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reconciler.core.keys import (
    LARGEST_LIMIT,
    MOST_KEYS,
    MOST_MODELS,
    Key,
    KeyRefusedError,
    KeyRing,
    Scope,
    digest_of,
    names_of,
    secret_from,
)
from reconciler.host.errors import UserError
from reconciler.host.files import write_atomic
from reconciler.host.log import get_logger

log = get_logger()

FILE = "keys.json"
_LOCK = "keys.lock"
_LOCK_SECONDS = 5.0
_PAUSE_SECONDS = 0.02
_MOST_BYTES = 3 * 2**20
"""Less than an edge on another node takes in one answer."""
_RANDOM_BYTES = 32
# Up to the year 5138: what is kept can always be shown as a date.
_Time = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]
_Limit = Annotated[int, Field(ge=1, le=LARGEST_LIMIT)]
_Model = Annotated[str, Field(min_length=1, max_length=96)]


class KeyFileError(UserError):
    """It cannot be told which keys there are, or nothing can be changed; the message says what to do."""


class _Row(BaseModel):
    """One key of the file. What is not known here could be a limit, so it is not passed over."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1, max_length=len(Scope))]
    created: _Time
    models: Annotated[tuple[_Model, ...], Field(min_length=1, max_length=MOST_MODELS)] | None = None
    expires: _Time | None = None
    revoked: _Time | None = None
    requests_per_minute: _Limit | None = None
    concurrent: _Limit | None = None

    def key(self) -> Key:
        return Key(
            name=self.name,
            digest=self.digest,
            scopes=frozenset(self.scopes),
            created=self.created,
            models=None if self.models is None else frozenset(self.models),
            expires=self.expires,
            revoked=self.revoked,
            requests_per_minute=self.requests_per_minute,
            concurrent=self.concurrent,
        )


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1]
    keys: Annotated[tuple[_Row, ...], Field(max_length=MOST_KEYS)]


class KeyFile:
    """The keys of one state directory."""

    def __init__(self, state_dir: Path, *, wall_clock: Callable[[], float] = time.time) -> None:
        """Nothing is read yet.

        Args:
            state_dir: The state directory.
            wall_clock: Seconds since the epoch.
        """
        self._folder = state_dir
        self._file = state_dir / FILE
        self._wall_clock = wall_clock
        self.strangers_come = False
        """The front door is reached from elsewhere, so that it is never open."""
        # What the file looked like when it was read, and what it said: keys, or why it could not be used.
        self._read: tuple[tuple[int, ...], KeyRing | str] | None = None

    def ring(self) -> KeyRing:
        """All keys as they are now. Costs one look at the file's state where it has not changed.

        Raises:
            KeyFileError: The file cannot be read, others may read or change it, it is damaged, or it is gone since
                it was read last. Whoever asks has to refuse then.
        """
        try:
            stamp = _stamp(self._file.stat())
            if self._read is None or self._read[0] != stamp:
                self._read = self._load()
        except FileNotFoundError:
            if self._read is not None:
                raise KeyFileError(
                    f"{self._file} is gone: put it back, or restart the reconciler to go on without keys"
                ) from None
            return KeyRing(must_be_asked=self.strangers_come)
        except OSError as error:
            raise KeyFileError(f"{self._file} cannot be read: {error.strerror}") from error
        said = self._read[1]
        if isinstance(said, str):
            raise KeyFileError(said)
        return replace(said, must_be_asked=True) if self.strangers_come else said

    def add(
        self,
        name: str,
        scopes: Iterable[Scope],
        *,
        models: Iterable[str] = (),
        expires: float | None = None,
        requests_per_minute: int | None = None,
        concurrent: int | None = None,
    ) -> tuple[Key, str]:
        """Make a key.

        Args:
            name: What people call it.
            scopes: What it opens.
            models: The models that it may use, by their own names; none means all.
            expires: When it ends, in seconds since the epoch; None for never.
            requests_per_minute: Over any 60 seconds; None for no limit.
            concurrent: Requests at a time; None for no limit.

        Returns:
            What is kept of it, and the key itself, which is nowhere else.

        Raises:
            KeyRefusedError: It cannot be made so.
            KeyFileError: The file cannot be used, or another process is changing it.
            OSError: It cannot be written, so there is no new key.
        """
        secret = secret_from(secrets.token_urlsafe(_RANDOM_BYTES))
        key = Key(
            name=name,
            digest=digest_of(secret),
            scopes=frozenset(scopes),
            created=self._wall_clock(),
            models=names_of(models),
            expires=expires,
            requests_per_minute=requests_per_minute,
            concurrent=concurrent,
        )
        with self._changing() as ring:
            self._write(ring.add(key))
        log.info(
            "key.added", name=name, fingerprint=key.fingerprint, scopes=sorted(scope.value for scope in key.scopes)
        )
        return key, secret

    def revoke(self, which: str) -> Key:
        """Close a key for good, by its name or fingerprint; by name also the one whose place it took.

        Raises:
            KeyRefusedError: There is no such key that is not revoked yet.
            KeyFileError: The file cannot be used, or another process is changing it.
            OSError: It cannot be written, so the key still holds.
        """
        with self._changing() as ring:
            changed, gone = ring.revoke(which, self._wall_clock())
            self._write(changed)
        log.info("key.revoked", name=gone.name, fingerprint=gone.fingerprint)
        return gone

    def rotate(self, name: str, *, grace: float = 0.0, expires: float | None = None) -> tuple[Key, Key, str]:
        """Make another key in the place of one, under the same settings.

        Args:
            name: Of both.
            grace: Seconds for which the old one still holds.
            expires: When the new one ends, in seconds since the epoch; None for when the old one would have.

        Returns:
            What is kept of the new one, the old one as it is now, and the new key itself.

        Raises:
            KeyRefusedError: There is no such key, or a time is not allowed.
            KeyFileError: The file cannot be used, or another process is changing it.
            OSError: It cannot be written, so nothing has changed.
        """
        secret = secret_from(secrets.token_urlsafe(_RANDOM_BYTES))
        with self._changing() as ring:
            now = self._wall_clock()
            changed, new, old = ring.rotate(name, digest_of(secret), now, grace=grace, expires=expires)
            self._write(changed)
        log.info("key.rotated", name=name, fingerprint=new.fingerprint, replaces=old.fingerprint, grace=grace)
        return new, old, secret

    @contextlib.contextmanager
    def _changing(self) -> Iterator[KeyRing]:
        """Be the one who changes the file; gives what it says."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        owner = self._folder.stat().st_uid
        if owner != os.geteuid():
            # A file of another owner could not be read by the reconciler that it is meant for.
            raise KeyFileError(
                f"{self._folder} belongs to {_user(owner)}: run this as that user, for example with sudo -u"
            )
        handle = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self._lock(handle)
            yield self.ring()
        finally:
            os.close(handle)

    def _lock(self, handle: int) -> None:
        ends = time.monotonic() + _LOCK_SECONDS
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            if time.monotonic() >= ends:
                raise KeyFileError(f"another process has been changing {self._file} for {_LOCK_SECONDS:.0f} s")
            time.sleep(_PAUSE_SECONDS)

    def _write(self, ring: KeyRing) -> None:
        rows = [
            _Row(
                name=key.name,
                digest=key.digest,
                scopes=tuple(sorted(key.scopes)),
                created=key.created,
                models=None if key.models is None else tuple(sorted(key.models)),
                expires=key.expires,
                revoked=key.revoked,
                requests_per_minute=key.requests_per_minute,
                concurrent=key.concurrent,
            )
            for key in ring.keys
        ]
        document = _Document(version=1, keys=tuple(rows))
        text = document.model_dump_json(indent=1, exclude_none=True) + "\n"
        if len(text) > _MOST_BYTES:
            raise KeyRefusedError("all keys together name too many models; let some of them use all models")
        write_atomic(self._file, text)
        self._read = self._load()

    def _load(self) -> tuple[tuple[int, ...], KeyRing | str]:
        # Without waiting: it could be a pipe.
        handle = os.open(self._file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            if (wrong := self._wrong(status)) is not None:
                return _stamp(status), wrong
            return _stamp(status), self._parse(file.read(_MOST_BYTES + 1))

    def _wrong(self, status: os.stat_result) -> str | None:
        """Why a file in that state is not to be believed, or not private."""
        if not stat.S_ISREG(status.st_mode):
            return f"{self._file} is not a regular file"
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            mode = stat.S_IMODE(status.st_mode)
            return f"others may read or change {self._file} (mode {mode:04o}): chmod 600 {self._file}"
        if os.geteuid() not in (0, status.st_uid):
            return f"{self._file} belongs to {_user(status.st_uid)}, who can change it: chown it to yourself"
        return None

    def _parse(self, content: bytes) -> KeyRing | str:
        mend = "restore it from a backup, or remove it and restart the reconciler, which forgets all keys"
        if len(content) > _MOST_BYTES:
            return f"{self._file} is larger than {_MOST_BYTES} bytes: {mend}"
        try:
            document = _Document.model_validate_json(content)
        except ValidationError as error:
            return f"{self._file} does not say which keys there are ({error.error_count()} mistakes in it): {mend}"
        keys = tuple(row.key() for row in document.keys)
        if len({key.digest for key in keys}) < len(keys):
            # One of the two could be revoked.
            return f"{self._file} has a key twice: {mend}"
        return KeyRing(keys)


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    """What changes when the file does."""
    return (
        status.st_dev,
        status.st_ino,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_size,
        status.st_mode,
        status.st_uid,
    )


def _user(number: int) -> str:
    try:
        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"user {number}"
