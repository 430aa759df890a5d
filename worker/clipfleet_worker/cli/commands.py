"""`clipfleet-worker`: parses arguments and prints, nothing else."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from clipfleet.commands.options import AsJson
from clipfleet.contract.model_names import normalise_model
from clipfleet.errors import UsageError
from clipfleet.s3.client import SCHEME
from clipfleet.settings import checked
from clipfleet.terminal.console import printable
from clipfleet.terminal.help import MACHINE, MODEL, OUTPUT, add_command
from clipfleet.terminal.program import EXIT_FAILED, new_app, run_program
from clipfleet.wording import counted
from clipfleet_worker.cli import models as cli_models
from clipfleet_worker.cli.requirements import require_extra
from clipfleet_worker.machine.plan import ALL, AUTO, Machine, WorkerShare, find_gpus, plan_processes
from clipfleet_worker.machine.processes import Processes
from clipfleet_worker.process.cores import cpus
from clipfleet_worker.process.device import has_nvidia_gpu
from clipfleet_worker.process.memory_guard import memory_limit
from clipfleet_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from clipfleet_worker.doctor import Finding

app = new_app(
    "Run clipfleet workers, which label and embed images on the CPU or GPUs of this machine.",
    "clipfleet-worker up -- clipfleet classify photos --labels cat,dog",
)

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}
_STOP_SECONDS_BEYOND_DRAIN = 30.0  # by then the watchdog has ended a worker that hangs

app.add_typer(cli_models.app, name="models")

Models = Annotated[
    str | None,
    typer.Option(
        "--models",
        "-m",
        metavar="NAME,...",
        help="models to serve; the first one is loaded at start",
        rich_help_panel=MODEL,
    ),
]
Directory = Annotated[
    Path,
    typer.Option("--dir", help="folder for data and logs of the embedded servers", rich_help_panel=MACHINE),
]

Roots = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="DIR",
        exists=True,
        file_okay=False,
        help="the worker reads and writes files below it, in place of the current folder; repeatable",
        rich_help_panel=MACHINE,
    ),
]
WithS3 = Annotated[
    bool,
    typer.Option(
        "--s3", help="also start an S3 store, with a bucket named clipfleet", rich_help_panel=MACHINE
    ),
]
_GATEWAY_PORT = 8080
Gateway = Annotated[
    bool,
    typer.Option(
        "--gateway",
        help="also serve HTTP; clients of OpenAI find it by OPENAI_BASE_URL and OPENAI_API_KEY",
        rich_help_panel=MACHINE,
    ),
]
GatewayPort = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=65535,
        help=f"the same, at this port of loopback in place of {_GATEWAY_PORT}",
        rich_help_panel=MACHINE,
    ),
]
Keep = Annotated[
    bool,
    typer.Option(
        "--keep",
        help="leave all of it running in the background, for further commands",
        rich_help_panel=MACHINE,
    ),
]


def _set_models(models: str | None) -> None:
    """Override CLIPFLEET_MODELS by the option; an error names the option."""
    if models is None:
        return
    names = [name.strip() for name in models.split(",") if name.strip()]
    if not names:
        raise UsageError("--models names no model; give a name, or omit the option")
    for name in names:
        try:
            normalise_model(name)
        except ValueError as error:
            raise UsageError(f"--models: {error}") from None
    os.environ["CLIPFLEET_MODELS"] = models


@add_command(app, "clipfleet-worker run --models ViT-B-32:datacomp_xl_s13b_b90k")
def run(
    models: Models = None,
    devices: Annotated[
        str | None,
        typer.Option(
            "--devices",
            metavar="NAME,...",
            help="a process for each: all, cpu, or cuda:0,cuda:1",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    processes_per_device: Annotated[
        str | None,
        typer.Option(
            "--processes-per-device",
            metavar="NUMBER",
            help="processes for each device, or auto",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", hidden=True)] = None,
) -> None:
    """Process chunks of the Redis at CLIPFLEET_REDIS_URL until SIGTERM."""
    require_extra()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # until the worker holds chunks
    from clipfleet_worker.process.logs import log_to_stderr

    _set_models(models)
    settings = checked(WorkerSettings)
    settings.require_redis_url()
    if devices is not None or processes_per_device is not None:
        shares = _plan(devices or AUTO, processes_per_device or AUTO, settings)
        log_to_stderr("parent")
        stop_seconds = settings.drain_seconds + _STOP_SECONDS_BEYOND_DRAIN
        raise typer.Exit(Processes(shares, stop_seconds=stop_seconds, environment=os.environ).run())
    from clipfleet_worker.assembly.worker import Worker
    from clipfleet_worker.process.drain import end_process

    log_to_stderr(name)
    end_process(Worker(settings, preload="models" in settings.model_fields_set).run())


def _plan(devices: str, per_device: str, settings: WorkerSettings) -> list[WorkerShare]:
    if settings.device == "cpu" and devices in (ALL, AUTO):
        devices = "cpu"
    machine = Machine(
        gpus=() if devices == "cpu" else find_gpus(),
        has_nvidia_gpu=has_nvidia_gpu(),
        cores=cpus(),
        memory_bytes=memory_limit(settings.max_memory_bytes),
    )
    return plan_processes(devices, per_device, machine)


@add_command(
    app,
    "clipfleet-worker up -- clipfleet classify photos --labels cat,dog",
    context={"ignore_unknown_options": False, "allow_interspersed_args": False},
)
def up(
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- COMMAND",
            help="run this command with the environment set, then stop (with --keep: go on)",
        ),
    ] = None,
    directory: Directory = Path(".clipfleet"),
    no_worker: Annotated[
        bool, typer.Option("--no-worker", help="start the servers only", rich_help_panel=MACHINE)
    ] = False,
    with_s3: WithS3 = False,
    gateway: Gateway = False,
    gateway_port: GatewayPort = None,
    models: Models = None,
    root: Roots = None,
    keep: Keep = False,
    stop: Annotated[
        bool, typer.Option("--stop", help="stop what runs in the background", rich_help_panel=MACHINE)
    ] = False,
) -> None:
    """Run an embedded Valkey and a worker on this machine, for one command or until Ctrl-C."""
    roots = [path.absolute() for path in root or ()]
    port = gateway_port or (_GATEWAY_PORT if gateway else None)
    options = _up_options(models, roots, no_worker=no_worker, with_s3=with_s3, gateway_port=port)
    from clipfleet_worker.machine.kept import KeptUp

    kept = KeptUp(directory, options)
    if stop:
        if command or keep or options:
            raise UsageError("--stop goes with --dir only")
        raise typer.Exit(kept.stop())
    if not no_worker:
        require_extra()
    if port is not None:
        require_extra("gateway")
    from clipfleet_worker.machine.up import PROGRAM, RUN_WORKER, Up

    _set_models(models)
    settings = checked(WorkerSettings)
    if keep or (command and kept.can_be_used()):
        raise typer.Exit(
            kept.run([*PROGRAM, "up", "--dir", str(directory.absolute()), *options], command or ())
        )
    run = Up(
        directory,
        worker_argv=None if no_worker else [*RUN_WORKER, *(["--models", models] if models else [])],
        command=command,
        with_s3=with_s3,
        gateway_port=port,
        roots=roots,
        options=options,
        worker_stop_seconds=settings.drain_seconds + _STOP_SECONDS_BEYOND_DRAIN,
        lease_seconds=settings.lease_seconds,
    )
    raise typer.Exit(run.run())


def _up_options(
    models: str | None, roots: Iterable[Path], *, no_worker: bool, with_s3: bool, gateway_port: int | None
) -> list[str]:
    """Options that repeat an `up`, in an order of their own."""
    return [
        *(["--models", models] if models else []),
        *(["--no-worker"] if no_worker else []),
        *(["--s3"] if with_s3 else []),
        *(["--gateway-port", str(gateway_port)] if gateway_port is not None else []),
        *(word for path in roots for word in ("--root", str(path))),
    ]


@add_command(app, "clipfleet-worker demo --dir clipfleet-demo")
def demo(
    directory: Annotated[
        Path,
        typer.Option(
            "--dir", help="folder of the demo: new, empty, or of an earlier demo", rich_help_panel=MACHINE
        ),
    ] = Path("clipfleet-demo"),
) -> None:
    """Label sixty sample images with the demo model, on an embedded server and a real worker."""
    require_extra()
    from clipfleet_worker.cli.demo import run_demo

    raise typer.Exit(run_demo(directory))


@add_command(app, "CLIPFLEET_HEALTH_PORT=9100 clipfleet-worker exporter")
def exporter() -> None:
    """Export job and queue metrics to Prometheus, at CLIPFLEET_HEALTH_PORT; works without a worker."""
    require_extra("exporter")
    from clipfleet_worker.process.logs import log_to_stderr
    from clipfleet_worker.status.metrics.ledger import hasty_ledger, run_exporter

    settings = checked(WorkerSettings)
    if settings.health_port is None:
        raise UsageError("CLIPFLEET_HEALTH_PORT is not set; set it to the port that Prometheus scrapes")
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    log_to_stderr()
    ledger = hasty_ledger(settings.require_redis_url())
    run_exporter(ledger, settings.health_host, settings.health_port, ending)


@add_command(app, "clipfleet-worker doctor -o s3://vectors/nightly")
def doctor(
    output: Annotated[
        list[str] | None,
        typer.Option(
            "--output",
            "-o",
            metavar="s3://BUCKET/PREFIX",
            help="also check that it is writable; may be repeated",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check everything that a worker with these settings needs; each problem comes with its remedy."""
    require_extra()
    outputs = output or []
    for uri in outputs:
        if not uri.startswith(SCHEME):
            raise UsageError(f"--output {uri!r} is not in S3; list folders in CLIPFLEET_OUTPUT_ROOTS")
    settings = checked(WorkerSettings)
    from clipfleet_worker.doctor import examine
    from clipfleet_worker.doctor.all_checks import all_checks

    findings = examine(list(all_checks(settings, os.environ, outputs)))
    problems = _print_json(findings) if as_json else _print(findings)
    raise typer.Exit(EXIT_FAILED if problems else 0)


