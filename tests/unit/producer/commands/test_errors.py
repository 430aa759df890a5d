"""What becomes of errors at the edge of both programs: a line on stderr, an exit code, never a traceback."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import typer

import clipfleet
from clipfleet import client
from clipfleet import commands as cli
from clipfleet.errors import ClipfleetError, JobNotFoundError, OutputTooNewError, UsageError, WorldError
from clipfleet.ledger.jobs import Ledger
from clipfleet.ledger.memory import MemoryLedger
from clipfleet_worker.cli import commands as worker_cli
from clipfleet_worker.machine.plan import WorkerShare
from clipfleet_worker.machine.up import Up

PROGRAMS = {"clipfleet": cli, "clipfleet-worker": worker_cli}


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    def is_mistake(self, *words: str) -> None:
        """One line on stderr with these words, and code 2."""
        assert (self.code, self.out) == (2, "")
        assert self.err.startswith("error: ")
        assert self.err.count("\n") == 1, self.err
        assert [word for word in words if word not in self.err] == [], self.err
        assert "s3cret" not in self.err


Run = Callable[..., Answer]


class EmptyLedger(MemoryLedger):
    """A ledger that knows no job, wherever it is said to be."""

    def __init__(self, url: str, **_: object) -> None:
        super().__init__()


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a command in an empty folder with a ledger that is empty, too."""
    for name in [name for name in os.environ if name.startswith("CLIPFLEET_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CLIPFLEET_REDIS_URL", "redis://:s3cret@nowhere.invalid/0")
    monkeypatch.setattr(client, "Ledger", EmptyLedger)
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Answer:
        monkeypatch.setattr(sys, "argv", list(words))
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # typer sets one of its own
        with pytest.raises(SystemExit) as end:
            PROGRAMS[words[0]].main()
        captured = capsys.readouterr()
        return Answer(int(end.value.code or 0), captured.out, captured.err)

    return run


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("kind", "code"),
    [(ClipfleetError, 1), (WorldError, 1), (UsageError, 2), (JobNotFoundError, 2), (OutputTooNewError, 2)],
)
def test_an_error_is_one_line_and_the_exit_code_of_its_kind(
    run: Run, monkeypatch: pytest.MonkeyPatch, program: str, kind: type[ClipfleetError], code: int
) -> None:
    monkeypatch.setattr(PROGRAMS[program], "app", raising(kind("what [red]and[/red] how")))

    assert run(program) == Answer(code, "", "error: what [red]and[/red] how\n")


