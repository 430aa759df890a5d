"""A script carries those shared definitions that it uses, in their order, and no others."""

from __future__ import annotations

from importlib.resources import files

from clipfleet import keys
from clipfleet.lua_scripts import whole_script

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


def test_the_scripts_that_run_for_every_chunk_carry_little_of_what_ends_jobs() -> None:
    folder = files("clipfleet") / "lua"
    shared = f"{keys.lua_prelude()}\n{(folder / 'transitions.lua').read_text()}"

    claim = whole_script(shared, (folder / "claim.lua").read_text())

    assert "local function keep_job_hourly(" in claim
    for name in ("end_job", "announce", "apply_draft", "refusal", "PENDING_SUFFIXES"):
        assert f"local function {name}(" not in claim
        assert f"local {name} " not in claim
