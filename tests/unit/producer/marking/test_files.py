"""Label sets on disk: whole, in place, and with every look that was spent."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from clipfleet.contract.label_sets import Certificate, Claim, LabelSet, Look, Promise, Verdict
from clipfleet.errors import UsageError
from clipfleet.labels.sets import label_set_yaml, read_label_set
from clipfleet.marking.files import record_certificates, write_calibrated
from tests.support.marked_outputs import multi_set

NAMES = tuple(f"label-{number}" for number in range(12))


def certificate(label: str = NAMES[0], marks: int = 36) -> Certificate:
    return Certificate(
        label=label, threshold=0.5, promise=Promise(claim=Claim.PRECISION, value=0.9), confidence=0.95,
        looks=(Look(marks=marks, wrong=0),), verdict=Verdict.CERTIFIED, output="/out", job_id="j",
        model_fingerprint="m", label_set_hash="h", at=datetime(2026, 12, 1, tzinfo=UTC),
    )  # fmt: skip


def holding(*certificates: Certificate) -> LabelSet:
    return multi_set(NAMES, certificates=certificates)


@pytest.fixture
def path(folder: Path) -> Path:
    """A file with a label set without certificates."""
    path = folder / "labels.yaml"
    path.write_text(label_set_yaml(holding()))
    return path


def test_tests_at_once_lose_no_look(path: Path) -> None:
    read = read_label_set(str(path))

    def record(label: str) -> None:
        made = read.model_copy(update={"certificates": (certificate(label),)})
        record_certificates(path, read, made)

    with ThreadPoolExecutor(len(NAMES)) as pool:
        list(pool.map(record, NAMES))

    assert {one.label for one in read_label_set(str(path)).certificates} == set(NAMES)


def test_a_label_that_was_tested_meanwhile_is_not_recorded(path: Path) -> None:
    read = read_label_set(str(path))
    first, second = (read.model_copy(update={"certificates": (certificate(marks=n),)}) for n in (36, 60))
    record_certificates(path, read, first)

    with pytest.raises(UsageError, match="'label-0' was tested by another `certify` meanwhile"):
        record_certificates(path, read, second)
    with pytest.raises(UsageError, match="has changed during the test"):
        record_certificates(path, read.model_copy(update={"slope": None, "templates": ("{}",)}), second)

    assert read_label_set(str(path)).certificates == first.certificates


def test_a_link_stays_a_link_and_its_file_keeps_its_mode(path: Path) -> None:
    link = path.parent / "links" / "l.yaml"
    link.parent.mkdir()
    link.symlink_to(path)
    path.chmod(0o664)
    read = read_label_set(str(link))

    record_certificates(link, read, read.model_copy(update={"certificates": (certificate(),)}))

    assert link.is_symlink()
    assert len(read_label_set(str(path)).certificates) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o664
    assert sorted(path.parent.iterdir()) == [path, link.parent]


def test_a_new_calibration_keeps_the_looks_that_are_on_record(path: Path) -> None:
    longer = certificate(marks=60)
    path.write_text(label_set_yaml(holding(longer.model_copy(update={"looks": longer.looks * 2}))))

    write_calibrated(path, holding(certificate(), certificate("label-1")))

    found = {one.label: len(one.looks) for one in read_label_set(str(path)).certificates}
    assert found == {"label-0": 2, "label-1": 1}