@pytest.mark.parametrize("command", ["clipfleet jobs", "clipfleet-worker run"])
def test_ctrl_c_is_no_error(run: Run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr(EmptyLedger, "__init__", raising(KeyboardInterrupt()))
    monkeypatch.setattr(worker_cli, "require_extra", raising(KeyboardInterrupt()))

    answer = run(*command.split())

    assert (answer.code, answer.out) == (130, "")
    assert "Traceback" not in answer.err


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(PROGRAMS[program], "app", raising(ZeroDivisionError()))

    with pytest.raises(ZeroDivisionError):
        PROGRAMS[program].main()


def commands(program: str, *, with_hidden: bool = True) -> list[str]:
    group: Any = typer.main.get_command(PROGRAMS[program].app)
    return [f"{program} {name}" for name, one in group.commands.items() if with_hidden or not one.hidden]


@pytest.mark.parametrize("command", [*commands("clipfleet"), *commands("clipfleet-worker")])
class TestEveryCommand:
    def test_help(self, run: Run, command: str) -> None:
        answer = run(*command.split(), "--help")

        assert (answer.code, answer.err) == (0, "")
        assert "Usage:" in answer.out

    def test_an_option_that_does_not_exist(self, run: Run, command: str) -> None:
        answer = run(*command.split(), "--frobnicate")

        answer.is_mistake("No such option: --frobnicate")
        assert answer.err.endswith(f"(see `{command} --help`)\n")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        # the command line itself
        ("clipfleet frobnicate", ["frobnicate"]),
        ("clipfleet classify", ["SOURCE"]),
        ("clipfleet classify .", ["--labels"]),
        ("clipfleet classify . --labels a,b --top-k 0", ["--top-k"]),
        ("clipfleet embed . --chunk-size 4097", ["--chunk-size", "4096"]),
        ("clipfleet embed . --precision int8", ["--precision", "bf16"]),
        ("clipfleet results . --format xml", ["--format", "jsonl"]),
        ("clipfleet results . --limit 0", ["--limit"]),
        ("clipfleet results . --limit 9223372036854775807", ["--limit", "1000000000"]),
        ("clipfleet results . --limit 99999999999999999999", ["--limit", "1000000000"]),
        ("clipfleet results . --sort=", ["--sort", "empty"]),
        ('clipfleet results . --columns "a', ["--columns", "unbalanced double quotes"]),
        ("clipfleet jobs --limit 10000000000000000000", ["--limit"]),
        ("clipfleet embed images --job-id=", ["--job-id", "empty"]),
        ("clipfleet embed images --output=", ["--output", "empty"]),
        ("clipfleet embed images twice", ["twice"]),
        # bytes that are no text
        ("clipfleet classify images --labels caf\udce9,b", [r"'caf\udce9' is not UTF-8"]),
        ("clipfleet classify images --labels a,b --template \udce9{}", [r"'\udce9{}' is not UTF-8"]),
        ("clipfleet embed images --output o\udce9", [r"o\udce9' is not UTF-8"]),
        ("clipfleet embed images --job-id \udce9", [r"'\udce9'"]),
        ("clipfleet classify . --label-set imagenet1k --label-set imagenet1k", ["'imagenet1k'", "name"]),
        ("clipfleet classify images --labels a,b --label-set-column kind", ["'kind'", "none at all"]),
        ("clipfleet classify images --labels a,b --on-finished a\\b", ["on-finished", "myapp.tasks"]),
        ("clipfleet run", ["FILE"]),
        ("clipfleet run nowhere.yaml", ["nowhere.yaml", "No such file"]),
        ("clipfleet run /dev/zero", ["/dev/zero: larger than 64 MB"]),
        ("clipfleet run list.csv", ["list.csv:", "source"]),
        ("clipfleet embed images --model ViT-L-14", ["ViT-L-14", "NAME:PRETRAINED", "demo"]),
        ("clipfleet embed images --job-id a/b", ["a/b"]),
        ("clipfleet embed images --output gopher://h/x", ["gopher://", "folder"]),
        ("clipfleet embed images --output S3:///x", ["'s3:///x' is not an S3 URI: write s3://BUCKET/PATH"]),
        # the source
        ("clipfleet embed S3:///x", ["'s3:///x' is not an S3 URI: write s3://BUCKET/PATH"]),
        ("clipfleet embed nowhere", ["nowhere", "does not exist"]),
        ("clipfleet embed images --url-column link", ["--url-column"]),
        # heads
        ("clipfleet head fit images --name= -o a.head.safetensors", ["--name", "empty"]),
        ("clipfleet head import notes.md --name= -m demo", ["--name", "empty"]),
        # labels again
        ("clipfleet relabel list.csv --labels a,b", ["list.csv is a file", "`clipfleet embed`"]),
        ("clipfleet relabel ./list.csv --labels a,b", ["list.csv is a file", "`clipfleet embed`"]),
        ("clipfleet relabel images --labels a,b", ["no job", "`clipfleet embed`"]),
        ("clipfleet relabel gone --labels a,b", ["'gone'", "clipfleet results FOLDER"]),
        ("clipfleet relabel images --labels a,b -m demo", ["--model", "leave it out"]),
        ("clipfleet relabel images --labels a,b --decode fast", ["--decode", "leave it out"]),
        ("clipfleet relabel images --labels a,b --url-column url", ["--url-column", "leave it out"]),
        # jobs
        ("clipfleet export gone --layout csv --to new", ["'gone'", "clipfleet results FOLDER"]),
        ("clipfleet show 3 --job gone", ["'gone'", "clipfleet results FOLDER"]),
        ("clipfleet show 3 --job=", ["--job", "empty"]),
        ("clipfleet export ./empty --layout csv --to new", ["empty", "no results"]),
        ("clipfleet export . --layout csv --to images", ["images is not empty", "another folder"]),
        ("clipfleet export . --layout csv --to notes.md", ["notes.md is not a folder"]),
        ("clipfleet export . --layout csv --to s3://b/x", ["s3://", "a local folder"]),
        ("clipfleet export . --layout csv --to=", ["--to", "empty"]),
        ("clipfleet export . --layout csv --to -", ["--to", "- would be a folder"]),
        ("clipfleet embed images --output -", ["--output", "- would be a folder"]),
        ("clipfleet export . --layout parquet --to new", ["--layout", "clip-retrieval"]),
        ("clipfleet export .", ["--layout"]),
        ("clipfleet export . --layout csv", ["--to"]),
    ],
)
def test_a_mistake_is_told_with_exit_code_2(run: Run, tmp_path: Path, command: str, words: list[str]) -> None:
    for folder in ("empty", "images"):
        (tmp_path / folder).mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"x")
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "list.csv").write_text("name,shelf\npie,7\n")

    run(*command.split()).is_mistake(*words)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("www/*.jpg", "300 files were given, SOURCE is one: put the glob in quotes, 'www/*.jpg'"),
        ("./www/img1*.jpg", "111 files were given, SOURCE is one: put the glob in quotes, './www/img1*.jpg'"),
        ("www/*", "301 files were given, SOURCE is one: put the glob in quotes, 'www/*'"),
        ("*/*.jpg", "301 files were given, SOURCE is one: put the glob in quotes, '*/*.jpg'"),
        ("it's/*", "2 files were given, SOURCE is one: put the glob in quotes, 'it'\"'\"'s/*'"),
        (
            "www/img1.jpg www/x.png",
            "2 files were given, SOURCE is one: list them in a .txt file, one per line",
        ),
        ("*.csv", "2 lists were given, SOURCE is one: submit them one by one"),
        ("https://h/1 s3://b/2", "2 URLs were given, SOURCE is one: list them in a .txt file, one per line"),
    ],
)
@pytest.mark.parametrize("command", ["classify --labels a,b", "embed", "embed-text"])
def test_names_from_an_unquoted_glob_are_told_as_such(
    run: Run, tmp_path: Path, command: str, given: str, said: str
) -> None:
    names = [f"www/img{number}.jpg" for number in range(300)]
    for name in (*names, "www/x.png", "it's/a.jpg", "it's/b.png", "a.csv", "b.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    expanded = [glob.glob(word) or [word] for word in given.split()]  # noqa: PTH207 - as a shell does

    answer = run("clipfleet", *command.split(), *chain.from_iterable(expanded))

    expected = said
    if command == "embed-text":  # which takes neither a pattern, nor a list of files
        what, _, _ = said.partition(": ")
        expected = f"{what.replace('SOURCE', 'FILE')}: submit them one by one, or put the texts into one .txt"
    assert answer == Answer(2, "", f"error: {expected}\n")


@pytest.mark.parametrize(
    ("words", "unexpected"),
    [
        ("images a.jpg", "argument (a.jpg)"),
        ("images images", "argument (images)"),
        ("images cat dog", "arguments (cat dog)"),
        ("a.jpg nowhere.jpg", "argument (nowhere.jpg)"),
        ("a.jpg b c d e f", "arguments (b c d and 2 more)"),
    ],
)
def test_any_other_argument_too_many_is_named(run: Run, tmp_path: Path, words: str, unexpected: str) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "notes.md"):  # else `images a.jpg` would be what a `*` leads to
        (tmp_path / name).touch()

    answer = run("clipfleet", "embed", *words.split())

    said = f"Got unexpected extra {unexpected} (see `clipfleet embed --help`)"
    assert answer == Answer(2, "", f"error: {said}\n")


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_version(run: Run, program: str) -> None:
    assert run(program, "--version") == Answer(0, f"{program} {clipfleet.__version__}\n", "")


