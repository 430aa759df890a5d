"""The places of the Lua scripts that are changed, one at a time: comparisons, arithmetic and writes.

A write is a call of a command that changes data, or of a function in which there is such a call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256

from ops.mutants.lua import LuaError, Source, Token, line_at

_FLIPPED = {
    "==": "~=", "~=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">",
    "+": "-", "-": "+", "*": "/", "/": "*", "%": "*", "^": "*",
}  # fmt: skip
_COMPARISONS = ("==", "~=", "<", ">=", ">", "<=")
# A new command must be put into one of these.
_WRITES = (
    "COPY", "DECRBY", "DEL", "EXPIRE", "HDEL", "HINCRBY", "HINCRBYFLOAT", "HSET", "HSETNX", "INCR", "INCRBY",
    "PERSIST", "PEXPIRE", "PEXPIREAT", "RENAME", "RPUSH", "SET", "SETBIT", "UNLINK", "XADD", "XDEL",
    "XTRIM", "ZADD", "ZINCRBY", "ZREM", "ZREMRANGEBYRANK", "ZREMRANGEBYSCORE",
)  # fmt: skip
_READS = (
    "BITCOUNT", "EXISTS", "GET", "GETBIT", "HEXISTS", "HGET", "HGETALL", "HKEYS", "HLEN", "HMGET",
    "HRANDFIELD", "LRANGE", "MEMORY", "MGET", "PTTL", "STRLEN", "TIME", "TYPE", "XLEN", "XRANGE",
    "ZCARD", "ZCOUNT", "ZMSCORE", "ZRANGE", "ZRANGEBYSCORE", "ZRANK", "ZREVRANGEBYSCORE", "ZSCORE",
)  # fmt: skip
_ANSWERS_OK = ("RENAME", "SET")
# What stands before a call of which the result is used.
_WANTS_A_VALUE = (
    "(", "[", "{", ",", "=", "+", "-", "*", "/", "%", "^", "#", "..", "==", "~=", "<", ">", "<=", ">=",
    "return", "and", "or", "not", "if", "elseif", "while", "until", "in",
)  # fmt: skip
_ENDS_A_VALUE = (")", "]", "}", "...", "end", "nil", "true", "false")
_NO_STATEMENT = "do end"


@dataclass(frozen=True, slots=True)
class Mutant:
    """A script with one change."""

    script: str
    digest: str  # of the script as it was
    kind: str  # comparison, arithmetic or write
    start: int  # offset of what is replaced
    before: str
    after: str
    line: int
    code: str  # the line as it was
    block: int  # see `Source.structure`

    @property
    def place(self) -> str:
        return f"{self.script}.lua:{self.line}"

    @property
    def change(self) -> str:
        if self.kind != "write":
            return f"{self.before} becomes {self.after or 'nothing'}"
        return (
            f"{self.before} is dropped"
            if self.after == _NO_STATEMENT
            else f"{self.before} becomes {self.after}"
        )

    def of(self, text: str) -> str:
        """The changed text of a script."""
        return text[: self.start] + self.after + text[self.start + len(self.before) :]


def all_mutants(sources: Iterable[Source]) -> list[Mutant]:
    """By script and line.

    Raises:
        LuaError: a text is not Lua, or calls a command that is known neither as a write nor as a read.
    """
    sources = list(sources)
    shared = writing_functions({source.name: source for source in sources if source.is_shared}.values(), ())
    found = []
    for source in sources:
        writers = shared | (frozenset() if source.is_shared else writing_functions([source], shared))
        found += [*_flips(source), *_dropped_writes(source, writers)]
    return sorted(found, key=lambda mutant: (mutant.script, mutant.start, mutant.kind))


def writing_functions(sources: Iterable[Source], known: Iterable[str]) -> frozenset[str]:
    """Names of the functions that write, on their own or through functions that do."""
    sources, names = list(sources), frozenset(known)
    while True:
        more = names | {
            function.name
            for source in sources
            for function in source.structure.functions
            if any(index in function.body for index, *_ in _writes(source, names))
        }
        if more == names:
            return names
        names = more


def _flips(source: Source) -> Iterator[Mutant]:
    for index, token in enumerate(source.tokens):
        if token.kind != "operator" or token.text not in _FLIPPED:
            continue
        is_sign = token.text == "-" and not (index and _ends_a_value(source.tokens[index - 1]))
        kind = "comparison" if token.text in _COMPARISONS else "arithmetic"
        yield _mutant(source, kind, index, token.end, "" if is_sign else _FLIPPED[token.text])


def _dropped_writes(source: Source, writers: frozenset[str]) -> Iterator[Mutant]:
    for index, last, value in _writes(source, writers):
        is_used = index > 0 and source.tokens[index - 1].text in _WANTS_A_VALUE
        yield _mutant(source, "write", index, source.tokens[last].end, value if is_used else _NO_STATEMENT)


def _writes(source: Source, writers: frozenset[str]) -> Iterator[tuple[int, int, str]]:
    """First and last token of each call that writes, and what stands for its result where that is used."""
    tokens, partners = source.tokens, source.structure.partners
    for index, token in enumerate(tokens):
        if token.kind != "name" or (index and tokens[index - 1].text in (".", ":", "function")):
            continue
        after = [one.text for one in tokens[index + 1 : index + 4]]
        if token.text == "redis" and after in ([".", "call", "("], [".", "pcall", "("]):
            command = _command(source, tokens[index + 4])
            if command in _WRITES:
                yield index, partners[index + 3], "({ok = 'OK'})" if command in _ANSWERS_OK else "0"
        elif token.text in writers and after[:1] == ["("]:
            yield index, partners[index + 1], "nil"
        elif token.text == "pcall" and after[:1] == ["("] and after[1] in writers and after[2] in (",", ")"):
            yield index, partners[index + 1], "true"


def _command(source: Source, token: Token) -> str:
    command = token.text.strip("'\"")
    if token.kind != "string" or command not in (*_WRITES, *_READS):
        where = f"{source.name}.lua:{line_at(source.text, token.start)}"
        raise LuaError(f"{where}: {token.text} is known neither as a write nor as a read; see {__name__}")
    return command


def _ends_a_value(token: Token) -> bool:
    return token.kind in ("name", "number", "string") or token.text in _ENDS_A_VALUE


def _mutant(source: Source, kind: str, index: int, end: int, after: str) -> Mutant:
    start = source.tokens[index].start
    line = line_at(source.text, start)
    return Mutant(
        source.name,
        sha256(source.text.encode()).hexdigest()[:12],
        kind,
        start,
        source.text[start:end],
        after,
        line,
        source.text.splitlines()[line - 1].strip(),
        source.structure.block_of[index],
    )


def probed(source: Source) -> str:
    """A script that writes the name of each block that runs into the server's log."""
    text = source.text
    for number, start in sorted(source.structure.block_starts.items(), key=lambda item: -item[1]):
        text = f"{text[:start]} {_probe(source.name, number)} {text[start:]}"
    return text if source.is_shared else f"{_probe(source.name, 0)} {text}"


def _probe(name: str, block: int) -> str:
    return f"redis.log(redis.LOG_WARNING, '@{block_name(name, block)}')"


def block_name(script: str, block: int) -> str:
    return f"{script}.{block}"
