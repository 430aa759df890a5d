"""Check a lock file with pip-audit, and report what was not checked: `python -m ops.locks.audit FILE`.

pip-audit needs a vulnerability service in the internet. Without one the check is skipped, with the reason.
Findings are printed and do not fail the check: a vulnerability that became known today is not a fault of this
commit. With `--strict` they end it with exit code 1.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_SECONDS = 15
_WHOLE_SECONDS = 300


def main(arguments: list[str]) -> int:
    is_strict = "--strict" in arguments
    (lock,) = [argument for argument in arguments if argument != "--strict"]
    answer, complaint = _asked(Path(lock))
    if answer is None:
        print(f"skipped: pip-audit gave no answer: {complaint}")
        return 0
    unknown = [one for one in answer if "skip_reason" in one]
    if len(unknown) == len(answer):
        print(f"skipped: the service knows none of the {len(answer)} packages: {unknown[0]['skip_reason']}")
        return 0
    found = [(one, vulnerability) for one in answer for vulnerability in one.get("vulns", [])]
    for one, vulnerability in found:
        mended = ", ".join(vulnerability["fix_versions"]) or "no version yet"
        print(f"{one['name']} {one['version']}: {vulnerability['id']}, mended in {mended}")
    asked = len(answer) - len(unknown)
    print(f"{asked} of {len(answer)} packages asked about, {len(found)} known vulnerabilities")
    return int(is_strict and bool(found))


def _asked(lock: Path) -> tuple[list[dict[str, Any]] | None, str]:
    """The findings of pip-audit by package; or None, and the last line of its output."""
    with TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--require-hashes"]
        command += ["--disable-pip", "--timeout", str(_SECONDS), "--progress-spinner", "off"]
        command += ["--format", "json", "--output", str(report)]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=_WHOLE_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return None, f"still not after {_WHOLE_SECONDS} s"
        if not report.exists():
            said = run.stderr.strip().splitlines() or [f"exit code {run.returncode}"]
            return None, said[-1][:300]
        dependencies: list[dict[str, Any]] = json.loads(report.read_text(encoding="utf-8"))["dependencies"]
        return dependencies, ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
