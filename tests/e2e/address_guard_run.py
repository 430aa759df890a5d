"""The address guard's hostile job, for a process in a network namespace of its own.

    unshare --map-root-user --net --mount python -m tests.e2e.address_guard_run FOLDER

Real workers and the real command line label images by URLs that want to get inside, in a network where
every address leads to listeners (`tests/support/closed_network.py`). What came of it goes to
`FOLDER/report.json`.
"""

from __future__ import annotations

import csv
import json
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.support.closed_network import EveryAddress, open_network
from tests.support.cluster import Cluster
from tests.support.http_site import CERTIFICATE
from tests.support.images import encoded, make_image
from tests.support.name_server import NameServer, then
from tests.support.waiting import wait_until

PUBLIC_V4, PUBLIC_V6 = "93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"
OTHER_PUBLIC = "8.8.8.8"
PUBLIC_BEHIND_NAT64 = "64:ff9b::5db8:d822"
STORE = ("10.9.9.9", 9000)  # the operator's S3 endpoint
PUBLIC = {(host, port) for host in (PUBLIC_V4, OTHER_PUBLIC, PUBLIC_V6) for port in (80, 443)} | {
    (PUBLIC_BEHIND_NAT64, 80)
}
PORTS = (80, 443, 22, 25, 2375, 3128, 6379, 8000, 8080, 9000, 9200, 11211)
IMAGES_ON_ONE_HOST, IMAGES_ON_A_DEAD_HOST = 1000, 200
SITE = "http://site.test"
IMAGE = "/image.png"

# Every kind of address that is not public, where something inside a network could listen.
INTERNAL = (
    "10.0.0.1", "127.0.0.1", "127.8.8.8", "0.0.0.0", "100.64.0.1",  # noqa: S104 - nothing is bound here
    "172.17.0.1", "192.168.1.1", "198.18.0.1", "203.0.113.9", "240.0.0.1", "[::1]", "[::]", "[fc00::1]",
    "[fec0::1]", "[100::1]", "[2001:db8::1]",
    # The metadata services of Alibaba, Azure, AWS and its containers, Oracle, Google
    "100.100.100.200", "168.63.129.16", "169.254.169.254", "[fd00:ec2::254]", "169.254.170.2", "192.0.0.192",
    "[fd20:ce::254]",
    # 10.0.0.1 and 169.254.169.254 by Teredo, 6to4, NAT64, in IPv6, and by ISATAP
    "[2001:0:4136:e378:8000:63bf:f5ff:fffe]", "[2002:a00:1::]", "[2002:a9fe:a9fe::1]", "[64:ff9b::a00:1]",
    "[64:ff9b::169.254.169.254]", "[64:ff9b:1::a00:1]", "[::ffff:10.0.0.1]", "[::ffff:a9fe:a9fe]",
    "[::ffff:0:10.0.0.1]", "[::10.0.0.1]", "[fe80::1%25lo]", "[fe80::5efe:10.0.0.1%25lo]",
    "[2606:4700::5efe:10.0.0.1]", "[2606:4700::200:5efe:a00:1]",
)  # fmt: skip
# 10.0.0.1 and the like in writings that some program or other understands.
DISGUISED = (
    "10.1", "10.0.1", "167772161", "0xa000001", "0xA.0.0.1", "012.0.0.1", "01200000001", "0x0a.0.0x0.01",
    "10.0.0.1.", "①⓪.⓪.⓪.①", "10。0。0。1", "\uff11\uff10.0.0.1", "10.0.0.1\u2024",
    "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ", "127.1", "2130706433", "017700000001", "0x7f.1", "0", "localhost", "LOCALHOST",
    "2852039166", "0251.0376.0251.0376",  # 169.254.169.254
)  # fmt: skip
# Names that lead inside.
NAMES: dict[str, Any] = {
    "site.test": [f"A {PUBLIC_V4}", f"AAAA {PUBLIC_V6}"],
    "xn--bcher-kva.test": [f"A {PUBLIC_V4}"],
    "alias-of-site.test": ["CNAME site.test"],
    "many.test": [f"A {PUBLIC_V4}"],
    "mixed.test": ["A 10.0.0.2", f"A {PUBLIC_V4}", "A 192.168.0.2", "AAAA fd00::2"],
    "large.test": [*(f"A 10.2.0.{number}" for number in range(60)), f"A {PUBLIC_V4}"],
    "localhost": ["A 127.0.0.1"],
    "inside.test": ["A 10.0.0.3"],
    "metadata.google.internal": ["A 169.254.169.254"],
    "intranet.search.test": ["A 10.0.0.4"],
    "all-inside.test": ["A 10.0.0.5", "A 172.16.0.5", "AAAA fd00::5"],
    "six.test": ["AAAA fd00:ec2::254"],
    "mapped.test": ["AAAA ::ffff:10.0.0.6"],
    "nat64.test": ["AAAA 64:ff9b::a00:7"],
    "sixtofour.test": ["AAAA 2002:a00:8::1"],
    "chain.test": ["CNAME chain-2.test"],
    "chain-2.test": ["CNAME chain-3.test"],
    "chain-3.test": ["CNAME inside.test"],
    "alias-of-localhost.test": ["CNAME local.test"],
    "local.test": ["A 127.0.0.1"],
    "*.10.0.0.9.nip.test": ["A 10.0.0.9"],
    "large-inside.test": [f"A 10.3.0.{number}" for number in range(60)],
    # Rebinding: public when asked first, inside when asked again (https is a second question).
    "rebind.test": then([f"A {PUBLIC_V4}"], ["A 10.0.0.10"]),
    "rebind-metadata.test": then([f"A {PUBLIC_V4}"], ["A 169.254.169.254"]),
    "rebind-mixed.test": then([f"A {PUBLIC_V4}"], ["A 10.0.0.11", "A 127.0.0.1"]),
}


