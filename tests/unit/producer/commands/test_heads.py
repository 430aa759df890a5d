"""What `clipfleet head import` prints: the head on stdout, where it lies on stderr."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from clipfleet.commands import app
from clipfleet.commands.evaluating.heads import chosen_heads
from clipfleet.contract.jobs import SourceDescription
from clipfleet.errors import UsageError
from clipfleet.heads.files import write_head
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from tests.support.heads import head_file
from tests.support.jobs import make_job, place_job
from tests.support.rows import add_part, embedded, note_manifest

IMPORT = ("head", "import", "weights.npy", "--as", "linear", "--labels", "cat,dog", "--model", "demo")


@pytest.fixture(autouse=True)
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("weights.npy", np.eye(4, 2, dtype=np.float32))


def test_words() -> None:
    said = CliRunner().invoke(app, [*IMPORT, "-o", "pets.head.safetensors"])

    assert said.exit_code == 0, said.output
    assert said.stdout.startswith("pets: chooses one of its labels")
    assert "->" not in said.stdout.replace("4 -> 2", "")


def test_one_object() -> None:
    said = CliRunner().invoke(app, [*IMPORT, "--json"])

    found = json.loads(said.stdout)
    assert (found["file"], found["name"], found["labels"]) == (
        "weights.head.safetensors", "weights", ["cat", "dog"],
    )  # fmt: skip
    assert Path(found["file"]).is_file()


def test_the_file_of_a_head_to_compare_with_goes_with_another_head() -> None:
    with pytest.raises(UsageError, match=r"^--compare other\.head\.safetensors: the file of a head goes"):
        chosen_heads(None, "other.head.safetensors")


STRANGE = ("\x1b]0;owned\x07cat", "dog\nmodel  another")


@pytest.mark.parametrize(
    "command",
    [
        ("show", "strange.head.safetensors"),
        ("fit", "results", "--truth-column", "truth", "-o", "new.head.safetensors"),
    ],
)
def test_control_characters_of_labels_do_not_reach_the_terminal_of_head(command: tuple[str, ...]) -> None:
    _require_escaped("head", *command)


def test_control_characters_of_labels_do_not_reach_the_terminal_of_evaluate() -> None:
    _require_escaped("evaluate", "results", "--truth-column", "truth", "--head", "strange.head.safetensors")


def _require_escaped(*command: str) -> None:
    output = FolderOutput(Path("results"))
    source = SourceDescription(kind="csv", uri="/list.csv", extra_columns=("truth",))
    place_job(output, make_job(output.uri, source=source))
    vectors = [(1.0, 0.1), (0.1, 1.0)]
    rows = [
        {
            **embedded(number, *vectors[number % 2]), "truth": STRANGE[number % 2],
            "model_fingerprint": "0" * 16,
        }
        for number in range(6)
    ]  # fmt: skip
    add_part(output, 0, rows, types={"truth": pa.string()})
    note_manifest(output, [objects.LAYOUT.part(0)])
    write_head(head_file(2, 2, labels=STRANGE), Path("strange.head.safetensors"))

    said = CliRunner().invoke(app, command)

    assert said.exit_code == 0, said.output
    assert "\x1b" not in said.output and "\x07" not in said.output
    assert r"\x1b]0;owned\x07cat" in said.stdout and r"dog\nmodel  another" in said.stdout
