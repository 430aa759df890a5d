"""What `make lua-mutants` takes for a place in a Lua script, and how it runs the tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ops.mutants.hosts import ROOT, Ended, Host, HostError, scripts_folder
from ops.mutants.lua import LuaError, Source, tokens_of
from ops.mutants.order import Order
from ops.mutants.places import Mutant, all_mutants, probed
from tests.support.processes import is_gone

PRODUCT = [Source(path.stem, path.read_text()) for path in scripts_folder(ROOT).glob("*.lua")]
SHARED = """\
local function keep(key)
  redis.call('PEXPIRE', key, 1)
end
local function end_job(job) keep(job) end
"""


def mutants_of(text: str, shared: str = SHARED) -> list[Mutant]:
    found = all_mutants([Source("shared", shared), Source("script", f"{text}\nreturn 1")])
    return [mutant for mutant in found if mutant.script == "script"]


def texts_of(text: str) -> list[str]:
    return [mutant.of(text) for mutant in mutants_of(text)]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("a -- b == 1\nc", ["a", "c"]),
        ("a --[[ b ==\n1 ]] c --[=[ ]] ]=]", ["a", "c"]),
        (r"""x = 'it\'s < 1' .. "a--b" """, ["x", "=", r"'it\'s < 1'", "..", '"a--b"']),
        ("f [==[ ]] + ]==] [[\n]]", ["f", "[==[ ]] + ]==]", "[[\n]]"]),
        ("1e-5<=0x1F ..2.5", ["1e-5", "<=", "0x1F", "..", "2.5"]),
        ("#a~=b[1].c ...", ["#", "a", "~=", "b", "[", "1", "]", ".", "c", "..."]),
    ],
)
def test_tokens(text: str, tokens: list[str]) -> None:
    assert [token.text for token in tokens_of(text)] == tokens


@pytest.mark.parametrize("text", ["x = 'a", "--[[ a", "x = @", "f(", "f)", "if a then", "end"])
def test_what_is_not_lua_is_an_error(text: str) -> None:
    with pytest.raises(LuaError):
        all_mutants([Source("script", text)])


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("x = a == b", ["x = a ~= b"]),
        ("x = a >= b or c < d", ["x = a < b or c < d", "x = a >= b or c >= d"]),
        ("x = a - 1", ["x = a + 1"]),
        ("x = f(-a, -1)", ["x = f(a, -1)", "x = f(-a, 1)"]),
        ("x = (a) * b[1] / 2", ["x = (a) / b[1] / 2", "x = (a) * b[1] * 2"]),
        ("x = a .. '==' -- < >", []),
    ],
)
def test_each_comparison_and_operator_is_flipped(text: str, changed: list[str]) -> None:
    assert texts_of(text) == changed


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("redis.call('HGET', k, 'f')", []),
        ("if a then redis.call('DEL', f(k)) end", ["if a then do end end"]),
        ("x = redis.pcall('ZREM', k, 1)", ["x = 0"]),
        ("x = redis.pcall('RENAME', k, l).err", ["x = ({ok = 'OK'}).err"]),
        ("keep(k)", ["do end"]),
        ("x = a and end_job(k)", ["x = a and nil"]),
        ("if pcall(end_job, k) then f() end", ["if true then f() end"]),
        ("x = {keep = 1}; x.keep(k)", []),
    ],
)
def test_each_write_is_dropped(text: str, changed: list[str]) -> None:
    assert texts_of(text) == changed


def test_a_function_of_one_script_is_no_write_in_another() -> None:
    one = Source("one", "local function f() redis.call('DEL', 'k') end\nf()\nreturn 1")
    other = Source("other", "f()\nreturn 1")

    assert [mutant.place for mutant in all_mutants([one, other])] == ["one.lua:1", "one.lua:2"]


@pytest.mark.parametrize("command", ["'FROBNICATE'", "name"])
def test_a_command_of_which_nothing_is_known_is_an_error(command: str) -> None:
    with pytest.raises(LuaError, match=r"^script\.lua:2: .* is known neither as a write nor as a read"):
        mutants_of(f"\nredis.call({command}, k)")


def test_places_in_the_scripts_of_the_product() -> None:
    mutants = all_mutants(PRODUCT)

    assert {source.name for source in PRODUCT if source.is_shared} == {
        "measured",
        "mending",
        "outbox",
        "transitions",
    }
    assert {mutant.script for mutant in mutants} == {source.name for source in PRODUCT}
    assert len(mutants) > 700


def test_each_block_of_a_script_has_a_probe() -> None:
    script = probed(Source("s", "if a then b() elseif c then d(function(x) e() end) end\nreturn 1"))

    def of_block(number: int) -> str:
        return f"redis.log(redis.LOG_WARNING, '@s.{number}')"

    assert script.startswith(f"{of_block(0)} if a then {of_block(1)}  b() elseif c then {of_block(2)}  d(")
    assert f"function(x) {of_block(3)}  e() end" in script
    assert probed(Source("shared", SHARED)).startswith("local function keep(key) redis.log(")


def test_only_tests_that_run_the_place_are_tried_and_the_likely_ones_first() -> None:
    tests = [
        Ended("slow", 9.0, frozenset({"script.0", "script.1"})),
        Ended("fast", 1.0, frozenset({"script.0", "script.1"})),
        Ended("beside", 0.1, frozenset({"script.0"})),
        Ended("other", 0.1, frozenset()),
    ]
    inner, outer = mutants_of("if a then x = b + 1 end\nx = c + 1")
    order = Order(tests)

    assert list(order.limits(inner)) == ["fast", "slow"]
    assert list(order.limits(outer)) == ["beside", "fast", "slow"]

    for _ in range(20):
        order.learn(inner, "slow")

    assert list(order.limits(inner)) == ["slow", "fast"]


TINY_MODULE = """
from pathlib import Path