def to(*hops: str) -> str:
    """A URL that redirects from one to the next, the first one last in this nest of escapes."""
    uri = hops[-1]
    for hop in reversed(hops[:-1]):
        uri = f"{hop}/to?{quote(uri, safe='')}"
    return uri


def inside(host: str, port: int | None = None, scheme: str = "http") -> str:
    return f"{scheme}://{host}{f':{port}' if port else ''}{IMAGE}"


@dataclass(frozen=True)
class Case:
    uri: str
    expected: str  # error code, or `ok`


def cases() -> list[Case]:
    """What is asked of the worker with the default settings."""
    refused = [inside(host) for host in (*INTERNAL, *DISGUISED)]
    refused += [inside("10.0.0.1", port) for port in PORTS]
    refused += [inside(host, scheme="https") for host in ("10.0.0.1", "[::1]", "169.254.169.254", "127.1")]
    refused += [inside(name) for name in NAMES if "inside" in name or "metadata.google" in name]
    leading_inside = ("chain.test", "intranet", "mapped.test", "six.test")
    refused += [inside(name) for name in (*leading_inside, "nat64.test", "sixtofour.test")]
    refused += [inside(name) for name in ("alias-of-localhost.test", "a.10.0.0.9.nip.test")]
    refused += [inside(PUBLIC_V4, port) for port in PORTS if port not in (80, 443)]
    refused += [inside("site.test", 8080), inside(f"[{PUBLIC_V6}]", 6379), "http://site.test:0/image.png"]
    refused += ["http://10.0.0.1#@site.test/image.png", "http://10.0.0.1?@site.test/image.png"]
    refused += [to(SITE, inside(host)) for host in (*INTERNAL[:20], *DISGUISED)]
    refused += [to(SITE, inside(name)) for name in (*leading_inside, "inside.test")]
    refused += [
        to("https://site.test", inside("10.0.0.1", scheme="https")),
        to(SITE, SITE, SITE, SITE, SITE, inside("10.0.0.1")),
        to(SITE, "https://site.test", inside("169.254.169.254", scheme="https")),
        to(f"http://[{PUBLIC_V6}]", inside("[::1]")),
        to(SITE, "//10.0.0.1/image.png"),
        to(SITE, f"{SITE}:8080{IMAGE}"),
        to("http://rebind.test", "https://rebind.test" + IMAGE),
        to("http://rebind-metadata.test", "https://rebind-metadata.test" + IMAGE),
        to("http://rebind-mixed.test", SITE, "https://rebind-mixed.test" + IMAGE),
    ]
    return [*(Case(uri, "address_refused") for uri in refused), *_other_refusals(), *_good()]


BAD_URIS = (
    "file://10.0.0.1/etc/passwd", "http://user:secret@site.test/image.png",
    "http://site.test@10.0.0.1/image.png", "http://site.test:80@10.0.0.1/image.png",
    r"http://10.0.0.1\@site.test/image.png", r"http://site.test\.10.0.0.1/image.png",
    "http:///10.0.0.1/image.png", "http:////10.0.0.1/image.png", "http://10.0.0.1:٨٠/image.png",
    *(f"http://site.test:{port}/image.png" for port in ("65536", "-80", "+80", "80:80")),
    "http://site.test;@10.0.0.1/image.png", "http://site.test%2F@10.0.0.1/image.png",
    "http://10.0.0.1%00.site.test/image.png", "http://10.0.0.1%0d%0aHost:x/image.png",
    "http://site.test\t/image.png", "http://site.test/\r\nHost: 10.0.0.1", "http://10.0.0.1 /image.png",
    "http://[10.0.0.1]/image.png", "http://[::1/image.png", "http://[::ffff:10.0.0.1]extra/image.png",
    "http://./image.png", "http://?@10.0.0.1/",
)  # fmt: skip


