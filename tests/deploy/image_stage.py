"""Builds an image from its Dockerfile without Docker, and runs it, as root of a mount namespace of its own.

    unshare --mount --propagation private python image_stage.py DOCKERFILE CONTEXT '{"ARG": "value"}'

Each stage is an overlay on this machine's own files: a base image (`FROM python:...`) is not downloaded, this
machine's Python takes its place. What stands below it is done: ARG, ENV, WORKDIR, COPY, RUN, USER.
After the build, orders come as lines of JSON on stdin, and each is answered by one line on stdout. The image
is run as its own user in a folder tree that cannot be written, but for /tmp and what is named as a volume.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from dockerfile_parse import DockerfileParser

_PLACE = Path("/mnt")
_SHARED = ("proc", "sys", "dev")


class Stage:
    """One `FROM ...` and what follows."""

    def __init__(self, number: int) -> None:
        self.root = _PLACE / f"stage{number}"
        upper, work = _PLACE / f"upper{number}", _PLACE / f"work{number}"
        for path in (self.root, upper, work):
            path.mkdir()
        layers = f"lowerdir=/,upperdir={upper},workdir={work}"
        _do("mount", "-t", "overlay", "overlay", "-o", layers, self.root)
        for name in _SHARED:
            _do("mount", "--rbind", f"/{name}", self.root / name)
        (self.root / "root").chmod(0o755)  # this machine's Python may lie in there
        self.environment = {"PATH": os.environ["PATH"], "HOME": "/root"}
        self.arguments: dict[str, str] = {}
        self.folder = "/"
        self.user = "0"
        self.command: list[str] = []
        self.health: list[str] = []
        self.stop_signal = "SIGTERM"

    def all_variables(self) -> dict[str, str]:
        return {**self.arguments, **self.environment}

    def run(self, line: str) -> None:
        _do("chroot", self.root, "sh", "-c", f"cd {self.folder} && {line}", env=self.all_variables())


def build(dockerfile: Path, context: Path, given: dict[str, str]) -> Stage:
    """The last stage of a Dockerfile."""
    parser = DockerfileParser(path=str(dockerfile), cache_content=True)
    tracked = subprocess.run(
        ["git", "-C", context, "ls-files", "-z"], capture_output=True, text=True, check=True
    ).stdout.split("\0")
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for step in parser.structure:
        word, value = step["instruction"], step["value"]
        if word == "COMMENT":
            continue
        if word == "FROM":
            stage = stages[value.partition(" AS ")[2] or "last"] = Stage(len(stages))
        elif stage is None:
            raise SystemExit(f"{word} before FROM")
        else:
            _step(stage, word, value, stages, [name for name in tracked if name], context, given)
    return stages["last"]


def _step(
    stage: Stage, word: str, value: str, stages: dict[str, Stage], tracked: list[str], context: Path,
    given: dict[str, str],
) -> None:  # fmt: skip
    print(f"{word} {value}"[:200], file=sys.stderr, flush=True)
    match word:
        case "ARG":
            if value in given:
                stage.arguments[value] = given[value]
        case "ENV":
            for pair in shlex.split(value):
                name, _, text = pair.partition("=")
                stage.environment[name] = text.replace("$PATH", stage.environment["PATH"])
        case "WORKDIR":
            stage.folder = value
            (stage.root / value.lstrip("/")).mkdir(parents=True, exist_ok=True)
        case "RUN":
            stage.run(value)
        case "COPY":
            _copy(stage, value.split(), stages, tracked, context)
        case "USER" | "STOPSIGNAL":
            setattr(stage, {"USER": "user", "STOPSIGNAL": "stop_signal"}[word], value)
        case "HEALTHCHECK":
            stage.health = json.loads(value.partition("CMD ")[2])
        case "CMD":
            stage.command = json.loads(value)
        case "EXPOSE":
            pass
        case _:
            raise SystemExit(f"{word}: not known here")


def _copy(
    stage: Stage, words: list[str], stages: dict[str, Stage], tracked: list[str], context: Path
) -> None:
    options = dict(word[2:].split("=") for word in words if word.startswith("--"))
    *sources, target = [word for word in words if not word.startswith("--")]
    place = stage.root / os.path.join(stage.folder, target).lstrip("/")  # noqa: PTH118 - may be absolute
    if "from" in options:
        (source,) = sources
        _do("cp", "-a", f"{stages[options['from']].root}{source}/.", _made(place))
    else:
        for source in sources:
            for name in tracked:
                if name == source or name.startswith(f"{source}/"):
                    inside = Path(name).relative_to(source) if name != source else Path(Path(name).name)
                    goal = place / inside
                    goal.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(context / name, goal)
    if "chown" in options:
        _do("chown", "-R", options["chown"], place)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Container:
    """The image, ready to be run: read-only, as its user."""

    def __init__(self, image: Stage, volumes: list[str]) -> None:
        self._image = image
        self._root = _made(_PLACE / "container")
        _do("mount", "--bind", image.root, self._root)
        _do("mount", "-o", "remount,bind,ro", self._root)
        for name in _SHARED:
            _do("mount", "--rbind", f"/{name}", self._root / name)
        _do("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", self._root / "tmp")
        for volume in volumes:
            # Where it is on this machine: the same folder inside and outside.
            place = self._root / volume.lstrip("/")
            place.mkdir(parents=True, exist_ok=True)
            _do("mount", "--bind", volume, place)
        self._main: subprocess.Popen[bytes] | None = None

    def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        match order["do"]:
            case "run":
                return self._run(order["argv"], order["environment"])
            case "start":
                self._main = subprocess.Popen(
                    self._argv(order.get("argv") or self._image.command),
                    env=self._environment(order["environment"]),
                    stdout=sys.stderr,
                )
                return {}
            case "health":
                return self._run(self._image.health, {})
            case "stop":
                assert self._main
                self._main.send_signal(getattr(signal, self._image.stop_signal))
                return {"code": self._main.wait()}
        raise SystemExit(f"no such order: {order}")

    def _run(self, argv: list[str], environment: dict[str, str]) -> dict[str, Any]:
        ended = subprocess.run(
            self._argv(argv), env=self._environment(environment), capture_output=True, text=True, check=False
        )
        return {"code": ended.returncode, "out": ended.stdout, "err": ended.stderr}

    def _argv(self, argv: list[str]) -> list[str]:
        user = self._image.user
        inside = f"cd {self._image.folder} && exec {shlex.join(argv)}"
        rights = [
            "--reuid",
            user,
            "--regid",
            user,
            "--clear-groups",
            "--inh-caps=-all",
            "--bounding-set=-all",
        ]
        return ["chroot", str(self._root), "setpriv", *rights, "--no-new-privs", "sh", "-c", inside]

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        return {**self._image.environment, "HOME": "/home/clipfleet", **more}


def _do(*words: str | Path, env: dict[str, str] | None = None) -> None:
    subprocess.run(
        [str(word) for word in words], check=True, env=env, stdout=sys.stderr, stdin=subprocess.DEVNULL
    )


def main() -> None:
    dockerfile, context, given = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    volumes = json.loads(sys.argv[4])
    _do("mount", "-t", "tmpfs", "tmpfs", _PLACE)
    container = Container(build(dockerfile, context, given), volumes)
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(container.obey(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
