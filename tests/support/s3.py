"""An S3 store for tests: one SeaweedFS for the run, a bucket of its own for each test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class S3Bucket:
    """An empty bucket at first, and how to reach it."""

    name: str
    environment: Mapping[str, str]  # the AWS_* variables, keys included
    client: Any

    @property
    def uri(self) -> str:
        """`s3://BUCKET`, without a slash at the end."""
        return f"s3://{self.name}"

    @property
    def endpoint(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return self.environment["AWS_ENDPOINT_URL"]

    def put(self, key: str, data: bytes) -> str:
        """Store an object; returns its URI."""
        self.client.put_object(Bucket=self.name, Key=key, Body=data)
        return f"{self.uri}/{key}"

    def get(self, key: str) -> bytes:
        """All bytes of an object."""
        data: bytes = self.client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return data

    def keys(self, prefix: str = "") -> list[str]:
        """Sorted keys that begin with the prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return sorted(entry["Key"] for page in pages for entry in page.get("Contents", ()))

    def remove(self) -> None:
        """Delete the bucket with all it holds."""
        for key in self.keys():
            self.client.delete_object(Bucket=self.name, Key=key)
        self.client.delete_bucket(Bucket=self.name)
