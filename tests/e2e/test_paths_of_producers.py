"""An attacking producer: it writes jobs and staged items by hand and shares a disk with the worker.

The worker may read below `images` and write below `results`. The folder beside them is private.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest

from clipfleet.contract.jobs import ErrorCode, Job, JobState
from clipfleet.contract.tar_member import TarMember
from clipfleet.ledger.jobs import JobStatus, Ledger
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from tests.support.cluster import Cluster
from tests.support.images import encoded, make_image
from tests.support.jobs import make_job, place_job, stage_items
from tests.support.shards import tar_bytes
from tests.support.waiting import wait_until

PATIENCE_SECONDS = 120
SECRET = encoded(make_image(77))
REFUSED = {ErrorCode.PATH_REFUSED, ErrorCode.BAD_URI, ErrorCode.NOT_FOUND, ErrorCode.SCHEME_REFUSED}


@dataclass(frozen=True)
class Ground:
    """The disk that the attacker shares with the worker, and the worker's cluster."""

    cluster: Cluster
    inside: Path
    results: Path
    outside: Path  # the private folder, laid out like an output

    @property
    def good(self) -> str:
        return str(self.inside / "a.jpg")

    def job(self, name: str) -> Job:
        """A job of that name, with an output of that name."""
        return make_job(self.results / name, job_id=name)

    def hand_in(self, job: Job, uris: list[str], *, at: FolderOutput | None = None) -> None:
        """Submit what no program of ours would; its files lie where the job says, or `at` another place."""
        output = at or FolderOutput(Path(job.output))
        place_job(output, job)
        chunks = stage_items(output, job, uris)
        with closing(Ledger(self.cluster.server.url)) as ledger:
            ledger.submit(job)
            ledger.stage(job.job_id, 0, chunks, len(uris))
            ledger.seal(job.job_id, chunks, len(uris))

    def end_of(self, job_id: str) -> JobStatus:
        """The last status of a job."""
        status = self.cluster.status
        wait_until(lambda: status(job_id).state.is_final, f"job {job_id} ends", PATIENCE_SECONDS)
        return status(job_id)

    def run(self, job: Job, uris: list[str]) -> JobStatus:
        self.hand_in(job, uris)
        return self.end_of(job.job_id)

    def rows(self, name: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = pq.read_table(self.results / name / objects.LAYOUT.part(0)).to_pylist()
        return rows


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("producer-paths")
    inside, results, outside = folder / "images", folder / "results", folder / "private"
    for path in (inside / "sub", results, outside / "sub"):
        path.mkdir(parents=True)
    (outside / "secret.jpg").write_bytes(SECRET)
    (inside / "a.jpg").write_bytes(encoded(make_image(1)))
    settings = {
        "CLIPFLEET_FILE_ROOTS": str(inside),
        "CLIPFLEET_OUTPUT_ROOTS": str(results),
        "CLIPFLEET_CHUNK_DEADLINE_SECONDS": "30",
    }
    with Cluster(folder, settings) as cluster:
        cluster.start_worker()
        yield Ground(cluster, inside, results, outside)
        shutil.rmtree(outside)  # what the attacker put there is no leftover of a worker


def reading_tricks(ground: Ground) -> dict[str, str]:
    """URIs that aim at the secret, by the name of the trick; links, a pipe and an archive for them."""
    inside, secret = ground.inside, ground.outside / "secret.jpg"
    (inside / "link.jpg").symlink_to(secret)
    (inside / "folder").symlink_to(ground.outside)
    (inside / "relative").symlink_to("../private")
    (inside / "chain").symlink_to("folder/sub/..")
    (inside / "loop").symlink_to("loop")
    os.mkfifo(inside / "fifo")
    (ground.outside / "secret.tar").write_bytes(tar_bytes([("../../private/secret.jpg", SECRET)]))
    (inside / "secret.tar").symlink_to(ground.outside / "secret.tar")

    def member(archive: str) -> str:
        return TarMember(archive, "a.jpg", 512, len(SECRET)).uri()

    return {
        "absolute path": str(secret),
        "dots": f"{inside}/../private/secret.jpg",
        "dots further down": f"{inside}/sub/../../private/secret.jpg",
        "slashes and dots": f"{inside}//./sub/..//../private//secret.jpg",
        "relative path": "../private/secret.jpg",
        "home": "~/secret.jpg",
        "linked file": f"{inside}/link.jpg",
        "linked folder": f"{inside}/folder/secret.jpg",
        "relative link": f"{inside}/relative/secret.jpg",
        "link over a link": f"{inside}/chain/secret.jpg",
        "loop of links": f"{inside}/loop/secret.jpg",
        "root of a process": f"/proc/self/root{secret}",
        "folder of a process": "/proc/self/cwd/private/secret.jpg",
        "environment of a process": "/proc/self/environ",
        "open file of a process": "/proc/self/fd/0",
        "standard input": "/dev/stdin",
        "device": "/dev/zero",
        "pipe": f"{inside}/fifo",
        "file URL": f"file://{secret}",
        "file URL of this machine": f"file://localhost{secret}",
        "file URL of another": f"file://intranet{secret}",
        "encoded dots": f"file://{inside}/%2e%2e/private/secret.jpg",
        "encoded slash": f"file://{inside}/..%2Fprivate%2Fsecret.jpg",
        "encoded twice": f"file://{inside}/%252e%252e/private/secret.jpg",
        "encoded, but a path": f"{inside}/%2e%2e/private/secret.jpg",
        "dots that look alike": f"{inside}/\u2024\u2024/private/secret.jpg",
        "slashes that look alike": f"{inside}/..\uff0fprivate\uff0fsecret.jpg",
        "backslashes": f"{inside}\\..\\private\\secret.jpg",
        "NUL byte": f"{inside}/a.jpg\0/../private/secret.jpg",
        "NUL byte, encoded": f"file://{inside}/a.jpg%00{secret}",
        "dots at the end": f"{secret}...",
        "blank at the end": f"{inside}/link.jpg ",
        "capitals": f"FILE:{secret}",
        "capital root": f"{str(inside).upper()}/../private/secret.jpg",
        "name like the root's": f"{inside}2/../private/secret.jpg",
        "long name": f"{inside}/{'x' * 300}/../../private/secret.jpg",
        "long path": f"{inside}{'/sub/..' * 800}/../private/secret.jpg",
        "archive outside": member(str(ground.outside / "secret.tar")),
        "linked archive": member(str(inside / "secret.tar")),
        "archive by dots": member(f"file://{inside}/%2e%2e/private/secret.tar"),
        "image as an archive": f"tar+file://{quote(str(secret))}#offset=0&size={len(SECRET)}&name=a.jpg",
        "other schemes": f"local-file://{secret}",
    }  # fmt: skip


def test_no_trick_reads_a_file_outside_the_roots(ground: Ground) -> None:
    tricks = reading_tricks(ground)

    status = ground.run(ground.job("reading"), [*tricks.values(), ground.good])

    rows = ground.rows("reading")
    codes = {name: row["error_code"] or "read" for name, row in zip([*tricks, "allowed"], rows, strict=True)}
    assert codes.pop("allowed") == "read"
    assert {name: code for name, code in codes.items() if code not in REFUSED} == {}
    assert (status.ok, status.failed) == (1, len(tricks))
    assert sha256(SECRET).hexdigest() not in str(rows)


def test_a_hard_link_is_a_file_of_the_folder_that_it_lies_in(ground: Ground) -> None:
    """Who may link a file may have it read; Linux lets users link their own files only."""
    (ground.inside / "hard.jpg").hardlink_to(ground.outside / "secret.jpg")

    status = ground.run(ground.job("hard"), [str(ground.inside / "hard.jpg")])

    assert (status.ok, status.failed) == (1, 0)


@contextmanager
def swapping(folder: Path, target: Path) -> Iterator[None]:
    """A folder that is a link to another one half of the time."""
    real, link, stop = folder.with_name("real"), folder.with_name("swapped"), threading.Event()
    link.symlink_to(target)

    def swap() -> None:
        while not stop.is_set():
            folder.rename(real), link.rename(folder)
            folder.rename(link), real.rename(folder)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_link_that_comes_and_goes_reads_nothing_outside(ground: Ground) -> None:
    racing = ground.inside / "race" / "folder"
    racing.mkdir(parents=True)
    (racing / "secret.jpg").write_bytes(encoded(make_image(2)))

    with swapping(racing, ground.outside):
        ground.run(ground.job("race"), [str(racing / "secret.jpg")] * 500)

    rows = ground.rows("race")
    assert len(rows) == 500  # how many of which is chance; unit tests see both
    assert {row["error_code"] for row in rows} <= {None, *REFUSED}
    assert sha256(SECRET).hexdigest() not in {row["content_hash"] for row in rows}


def writing_tricks(ground: Ground) -> dict[str, tuple[str, str]]:
    """Outputs that aim at a private folder, and the name of that folder."""
    results, outside = ground.results, ground.outside
    (results / "link").symlink_to(outside / "linked")
    (results / "above").symlink_to(outside)
    (results / "chain").symlink_to("above/sub/../chained")
    return {
        "absolute path": (str(outside / "absolute"), "absolute"),
        "dots": (f"{results}/../private/dots", "dots"),
        "linked folder": (f"{results}/link", "linked"),
        "below a linked folder": (f"{results}/above/below", "below"),
        "link over a link": (f"{results}/chain", "chained"),
        "link and dots": (f"{results}/above/../private/both", "both"),
        "file URL": (f"file://{outside}/url", "url"),
        "encoded file URL": (f"file://{results}/%2e%2e/private/encoded", "encoded"),
        "root of a process": (f"/proc/self/root{outside}/root", "root"),
        "folder of a process": ("/proc/self/cwd/private/cwd", "cwd"),
        "relative path": ("../private/relative", "relative"),
        "home": ("~/private/home", "home"),
        "dots that look alike": (f"{results}/\u2024\u2024/private/alike", "alike"),
        "capitals": (f"{str(results).upper()}/../private/capitals", "capitals"),
        "name like the root's": (f"{results}2/../private/like", "like"),
        "long path": (f"{results}{'/x/..' * 400}/../private/long", "long"),
    }


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder that the attacker did not put there."""
    ours = ("job.json", "items-")
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if not path.name.startswith(ours)
    }


def test_no_trick_writes_outside_the_roots(ground: Ground) -> None:
    tricks = writing_tricks(ground)
    for _, target in tricks.values():
        (ground.outside / target / objects.TMP).mkdir(parents=True)
        (ground.outside / target / objects.TMP / "kept").write_bytes(b"not yours")
    before = tree(ground.outside)

    # The attacker may have access to the folders, too: the worker is who must not be used.
    for output, target in tricks.values():
        job = make_job(output, job_id=f"writing-{target}")
        ground.hand_in(job, [ground.good], at=FolderOutput(ground.outside / target))

    for name, (_, target) in tricks.items():
        status = ground.end_of(f"writing-{target}")
        assert (status.state, status.ok) == (JobState.FAILED, 0), name
        assert "output_unreachable" in status.reason, name
    assert tree(ground.outside) == before


@pytest.mark.parametrize("name", [objects.INTERNAL, objects.TMP])
def test_a_link_inside_an_output_is_not_followed(ground: Ground, name: str) -> None:
    job = ground.job(f"inner-{name.replace('/', '-')}")
    target, link = ground.outside / job.job_id, Path(job.output, name)
    target.mkdir()
    (target / "kept").write_bytes(b"not yours")
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    (link / "tmp").mkdir(exist_ok=True)
    before = {path for path in tree(target) if "tmp" not in path}

    status = ground.run(job, [ground.good])

    assert (status.state, status.ok) == (JobState.FAILED, 0)
    assert {path for path in tree(target) if "tmp" not in path} == before


def test_an_output_that_turns_into_a_link_while_it_is_written_leads_nowhere(ground: Ground) -> None:
    racing, private = ground.results / "racing" / "output", ground.outside / "racing"
    (private / objects.TMP).mkdir(parents=True)
    job = make_job(racing, job_id="racing", chunk_size=1)
    for place in (FolderOutput(racing), FolderOutput(private)):  # the attacker prepares both
        place_job(place, job)
        stage_items(place, job, [ground.good] * 40)
    before = tree(private)

    def is_tried(status: JobStatus) -> bool:
        return status.state.is_final or status.done_chunks >= 5

    with closing(Ledger(ground.cluster.server.url)) as ledger:
        with swapping(racing, private):
            ledger.submit(job)
            ledger.stage("racing", 0, 40, 40)
            ledger.seal("racing", 40, 40)
            wait_until(
                lambda: is_tried(ledger.status("racing")), "it is written or given up", PATIENCE_SECONDS
            )
        ledger.cancel("racing", ttl_seconds=600)

    assert tree(private) == before


def test_an_output_that_holds_another_job_is_left_alone(ground: Ground) -> None:
    ground.run(make_job(ground.results / "taken", job_id="holder"), [ground.good])
    before = tree(ground.results / "taken")
    thief = make_job(ground.results / "taken", job_id="thief")

    ground.hand_in(thief, [ground.good], at=FolderOutput(ground.outside / "thief"))

    assert ground.end_of("thief").state is JobState.FAILED
    assert tree(ground.results / "taken") == before


def test_lists_and_label_files_do_not_widen_what_a_worker_reads(ground: Ground) -> None:
    """The command line resolves paths with its own rights; what it submits is refused by the worker."""
    listed, secret = ground.cluster.folder / "list.txt", ground.outside / "secret.jpg"
    listed.write_text(f"../private/secret.jpg\nsub/../../private/secret.jpg\n{secret}\n")
    labels = ground.inside / "labels.yaml"
    labels.symlink_to(secret)

    refused = ground.cluster.run(
        "classify",
        ground.good,
        "--label-set",
        labels,
        "--model",
        "demo",
        "--output",
        ground.results / "labels",
    )
    answer = ground.cluster.run_json(
        "embed", listed, "--base-uri", ground.inside, "--model", "demo", "--output", ground.results / "based",
        expect=3,
    )  # fmt: skip

    assert refused.returncode == 2
    assert (answer["ok"], answer["failed"]) == (0, 3)
    assert {row["error_code"] for row in ground.rows("based")} == {ErrorCode.PATH_REFUSED}
