"""Pictures inside tar archives: pieces of a file, or of an object in S3. Headers are not read."""

from __future__ import annotations

from clipfleet.contract import ErrorCode
from clipfleet.tar_member import TarMember, tar_member
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.fetch.file import FileFetcher
from clipfleet_worker.fetch.s3 import S3Fetcher


class TarFileFetcher:
    """See `clipfleet_worker.fetch.BlockingFetcher`: members of archives below the file roots."""

    def __init__(self, files: FileFetcher) -> None:
        self._files = files

    def read(self, uri: str) -> bytes:
        member = _member(uri)
        return self._files.read_piece(member.archive, member.offset_bytes, member.size_bytes)


class TarObjectFetcher:
    """See `clipfleet_worker.fetch.AsyncFetcher`: members of archives in S3.

    Args:
        objects: started and closed by whoever owns it.
    """

    def __init__(self, objects: S3Fetcher) -> None:
        self._objects = objects

    async def start(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def fetch(self, uri: str) -> bytes:
        member = _member(uri)
        return await self._objects.fetch_piece(member.archive, member.offset_bytes, member.size_bytes)


def _member(uri: str) -> TarMember:
    try:
        return tar_member(uri)
    except ValueError as error:
        raise ItemFailure(ErrorCode.BAD_URI, str(error)) from error
