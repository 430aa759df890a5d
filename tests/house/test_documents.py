"""README, pages, changelog, contributor's notes, image and container files say what the code says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer
from pydantic.fields import FieldInfo

from clipfleet import commands as producer_cli
from clipfleet.commands import following
from clipfleet.contract.heads import HeadKind
from clipfleet.contract.jobs import ErrorCode
from clipfleet.contract.label_sets import Claim, Promise
from clipfleet.contract.parts import PART_COLUMNS
from clipfleet.contract.webhooks import EventType
from clipfleet.labels.certifying import MOST_LOOKS, level, passes
from clipfleet.settings import Settings
from clipfleet.store.rows import OWN_COLUMNS
from clipfleet.terminal import program
from clipfleet.webhooks.schedule import DELAYS_SECONDS, MAX_ATTEMPTS
from clipfleet_gateway import commands as gateway_cli
from clipfleet_gateway.settings import GatewaySettings
from clipfleet_worker.cli import commands as worker_cli
from clipfleet_worker.decode.formats import ALLOWED_FORMATS
from clipfleet_worker.settings import WorkerSettings
from tests.support.documents import README, ROOT, documents, repository_files, table
from tests.support.heads import head_file

SETTING = re.compile(r"\bCLIPFLEET_[A-Z][A-Z_]*[A-Z]\b")
NOT_GIVEN = "not given yet"
DOCS = ROOT / "docs"
SETTINGS_PAGE = DOCS / "reference" / "settings.md"
ERRORS_PAGE = DOCS / "reference" / "errors.md"
COMMANDS_PAGE = DOCS / "reference" / "commands.md"
RESULTS_PAGE = DOCS / "results.md"
STORE_PAGE = DOCS / "store.md"
CERTIFY_PAGE = DOCS / "certify.md"
WEBHOOKS_PAGE = DOCS / "webhooks.md"

# Codes of failures that may pass without a change of the item.
RETRYABLE = {
    "rate_limited", "server_error", "dns_failed", "connect_failed", "tls_failed", "timeout",
    "incomplete_body", "decode_timeout", "out_of_memory", "model_unavailable", "output_unreachable",
    "chunk_failed",
}  # fmt: skip


def setting_names() -> set[str]:
    return {
        f"CLIPFLEET_{name.upper()}" for name in (*WorkerSettings.model_fields, *GatewaySettings.model_fields)
    }


def shown_default(name: str, field: FieldInfo) -> str:
    """A default as the settings page writes it."""
    value: Any = field.default
    if value is None or value == "":
        return "not set"
    if isinstance(value, tuple):
        return f"`{','.join(value)}`" if value else "empty"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if "bytes" in name and value:
        return f"`{value}` ({value >> 20} MiB)"
    if name.endswith("ttl_seconds"):
        return f"`{value}` ({value // 86_400} days)"
    return f"`{value}`"


def test_the_settings_table_is_that_of_the_code() -> None:
    of_the_gateway = {
        name: field
        for name, field in GatewaySettings.model_fields.items()
        if name not in WorkerSettings.model_fields
    }
    expected = [
        [f"`CLIPFLEET_{name.upper()}`", shown_default(name, field), field.description]
        for name, field in {**WorkerSettings.model_fields, **of_the_gateway}.items()
    ]
    assert table(SETTINGS_PAGE, "variable", "default", "meaning") == expected
    assert all(name.startswith("gateway_") for name in of_the_gateway)


def test_producers_read_the_first_eight_settings() -> None:
    assert list(WorkerSettings.model_fields)[:8] == list(Settings.model_fields)
    assert (
        "Producers read the first eight, workers all but those of the gateway." in SETTINGS_PAGE.read_text()
    )


def test_the_error_table_is_that_of_the_contract() -> None:
    rows = table(ERRORS_PAGE, "code", "meaning", "retryable")
    assert [(code, retryable) for code, _, retryable in rows] == [
        (f"`{code}`", "yes" if code in RETRYABLE else "no") for code in ErrorCode
    ]


def test_codes_that_are_never_given_are_marked() -> None:
    sources = [*ROOT.glob("producer/**/*.py"), *ROOT.glob("worker/**/*.py")]
    text = "\n".join(path.read_text() for path in sources)
    given = {code for code in ErrorCode if re.search(rf"ErrorCode\.{code.name}\b", text)}
    rows = table(ERRORS_PAGE, "code", "meaning", "retryable")
    marked = {code.strip("`") for code, meaning, _ in rows if meaning == NOT_GIVEN}
    assert marked == {code.value for code in ErrorCode} - {code.value for code in given}


def test_the_listed_formats_are_those_of_the_decoder() -> None:
    meanings = {row[0]: row[1] for row in table(ERRORS_PAGE, "code", "meaning", "retryable")}
    assert meanings["`format_refused`"].endswith(", ".join(ALLOWED_FORMATS))


def test_the_columns_table_is_that_of_the_contract() -> None:
    assert [row[0] for row in table(RESULTS_PAGE, "column", "type", "what it holds")] == [
        f"`{name}`" for name in PART_COLUMNS
    ]


def test_the_columns_of_a_store_are_those_of_its_datasets() -> None:
    rows = table(STORE_PAGE, "column of a store", "type", "what it holds")
    assert tuple(name.strip("`") for row in rows for name in row[0].split(", ")) == OWN_COLUMNS


def test_the_columns_of_a_head_are_those_of_the_contract() -> None:
    head = head_file(4, 2, name="NAME", kind=HeadKind.MULTILABEL).of_job
    rows = table(RESULTS_PAGE, "column of a head", "type", "what it holds")
    assert [row[0] for row in rows] == [f"`{name}`" for name in head.columns]


def test_the_events_of_webhooks_are_those_of_the_contract() -> None:
    rows = table(WEBHOOKS_PAGE, "type", "when", "`data`")
    assert [row[0] for row in rows] == [f"`{one}`" for one in EventType]


def test_the_back_off_of_webhooks_is_that_of_the_code() -> None:
    units = {"s": 1, "min": 60, "h": 3600}
    rows = table(WEBHOOKS_PAGE, "failed attempts", "wait")
    shown = [float(number) * units[unit] for number, unit in (wait.split() for _, wait in rows)]
    assert [int(attempts) for attempts, _ in rows] == [*range(1, MAX_ATTEMPTS)]
    assert shown == [*DELAYS_SECONDS]


def test_the_marks_needed_are_those_of_the_first_look() -> None:
    for precision, *shown in table(CERTIFY_PAGE, "precision", "confidence 0.95", "confidence 0.9"):
        promise = Promise(claim=Claim.PRECISION, value=float(precision))
        for cell, confidence in zip(shown, (0.95, 0.9), strict=True):
            needed = [_marks_needed(promise, wrong, 1, confidence) for wrong in range(4)]
            assert cell == " / ".join(map(str, needed)), (precision, confidence)


def test_the_marks_needed_at_each_look_are_named() -> None:
    promise = Promise(claim=Claim.PRECISION, value=0.95)
    first, second, third, last = (_marks_needed(promise, 0, look, 0.95) for look in range(1, MOST_LOOKS + 1))
    text = " ".join(CERTIFY_PAGE.read_text().split())
    assert f"precision 0.95 needs {first}, {second}, {third} and {last} marks" in text


def _marks_needed(promise: Promise, wrong: int, look: int, confidence: float) -> int:
    return next(n for n in range(wrong + 1, 2000) if passes(promise, wrong, n, level(look, confidence)))


@pytest.mark.parametrize(
    ("name", "app"),
    [
        ("clipfleet", producer_cli.app),
        ("clipfleet-gateway", gateway_cli.app),
        ("clipfleet-worker", worker_cli.app),
    ],
)
def test_the_commands_table_has_every_command(name: str, app: typer.Typer) -> None:
    listed = [row[0].strip("`") for row in table(COMMANDS_PAGE, "command", "what it does")]
    group: Any = typer.main.get_command(app)
    expected = [f"{name} {command}" for command in commands_of(group)]
    found = [line for line in listed if line.split()[0] == name]
    assert len(found) == len(expected)
    for line, command in zip(found, expected, strict=True):
        assert f"{line} ".startswith(f"{command} ")


def commands_of(group: Any) -> list[str]:
    """Names of all commands that are shown; those of a group follow its name."""
    names = []
    for name, command in group.commands.items():
        if command.hidden:
            continue
        inner = commands_of(command) if hasattr(command, "commands") else []
        names += [f"{name} {one}" for one in inner] or [name]
    return names


def test_the_exit_codes_are_those_of_the_command() -> None:
    named = vars(following) | vars(program)
    codes = {0, *(value for name, value in named.items() if name.startswith("EXIT_"))}
    assert [row[0] for row in table(COMMANDS_PAGE, "exit code", "meaning")] == [
        str(code) for code in sorted(codes)
    ]


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_names_exists(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    named = re.findall(r"`((?:\.ci|docs|ops|producer|tests|worker)/[^`*\s]*|[\w.-]+\.(?:md|yml|toml))`", text)
    named += [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    for name in named:
        path, *inside = name.split("::")
        beside = document.parent / path
        assert (ROOT / path).exists() or beside.exists(), f"{document.name} names {name}"
        for word in inside:
            found = re.search(rf"(def|class) {word}\b", (ROOT / path).read_text())
            assert found, f"{document.name} names {name}"


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_inside_a_document_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    anchors = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= anchors


def test_variables_that_are_named_are_settings() -> None:
    names = [*documents(), ROOT / "docker-compose.yml", *ROOT.glob("ops/**/*")]
    named = {name for path in names if path.is_file() for name in SETTING.findall(_text(path))}
    assert "CLIPFLEET_REDIS_URL" in named
    assert named <= setting_names()


def test_every_threat_names_a_defence_and_a_test() -> None:
    rows = table(ROOT / "SECURITY.md", "attacker", "what they try", "defence", "proven by")
    assert len(rows) >= 8
    assert all(len(row) == 4 and re.search(r"`tests/\S+`", row[3]) for row in rows)
    assert "](SECURITY.md)" in README.read_text()


def test_the_notes_for_contributors_are_short() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 60


def test_the_changelog_begins_with_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    newest = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[0]
    assert newest == version


def test_the_drawing_is_well_formed_and_has_its_own_background() -> None:
    image = ElementTree.parse(ROOT / "docs" / "path-of-a-chunk.svg").getroot()  # noqa: S314 - our own file
    width, height = float(image.get("width", 0)), float(image.get("height", 0))
    background = next(image.iter("{http://www.w3.org/2000/svg}rect"))
    assert float(background.get("width", 0)) >= width - 2
    assert float(background.get("height", 0)) >= height - 2
    words = " ".join("".join(text.itertext()) for text in image.iter("{http://www.w3.org/2000/svg}text"))
    lease_seconds = Settings.model_fields["lease_seconds"].default
    assert f"{lease_seconds:g} s; one call renews all leases every {lease_seconds / 3:g} s." in words


@pytest.mark.parametrize("name", ["producer", "worker"])
def test_a_dockerfile_copies_what_exists_and_ends_without_root(name: str) -> None:
    text = (ROOT / "ops" / "docker" / f"{name}.Dockerfile").read_text()
    assert f"dockerfile: ops/docker/{name}.Dockerfile" in (ROOT / "docker-compose.yml").read_text()
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in sent
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, flags=re.MULTILINE):
        *sources, _ = line.split()
        assert all((ROOT / source).exists() and f"!{source}" in sent for source in sources), line
    assert int(re.findall(r"^USER (.*)$", text, flags=re.MULTILINE)[-1]) > 0


def test_images_are_pinned_to_a_version() -> None:
    files = [ROOT / "docker-compose.yml", *ROOT.glob("ops/docker/*.Dockerfile")]
    text = "\n".join(map(Path.read_text, [*files, *ROOT.glob("ops/kubernetes/*/*/redis.yaml")]))
    images = re.findall(r"^(?:FROM|\s+image:) (\S+)", text, flags=re.MULTILINE)
    assert len(images) >= 9
    for image in images:
        assert re.search(r":v?\d+\.\d+[\w.-]*$", image), image


def test_no_file_names_a_package_registry_or_a_path_of_one_machine() -> None:
    parts = "py+pi.org python+hosted.org npm+js.org npm+js.com deb.+debian.org security.+debian.org"
    parts += " download.py+torch.org crates+.io proxy.go+lang.org"
    hosts = parts.replace("+", "").split()
    machine = re.compile(r"(?<![\w.\-/*}])/(?:wo" + r"rk|ro" + r"ot|opt/whe" + r"els)/")
    for path in repository_files():
        text = _text(path)
        assert not [host for host in hosts if host in text], path
        assert not machine.search(text), (path, machine.search(text))


def _text(path: Path) -> str:
    """Content of a text file; nothing for a binary one."""
    data = path.read_bytes()
    return "" if b"\0" in data[:8192] else data.decode("utf-8", errors="replace")
