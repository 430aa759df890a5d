"""Settings of a worker, from the environment (prefix `CLIPFLEET_`)."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from clipfleet.contract.jobs import DEFAULT_MODEL, DEMO_MODEL, Precision
from clipfleet.contract.model_names import normalise_model
from clipfleet.s3.client import is_bucket_name
from clipfleet.settings import DAY_SECONDS, CommaSeparated, Settings
from clipfleet_worker.decode.outline import DEFAULT_MAX_DECODE_BYTES

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_MEBIBYTE = 1024 * 1024
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_DECODE_CHILD_BYTES = 512 * _MEBIBYTE  # of address space: Python, numpy and Pillow, and a reserve


def _must(is_good: Callable[[str], object], complaint: str) -> AfterValidator:
    """Reject a word that fails a test; the message is the word and the complaint."""

    def check(word: str) -> str:
        if not is_good(word):
            raise ValueError(f"{word!r} {complaint}")
        return word

    return AfterValidator(check)


def _check_network(text: str) -> str:
    network = ipaddress.ip_network(text)
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        raise ValueError(f"{text!r} holds IPv4 addresses; write it as an IPv4 network")
    return text


_Device = Annotated[
    str, _must(re.compile(r"auto|cpu|cuda(:\d+)?").fullmatch, "is not one of auto, cpu, cuda, cuda:1")
]
_Root = Annotated[str, _must(os.path.isabs, "is not an absolute path")]
_Bucket = Annotated[str, _must(is_bucket_name, "is not the name of a bucket; omit s3:// and the path")]
_Port = Annotated[str, _must(lambda port: port.isdecimal() and 0 < int(port) < 65536, "is not a port")]
_Cidr = Annotated[str, AfterValidator(_check_network)]
_Model = Annotated[str, AfterValidator(normalise_model)]


class WorkerSettings(Settings):
    """All of a worker's settings; docs/reference/settings.md lists them."""

    models: CommaSeparated[_Model] = Field(
        (DEFAULT_MODEL, DEMO_MODEL), description="models to serve; the first one is loaded at start"
    )
    loaded_models: int = Field(
        2, ge=1, description="models kept in memory; more only while chunks of more are in progress"
    )
    precision: Precision = Field(
        Precision.AUTO, description="of jobs that do not set it: auto, fp32, bf16, fp16"
    )
    device: _Device = Field("auto", description="torch device: auto, cpu, cuda, cuda:1")
    backend: Literal["auto", "torch", "openvino"] = Field(
        "auto", description="openvino (CPU only), torch (plain passes, also on a GPU), or auto: the fastest"
    )
    batch_size: int = Field(0, ge=0, description="images per forward pass; 0: by device")

    file_roots: CommaSeparated[_Root] = Field(
        (), description="folders below which images, and vectors to label again, may be read"
    )
    output_roots: CommaSeparated[_Root] = Field((), description="folders below which results may be written")
    s3_buckets: CommaSeparated[_Bucket] = Field(
        (), description="buckets that may be read and written; empty: all that the credentials can reach"
    )
    allow_private: CommaSeparated[_Cidr] = Field(
        (), description="non-public networks that URLs may reach, as CIDR"
    )
    allow_ports: CommaSeparated[_Port] = Field((), description="ports of public addresses besides 80 and 443")
    contact: str = Field("", description="email or URL of the operator, sent in the User-Agent")

    robots: CommaSeparated[str] = Field(
        ("tag",),
        description="refusals to respect: tag (X-Robots-Tag), txt (robots.txt), tag,txt or none",
    )

    max_image_bytes: int = Field(30 * _MEBIBYTE, ge=1, description="larger files are rejected")
    max_pixels: int = Field(100_000_000, ge=1, description="larger images are rejected before decoding")
    max_decode_bytes: int = Field(
        DEFAULT_MAX_DECODE_BYTES, ge=1, description="images that need more memory to decode are rejected"
    )
    decode_seconds: float = Field(20.0, gt=0, le=DAY_SECONDS, description="timeout of decoding one image")
    decode_memory_bytes: int = Field(
        0,
        le=1 << 62,
        description="limit of a process that decodes suspects; 0: twice MAX_DECODE_BYTES plus 512 MiB",
    )
    max_memory_bytes: int = Field(
        0, ge=0, description="a worker above it ends; 0: 90 % of the memory of the machine or container"
    )
    isolate_decode: bool = Field(
        False, description="decode all but baseline JPEG and PNG in separate processes"
    )
    fetch_timeout_seconds: float = Field(
        30.0, gt=0, le=DAY_SECONDS, description="timeout of one URL, from connect to the last byte"
    )
    fetch_attempts: int = Field(
        5, ge=1, le=20, description="attempts per URL while its host is away or overloaded"
    )
    host_connections: int = Field(
        16, ge=1, description="simultaneous connections to one host, of all workers together"
    )
    total_connections: int = Field(
        256, ge=1, description="simultaneous connections; as many slow ones may be added"
    )

    slots: int = Field(
        128, ge=1, description="chunks in progress at a time, including those that wait for a few slow hosts"
    )
    items_in_flight: int = Field(4096, ge=1, description="no claim while this many items are open")
    bytes_in_flight: int = Field(1024 * _MEBIBYTE, ge=1, description="no fetch while this many bytes wait")
    decode_threads: int = Field(0, ge=0, description="0: one per core that the worker may use")
    chunk_deadline_seconds: float = Field(
        180.0, gt=0, le=DAY_SECONDS, description="fetches that are still open then become timeout rows"
    )

    reconcile_seconds: float = Field(
        5.0, gt=0, le=DAY_SECONDS, description="interval at which expired leases are reconciled"
    )
    drain_seconds: float = Field(
        25.0, ge=0, le=DAY_SECONDS, description="after SIGTERM the worker ends within this time"
    )
    outage_hours: float = Field(
        24.0, gt=0, le=10 * 365 * 24, description="a job whose output is away for this long pauses itself"
    )
    health_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="port of /healthz, /readyz and /metrics; 0 picks a free one; not set: none",
    )
    health_host: str = Field("127.0.0.1", description="address to listen at with this port")
    celery_events: bool = Field(False, description="send Celery's task events, for Flower")
    ready_file: Path | None = Field(None, description="created once the worker claims chunks")

    @field_validator("models")
    @classmethod
    def _check_models(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one model")
        return value

    @field_validator("robots")
    @classmethod
    def _check_robots(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value != ("none",) and not (value and set(value) <= {"tag", "txt"}):
            raise ValueError(f"{','.join(value)!r} is not one of tag, txt, tag,txt, none")
        return value

    @field_validator("decode_memory_bytes")
    @classmethod
    def _check_decode_memory(cls, value: int) -> int:
        if value and value < _DECODE_CHILD_BYTES:
            raise ValueError(
                f"{value} is below the {_DECODE_CHILD_BYTES} bytes that the process itself needs"
            )
        return value

    @property
    def decode_memory(self) -> int:
        """`decode_memory_bytes`, or enough for images of `max_decode_bytes`."""
        return self.decode_memory_bytes or _DECODE_CHILD_BYTES + 2 * self.max_decode_bytes

    @property
    def private_networks(self) -> tuple[Network, ...]:
        """`allow_private` as networks."""
        return tuple(ipaddress.ip_network(network) for network in self.allow_private)

    @property
    def ports(self) -> frozenset[int]:
        """`allow_ports` as numbers."""
        return frozenset(map(int, self.allow_ports))