def _other_refusals() -> list[Case]:
    """What is refused for another reason than its address."""
    by_code = {
        "scheme_refused": [
            "ftp://10.0.0.1/image.png", "gopher://10.0.0.1:6379/_FLUSHALL", "dict://10.0.0.1:11211/stats",
            "ldap://10.0.0.1/", "ws://10.0.0.1/image.png", "unix:///var/run/docker.sock",
            "jar://10.0.0.1!/image.png",
            *(to(SITE, scheme) for scheme in ("ftp://10.0.0.1/", "s3://bucket/image.png", "ws://10.0.0.1/")),
            *(to(SITE, scheme) for scheme in ("file:///etc/passwd", "javascript:alert(1)")),
            to(SITE, "gopher://10.0.0.1:6379/_FLUSHALL"),
            to(SITE, "data:image/png;base64,iVBORw0KGgo="),
            to("https://site.test", f"{SITE}{IMAGE}"),  # downgrade
            to("https://site.test", "http://10.0.0.1/image.png"),
        ],
        "path_refused": ["file:///etc/passwd", "//10.0.0.1/image.png", "/proc/self/environ"],
        "bad_uri": [
            *BAD_URIS,
            to(SITE, "http://user:secret@site.test/image.png"),
            to(SITE, "//user@10.0.0.1/image.png"),
            to(SITE, "http://10.0.0.1\\@site.test/image.png"),
            to(SITE, "http://site.test:65536/"),
        ],
        "too_many_redirects": [to(*[SITE] * 7, inside("10.0.0.1")), to(*[SITE] * 7 + [f"{SITE}{IMAGE}"])],
        "dns_failed": [inside("nowhere.test"), to(SITE, inside("nowhere.test")), inside("silent.test")],
        "bucket_refused": [
            "s3://10.0.0.1/image.png", "s3://169.254.169.254/latest/meta-data", "s3://bucket/../10.0.0.1/x",
        ],
        "not_found": ["s3://bucket/image.png"],
    }  # fmt: skip
    return [Case(uri, code) for code, uris in by_code.items() for uri in uris]


def _good() -> list[Case]:
    hosts = (
        PUBLIC_V4, OTHER_PUBLIC, f"[{PUBLIC_V6}]", f"[::ffff:{PUBLIC_V4}]", f"[{PUBLIC_BEHIND_NAT64}]",
        "bücher.test", "xn--bcher-kva.test", "alias-of-site.test", "mixed.test", "large.test", "site.test",
        "site.test.", "site.test:80", "site.test:",
    )  # fmt: skip
    uris = [
        *map(inside, hosts),
        f"HTTP://SITE.TEST{IMAGE}",
        f"https://site.test{IMAGE}",
        f"{SITE}{IMAGE}#@10.0.0.1/",
        f"{SITE}{IMAGE}?next=http://user@10.0.0.1/",
        to(SITE, IMAGE),
        to(SITE, "https://site.test" + IMAGE),
        to(*[SITE] * 5, f"{SITE}{IMAGE}"),
    ]
    return [Case(uri, "ok") for uri in uris]


def cases_of_an_allowing_worker() -> list[Case]:
    """What is asked of a worker with `ALLOWED`: exactly what is named is open, on any port."""
    allowed = [
        inside("10.77.7.1"),
        inside("10.77.7.255", 6379),
        inside("[::ffff:10.77.7.1]", 8080),
        inside("[fd77::1]"),
        inside("allowed.test", 22),
        to(SITE, inside("10.77.7.1")),
        inside("192.168.7.7"),
        f"{SITE}{IMAGE}",
    ]
    beside = ("10.77.6.255", "10.77.8.0", "10.0.0.1", "192.168.7.6", "[fd77:0:0:1::1]", "127.0.0.1")
    refused = [
        *map(inside, beside),
        inside("192.168.7.8", 8080),
        inside("[2002:a4d:701::]"),
        inside("[64:ff9b::10.77.7.1]"),  # another network's 10.77.7.1, behind its gateway
        inside("10.77.1793"),  # 10.77.7.1, disguised
        inside(PUBLIC_V4, 8080),
        to(SITE, inside("10.0.0.1")),
        to(inside("10.77.7.1").removesuffix(IMAGE), inside("10.0.0.1")),
    ]
    return [*(Case(uri, "ok") for uri in allowed), *(Case(uri, "address_refused") for uri in refused)]


