"""Lua as tokens, and the blocks that they make. No parser: enough to find places, not to judge a script."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

_KEYWORDS = (
    "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "if", "in", "local", "nil",
    "not", "or", "repeat", "return", "then", "true", "until", "while",
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z_]\w*")
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_OPERATOR = re.compile(r"\.\.\.|\.\.|[=~<>]=|[-+*/%^#<>=(){}\[\];:,.]")
_LONG_BRACKET = re.compile(r"\[(=*)\[")
_SPACE = re.compile(r"\s+")


class LuaError(Exception):
    """A text is not Lua, as far as tokens and blocks go."""


@dataclass(frozen=True, slots=True)
class Token:
    """A word of Lua; comments are none."""

    kind: str  # name, keyword, number, string or operator
    text: str
    start: int  # offset in the text

    @property
    def end(self) -> int:
        return self.start + len(self.text)


def tokens_of(text: str) -> Iterator[Token]:
    """All tokens in order. Raises `LuaError`."""
    position = 0
    while position < len(text):
        if space := _SPACE.match(text, position):
            position = space.end()
        elif text.startswith("--", position):
            position = _end_of_comment(text, position)
        else:
            token = _token_at(text, position)
            yield token
            position = token.end


def _end_of_comment(text: str, start: int) -> int:
    if _LONG_BRACKET.match(text, start + 2):
        return _end_of_long_bracket(text, start + 2)
    line_end = text.find("\n", start)
    return len(text) if line_end < 0 else line_end


def _token_at(text: str, start: int) -> Token:
    if text[start] in "'\"":
        return Token("string", text[start : _end_of_string(text, start)], start)
    if _LONG_BRACKET.match(text, start):
        return Token("string", text[start : _end_of_long_bracket(text, start)], start)
    if name := _NAME.match(text, start):
        return Token("keyword" if name[0] in _KEYWORDS else "name", name[0], start)
    for kind, pattern in (("number", _NUMBER), ("operator", _OPERATOR)):
        if found := pattern.match(text, start):
            return Token(kind, found[0], start)
    raise LuaError(f"line {line_at(text, start)}: no token begins with {text[start]!r}")


def _end_of_string(text: str, start: int) -> int:
    position = start + 1
    while position < len(text) and text[position] not in (text[start], "\n"):
        position += 2 if text[position] == "\\" else 1
    if position >= len(text) or text[position] == "\n":
        raise LuaError(f"line {line_at(text, start)}: a string does not end")
    return position + 1


def _end_of_long_bracket(text: str, start: int) -> int:
    opening = _LONG_BRACKET.match(text, start)
    closing = f"]{opening[1]}]" if opening else ""
    end = text.find(closing, start)
    if end < 0:
        raise LuaError(f"line {line_at(text, start)}: a long bracket does not end")
    return end + len(closing)


def line_at(text: str, offset: int) -> int:
    """Number of the line of an offset, from 1 on."""
    return text.count("\n", 0, offset) + 1


@dataclass(frozen=True, slots=True)
class Function:
    """A function that has a name."""

    name: str
    body: range  # indices of its tokens
    is_top_level: bool


@dataclass(frozen=True, slots=True)
class _Structure:
    block_of: Sequence[int]  # number of the innermost block of each token; 0: of none
    block_starts: Mapping[int, int]  # offset of the first character of each block but 0
    functions: Sequence[Function]
    partners: Mapping[int, int]  # index of the closing parenthesis of each opening one


@dataclass(frozen=True)
class Source:
    """A script or a shared fragment."""

    name: str
    text: str

    @cached_property
    def tokens(self) -> Sequence[Token]:
        return list(tokens_of(self.text))

    @cached_property
    def structure(self) -> _Structure:
        return _structure(self.tokens)

    @cached_property
    def is_shared(self) -> bool:
        """Whether it only defines what scripts use."""
        top_level = {
            token.text
            for token, block in zip(self.tokens, self.structure.block_of, strict=True)
            if not block and token.kind == "keyword"
        }
        return not top_level & {"return", "for", "if", "while"}


def _structure(tokens: Sequence[Token]) -> _Structure:
    partners = _partners(tokens)
    block_of: list[int] = []
    starts: dict[int, int] = {}
    functions: list[Function] = []
    stack = [0]
    heads: dict[int, tuple[str, int]] = {}  # closing parenthesis of parameters -> name, index of `function`
    opened: dict[int, tuple[str, int, bool]] = {}  # block of a function -> the same, is_top_level

    def open_block(token: Token) -> int:
        number = len(starts) + 1
        starts[number] = token.end
        stack.append(number)
        return number

    for index, token in enumerate(tokens):
        if index in heads:
            is_top_level = stack == [0]
            opened[open_block(token)] = (*heads[index], is_top_level)
        elif token.kind == "keyword":
            if token.text in ("else", "elseif", "end", "until"):
                if len(stack) == 1:
                    raise LuaError(f"`{token.text}` at offset {token.start} ends no block")
                block = stack.pop()
                if block in opened:
                    name, first, is_top_level = opened[block]
                    functions.append(Function(name, range(first, index), is_top_level))
            if token.text in ("then", "else", "do", "repeat"):
                open_block(token)
            if token.text == "function":
                name = tokens[index + 1].text
                opening = index + (1 if name == "(" else 2)
                heads[partners[opening]] = ("" if name == "(" else name, index)
        block_of.append(stack[-1])
    if len(stack) != 1:
        raise LuaError(f"{len(stack) - 1} blocks do not end")
    return _Structure(block_of, starts, [one for one in functions if one.name], partners)


def _partners(tokens: Sequence[Token]) -> dict[int, int]:
    open_ones, partners = [], {}
    for index, token in enumerate(tokens):
        if token.kind == "operator" and token.text == "(":
            open_ones.append(index)
        elif token.kind == "operator" and token.text == ")":
            if not open_ones:
                raise LuaError(f"`)` at offset {token.start} closes nothing")
            partners[open_ones.pop()] = index
    if open_ones:
        raise LuaError(f"`(` at offset {tokens[open_ones[0]].start} is not closed")
    return partners