def text():
    return Path(__file__).with_name("lua").joinpath("a.lua").read_text()
"""
TINY_TEST = """
import subprocess, threading, tiny
from pathlib import Path

def test_log(tmp_path_factory):
    tmp_path_factory.getbasetemp().joinpath("valkey.log").write_text(f"1:M # {tiny.text()}\\n")

def test_hang():
    if tiny.text() == "hang":
        server = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        Path("server.pid").write_text(str(server.pid))
        threading.Event().wait()

def test_fail():
    assert tiny.text() != "fail"
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    root = tmp_path_factory.mktemp("tree")
    scripts = root / "producer/tiny/lua"
    scripts.mkdir(parents=True)
    (root / "worker").mkdir()
    (scripts / "a.lua").write_text("fine")
    (scripts.parent / "__init__.py").write_text(TINY_MODULE)
    (root / "test_tiny.py").write_text(TINY_TEST)
    with Host(root, ["test_tiny.py"]) as host:
        yield host


def test_a_host_finds_the_blocks_that_a_test_runs(host: Host) -> None:
    outcome = host.survey({"a": "@a.7"}, 60)

    assert {one.test.rpartition("::")[2]: one.blocks for one in outcome.ended} == {
        "test_log": {"a.7"}, "test_hang": set(), "test_fail": set()
    }  # fmt: skip
    assert not outcome.failed


@pytest.mark.parametrize(
    ("text", "failed", "failure"),
    [
        ("fine", [], ""),
        ("fail", ["test_fail"], "AssertionError: assert 'fail' != 'fail'"),
        ("hang", ["test_hang"], "1 s"),
    ],
)
def test_a_test_that_fails_or_hangs_kills(host: Host, text: str, failed: list[str], failure: str) -> None:
    limits = {name: 1.0 if text in name else 60.0 for name in host.tests}

    outcome = host.run("a", text, limits)

    assert [name.rpartition("::")[2] for name in outcome.failed] == failed
    assert failure in "".join(outcome.failed.values())


def test_servers_of_a_test_that_hangs_end_with_it(host: Host) -> None:
    host.run("a", "hang", dict.fromkeys(host.tests, 1.0))

    assert is_gone(int((host.root / "server.pid").read_text()))


def test_tests_that_cannot_be_collected_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "producer/lua").mkdir(parents=True)
    (tmp_path / "worker").mkdir()
    (tmp_path / "test_bad.py").write_text("import no_such_module")

    with pytest.raises(HostError, match="no_such_module"):
        Host(tmp_path, ["test_bad.py"])
