"""Names of keys: made in one place, the same for Lua and Python, apart from each other."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest

from clipfleet.ledger import keys
from clipfleet.ledger.chunks import _SCRIPTS as LEDGER_SCRIPTS
from clipfleet.ledger.errands import _SCRIPTS as ERRAND_SCRIPTS
from clipfleet.ledger.events.outbox import OUTBOX_SCRIPTS
from clipfleet.ledger.locks import LOCK_SCRIPTS
from clipfleet.ledger.row_store import _SCRIPTS as STORE_SCRIPTS
from clipfleet_gateway.keys.quotas import QUOTA_SCRIPTS
from tests.support.documents import ROOT

SCRIPTS = {path.name: path.read_text() for path in Path(str(files("clipfleet.ledger") / "lua")).glob("*.lua")}
CODE = sorted([*ROOT.glob("producer/**/*.py"), *ROOT.glob("worker/**/*.py")])


def without_comments(script: str) -> str:
    return re.sub(r"--[^\n]*", "", script)


def lua_constants() -> dict[str, str]:
    return dict(re.findall(r"^local (\w+) = '([^']*)'$", keys.lua_prelude(), flags=re.MULTILINE))


class TestLua:
    def test_every_constant_is_pythons(self) -> None:
        constants = lua_constants()

        assert constants == {name: getattr(keys, name) for name in constants}
        assert {"JOBS", "LEASES", "STAGED", "DONE"} <= set(constants)

    def test_every_suffix_of_a_job_is_known_to_lua(self) -> None:
        for name in ("JOB_SUFFIXES", "PENDING_SUFFIXES", "RESULT_SUFFIXES"):
            listed = re.search(rf"local {name} = \{{(.*)\}}", keys.lua_prelude())
            assert listed is not None
            assert tuple(re.findall(r"'([^']*)'", listed[1])) == getattr(keys, name)
        suffixes = {value for value in lua_constants().values() if value.startswith(":")}
        assert suffixes | {""} == {*keys.JOB_SUFFIXES, *keys.RESULT_SUFFIXES, *keys.WEBHOOK_SUFFIXES}

    @pytest.mark.parametrize("name", SCRIPTS)
    def test_no_script_spells_a_key(self, name: str) -> None:
        script = without_comments(SCRIPTS[name])
        for value in [f"{keys.PREFIX}:", *keys.JOB_SUFFIXES[1:], *keys.RESULT_SUFFIXES]:
            assert f"'{value}" not in script
            assert f'"{value}' not in script

    @pytest.mark.parametrize("name", sorted(lua_constants()))
    def test_every_constant_is_used_by_a_script(self, name: str) -> None:
        assert any(re.search(rf"\b{name}\b", without_comments(script)) for script in SCRIPTS.values())

    def test_every_script_is_loaded_and_every_loaded_one_exists(self) -> None:
        loaded = {f"{name}.lua" for name in (*LEDGER_SCRIPTS, *STORE_SCRIPTS, *ERRAND_SCRIPTS, *LOCK_SCRIPTS)}
        loaded |= {f"{name}.lua" for name in (*QUOTA_SCRIPTS, *OUTBOX_SCRIPTS)}
        assert loaded | {"measured.lua", "outbox.lua", "transitions.lua", "mending.lua", "guard.lua"} == set(
            SCRIPTS
        )


class TestRedis:
    def test_no_two_names_are_equal_whatever_a_job_is_called(self) -> None:
        single = [value for value in lua_constants().values() if value.startswith(f"{keys.PREFIX}:")]
        names = [*single, keys.lane_queue("high", "demo"), keys.claim_token("x")]
        for job_id in ("jobs", "leases", "lane", "token", "events"):
            names += [keys.job(job_id, suffix) for suffix in (*keys.JOB_SUFFIXES, *keys.RESULT_SUFFIXES)]
            names += [keys.pending(job_id, "rows", suffix) for suffix in keys.PENDING_SUFFIXES]

        assert len(set(names)) == len(names)
        assert all(name.startswith(f"{keys.PREFIX}:") for name in names)

    def test_all_keys_of_a_job_lie_together(self) -> None:
        assert {keys.job("j", suffix).split("}")[0] for suffix in keys.JOB_SUFFIXES} == {"clipfleet:{j"}

    def test_the_names_of_the_tasks_are_not_those_of_keys(self) -> None:
        assert len({keys.QUEUE, keys.WORK_TASK, keys.FINISH_TASK}) == 3
        assert ":" not in keys.QUEUE + keys.WORK_TASK + keys.FINISH_TASK