ALLOWED = "10.77.7.0/24,192.168.7.7,fd77::/64"
ALLOWED_CONNECTIONS = {
    ("10.77.7.1", 80), ("10.77.7.255", 6379), ("10.77.7.1", 8080), ("fd77::1", 80), ("10.77.7.2", 22),
    ("192.168.7.7", 80),
}  # fmt: skip


@dataclass
class Report:
    """What came of one job."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    accepted: list[tuple[str, int, int]] = field(default_factory=list)  # address, port, connections
    questions: dict[str, int] = field(default_factory=dict)  # to the name server, by name
    controls: dict[str, bool] = field(default_factory=dict)  # whether a plain client reached a listener


def main() -> None:
    folder = Path(sys.argv[1])
    open_network([PUBLIC_V4, PUBLIC_V6])
    _ask_here(folder)
    image = folder / "image.png"
    image.write_bytes(encoded(make_image(1), "PNG"))
    names = NAMES | {"allowed.test": ["A 10.77.7.2"], "*.store.test": [f"A {STORE[0]}"]}
    names["store.test"] = names["*.store.test"]
    settings = {
        "SSL_CERT_FILE": str(CERTIFICATE),
        "AWS_ENDPOINT_URL": f"http://store.test:{STORE[1]}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "CLIPFLEET_S3_BUCKETS": "bucket",
    }
    for part in ("default", "allowing"):
        (folder / part).mkdir()
    with ExitStack() as stack:
        server = stack.enter_context(NameServer(names, silent=["silent.test"]))
        web = stack.enter_context(EveryAddress(image, PORTS))
        controls = {host: _reaches(web, host) for host in INTERNAL}
        default = Cluster(folder / "default", settings | {"CLIPFLEET_ALLOW_PRIVATE": ""})
        allowing = Cluster(folder / "allowing", settings | {"CLIPFLEET_ALLOW_PRIVATE": ALLOWED})
        for cluster in (default, allowing):
            stack.enter_context(cluster)
        other = allowing.launch_worker()
        default.start_worker()
        allowing.wait_ready(other)
        many = [Case(f"http://many.test{IMAGE}?{n}", "ok") for n in range(IMAGES_ON_ONE_HOST)]
        many += [Case(f"http://gone.test{IMAGE}?{n}", "dns_failed") for n in range(IMAGES_ON_A_DEAD_HOST)]
        reports = {
            "default": _run(default, cases() + many, web, server),
            "allowing": _run(allowing, cases_of_an_allowing_worker(), web, server),
        }
        reports["default"].controls = controls
    report = {name: asdict(report) for name, report in reports.items()}
    (folder / "report.json").write_text(json.dumps(report))


def _ask_here(folder: Path) -> None:
    """Let this process and its children ask the name server of this network, and no daemon of the machine."""
    files = {
        "resolv.conf": "nameserver 127.0.0.1\nsearch search.test\noptions timeout:2 attempts:1\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    }
    for name, text in files.items():
        real, ours = Path("/etc", name), folder / name
        if real.exists():
            ours.write_text(text)
            subprocess.run(["mount", "--bind", ours, real], check=True)


def _run(cluster: Cluster, wanted: list[Case], web: EveryAddress, server: NameServer) -> Report:
    """One job; what was accepted and asked meanwhile."""
    web.accepted.clear()
    server.questions.clear()
    with (cluster.folder / "list.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["url", "expected"])
        writer.writerows((case.uri, case.expected) for case in wanted)
    output = cluster.folder / "out"
    arguments = ("classify", "list.csv", "--labels", "a,b", "--model", "demo", "--output", output)
    cluster.run_json(*arguments, expect=3)
    columns = ("uri", "expected", "status", "error_code", "error_detail")
    return Report(
        rows=[{column: row[column] for column in columns} for row in cluster.rows(output)],
        accepted=[(host, port, count) for (host, port), count in web.accepted.items()],
        questions=dict(server.questions),
    )


def _reaches(web: EveryAddress, host: str) -> bool:
    """Whether a client without a guard gets to a listener at this address."""
    before = web.accepted.total()
    try:
        socket.create_connection((host.strip("[]").replace("%25", "%"), 80), 60).close()
    except OSError:
        return False
    wait_until(lambda: web.accepted.total() > before, f"a connection to {host} was accepted")
    return True


if __name__ == "__main__":
    main()
