"""Downloads from a model hub that speaks the HTTP interface of Hugging Face (`HF_ENDPOINT`, `HF_TOKEN`)."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import logging
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path, PurePosixPath
from typing import IO, Final

import msgspec

from pelton.errors import ArtifactCorrupt, SourceInvalid, TooLarge

log = logging.getLogger(__name__)

ENDPOINT: Final = "https://huggingface.co"
FILE_LIMIT: Final = 64 * 1024**3
INDEX_LIMIT: Final = 32 * 1024**2
TRIES: Final = 5  # in a row without a single new byte
_SECONDS: Final = 60.0
_BLOCK: Final = 1 << 20
_FORM: Final = re.compile(
    r"hf:(?P<repository>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[\w.-]{1,100}))?(?:/(?P<file>.+))?"
)


class Lfs(msgspec.Struct, frozen=True):
    """Large files are told with their digest."""

    sha256: str = ""
    size: int = 0


class Sibling(msgspec.Struct, frozen=True):
    """A file of a repository."""

    rfilename: str
    size: int | None = None
    lfs: Lfs | None = None


class Repository(msgspec.Struct, frozen=True):
    """What the hub tells about a repository at a revision."""

    sha: str
    siblings: list[Sibling]
    tags: list[str] = []

    @property
    def files(self) -> dict[str, Sibling]:
        return {sibling.rfilename: sibling for sibling in self.siblings}

    @property
    def license(self) -> str:
        return next((tag.removeprefix("license:") for tag in self.tags if tag.startswith("license:")), "")


class Address(msgspec.Struct, frozen=True):
    """`hf:owner/repository[@revision][/file]`."""

    repository: str
    revision: str
    file: str

    @classmethod
    def parse(cls, source: str) -> Address:
        match = _FORM.fullmatch(source)
        if match is None or ".." in PurePosixPath(match["file"] or "").parts:
            raise SourceInvalid(f"{source!r}: write hf:owner/repository, hf:owner/repository@revision or .../file.onnx")
        return cls(match["repository"], match["revision"] or "main", match["file"] or "")


class Hub:
    """One hub. The token goes to the hub's own address only, never to where it redirects, and into no message."""

    def __init__(self, endpoint: str, token: str, cache: Path) -> None:
        parts = urllib.parse.urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise SourceInvalid(f"HF_ENDPOINT is {endpoint!r}; an address such as {ENDPOINT} is expected")
        self._endpoint = endpoint.rstrip("/")
        self._token = token
        self._cache = cache
        self._opener = urllib.request.build_opener(_Redirects(parts.scheme))

    @classmethod
    def from_environment(cls, cache: Path) -> Hub:
        return cls(os.environ.get("HF_ENDPOINT") or ENDPOINT, os.environ.get("HF_TOKEN", ""), cache)

    def repository(self, address: Address) -> Repository:
        """Raises SourceInvalid where there is none, or it may not be read."""
        path = f"/api/models/{address.repository}/revision/{urllib.parse.quote(address.revision, safe='')}?blobs=true"
        with self._open(path, {}) as answer:
            text = answer.read(INDEX_LIMIT + 1)
        if len(text) > INDEX_LIMIT:
            raise TooLarge(f"{address.repository}: the list of files is longer than {INDEX_LIMIT} bytes")
        try:
            found = msgspec.json.decode(text, type=Repository)
        except msgspec.DecodeError as error:
            raise SourceInvalid(
                f"{self._endpoint} answered no list of files for {address.repository}: {error}"
            ) from None
        if not re.fullmatch(r"[0-9a-f]{7,64}", found.sha):
            raise SourceInvalid(f"{self._endpoint} named an unusable revision of {address.repository}: {found.sha!r}")
        return found

    def fetch(self, address: Address, found: Repository, name: str) -> Path:
        """A file on this disk; a download that broke off goes on where it stopped, also after a restart.

        Raises SourceInvalid, ArtifactCorrupt (digest or size), TooLarge."""
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise SourceInvalid(f"{address.repository} names a file outside of itself: {name!r}")
        sibling = found.files.get(name)
        if sibling is None:
            raise SourceInvalid(f"{address.repository} has no file {name!r} at {address.revision}")
        folder = self._cache / "hub" / f"{address.repository.replace('/', '--')}" / found.sha
        target = folder / name
        part = target.with_name(f"{target.name}.part")
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.with_name(f"{target.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two processes would append to the same part
            if not target.is_file():
                self._complete(f"/{address.repository}/resolve/{found.sha}/{urllib.parse.quote(name)}", part, sibling)
                _check(part, sibling, address)
                os.replace(part, target)
        return target

    def _complete(self, path: str, part: Path, sibling: Sibling) -> None:
        tries = 0
        if part.is_file() and (sibling.size is None or part.stat().st_size > sibling.size):
            part.unlink()  # nobody can tell where it would go on
        while True:
            before = part.stat().st_size if part.is_file() else 0
            if before and before == sibling.size:
                return
            try:
                if self._resume(path, part, before, sibling):
                    return
            except (OSError, http.client.HTTPException) as error:
                log.info("the download of %s broke off: %s", sibling.rfilename, error)
            tries = tries + 1 if part.is_file() and part.stat().st_size <= before else 1
            if tries >= TRIES:
                raise SourceInvalid(f"the download of {sibling.rfilename} breaks off again and again; try later")

    def _resume(self, path: str, part: Path, start: int, sibling: Sibling) -> bool:
        """Appends what is missing; True where the answer came to its end."""
        with self._open(path, {"Range": f"bytes={start}-"} if start else {}) as answer:
            fresh = answer.status != 206  # the server sends all of it again
            length = answer.headers.get("Content-Length")
            with part.open("wb" if fresh else "ab") as writer:
                begun = writer.tell()
                while block := answer.read(_BLOCK):
                    writer.write(block)
                    if writer.tell() > FILE_LIMIT:
                        raise TooLarge(f"{sibling.rfilename} is larger than {FILE_LIMIT} bytes")
                # an answer of known length that ends early reads like a complete one
                return length is None or writer.tell() - begun == int(length)

    def _open(self, path: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        request = urllib.request.Request(self._endpoint + path, headers={"User-Agent": "pelton", **headers})  # noqa: S310 - the scheme was checked
        if self._token:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        try:
            answer: http.client.HTTPResponse = self._opener.open(request, timeout=_SECONDS)
        except urllib.error.HTTPError as error:
            error.close()
            raise SourceInvalid(f"{self._endpoint}{path.partition('?')[0]}: {_told(error.code)}") from None
        except urllib.error.URLError as error:
            raise SourceInvalid(f"{self._endpoint} cannot be reached: {error.reason}") from None
        return answer


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to http, and without the token (it is an unredirected header)."""

    def __init__(self, scheme: str) -> None:
        self._scheme = scheme

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme != "https" and scheme != self._scheme:
            raise urllib.error.URLError(f"it redirects to {scheme!r}, which is not safe")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _told(code: int) -> str:
    if code in (401, 403):
        return f"the hub refuses ({code}): set HF_TOKEN to a token that may read it, and accept its terms on the hub"
    if code == 404:
        return "there is no such repository, revision or file (404)"
    return f"the hub answered {code}"


def _check(part: Path, sibling: Sibling, address: Address) -> None:
    size = sibling.lfs.size if sibling.lfs and sibling.lfs.size else sibling.size
    problem = ""
    if size is not None and part.stat().st_size != size:
        problem = f"has {part.stat().st_size} bytes instead of {size}"
    elif sibling.lfs is not None and sibling.lfs.sha256:
        with part.open("rb") as reader:
            if hashlib.file_digest(reader, "sha256").hexdigest() != sibling.lfs.sha256:
                problem = "is not the file that the hub names (sha256)"
    if problem:
        part.unlink()
        raise ArtifactCorrupt(f"{sibling.rfilename} of {address.repository} {problem}; it was thrown away, try again")
