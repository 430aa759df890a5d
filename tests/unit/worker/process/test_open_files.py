"""The limit of open files of a worker: raised where it may be, told where it is too low."""

from __future__ import annotations

import logging
import resource

import pytest

from clipfleet_worker.process.start import raise_open_files_limit

INFINITE = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [
        (1024, 1_048_576, 65_536),
        (1024, 4096, 4096),
        (1024, INFINITE, 65_536),
        (100_000, 1_048_576, 100_000),
        (4096, 4096, 4096),
        (INFINITE, INFINITE, INFINITE),
    ],
)
def test_the_soft_limit_is_raised_and_never_lowered(
    soft: int, hard: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, both: limits.append(both))
    raise_open_files_limit(connections=256)
    assert limits[-1] == (expected, hard)


@pytest.mark.parametrize(("connections", "warned"), [(256, False), (1000, True)])
def test_too_few_are_told_with_the_way_out(
    connections: int, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (4096, 4096))
    with caplog.at_level(logging.WARNING):
        raise_open_files_limit(connections=connections)
    assert ("ulimit -n" in caplog.text) is warned
