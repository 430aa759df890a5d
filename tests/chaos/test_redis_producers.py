"""Producers while Redis is away: a submit and a wait continue, or name the command that does."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Iterator

import pytest

from clipfleet.client import Client, JobHandle, JobOptions
from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger import keys
from clipfleet.redis.patience import PATIENCE_SECONDS
from clipfleet.settings import Settings
from tests.support.faulty_redis import FaultyRedis, hold
from tests.support.http_site import HttpSite
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.figures, pytest.mark.timeout(300)]

ITEMS = 40


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyRedis]:
    with FaultyRedis(tmp_path_factory.mktemp("bed")) as bed:
        yield bed


def urls_of(site: HttpSite) -> list[str]:
    return [site.url(f"/held/{number % 20:06d}.jpg?{number}") for number in range(ITEMS)]


def wait_for_half(bed: FaultyRedis, job_id: str) -> None:
    with bed.admin() as admin:
        wait_until(lambda: admin.exists(keys.job(job_id, keys.STAGED)), "the first half is staged")


def submit(
    bed: FaultyRedis,
    site: HttpSite,
    job_id: str,
    fault: Callable[[], None],
    seconds: float = PATIENCE_SECONDS,
) -> JobHandle:
    """Submit a job, patient for so many seconds; the fault begins after half of its items."""
    site.heal()

    def urls() -> Iterator[str]:
        for number, url in enumerate(urls_of(site)):
            if number == ITEMS // 2:
                wait_for_half(bed, job_id)
                fault()
            yield url

    settings = Settings(redis_url=bed.url)  # type: ignore[arg-type]
    with Client(settings, patience_seconds=seconds) as client:
        options = JobOptions(output=bed.cluster.folder / job_id, model="demo", chunk_size=8, job_id=job_id)
        return client.embed(urls(), options=options)


def require_exact(bed: FaultyRedis, job_id: str) -> None:
    with Client(Settings(redis_url=bed.url)) as client:  # type: ignore[arg-type]
        job = client.job(job_id)
        status = job.wait(60)
        rows = [row["item_index"] for row in job.results()]
    assert (status.state, status.ok, rows) == ("completed", ITEMS, list(range(ITEMS)))


class TestSubmit:
    def test_half_open_connections(self, bed: FaultyRedis, site: HttpSite) -> None:
        submit(bed, site, "half-open", bed.proxy.freeze)
        require_exact(bed, "half-open")

    def test_resets(self, bed: FaultyRedis, site: HttpSite) -> None:
        submit(bed, site, "resets", lambda: bed.proxy.cut_after(300, towards="client"))
        require_exact(bed, "resets")

    @pytest.mark.parametrize("fault", ["refused", "full"])
    def test_a_lasting_fault_is_reported_and_the_same_submit_resumes(
        self, bed: FaultyRedis, site: HttpSite, fault: str
    ) -> None:
        def begin() -> None:
            if fault == "full":
                with bed.admin() as admin:
                    admin.config_set("maxmemory", 1)
            else:
                bed.proxy.refuse()
                bed.proxy.reset()

        try:
            with pytest.raises(RedisUnavailableError, match=f"submit again with job id {fault} to resume"):
                submit(bed, site, fault, begin, seconds=2)
        finally:
            with bed.admin() as admin:
                admin.config_set("maxmemory", 0)
            bed.proxy.admit()

        submit(bed, site, fault, lambda: None)
        require_exact(bed, fault)

    def test_a_submit_of_a_stream_waits_for_redis(self, bed: FaultyRedis, site: HttpSite) -> None:
        site.heal()
        urls = [f"{url}\n" for url in urls_of(site)]
        program = bed.cluster.start(
            "embed", "-", "--output", bed.cluster.folder / "stream", "--model", "demo", "--chunk-size", "8",
            "--job-id", "stream", "--json", stdin=subprocess.PIPE,
        )  # fmt: skip
        with program:  # closes its pipes
            assert program.stdin and program.stdout and program.stderr
            program.stdin.writelines(urls[: ITEMS // 2])
            program.stdin.flush()
            wait_for_half(bed, "stream")
            bed.proxy.refuse()
            bed.proxy.reset()
            try:
                program.stdin.writelines(urls[ITEMS // 2 : -1])
                program.stdin.flush()
                said = until_it_waits(program.stderr)
                hold(5)
            finally:
                bed.proxy.admit()
            program.stdin.write(urls[-1])
            program.stdin.close()
            said += program.stderr.read()
            out = program.stdout.read()

        assert program.returncode == 0, said
        assert '"state": "completed"' in out
        assert (said.count("Redis is away"), said.count("Redis is back")) == (1, 1), said
        require_exact(bed, "stream")


def until_it_waits(lines: Iterable[str]) -> str:
    """The lines up to the one that says that Redis is away."""
    said = ""
    for line in lines:
        said += line
        if "Redis is away" in line:
            break
    return said


class TestWait:
    @pytest.mark.parametrize("fault", ["silence", "restart"])
    def test_it_sees_the_end(self, bed: FaultyRedis, site: HttpSite, fault: str) -> None:
        source = bed.cluster.folder / f"{fault}.txt"
        source.write_text("\n".join(urls_of(site)))
        program = bed.cluster.start("embed", source, "--model", "demo", "--job-id", f"wait-{fault}", "--json")
        with bed.admin() as admin:
            wait_until(lambda: admin.zcard(keys.LEASES) > 0, "chunks are under way")
        if fault == "silence":
            bed.proxy.freeze(new=True)
            hold(20)
            bed.proxy.thaw()
        else:
            bed.cluster.server.child.kill()
            hold(2)
            bed.cluster.server.start()
            bed.proxy.retarget(bed.server_port)
        site.heal()
        out, said = program.communicate(timeout=120)

        assert program.returncode == 0, said
        assert '"state": "completed"' in out
        assert "Traceback" not in said
        require_exact(bed, f"wait-{fault}")


class TestHints:
    def test_a_worker_receives_hints_again_after_its_connection_fell_silent(self, bed: FaultyRedis) -> None:
        """The connection stays silent: its blocking read must time out."""
        bed.proxy.freeze()
        with bed.admin() as admin:
            admin.lpush(keys.QUEUE, "no hint: it is only to be taken off")
            wait_until(lambda: admin.llen(keys.QUEUE) == 0, "the worker has taken it")
        assert bed.worker.process.poll() is None
