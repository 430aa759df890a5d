"""Files damaged by seed: the same seed gives the same damage, on every machine."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Sequence

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_BYTES = 300_000
_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_WORDS = (
    b"\0", b"\n", b"\r\n", b'"', b"'", b",", b"\t", b":", b"{", b"}", b"[", b"]", b"- ", b"&a ", b"*a", b"!!",
    b"\xef\xbb\xbf", b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"null", b"NaN", b"Infinity", b"-1", b"1e999",
    b"99999999999999999999", b"http://", b"file://", b"data:", b"s3://", b"../", b"~", b"%00", b"\\u0000",
    b"\\ud800", b"[" * 3000, b"{\"a\":" * 3000, b"a" * 5000,
)  # fmt: skip

Damage = Callable[[bytearray, random.Random], None]


def mutated(seeds: Sequence[bytes], seed: int) -> bytes:
    """One of the seeds with one to eight damages; a PNG's checksums are put right again half of the time."""
    chance = random.Random(seed)
    data = bytearray(chance.choice(seeds))
    if chance.random() < 0.1:
        other = chance.choice(seeds)
        data[_place(data, chance) :] = other[_place(bytearray(other), chance) :]
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        chance.choice(_DAMAGES)(data, chance)
    if data.startswith(_PNG_SIGNATURE) and chance.random() < 0.5:
        _put_checksums_right(data)
    return bytes(data[:_MAX_BYTES])


def _place(data: bytearray, chance: random.Random) -> int:
    """Headers are short and bodies long: half of the places are near the beginning."""
    end = min(len(data), 128) if chance.random() < 0.5 else len(data)
    return chance.randrange(end + 1)


def _flip_a_bit(data: bytearray, chance: random.Random) -> None:
    if data:
        data[min(_place(data, chance), len(data) - 1)] ^= 1 << chance.randrange(8)


def _set_a_byte(data: bytearray, chance: random.Random) -> None:
    if data:
        data[min(_place(data, chance), len(data) - 1)] = chance.choice((0, 0x7F, 0xFF, chance.randrange(256)))


def _set_a_number(data: bytearray, chance: random.Random) -> None:
    size, order = chance.choice((("B", ""), ("H", ">"), ("H", "<"), ("I", ">"), ("I", "<")))
    packed = struct.pack(order + size, chance.choice(_NUMBERS) % (1 << (8 * struct.calcsize(size))))
    start = _place(data, chance)
    data[start : start + len(packed)] = packed


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[_place(data, chance) :]


def _take_out(data: bytearray, chance: random.Random) -> None:
    start = _place(data, chance)
    del data[start : start + chance.choice((1, 2, 4, 16, 256))]


def _repeat(data: bytearray, chance: random.Random) -> None:
    start = _place(data, chance)
    piece = bytes(data[start : start + chance.choice((1, 4, 16, 64, 1024))])
    data[start:start] = piece * chance.choice((1, 2, 10, 100))


def _put_in(data: bytearray, chance: random.Random) -> None:
    start = _place(data, chance)
    data[start:start] = chance.choice((*_WORDS, chance.randbytes(chance.choice((1, 3, 20, 300)))))


def _overwrite(data: bytearray, chance: random.Random) -> None:
    start = _place(data, chance)
    noise = chance.randbytes(chance.choice((1, 2, 8, 64, 500)))
    data[start : start + len(noise)] = noise


def _swap(data: bytearray, chance: random.Random) -> None:
    size = chance.choice((1, 4, 32, 200))
    one, other = sorted((_place(data, chance), _place(data, chance)))
    data[one : one + size], data[other : other + size] = data[other : other + size], data[one : one + size]


_DAMAGES: tuple[Damage, ...] = (
    _flip_a_bit, _set_a_byte, _set_a_number, _set_a_number, _cut,
    _take_out, _repeat, _put_in, _overwrite, _swap,
)  # fmt: skip


def _put_checksums_right(data: bytearray) -> None:
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(data):
        size = int(struct.unpack_from(">I", data, position)[0])
        end = position + 8 + size
        if end + 4 > len(data):
            return
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[position + 4 : end]))
        position = end + 4
