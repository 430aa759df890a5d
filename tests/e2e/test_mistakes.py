"""A user's mistakes at the command line: one line that names the thing and the way out, never a traceback."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import termios
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import IO

import pytest

from clipfleet import commands as producer_cli
from clipfleet.errors import RedisUnavailableError
from clipfleet_worker.cli import commands as worker_cli
from clipfleet_worker.cli import demo, demo_child
from clipfleet_worker.cli.demo import samples
from tests.support.cluster import Cluster
from tests.support.waiting import wait_until

PROGRAMS = {"clipfleet": producer_cli.main, "clipfleet-worker": worker_cli.main}


@dataclass(frozen=True)
class Answer:
    """What the user sees."""

    code: int
    stdout: str
    stderr: str


@dataclass
class Shell:
    """Runs a command in a folder with images, within this process: a new one takes a second to import."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def run(self, *words: str) -> Answer:
        self.monkeypatch.setattr(sys, "argv", list(words))
        self.monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # typer sets its own
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            PROGRAMS[words[0]]()
        said = self.capsys.readouterr()
        return Answer(int(end.value.code or 0), said.out, said.err)


@pytest.fixture
def shell(
    cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shell:
    """A shell that has sourced `.clipfleet/env`, in a folder with three images of the demo."""
    for name in [name for name in os.environ if name.startswith("CLIPFLEET_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CLIPFLEET_REDIS_URL", cluster.server.url)
    (folder / "images").mkdir()
    (folder / "empty").mkdir()
    with as_file(files("clipfleet_worker") / "samples") as images:
        for sample in samples()[:3]:
            shutil.copyfile(images / sample.file, folder / "images" / sample.file)
    (folder / "blank.txt").write_text("\n \n")
    (folder / "latin.txt").write_bytes(b"caf\xe9\n")
    (folder / "notes.md").write_text("no source")
    (folder / "twice.csv").write_text("path,path\na.png,b.png\n")
    monkeypatch.chdir(folder)
    return Shell(folder, monkeypatch, capsys)


EMBED = ("clipfleet", "embed", "images", "--model", "demo", "--output")

# What tests/unit/producer/commands/test_errors.py cannot see: it has neither a ledger nor a worker.
MISTAKES = {
    "clipfleet embed ''": "the source is empty",
    "clipfleet embed twice.csv": "'path' appears twice",
    "clipfleet classify images --labels blank.txt": "contains no label",
    "clipfleet classify images --labels latin.txt": "--labels latin.txt: not UTF-8",
    "clipfleet embed images --max-error-rate 20": "rate",
    "clipfleet embed images --output redis://elsewhere:6379/0": "the Redis of CLIPFLEET_REDIS_URL",
    "clipfleet embed images --format jsonl": "which Redis does not have: give an --output",
    "clipfleet embed images --output s3:///x": "write s3://BUCKET/PATH",
    "clipfleet retry j1": "No job 'j1'. Finished jobs are kept for 7 days",
    "clipfleet retry ./nowhere": "nowhere: no job has this output",
    "clipfleet rebuild empty": "empty: no job has this output",
    "clipfleet rebuild notes.md": "notes.md is a file",
    "clipfleet rebuild redis://": "give a job id",
    "clipfleet results ./nowhere": "nowhere: no results yet",
    "clipfleet results ./notes.md": "notes.md is a file",
    "clipfleet-worker up --models ViT-L-14": "--models: model 'ViT-L-14'",
    "clipfleet-worker up --dir notes.md": "notes.md: File exists",
    f"clipfleet-worker up --dir {'x' * 300}": "x: File name too long",
    "clipfleet-worker demo --dir notes.md": "notes.md",
    "clipfleet-worker demo --dir notes.md/x": "notes.md",
    "clipfleet-worker demo --dir images": "images is not empty",
}


@pytest.mark.parametrize(("command", "words"), MISTAKES.items(), ids=lambda text: text[:60])
def test_a_mistake_is_one_line_and_code_2(shell: Shell, command: str, words: str) -> None:
    answer = shell.run(*shlex.split(command))

    assert (answer.code, answer.stdout) == (2, ""), answer
    assert answer.stderr.startswith("error: "), answer.stderr
    assert answer.stderr.count("\n") == 1, answer.stderr
    assert words in answer.stderr


def test_a_redis_that_is_not_there_is_named(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPFLEET_REDIS_URL", "redis://:secret@127.0.0.1:1/0")

    for command in ("jobs", "embed images", "status j1"):
        answer = shell.run("clipfleet", *command.split())
        assert (answer.code, answer.stdout, answer.stderr.count("\n")) == (1, "", 1), answer
        assert "cannot connect to Redis at redis://***@127.0.0.1:1/0: connection refused; " in answer.stderr
        assert "is it running, and is CLIPFLEET_REDIS_URL right?" in answer.stderr
        assert "secret" not in answer.stderr


@pytest.mark.parametrize("password", ["", ":wrong@"])
def test_a_refused_password(
    shell: Shell, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    monkeypatch.setenv("CLIPFLEET_REDIS_URL", f"redis://{password}{cluster.server.url.rpartition('@')[2]}")
    answer = shell.run("clipfleet", "jobs")
    assert answer.code == 1
    assert "login refused; check user and password in CLIPFLEET_REDIS_URL" in answer.stderr
    assert len(answer.stderr) < 200


def test_results_of_neither_folder_nor_job(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLIPFLEET_REDIS_URL")
    answer = shell.run("clipfleet", "results", "reslts")
    assert answer.code == 2
    assert "no folder 'reslts' here" in answer.stderr
    assert "set CLIPFLEET_REDIS_URL" in answer.stderr
    assert "CLIPFLEET_REDIS_URL is not set" in shell.run("clipfleet", "show", "0").stderr


@pytest.mark.parametrize("output", ["notes.md", "notes.md/x", "/proc/x"])
def test_an_output_that_cannot_be_made_leaves_no_job_behind(shell: Shell, output: str) -> None:
    answer = shell.run(*EMBED, output, "--job-id", shell.folder.name)
    assert (answer.code, answer.stdout, answer.stderr.count("\n")) == (1, "", 1), answer
    assert output in answer.stderr and "choose another --output" in answer.stderr
    after = shell.run("clipfleet", "status", shell.folder.name)
    assert "No job" in after.stderr or "cancelled" in after.stdout


def test_an_output_outside_the_roots_is_reported_with_the_setting(shell: Shell, tmp_path: Path) -> None:
    answer = shell.run(*EMBED, str(tmp_path / "out"))
    assert answer.code == 1, answer
    assert "\nJob failed before any image was processed: output_unreachable: " in answer.stderr
    assert f"{tmp_path / 'out'} is outside this worker's output roots" in answer.stderr
    assert "`clipfleet-worker up --root FOLDER`, or CLIPFLEET_OUTPUT_ROOTS (of the worker" in answer.stderr


@pytest.mark.parametrize("output", ["out", "redis://"])
def test_failed_rows_are_reported_with_an_example(shell: Shell, tmp_path: Path, output: str) -> None:
    outside, job_id = tmp_path / "outside", tmp_path.name
    shutil.copytree(shell.folder / "images", outside)
    answer = shell.run(
        "clipfleet", "embed", str(outside), "--model", "demo", "--output", output, "--job-id", job_id
    )
    assert answer.code == 3
    assert "path_refused: 3, for example: outside the folders of CLIPFLEET_FILE_ROOTS" in answer.stderr
    place = shell.folder / "out" if output == "out" else job_id
    assert "\nDone: 0 embedded, 3 failed in " in answer.stderr
    assert f" View them: `clipfleet results {place}`\n" in answer.stderr
    again = shell.run("clipfleet", "watch", job_id, "--json")
    assert json.loads(again.stdout)["codes"] == {"path_refused": 3}


def test_a_job_that_is_over_can_neither_be_paused_nor_resumed(shell: Shell) -> None:
    job_id = shell.folder.name
    assert shell.run(*EMBED, "out", "--job-id", job_id).code == 0
    for command in ("pause", "resume", "cancel"):
        assert shell.run("clipfleet", command, job_id).stderr == f"job {job_id} is completed already\n"


def test_jobs_shows_whole_ids_on_a_narrow_terminal(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a model that no worker serves is reported with the command that does."""
    job_id = f"{shell.folder.name:x<60}"[:60].strip(".")
    answer = shell.run("clipfleet", "embed", "images", "--output", "out", "--job-id", job_id, "--no-wait")
    assert "no connected worker serves ViT-B-32:datacomp_xl_s13b_b90k (they serve: demo)" in answer.stderr
    assert "clipfleet-worker run --models ViT-B-32:datacomp_xl_s13b_b90k" in answer.stderr

    monkeypatch.setenv("COLUMNS", "60")
    listed = shell.run("clipfleet", "jobs").stdout
    assert [line.split()[:2] for line in listed.splitlines() if job_id in line] == [[job_id, "running"]]


def test_the_help_swallows_no_word_in_brackets(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for command, words in (
        ("clipfleet classify", "redis:// (the default, up to 100,000 items)"),
        ("clipfleet results", "at most this many rows (default for a table: 20)"),
        ("clipfleet-worker up", "[OPTIONS] [-- COMMAND]..."),
    ):
        assert words in shell.run(*command.split(), "--help").stdout


@pytest.mark.parametrize(
    "module", ["clipfleet.__main__", "clipfleet_worker.__main__", "clipfleet_worker.cli.demo_child"]
)
def test_a_ctrl_c_before_the_program_is_loaded_is_no_traceback(module: str, tmp_path: Path) -> None:
    for slow_to_import in ("rich", "typer"):
        (tmp_path / f"{slow_to_import}.py").write_text("raise KeyboardInterrupt\n")
    result = subprocess.run(
        [sys.executable, "-c", f"from {module} import main; main()"],
        env={"PYTHONPATH": str(tmp_path), "PATH": os.defpath}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        (KeyboardInterrupt(), 130, ""),
        (RedisUnavailableError("Redis at redis://h/0: gone"), 1, "error: Redis at redis://h/0: gone\n"),
    ],
)
def test_an_interrupted_demo_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    end: BaseException,
    code: int,
    said: str,
) -> None:
    def interrupt(_: Path) -> int:
        raise end

    monkeypatch.setattr(demo, "label_samples", interrupt)
    monkeypatch.setattr(sys, "argv", ["demo_child", "clipfleet-demo"])
    with pytest.raises(SystemExit) as ended:
        demo_child.main()
    assert ended.value.code == code
    assert capsys.readouterr() == ("", said)


def test_a_ctrl_c_while_waiting_names_two_commands(shell: Shell, cluster: Cluster) -> None:
    out = shell.folder / "out"
    with cluster.start("embed", shell.folder / "images", "--output", out, "--job-id", "w1") as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("job w1 -> ")
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert said.endswith(
        "The job goes on without this terminal. Watch it again with `clipfleet watch w1`, "
        "end it with `clipfleet cancel w1`\n"
    )
    assert "Traceback" not in said


def test_a_ctrl_c_while_submitting_names_the_command_that_resumes(shell: Shell, cluster: Cluster) -> None:
    source, out = shell.folder / "urls.txt", shell.folder / "out"
    source.write_text("".join(f"https://example.org/{number}.jpg\n" for number in range(200_000)))
    process = cluster.start("embed", source, "--output", out, "--job-id", "s1", "--chunk-size", "1")
    wait_until(lambda: list(out.glob("_clipfleet/items-*")), "a file is staged")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == (
        f"The submit was interrupted. Resume it with `clipfleet embed {source} --output {out} --job-id s1 "
        "--chunk-size 1`, or end the job with `clipfleet cancel s1`\n"
    )


def test_a_ctrl_c_before_the_job_is_known_offers_no_cancel(cluster: Cluster) -> None:
    with cluster.start("embed", "-", "--job-id", "never", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write("https://example.org/1.jpg\n")
        process.stdin.flush()
        wait_until(lambda: is_empty(process.stdin), "the source is read")
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert said == "Nothing was submitted. Run it again with `clipfleet embed - --job-id never`\n"


def is_empty(pipe: IO[str]) -> bool:
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder) == 0


@pytest.mark.parametrize("command", ["status last", "jobs", "results ./out --format csv"])
def test_a_full_disk_behind_stdout_is_one_line(shell: Shell, command: str) -> None:
    assert shell.run(*EMBED, "out").code == 0
    program = Path(sys.executable).with_name("clipfleet")
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [program, *command.split()], cwd=shell.folder, stdout=full, stderr=subprocess.PIPE, text=True,
            check=False,
        )  # fmt: skip
    assert (result.returncode, result.stderr) == (
        1, "error: stdout: No space left on device; write to a place with more space\n",
    )  # fmt: skip


def test_a_reader_that_closes_the_pipe_early_is_no_error(shell: Shell) -> None:
    lines = "".join(f"none/{number}.jpg\n" for number in range(3000))  # more than a pipe takes
    (shell.folder / "list.txt").write_text(lines)
    assert shell.run("clipfleet", "embed", "list.txt", "--model", "demo", "--output", "out").code == 3
    program = Path(sys.executable).with_name("clipfleet")
    pipeline = f"set -o pipefail; {program} results ./out --format jsonl | head -1"
    result = subprocess.run(
        ["bash", "-c", pipeline], cwd=shell.folder, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr, result.stdout.count("\n")) == (0, "", 1)