@add_command(app, "clipfleet-worker weights linear.pth linear.safetensors", hidden=True)
def weights(given: Path, made: Path) -> None:
    """Write the tensors of a torch file as safetensors, for `clipfleet head import`."""
    require_extra("worker")
    from clipfleet_worker.models.weights_file import convert_weights

    convert_weights(given, made)


def _print(findings: Iterable[Finding]) -> int:
    console = Console(highlight=False, soft_wrap=True)
    counts = dict.fromkeys(_STYLES, 0)
    for finding in findings:
        counts[finding.level] += 1
        head = Text(f"{finding.level:8}", style=_STYLES[finding.level])
        console.print(head, Text(f"{finding.check:9} {printable(finding.what)}"))
        if finding.remedy:
            console.print(Text(f"{'':18} -> {printable(finding.remedy)}"))
    problems = counts["problem"]
    console.print(
        Text(
            f"{counted(problems, 'problem')}, {counted(counts['warning'], 'warning')}",
            style=_STYLES["problem" if problems else "ok"],
        )
    )
    return problems


def _print_json(findings: Iterable[Finding]) -> int:
    found = list(findings)
    typer.echo(json.dumps({"findings": [asdict(finding) for finding in found]}))
    return sum(finding.level == "problem" for finding in found)


def main() -> None:
    """Entry point, see `run_program`."""
    run_program(app, "clipfleet-worker", WorkerSettings, has_all_settings=True)