LISTED = {name: [command.split()[1] for command in commands(name, with_hidden=False)] for name in PROGRAMS}
LISTED["clipfleet-worker models"] = ["Usage: clipfleet-worker models"]


@pytest.mark.parametrize("command", LISTED)
def test_without_a_command_a_program_or_group_lists_them(run: Run, command: str) -> None:
    answer = run(*command.split())

    assert (answer.code, answer.err) == (2, "")
    assert all(words in answer.out for words in LISTED[command])


def test_what_cannot_be_sent_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EmptyLedger, "job", lambda _, job_id: job_id.encode())

    answer = run("clipfleet", "status", "x\udcff")

    assert answer == Answer(2, "", "error: 'x\\udcff': not UTF-8\n")


def test_other_text_that_cannot_be_sent_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EmptyLedger, "__init__", lambda *_, **__: "\udcff".encode())
    monkeypatch.setattr(client, "Ledger", EmptyLedger)
    monkeypatch.setenv("CLIPFLEET_REDIS_URL", "redis://nowhere.invalid/0")
    monkeypatch.setattr(sys, "argv", ["clipfleet", "jobs"])

    with pytest.raises(UnicodeEncodeError):
        cli.main()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("REDIS_URL", "", ["CLIPFLEET_REDIS_URL is not set", "clipfleet-worker up"]),
        ("BROKER_URL", "nonsense://:s3cret@h", ["CLIPFLEET_BROKER_URL", "redis://"]),
        ("LEASE_SECONDS", "soon", ["CLIPFLEET_LEASE_SECONDS"]),
        ("JOB_TTL_SECONDS", "0", ["CLIPFLEET_JOB_TTL_SECONDS"]),
        ("REDIS_URL", "host:6379", ["CLIPFLEET_REDIS_URL cannot be used"]),
        ("REDIS_URL", "http://:s3cret@h/0", ["CLIPFLEET_REDIS_URL cannot be used"]),
        ("REDIS_URL", "redis://:s3cret@h:port/0", ["CLIPFLEET_REDIS_URL cannot be used"]),
        ("REDIS_URL", "redis://:s3cret@a..b/0", ["CLIPFLEET_REDIS_URL cannot be used"]),
        ("REDIS_URL", "redis://h\udce9", ["CLIPFLEET_REDIS_URL cannot be used"]),
    ],
)
def test_a_wrong_setting_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: list[str]
) -> None:
    monkeypatch.setattr(client, "Ledger", Ledger)
    monkeypatch.setenv(f"CLIPFLEET_{name}", value)

    run("clipfleet", "status", "x").is_mistake(*words)


