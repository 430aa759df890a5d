"""A script carries those shared definitions that it uses, in their order, and no others."""

from __future__ import annotations

import pytest

from clipfleet.lua_scripts import script_text, shared_definitions, whole_script

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

    assert found.splitlines() == [
        "local FIRST, SECOND = 1, 2",
        "local function inner(x)",
        "  return FIRST + x",
        "end",
        "local function outer(x)",
        "",
        "  return inner(x)",
        "end",
        "-- unused",
        "return outer(1)",
    ]


def test_a_script_that_uses_nothing_stays_alone() -> None:
    assert whole_script(SHARED, "return 1") == "return 1"


def test_one_of_several_values_of_a_line_is_enough() -> None:
    assert whole_script(SHARED, "return SECOND").startswith("local FIRST, SECOND = 1, 2\n")


def test_what_only_the_rare_part_uses_stands_before_that() -> None:
    script = "if inner(1) then return SECOND end\n-- Rarely:\nreturn outer(inner(2))\n"

    before, after = whole_script(SHARED, script).split("if inner(1) then return SECOND end\n")

    assert "local function inner(" in before
    assert "local FIRST, SECOND" in before
    assert "local function outer(" not in before
    assert "local function outer(" in after
    assert "local function inner(" not in after


@pytest.mark.parametrize("name", ["claim", "complete"])
def test_the_scripts_that_run_for_every_chunk_make_little_of_what_ends_jobs(name: str) -> None:
    often, rarely = script_text(name).split("-- Rarely:\n")

    before = whole_script(shared_definitions(), script_text(name)).split(rarely)[0].split(often)[0]

    assert "local function is_kept(" in before
    for rare in ("keep_job", "end_job", "announce", "apply_draft", "add_up_measured", "JOB_SUFFIXES"):
        assert f"local function {rare}(" not in before
        assert f"local {rare} " not in before
