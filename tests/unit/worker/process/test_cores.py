"""How the cores are shared between decoding and the forward pass."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from clipfleet_worker.process import cores
from clipfleet_worker.process.cores import decode_threads, forward_threads, set_forward_threads


@pytest.fixture(autouse=True)
def _cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cores, "cpus", lambda: 3)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_core_has_a_thread_that_decodes_unless_the_setting_says_otherwise() -> None:
    assert (decode_threads(0), decode_threads(7)) == (3, 7)


@pytest.mark.parametrize(
    ("environment", "threads"),
    [({}, 3), ({"OMP_NUM_THREADS": ""}, 3), ({"OMP_NUM_THREADS": "1"}, None)],
)
def test_the_forward_has_what_the_container_may_use_unless_torch_was_told(
    environment: dict[str, str], threads: int | None
) -> None:
    assert forward_threads(environment, 3) == threads


def test_torch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(1)
    set_forward_threads()
    assert torch.get_num_threads() == 3


def test_torch_is_left_alone_where_the_user_has_told_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    torch.set_num_threads(1)
    set_forward_threads()
    assert torch.get_num_threads() == 1
