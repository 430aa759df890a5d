"""What a key may name as the place of an image: public http(s), and what lies below its prefixes.

Every notation that is not known here is refused. Names of hosts are not resolved: that is what the address
guard of the workers does, with each fetch.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from clipfleet.s3.client import SCHEME, with_s3_scheme
from clipfleet_gateway.errors import ApiError, denied
from clipfleet_gateway.keys.key import Key
from clipfleet_gateway.keys.prefixes import may_read

_HTTP = re.compile(r"https?://(?P<authority>[^/?#]*)", re.IGNORECASE)
_NEVER = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # in no address that a worker reads
_NOT_IN_AUTHORITY = re.compile(r"[@\\%\s]")  # credentials, and what two parsers read in two ways
_MOST_SHOWN = 200


def require_readable(address: str, key: Key, param: str | None) -> None:
    """Check that a key may name this place.

    Args:
        address: as a client wrote it. `data:` URIs and ids of own files are handled before.
        key: of the client.
        param: what of the request it is, such as `input[3]`.

    Raises:
        ApiError: it may not (403).
    """
    if _NEVER.search(address):
        raise _refused(address, "it has a control character", param)
    if (http := _HTTP.match(address)) is not None:
        authority = http["authority"]
        if not authority or _NOT_IN_AUTHORITY.search(authority):
            raise _refused(
                address, "write http(s) URLs as https://HOST/PATH, without user and password", param
            )
    elif not may_read(address, key.sources) or _has_hidden_dots(address):
        if "://" not in address and not address.startswith("/"):
            raise _refused(address, "it is neither a URL nor an absolute path", param)
        below = f", its own files, and what is below {', '.join(key.sources)}"
        known = "public http(s) URLs, data: URIs" + (below if key.sources else " and its own files")
        more = "a key made with `--source` reads a folder or a bucket, too"
        raise _refused(address, f"it reads {known}; {more}", param)


def _has_hidden_dots(address: str) -> bool:
    """Whether a key of S3 has a `.` or `..` that some store or proxy between might resolve."""
    parts = re.split(r"[/\\]", unquote(with_s3_scheme(address)))
    return with_s3_scheme(address).startswith(SCHEME) and not {".", ".."}.isdisjoint(parts)


def _refused(address: str, reason: str, param: str | None) -> ApiError:
    shown = address if len(address) <= _MOST_SHOWN else f"{address[:_MOST_SHOWN]}..."
    return denied(f"This key may not read {shown.encode(errors='replace').decode()!r}: {reason}", param)
