"""The steps at which a harness lets the product die, of which the product itself knows nothing."""

from __future__ import annotations

from ops.chaos.crash_points import CrashPoint
from tests.support.documents import ROOT


def test_the_points_have_the_names_of_the_design() -> None:
    names = "after_claim mid_fetch before_write mid_write after_write after_complete before_ack"
    assert {point.value for point in CrashPoint} == {*names.split(), "mid_submit", "after_seal", "mid_finish"}


def test_no_code_setting_or_variable_of_the_product_leads_to_them() -> None:
    sources = [*ROOT.glob("producer/**/*.py"), *ROOT.glob("worker/**/*.py")]

    assert sources
    assert [path for path in sources if "crash_point" in path.read_text(encoding="utf-8").lower()] == []
