"""The hub, through `huggingface_hub`: listings, and byte ranges of files. The only module that speaks to it.

Endpoint, token, proxies and time limits are those that the hub's own tools use (HF_ENDPOINT, HF_TOKEN,
HF_TOKEN_PATH, HF_HUB_DOWNLOAD_TIMEOUT, HTTPS_PROXY, ...). Its own download function is not used: in 2.4 it starts
a file anew after a restart, and it compares sizes where we compare hashes.

`huggingface_hub` takes a quarter of a second to import, so it is imported when something is asked of the hub.
"""

import contextlib
import datetime as dt
import email.utils
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from reconciler.core.choose_files import Listing, RepoFile, is_etag
from reconciler.core.weights import is_commit
from reconciler.weights.errors import Trouble, WeightsError
from reconciler.weights.hashing import content_matches

_METADATA_SECONDS = 15.0
_READS = 3
_LONGEST_RETRY_AFTER = 3600.0
_OK, _PARTIAL, _RANGE_NOT_SATISFIABLE, _TOO_MANY = 200, 206, 416, 429


@dataclass(frozen=True, slots=True)
class Body:
    """The answer to a request for a file from some byte on.

    Attributes:
        start: The byte that `chunks` really begin with; a server that knows no ranges begins with 0.
    """

    start: int
    chunks: Iterator[bytes]


class Hub:
    """A hub.

    Args:
        endpoint: Its address; the default is `HF_ENDPOINT`'s, else huggingface.co.
        timeout: Seconds that a request for a listing may take.
        stall: Seconds without a byte after which a connection counts as dead; the default is
            `HF_HUB_DOWNLOAD_TIMEOUT`'s.
    """

    def __init__(
        self, endpoint: str | None = None, *, timeout: float = _METADATA_SECONDS, stall: float | None = None
    ) -> None:
        self._endpoint = endpoint
        self._timeout = timeout
        self._stall = stall

    def listing(self, repo: str, revision: str) -> Listing:
        """The commit that a revision is, and its files.

        Raises:
            WeightsError: It cannot be had; the text says what helps.
        """
        info = self.info(repo, revision)
        files = tuple(_file(repo, sibling) for sibling in info.siblings or ())
        return Listing(repo, _commit(repo, info.sha), files)

    def commit_of(self, repo: str, revision: str) -> str:
        """The commit that a revision is, and nothing else.

        Raises:
            WeightsError: It cannot be had.
        """
        from huggingface_hub import HfApi  # noqa: PLC0415

        _quiet()
        with _translated(repo, revision):
            api = HfApi(endpoint=self._endpoint)
            return _commit(
                repo, api.model_info(repo, revision=revision, expand=["sha"], timeout=self._timeout).sha
            )

    def info(self, repo: str, revision: str | None = None) -> Any:  # noqa: ANN401 -- the hub's own record
        """Everything that the hub says about a repository (`huggingface_hub.ModelInfo`).

        Raises:
            WeightsError: It cannot be had.
        """
        try:
            return self._info(repo, revision)
        except WeightsError as error:
            if error.trouble is not Trouble.UNREACHABLE:
                raise
        # A connection that was kept open may have died unnoticed; a new one tells whether the hub has.
        return self._info(repo, revision)

    def _info(self, repo: str, revision: str | None) -> Any:  # noqa: ANN401 -- the hub's own record
        from huggingface_hub import HfApi  # noqa: PLC0415

        _quiet()
        with _translated(repo, revision or "main"):
            return HfApi(endpoint=self._endpoint).model_info(
                repo, revision=revision, files_metadata=True, timeout=self._timeout
            )

    def read(self, repo: str, commit: str, file: RepoFile) -> bytes:
        """A small file, whole and verified, without writing it anywhere.

        Raises:
            WeightsError: It cannot be had, or is not what the hub listed.
        """
        for _ in range(_READS):
            content = bytearray()
            with self.open(repo, commit, file.path) as body:
                for chunk in body.chunks:
                    content += chunk
                    if len(content) > file.size:
                        break
            if content_matches(file.etag, bytes(content)):
                return bytes(content)
        raise WeightsError(
            Trouble.CORRUPT, f"{repo}: {file.path} came {_READS} times with other content than the hub listed"
        )

    @contextlib.contextmanager
    def open(self, repo: str, commit: str, path: str, start: int = 0, stop: int | None = None) -> Iterator[Body]:
        """A file's bytes from `start` on, as they come; more of them where a server knows no ranges.

        Errors of the connection while reading are translated too, as long as that happens inside the block.

        Args:
            repo: The repository.
            commit: The commit.
            path: The file.
            start: The first byte.
            stop: The byte after the last one; None is the end of the file.

        Raises:
            WeightsError: The hub does not give them.
        """
        import httpx2  # noqa: PLC0415
        from huggingface_hub import constants, get_session, hf_hub_url  # noqa: PLC0415
        from huggingface_hub.utils._headers import build_hf_headers  # noqa: PLC0415 -- exported only lazily
        from huggingface_hub.utils._http import hf_raise_for_status  # noqa: PLC0415

        _quiet()
        # Identity: a compressed answer has no range that we could continue from.
        headers = build_hf_headers(library_name="llm-reconciler") | {"Accept-Encoding": "identity"}
        if start or stop is not None:
            headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        stall = self._stall or constants.HF_HUB_DOWNLOAD_TIMEOUT
        url = hf_hub_url(repo, path, revision=commit, endpoint=self._endpoint)
        with (
            _translated(repo, commit),
            get_session().stream("GET", url, headers=headers, timeout=httpx2.Timeout(stall)) as answer,
        ):
            if answer.status_code == _RANGE_NOT_SATISFIABLE:
                raise WeightsError(Trouble.CORRUPT, f"{repo}: {path} is shorter than the hub's listing says")
            hf_raise_for_status(answer)
            yield Body(_start_of(answer), answer.iter_bytes())


