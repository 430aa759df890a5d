"""The heads of jobs: read once, refused where they are of another model, kept in bounded memory."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from clipfleet.contract.heads import HeadInput, JobHead
from clipfleet.contract.jobs import DecodeRoute, Exif, Task
from clipfleet.errors import OutputDamagedError, OutputUnavailableError
from clipfleet.heads.files import HeadFile
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet_worker.failures import ModelMismatchError
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.score import head_cache
from clipfleet_worker.score.head_cache import HeadCache
from tests.support.heads import head_file
from tests.support.jobs import make_job

OURS = "0123456789abcdef"


class Model:
    """Makes vectors of length 4, with one fingerprint."""

    embedding_dimension, device = 4, "cpu"

    def fingerprint_for(self, route: DecodeRoute, exif: Exif = Exif.IGNORE) -> str:
        return OURS

    def has_made(self, fingerprint: str, route: DecodeRoute, exif: Exif) -> bool:
        return (fingerprint, route) == (OURS, DecodeRoute.FAST)


class Bench:
    def __init__(self, folder: Path) -> None:
        self.output, self.cache, self.reads = FolderOutput(folder), HeadCache(), list[str]()
        read = self.output.read
        self.output.read = lambda name: (self.reads.append(name), read(name))[1]  # type: ignore[method-assign]

    def get(self, *files: HeadFile, decode: DecodeRoute = DecodeRoute.FAST) -> list[str]:
        return self.get_told(*(one.of_job for one in files), decode=decode)

    def get_told(self, *heads: JobHead, decode: DecodeRoute = DecodeRoute.FAST) -> list[str]:
        job = make_job(self.output.uri, task=Task.CLASSIFY, heads=heads, decode=decode)
        return [one.head.name for one in self.cache.get((self.output,), job, cast(LoadedModel, Model()))]

    def place(self, *files: HeadFile) -> None:
        for one in files:
            self.output.create(objects.head_file(one.of_job.sha256), one.data)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "out")


def of_rows(fingerprint: str) -> HeadFile:
    return head_file(4, 2, input=HeadInput(dim=4, model="demo", fingerprint=fingerprint))


def test_heads_are_in_the_order_of_the_job_and_read_once(bench: Bench) -> None:
    files = head_file(4, 2, name="b"), head_file(4, 3, name="a"), of_rows(OURS)
    bench.place(*files)

    assert bench.get(*files) == bench.get(*files) == ["b", "a", "taste"]
    assert len(bench.reads) == 3


@pytest.mark.parametrize("limit", [("_KEPT", 2), ("_KEPT_BYTES", 160)])
def test_those_used_last_are_kept(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, limit: tuple[str, int]
) -> None:
    monkeypatch.setattr(head_cache, *limit)
    first, second, third = files = [head_file(4, 2, name=name) for name in "abc"]  # 80 bytes each
    bench.place(*files)
    for one in (first, second, first, third):
        bench.get(one)
    bench.reads.clear()

    bench.get(first, third)
    assert bench.reads == []
    bench.get(second)
    assert len(bench.reads) == 1


def test_one_that_is_larger_than_the_limit_is_used(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_cache, "_KEPT_BYTES", 1)
    file = head_file(4, 2)
    bench.place(file)

    assert bench.get(file) == bench.get(file) == ["taste"]
    assert len(bench.reads) == 1


@pytest.mark.parametrize(
    ("file", "decode", "words"),
    [
        (head_file(5, 2), DecodeRoute.FAST, "vectors of length 5, demo makes vectors of length 4"),
        (of_rows("f" * 16), DecodeRoute.FAST, f"the fingerprint {'f' * 16} .*those of this job have {OURS}"),
        (of_rows(OURS), DecodeRoute.EXACT, "use the model, `decode=` and `exif=` that it was fitted with"),
    ],
)
def test_heads_of_other_vectors_are_refused_also_when_kept(
    bench: Bench, file: HeadFile, decode: DecodeRoute, words: str
) -> None:
    bench.place(file)
    if file.head.input.fingerprint == OURS:
        bench.get(file)

    with pytest.raises(ModelMismatchError, match=words):
        bench.get(file, decode=decode)


def test_a_file_that_is_missing_may_come(bench: Bench) -> None:
    with pytest.raises(OutputUnavailableError, match="the head 'taste' is missing"):
        bench.get(head_file(4, 2))

    bench.place(head_file(4, 2))
    assert bench.get(head_file(4, 2)) == ["taste"]


def test_the_first_place_that_has_the_file_is_read(bench: Bench, tmp_path: Path) -> None:
    file, log = head_file(4, 2), FolderOutput(tmp_path / "log")
    log.create(objects.head_file(file.of_job.sha256), file.data)
    job = make_job(bench.output.uri, task=Task.CLASSIFY, heads=(file.of_job,))

    (found,) = bench.cache.get((bench.output, log), job, cast(LoadedModel, Model()))

    assert found.head == file.of_job.head


def test_another_content_is_refused(bench: Bench) -> None:
    file = head_file(4, 2)
    bench.output.create(objects.head_file(file.of_job.sha256), head_file(4, 2, seed=1).data)

    with pytest.raises(OutputDamagedError, match="is not the head 'taste' that was submitted"):
        bench.get(file)


@pytest.mark.parametrize("is_kept", [False, True])
def test_a_job_that_says_other_things_than_the_file_is_refused(bench: Bench, *, is_kept: bool) -> None:
    file = of_rows(OURS)
    bench.place(file)
    if is_kept:
        bench.get(file)
    # As if it were for any vectors of the model
    free = file.head.model_copy(update={"input": HeadInput(dim=4, model="demo")})

    with pytest.raises(OutputDamagedError, match="the file of head 'taste' says other things of it"):
        bench.get_told(file.of_job.model_copy(update={"head": free}))
