"""The faults that `make chaos-mutants` puts into the product fit the product as it is."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ops.chaos.mutants.patches import ROOT, Mutant, PatchError, all_mutants, apply, copy_product, require_fit

MUTANTS = all_mutants()
ids = [mutant.name for mutant in MUTANTS]


@pytest.mark.parametrize("mutant", MUTANTS, ids=ids)
def test_it_applies_to_the_product(mutant: Mutant) -> None:
    require_fit(mutant)

    assert mutant.patch.read_text().startswith("# ")
    assert mutant.breaks.endswith(".")


def test_there_are_enough_of_outputs_and_sinks() -> None:
    areas = [name.partition("-")[0] for name in ids]

    assert set(areas) == {"output", "sink", "finisher", "ledger"}
    assert areas.count("output") + areas.count("sink") >= 18


@pytest.mark.parametrize("mutant", MUTANTS, ids=ids)
def test_what_it_makes_of_a_file_is_still_python(mutant: Mutant, tmp_path: Path) -> None:
    names = [line[6:] for line in mutant.patch.read_text().splitlines() if line.startswith("+++ b/")]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    apply(mutant, tmp_path)

    for name in names:
        assert (tmp_path / name).read_text() != (ROOT / name).read_text()
        if name.endswith(".py"):
            ast.parse((tmp_path / name).read_text())
    unknown_names = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", str(tmp_path)]
    subprocess.run(unknown_names, check=True)


def test_a_copy_of_the_product_has_the_fault(tmp_path: Path) -> None:
    (mutant,) = (mutant for mutant in MUTANTS if mutant.name == "sink-drops-the-last-row")
    copy_product(tmp_path / "copy", mutant)

    assert "[:-1]" in (tmp_path / "copy/worker/clipfleet_worker/chunk/pipeline.py").read_text()
    assert (tmp_path / "copy/producer/clipfleet/client.py").exists()


def test_a_patch_that_does_not_apply_is_named(tmp_path: Path) -> None:
    patch = tmp_path / "old.patch"
    patch.write_text(
        "# Of a product that was.\n--- a/producer/x.py\n+++ b/producer/x.py\n@@ -1 +1 @@\n-a\n+b\n"
    )

    with pytest.raises(PatchError, match=r"^old does not apply: .*producer/x\.py"):
        require_fit(Mutant("old", "", patch))
