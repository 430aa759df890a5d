"""Tells whether two URIs name the same object, although one of them was signed anew. No I/O."""

from __future__ import annotations

# Parameters of signed URLs: a query that has all names of the first kind has no meaning for the image in
# those of both kinds. A short name alone, such as Azure's `sp`, may choose an image on another site.
_SCHEMES = tuple(
    (frozenset(needed.split()), frozenset(f"{needed} {others}".split()))
    for needed, others in (
        (
            "X-Amz-Credential X-Amz-Signature",
            "X-Amz-Algorithm X-Amz-Date X-Amz-Expires X-Amz-Security-Token X-Amz-SignedHeaders",
        ),
        ("AWSAccessKeyId Expires Signature", "x-amz-security-token"),
        ("Key-Pair-Id Signature", "Expires Policy"),  # CloudFront
        (
            "X-Goog-Credential X-Goog-Signature",
            "X-Goog-Algorithm X-Goog-Date X-Goog-Expires X-Goog-SignedHeaders",
        ),
        ("GoogleAccessId Expires Signature", ""),
        ("sv sr sig", "st se sp sip spr si skoid sktid skt ske sks skv"),  # Azure, of a blob or container
        ("sv ss srt sig", "st se sp sip spr"),  # of an account
    )
)


def lead_to_the_same(uri: str, other: str) -> bool:
    """Whether two URIs are equal, apart from the parameters of a signature."""
    return uri == other or _unsigned(uri) == _unsigned(other)


def _unsigned(uri: str) -> str:
    address, mark, query = uri.partition("?")
    if not mark:
        return uri
    query, hash_sign, fragment = query.partition("#")
    parameters = query.split("&")
    names = {one.partition("=")[0] for one in parameters}
    dropped = {name for needed, all_of_them in _SCHEMES if needed <= names for name in all_of_them}
    kept = "&".join(one for one in parameters if one.partition("=")[0] not in dropped)
    # Without a parameter that is left the URI is that of the unsigned object.
    return address + (mark + kept if kept else "") + hash_sign + fragment
