"""The API's routes that change model files and keys."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.concurrency import run_in_threadpool

from reconciler.api.asked import MakeKey, PutFile
from reconciler.api.auth import Who
from reconciler.api.context import Context
from reconciler.api.problems import documented
from reconciler.api.schemas import EditView, FileList, FileView, KeyList, KeyView, NewKey
from reconciler.api.views import edit_view
from reconciler.core.edit import File
from reconciler.core.keys import KeyRefusedError
from reconciler.loop.by_hand import FAULT, NOT_FOUND, CommandRefusedError

_REFUSED = 422
_FilePath = Annotated[str, Path(description="As the source names it, or the file's name alone", max_length=1000)]
_IfMatch = Annotated[
    str | None, Header(max_length=200, description="The digest of the file that was seen; none: there is none yet")
]
_DryRun = Annotated[bool, Query(description="Only say what the change would be")]


def files_router(context: Context) -> APIRouter:
    """Model files."""
    router, edits = APIRouter(tags=["files"]), context.edits

    @router.get("/files", responses=documented(409))
    async def files() -> FileList:
        """All model files that can be read."""
        return FileList(files=tuple(map(_file, await edits.files())))

    @router.get("/files/{path:path}", responses=documented(409))
    async def file(path: _FilePath) -> FileView:
        """One model file, with the digest that a change has to name."""
        return _file(await edits.read(path))

    @router.put("/files/{path:path}", responses=documented(409, 412))
    async def put_file(
        request: Request, path: _FilePath, asked: PutFile, if_match: _IfMatch = None, dry_run: _DryRun = False
    ) -> EditView:
        """Write a model file. One with mistakes is refused (422); `dry_run` names them instead."""
        return await change(request, path, asked.text, if_match, asked.message, dry_run=dry_run)

    @router.delete("/files/{path:path}", responses=documented(409, 412))
    async def delete_file(
        request: Request, path: _FilePath, if_match: _IfMatch = None, dry_run: _DryRun = False
    ) -> EditView:
        """Remove a model file, and with it its model."""
        return await change(request, path, None, if_match, "", dry_run=dry_run)

    async def change(
        request: Request, path: str, text: str | None, if_match: str | None, message: str, *, dry_run: bool
    ) -> EditView:
        seen = if_match.removeprefix("W/").strip('"') if if_match is not None else None
        if dry_run:
            return edit_view(await edits.preview(path, text, seen))
        done = await edits.apply(path, text, seen, message=message, author=_who(request).key.name)
        if done.problems:
            raise CommandRefusedError(_REFUSED, "\n".join(done.problems))
        return edit_view(done)

    return router


def keys_router(context: Context) -> APIRouter:
    """Keys."""
    router, store = APIRouter(tags=["keys"]), context.keys

    @router.get("/keys", responses=documented())
    def keys() -> KeyList:
        """All keys, revoked ones included, without what they open with."""
        usage = context.key_usage()
        return KeyList(keys=tuple(KeyView.of(key, usage.get(key.fingerprint)) for key in store.ring().keys))

    @router.post("/keys", status_code=201, responses=documented(409))
    async def make_key(asked: MakeKey) -> NewKey:
        """Make a key. What it opens with is answered this once."""
        key, secret = await in_thread(
            store.add,
            asked.name,
            asked.scopes,
            models=asked.models,
            expires=asked.expires,
            requests_per_minute=asked.requests_per_minute,
            concurrent=asked.concurrent,
        )
        return NewKey(key=KeyView.of(key, None), secret=secret)

    @router.delete("/keys/{which}", responses=documented())
    async def revoke_key(
        which: Annotated[str, Path(description="Name or fingerprint", max_length=200)],
    ) -> KeyView:
        """Close a key for good."""
        try:
            key = await in_thread(store.revoke, which)
        except KeyRefusedError as error:
            raise CommandRefusedError(NOT_FOUND, str(error)) from error
        return KeyView.of(key, context.key_usage().get(key.fingerprint))

    async def in_thread(call: Any, *args: Any, **options: Any) -> Any:  # noqa: ANN401 -- as the call has them
        try:
            return await run_in_threadpool(call, *args, **options)
        except OSError as error:
            raise CommandRefusedError(
                FAULT, f"the keys could not be written: {error.strerror or error}"
            ) from error

    return router


def _who(request: Request) -> Who:
    who = request.state.who
    assert isinstance(who, Who)
    return who


def _file(file: File) -> FileView:
    return FileView(path=file.path, text=file.text, digest=file.digest)
