"""Files of marks and label sets that commands write: whole or not at all."""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import json
import os
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from clipfleet.contract.label_sets import Certificate, LabelSet
from clipfleet.errors import OutputUnavailableError, UsageError
from clipfleet.labels.marks import MARK_COLUMNS, is_marked
from clipfleet.labels.sets import label_set_yaml, read_label_set

TO_MARK_COLUMNS = (*MARK_COLUMNS, "uri", "score", "threshold")


def to_mark_text(rows: Iterable[Mapping[str, object]], *, as_json: bool = False) -> str:
    """Rows to mark, as CSV or as JSON Lines."""
    text = io.StringIO()
    if as_json:
        text.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return text.getvalue()
    writer = csv.DictWriter(text, TO_MARK_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def require_unmarked(path: Path) -> None:
    """Refuse to replace a file in which somebody has marked.

    Raises:
        UsageError: it has a verdict, or is no file of marks.
    """
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise UsageError(f"{path}: marks are written as .csv or .jsonl: name such a file")
    if path.exists() and is_marked(path):
        raise UsageError(f"{path} holds verdicts: rename it, or name another file")


def require_yaml(path: Path) -> None:
    """Refuse a name that is not one of a YAML file.

    Raises:
        UsageError: it is not.
    """
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise UsageError(f"{path}: a label set is written as .yaml: name such a file")


def require_replaceable(path: Path, label_set: LabelSet, overwrite: bool) -> None:
    """Refuse to replace a file that holds more than a label set with the same prompts.

    Raises:
        UsageError: it holds something else, or certificates.
    """
    require_yaml(path)
    if overwrite or not path.exists():
        return
    there = read_label_set(str(path))
    if there.certificates:
        labels = ", ".join(dict.fromkeys(one.label for one in there.certificates))
        raise UsageError(
            f"{path} holds certificates ({labels}) of thresholds that a new calibration replaces: name "
            "another file, or add `overwrite=True`"
        )
    if there.prompts_hash != label_set.prompts_hash:
        raise UsageError(f"{path} holds another label set: name another file, or add `overwrite=True`")


def write_calibrated(path: Path, label_set: LabelSet) -> None:
    """Replace a file atomically by a label set; looks that are on record in the file stay spent."""
    with _locked(path):
        try:
            there = read_label_set(str(path)) if path.exists() else label_set
        except UsageError:  # not a label set: nothing is on record
            there = label_set
        known = {
            _subject(one): one for one in there.certificates if there.prompts_hash == label_set.prompts_hash
        }
        for one in label_set.certificates:
            if len(one.looks) >= len(known.get(_subject(one), one).looks):
                known[_subject(one)] = one
        certificates = tuple(known.values())
        write_text(path, label_set_yaml(label_set.model_copy(update={"certificates": certificates})))


def record_certificates(path: Path, read: LabelSet, made: LabelSet) -> LabelSet:
    """Add the certificates of a test to a file, beside those added since it was read; return its label set.

    Args:
        path: the file.
        read: what it held before the test.
        made: the same with the certificates of the test.

    Raises:
        UsageError: the file or a tested label is not what it was.
        OutputUnavailableError: it cannot be written; it is as before.
    """
    with _locked(path):
        there = read_label_set(str(path))
        if there.model_copy(update={"certificates": read.certificates}) != read:
            raise UsageError(f"{path} has changed during the test: run it again")
        now, before = ({_subject(one): one for one in held.certificates} for held in (there, read))
        for one in made.certificates:
            subject = _subject(one)
            if one == before.get(subject):
                continue
            if now.get(subject) != before.get(subject):
                raise UsageError(
                    f"{path}: {one.label!r} was tested by another `certify` meanwhile: run it again"
                )
            now[subject] = one
        found = there.model_copy(update={"certificates": tuple(now.values())})
        write_text(path, label_set_yaml(found))
    return found


def _subject(one: Certificate) -> tuple[object, ...]:
    """What a certificate is about, which looks are counted for."""
    return one.label, one.threshold, one.job_id, one.model_fingerprint, one.label_set_hash


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other commands from writing label sets in the folder of a file; waits for one that does.

    Raises:
        OutputUnavailableError: the folder cannot be opened.
    """
    try:
        descriptor = os.open(path.resolve().parent, os.O_RDONLY)
    except OSError as error:
        raise OutputUnavailableError(f"{path}: {error.strerror or error}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:  # without locks, reading again right before must do
                raise OutputUnavailableError(f"{path}: {error.strerror or error}") from error
        yield
    finally:
        os.close(descriptor)


# NFS answers EBADF: a folder cannot be opened for writing.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically, and keep its mode; of a link, the file that it names.

    Raises:
        OutputUnavailableError: it cannot be written; it is as before.
    """
    target = Path(os.path.realpath(path))
    scratch = target.with_name(f".{target.name[:200]}.{uuid.uuid4().hex[:12]}")
    try:
        with scratch.open("x", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            scratch.chmod(stat.S_IMODE(target.stat().st_mode))
        scratch.replace(target)
    except OSError as error:
        raise OutputUnavailableError(f"{path}: {error.strerror or error}") from error
    finally:
        scratch.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file, if it is there.

    Raises:
        OutputUnavailableError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputUnavailableError(f"{path}: {error.strerror or error}") from error
