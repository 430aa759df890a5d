"""A script carries those shared definitions that it uses, in their order, and no others."""

from __future__ import annotations

import pytest

from clipfleet.ledger import scripts
from clipfleet.ledger.chunks import _SCRIPTS as LEDGER_SCRIPTS
from clipfleet.ledger.scripts import guarded_script, script_text, shared_definitions, whole_script

SHARED = """\
-- Says what is below.
local JOBS = 'jobs'

-- Mentions unused, and is no use of it.
local FIRST, SECOND = 1, 2

local function unused(x)
  return JOBS .. x
end

local function inner(x)
  return FIRST + x
end

-- Uses one above.
local function outer(x)
  -- unused
  return inner(x)
end
"""


def test_what_is_used_and_what_that_uses_goes_before_the_script() -> None:
    found = whole_script(SHARED, "-- unused\nreturn outer(1)\n")

    assert (
        found
        == """\
local FIRST, SECOND = 1, 2
local function inner(x)
  return FIRST + x
end
local function outer(x)

  return inner(x)
end
-- unused
return outer(1)
"""
    )


def test_what_only_the_rare_part_uses_stands_before_that() -> None:
    script = "if inner(1) then return SECOND end\n-- Rarely:\nreturn outer(inner(2))\n"

    before, after = whole_script(SHARED, script).split("if inner(1) then return SECOND end\n")

    assert "local function inner(" in before
    assert "local FIRST, SECOND" in before
    assert "local function outer(" not in before
    assert "local function outer(" in after
    assert "local function inner(" not in after


@pytest.mark.parametrize("name", LEDGER_SCRIPTS)
def test_what_only_the_guard_asks_for_costs_nothing_where_nothing_is_damaged(name: str) -> None:
    text = scripts.unguarded_script(shared_definitions(), script_text(name))

    assert "at_hand" not in "\n".join(line for line in text.splitlines() if "--" not in line)


def test_the_guard_stands_below_the_script_and_knows_what_it_dealt_with() -> None:
    text = guarded_script(SHARED, "at_hand = 7\nreturn outer(1)\n", "return inner(at_hand)\n")

    lines = text.splitlines()
    assert lines[:2] == ["local at_hand, queue_at_hand", "local function body()"]
    assert lines.index("at_hand = 7") < lines.index("end", lines.index("at_hand = 7"))
    assert lines[-1] == "return inner(at_hand)"
    assert lines.count("local function inner(x)") == 2  # what the body has made is out of the guard's sight


@pytest.mark.parametrize("name", ["claim", "complete"])
def test_the_scripts_that_run_for_every_chunk_make_little_of_what_ends_jobs(name: str) -> None:
    often, rarely = script_text(name).split("-- Rarely:\n")

    before = whole_script(shared_definitions(), script_text(name)).split(rarely)[0].split(often)[0]

    assert "local function is_kept(" in before
    for rare in ("keep_job", "end_job", "announce", "apply_draft", "add_up_measured", "JOB_SUFFIXES"):
        assert f"local function {rare}(" not in before
        assert f"local {rare} " not in before
