"""URIs lead to the same object if only their signatures differ; any other difference may be another image."""

from __future__ import annotations

import pytest

from clipfleet.store.signed_urls import lead_to_the_same

S3 = (
    "https://photos.s3.amazonaws.com/a.jpg?{own}X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AK{night}"
    "&X-Amz-Date=2026120{night}T021500Z&X-Amz-Expires=3600&X-Amz-Security-Token=t{night}&X-Amz-SignedHeaders=host"
    "&X-Amz-Signature=f{night}"
)
SIGNED = {
    "S3": S3,
    "S3, version 2": "https://s3.host/a.jpg?{own}AWSAccessKeyId=A&Signature=s{night}&Expires=178{night}",
    "CloudFront": "https://d1.cloudfront.net/a.jpg?{own}Expires=178{night}&Signature=s{night}&Key-Pair-Id=K",
    "CloudFront, policy": "https://d1.cloudfront.net/a?{own}Policy=p{night}&Signature=s{night}&Key-Pair-Id=K",
    "Google": (
        "https://storage.googleapis.com/photos/a.jpg?{own}X-Goog-Algorithm=GOOG4-RSA-SHA256"
        "&X-Goog-Credential=c{night}&X-Goog-Date=2026120{night}T021500Z&X-Goog-Expires=60"
        "&X-Goog-SignedHeaders=host&X-Goog-Signature=a{night}"
    ),
    "Google, version 2": "https://g.host/a?{own}GoogleAccessId=me&Expires=178{night}&Signature=s{night}",
    "Azure": (
        "https://me.blob.core.windows.net/photos/a.jpg?{own}sv=2022-11-02&st=2026-12-0{night}&se=2026-12-1{night}"
        "&sr=b&sp=r&sig=s{night}"
    ),
    "Azure, account": (
        "https://me.blob.core.windows.net/a.jpg?{own}sv=2022-11-02&ss=b&srt=o&sp=r&se=2026-12-0{night}&sig=s{night}"
    ),
}  # fmt: skip


@pytest.mark.parametrize("url", SIGNED.values(), ids=SIGNED)
def test_a_url_that_is_signed_anew_leads_to_the_same(url: str) -> None:
    monday, tuesday = url.format(own="", night=1), url.format(own="", night=2)

    assert lead_to_the_same(monday, tuesday)
    assert lead_to_the_same(monday, url.partition("?")[0])
    assert lead_to_the_same(url.format(own="versionId=7&", night=1), url.format(own="versionId=7&", night=2))
    assert not lead_to_the_same(
        url.format(own="versionId=7&", night=1), url.format(own="versionId=8&", night=2)
    )
    assert not lead_to_the_same(monday, url.format(own="w=64&", night=2))
    assert not lead_to_the_same(monday, tuesday.replace("/a", "/b"))
    assert not lead_to_the_same(monday, tuesday.replace("https", "http"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://host/a.jpg?v=1", "https://host/a.jpg?v=2"),
        ("https://host/a.jpg?v=1", "https://host/a.jpg"),
        ("https://host/a.jpg", "https://host/a.jpg#2"),
        ("https://host/a.jpg?x=1&y=2", "https://host/a.jpg?y=2&x=1"),
        ("https://host/page?sp=1", "https://host/page?sp=2"),  # a name of Azure's, on any site
        ("https://host/page?Expires=1&Policy=2", "https://host/page?Expires=1&Policy=3"),
        ("https://host/a?X-Amz-Date=1", "https://host/a?X-Amz-Date=2"),
        ("s3://bucket/a", "s3://bucket/b"),
        ("https://[host/a", "https://host/a"),
    ],
)
def test_without_a_signature_every_difference_counts(one: str, other: str) -> None:
    assert not lead_to_the_same(one, other)
    assert lead_to_the_same(one, one)