@pytest.mark.parametrize(
    ("command", "name", "hint"),
    [
        ("clipfleet jobs --json", "REDIS_ULR", "did you mean CLIPFLEET_REDIS_URL?"),
        ("clipfleet-worker --help", "FILE_ROOT", "did you mean CLIPFLEET_FILE_ROOTS?"),
        ("clipfleet-worker --help", "FROBNICATE", "docs/reference/settings.md lists them all"),
    ],
)
def test_a_misspelt_setting_is_a_warning_and_no_error(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str, name: str, hint: str
) -> None:
    monkeypatch.setenv(f"CLIPFLEET_{name}", "x")

    answer = run(*command.split())

    assert (answer.code, answer.err) == (0, f"warning: unknown setting CLIPFLEET_{name}: {hint}\n")
    assert answer.out


class TestWorker:
    @pytest.mark.parametrize("command", ["run", "up"])
    def test_a_wrong_setting_is_named(self, run: Run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
        monkeypatch.setenv("CLIPFLEET_DEVICE", "gpu")

        run("clipfleet-worker", command).is_mistake(
            "CLIPFLEET_DEVICE: 'gpu' is not one of auto, cpu, cuda, cuda:1"
        )

    def test_all_gpus_where_there_is_none(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(worker_cli, "find_gpus", lambda: ())

        answer = run("clipfleet-worker", "run", "--devices", "all")

        answer.is_mistake("torch sees no GPU here", "CLIPFLEET_DEVICE=cpu")

    def test_the_setting_is_the_way_out_of_it(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        devices = []

        class Noted:
            def __init__(self, shares: list[WorkerShare], **_: object) -> None:
                devices.extend(share.device for share in shares)

            def run(self) -> int:
                return 0

        monkeypatch.setattr(worker_cli, "Processes", Noted)
        monkeypatch.setattr(worker_cli, "find_gpus", lambda: ())
        monkeypatch.setattr(worker_cli, "has_nvidia_gpu", lambda: True)
        monkeypatch.setenv("CLIPFLEET_DEVICE", "cpu")

        assert run("clipfleet-worker", "run", "--devices", "all").code == 0
        assert run("clipfleet-worker", "run", "--processes-per-device", "2").code == 0
        assert devices == ["cpu"] * 3

    def test_a_demo_needs_no_gpu(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        found: list[str] = []
        monkeypatch.setattr(Up, "run", lambda _: found.append(os.environ["CLIPFLEET_DEVICE"]) or 0)
        monkeypatch.setenv("CLIPFLEET_DEVICE", "cuda")
        run("clipfleet-worker", "demo")
        monkeypatch.delenv("CLIPFLEET_DEVICE")
        run("clipfleet-worker", "demo")

        assert found == ["cuda", "cpu"]

    @pytest.mark.parametrize(
        ("models", "words"),
        [
            ("ViT-L-14", "'ViT-L-14' does not name its weights"),
            ("", "--models names no model"),
            (" , ", "--models names no model"),
        ],
    )
    def test_models(self, run: Run, monkeypatch: pytest.MonkeyPatch, models: str, words: str) -> None:
        monkeypatch.setenv("CLIPFLEET_MODELS", "demo")  # restored after the command has changed it

        run("clipfleet-worker", "run", "--models", models).is_mistake(words)

    def test_a_worker_needs_a_redis(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CLIPFLEET_REDIS_URL")

        run("clipfleet-worker", "run").is_mistake("clipfleet-worker up")

    def test_a_folder_with_something_else_in_it_is_no_demo(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.tex").write_text("x")

        run("clipfleet-worker", "demo", "--dir", "mine").is_mistake("--dir")
        assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