def _commit(repo: str, sha: object) -> str:
    # It becomes part of paths, and a mirror may answer anything.
    if not isinstance(sha, str) or not is_commit(sha):
        raise WeightsError(Trouble.REFUSED, f"{repo}: this hub names no commit of 40 hexadecimal digits")
    return sha


def _file(repo: str, sibling: Any) -> RepoFile:  # noqa: ANN401 -- huggingface_hub.RepoSibling
    if not isinstance(sibling.rfilename, str):
        raise WeightsError(Trouble.REFUSED, f"{repo}: this hub lists a file without a name")
    large = sibling.lfs
    etag, size = (large.sha256, large.size) if large is not None else (sibling.blob_id, sibling.size)
    if not isinstance(etag, str) or not is_etag(etag) or not isinstance(size, int) or size < 0:
        raise WeightsError(
            Trouble.REFUSED,
            f"{repo}: this hub lists {sibling.rfilename!r} without a hash and a size to verify it by",
        )
    return RepoFile(sibling.rfilename, size, etag)


def _start_of(answer: Any) -> int:  # noqa: ANN401 -- httpx2.Response
    if answer.status_code != _PARTIAL:
        return 0
    unit = str(answer.headers.get("Content-Range", ""))
    try:
        return int(unit.removeprefix("bytes").strip().split("-")[0])
    except ValueError:
        raise WeightsError(Trouble.UNREACHABLE, f"the hub answered a range with {unit or 'no range'!r}") from None


@contextlib.contextmanager
def _translated(repo: str, revision: str) -> Iterator[None]:
    """The client's many exceptions as ours."""
    import httpx2  # noqa: PLC0415
    from huggingface_hub import errors  # noqa: PLC0415

    try:
        yield
    except errors.GatedRepoError as error:
        raise WeightsError(
            Trouble.DENIED,
            f"{repo} is gated: accept its terms at {_page(repo)}, and give a token that may read it (HF_TOKEN, or "
            "`hf auth login`)",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(
            Trouble.DENIED, f"{repo} has no revision {revision!r}: see {_page(repo)}/tree/main"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            Trouble.DENIED,
            f"{repo} is not on the hub, or is private: check the name, or give a token that may read it "
            "(HF_TOKEN, or `hf auth login`)",
        ) from error
    except errors.EntryNotFoundError as error:
        raise WeightsError(Trouble.DENIED, f"{repo}@{revision[:8]} lacks a file that its listing names") from error
    except errors.OfflineModeIsEnabled as error:
        raise WeightsError(Trouble.OFFLINE, "HF_HUB_OFFLINE is set, and this is not in the cache") from error
    except errors.HfHubHTTPError as error:
        raise _of_status(repo, error) from error
    except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise  # The disk, not the network.
        reason = str(error) or type(error).__name__
        raise WeightsError(Trouble.UNREACHABLE, f"the hub at {_address()} does not answer ({reason})") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        # No JSON, or other fields than the client expects: a captive portal, a proxy's page, no hub at all.
        raise WeightsError(
            Trouble.DENIED, f"what answers at {_page(repo)} is no hub ({type(error).__name__}: {error})"
        ) from error


def _of_status(repo: str, error: Any) -> WeightsError:  # noqa: ANN401 -- huggingface_hub.errors.HfHubHTTPError
    status = error.response.status_code
    history = error.response.history
    if status in (401, 403) and history and history[0].url.host != error.response.url.host:
        # A storage server, which knows no tokens: the address that the hub gave has expired, say.
        return WeightsError(Trouble.UNREACHABLE, f"the hub's storage server refuses (HTTP {status})")
    if status == _TOO_MANY:
        wait = _retry_after(str(error.response.headers.get("Retry-After", "")))
        return WeightsError(Trouble.BUSY, f"the hub limits how often we ask (HTTP {status})", retry_after=wait)
    if status in (401, 403):
        return WeightsError(
            Trouble.DENIED,
            f"the hub does not let us read {repo} (HTTP {status}): the token in HF_TOKEN or HF_TOKEN_PATH is not "
            "valid for it",
        )
    said = str(error.server_message or "")
    if status >= 500 or status == 408:  # noqa: PLR2004
        return WeightsError(Trouble.UNREACHABLE, f"the hub does not answer (HTTP {status})")
    return WeightsError(
        Trouble.DENIED, f"the hub answered HTTP {status} for {repo}" + (f": {said}" if said else "")
    )


def _retry_after(text: str) -> float | None:
    """Seconds of a Retry-After header, which is a number or a date."""
    if re.fullmatch(r"[0-9]{1,9}", text.strip()):
        return min(float(text), _LONGEST_RETRY_AFTER)
    try:
        then = email.utils.parsedate_to_datetime(text)
        seconds = (then - dt.datetime.now(tz=then.tzinfo)).total_seconds()
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, seconds), _LONGEST_RETRY_AFTER)


def _page(repo: str) -> str:
    return f"{_address()}/{repo}"


def _address() -> str:
    from huggingface_hub import constants  # noqa: PLC0415

    return str(constants.ENDPOINT)


def _quiet() -> None:
    # Its warnings go to standard error in a form of their own; what matters in them is in our events.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
