"""The users of ops/redis/users.acl on a server of the tests, with passwords of their own."""

from __future__ import annotations

import secrets
from typing import Any

import redis

from tests.support.documents import ROOT

USERS_FILE = ROOT / "ops" / "redis" / "users.acl"
USERS = ("producer", "worker", "reader")


def users_file(passwords: dict[str, str]) -> str:
    """The file with its passwords filled in, as docs/deploy.md says."""
    text = USERS_FILE.read_text()
    for user, password in passwords.items():
        text = text.replace(f">{user.upper()}-PASSWORD", f">{password}")
    return text


def make_users(admin: redis.Redis) -> dict[str, str]:
    """Give a server the users, but keep its administrator; returns their passwords."""
    passwords = {user: secrets.token_urlsafe(12) for user in USERS}
    for line in users_file(passwords).splitlines():
        _, name, *rules = line.split()
        if name != "default":
            admin.execute_command("ACL", "SETUSER", name, "reset", *rules)
    return passwords


def url_of(user: str, passwords: dict[str, str], admin_url: str) -> str:
    """How a user connects to the server."""
    return f"redis://clipfleet-{user}:{passwords[user]}@{admin_url.rpartition('@')[2]}"


def refusals(admin: redis.Redis) -> list[str]:
    """What the server has refused to any of them, newest first."""
    entries: list[dict[str, Any]] = admin.acl_log()
    return [
        f"{entry['username']}: {entry['reason']} {entry['object']} in {entry['context']}" for entry in entries
    ]
