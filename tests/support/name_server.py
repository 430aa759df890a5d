"""A DNS server for tests, on UDP and TCP: a table of names, and answers that change with every question."""

from __future__ import annotations

import itertools
import socketserver
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Self

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

_UDP_BYTES = 512

Answers = Sequence[str] | Iterator[Sequence[str]]


class NameServer:
    """Answers on one address from `__enter__` to `__exit__`.

    Args:
        names: for each name, records as `A 10.0.0.1`, `AAAA fd00::1` or `CNAME other.test`; an iterator gives
            the records of one question for A records after the other (of another type: none). A name that
            begins with `*.` stands for all below it. Other names do not exist.
        silent: names whose questions are never answered.
        host: address to listen on, port 53.
    """

    def __init__(
        self, names: Mapping[str, Answers], *, silent: Sequence[str] = (), host: str = "127.0.0.1"
    ) -> None:
        self.questions: Counter[str] = Counter()  # by name, of every type
        self._names = dict(names)
        self._silent = frozenset(silent)
        self._lock = threading.Lock()
        outer = self

        class Datagram(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                question, endpoint = self.request
                answer = outer._answer(question, limit=_UDP_BYTES)
                if answer is not None:
                    endpoint.sendto(answer, self.client_address)

        class Stream(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while len(head := self.rfile.read(2)) == 2:
                    answer = outer._answer(self.rfile.read(struct.unpack("!H", head)[0]))
                    if answer is not None:
                        self.wfile.write(struct.pack("!H", len(answer)) + answer)

        class Streams(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._servers: list[socketserver.BaseServer] = [
            socketserver.UDPServer((host, 53), Datagram),
            Streams((host, 53), Stream),
        ]

    def __enter__(self) -> Self:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, name="name-server", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _answer(self, wire: bytes, limit: int | None = None) -> bytes | None:
        question = dns.message.from_wire(wire)
        asked = question.question[0]
        name = asked.name.to_text(omit_final_dot=True).lower()
        with self._lock:
            self.questions[name] += 1
            records = self._records(name, asked.rdtype == dns.rdatatype.A)
        if name in self._silent:
            return None
        response = dns.message.make_response(question)
        response.flags |= dns.flags.RA
        if records is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        for owner, record in records or ():
            kind, _, value = record.partition(" ")
            if kind == "CNAME" or dns.rdatatype.from_text(kind) == asked.rdtype:
                value += "." if kind == "CNAME" else ""
                response.answer.append(dns.rrset.from_text(f"{owner}.", 0, "IN", kind, value))
        answer = response.to_wire()
        if limit is not None and len(answer) > limit:
            response.answer.clear()
            response.flags |= dns.flags.TC  # ask again over TCP
            answer = response.to_wire()
        return answer

    def _records(self, name: str, is_for_a: bool) -> list[tuple[str, str]] | None:
        """Records with their owners, aliases followed; None: no such name."""
        found: list[tuple[str, str]] = []
        for _ in range(10):
            answers = self._names.get(name) or self._names.get("*." + name.partition(".")[2])
            if answers is None:
                return found or None
            if not isinstance(answers, Sequence):
                answers = next(answers) if is_for_a else ()
            found += [(name, record) for record in answers]
            alias = next((record for record in answers if record.startswith("CNAME ")), None)
            if alias is None:
                break
            name = alias.removeprefix("CNAME ")
        return found


def then(*answers: Sequence[str]) -> Iterator[Sequence[str]]:
    """One answer for each question, the last one for all further ones."""
    return itertools.chain(answers, itertools.repeat(answers[-1]))
