"""Random walks through a rollout: what serving/test_rollout_walks.py runs in a process without TensorFlow.

    python tests/builders/rollout_walks.py FOLDER FIRST_SEED LAST_SEED STEPS

Each step is a command in a process of its own, half of which are killed before one of their calls that change the disk,
while a small model server that follows models.config by the rules of TensorFlow Serving loads at once, slowly, not at
all, does not answer, or cannot be reached; now and then two commands run at once. After each step the invariants of `check` hold; now and then, and at the end,
`promote --version` must bring any whole version to its place. A violation ends the program with seed, step and history.
"""

import contextlib
import json
import os
import random
import shutil
import socket
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from builders.publish_races import make_version
from serving import validate
from serving.commands import publish, rollout
from serving.model_server.models_config import ModelConfig, parse
from serving.rollout import CANARY, PREVIOUS, STABLE, Rollout, Served, servers
from tff_pipeline.artifacts import model_versions, read_manifest, version_numbers
from tff_pipeline.errors import PipelineError
from tff_pipeline.progress import Progress

VERSIONS = (1, 2, 3, 4, 5)
KILLED, FAILED = 9, 4
QUIET = Progress(interactive=False)


class Server:
    """Follows a models.config when it is asked: versions, labels, and what becomes of a version that does not load."""

    def __init__(self) -> None:
        self._busy = threading.RLock()
        self.violations: list[str] = []
        self.mode, self.broken = "prompt", set()
        self.answering = threading.Event()
        handler = type("Handler", (_Handler,), {"server_model": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def start(self, file: Path) -> None:
        """As a server that was started anew with this file."""
        with self._busy:
            self._file, self._config = file, ModelConfig("desk", Path("/none"))
            self.states: dict[int, tuple[str, str]] = {}
            self.labels: dict[str, int] = {}
            self._is_new = True
            self.settle()

    @property
    def loaded(self) -> set[int]:
        return {version for version, (state, _) in self.states.items() if state == "AVAILABLE"}

    def settle(self) -> None:
        for _ in range(6):
            self.follow()

    def follow(self) -> None:
        with self._busy:
            (config,) = parse(self._file.read_text())
            if all(self._may_have(label, version) for label, version in config.labels.items()):
                self._config, self.labels = config, dict(config.labels)
            wanted = self._config.policy.wanted(version_numbers(self._config.base_path))
            for version, (state, failure) in list(self.states.items()):
                if version not in wanted and failure:
                    self.states[version] = ("END", "")  # may be tried again when it comes back
                elif version not in wanted and state == "LOADING":
                    self.states[version] = ("END", "")
            for version in sorted(wanted - self.loaded):
                self._load(version)
            for version in self.loaded - wanted if wanted & self.loaded else ():
                self.states[version] = ("END", "")
            self._is_new = False
            stable = self.labels.get(STABLE)
            if stable is not None and stable not in self.loaded and self.mode != "slow":
                self.violations.append(f"the stable version {stable} is not served: {self.states}, {self._config}")

    def _may_have(self, label: str, version: int) -> bool:
        return version in self.loaded or self.labels.get(label, version) == version

    def _load(self, version: int) -> None:
        state, failure = self.states.get(version, ("", ""))
        if failure:
            return
        if version in self.broken:
            self.states[version] = ("END", "no graph")
        elif self.mode == "slow" and state != "LOADING3" and not self._is_new:
            count = int(state.removeprefix("LOADING") or 0) if state.startswith("LOADING") else 0
            self.states[version] = (f"LOADING{count + 1}", "")
        else:
            with contextlib.suppress(PipelineError):
                read_manifest(self._config.base_path / str(version), check_files=True)
                self.states[version] = ("AVAILABLE", "")
                return
            self.violations.append(f"version {version} was there and not whole")

    def answer(self, parts: list[str]) -> tuple[int, dict]:
        """What a GET of /v1/models/desk/... gets."""
        if self.mode == "silent":
            self.answering.wait(5.0)
        with self._busy:
            self.follow()
            if parts[:1] == ["labels"]:
                version = self.labels.get(parts[1])
                if version not in self.loaded:
                    return 404, {"error": f"Servable not found for request: {parts}"}
                return 200, {"model_spec": {"version": str(version)}}
            states = {v: s for v, s in self.states.items() if not parts or v == int(parts[1])}
            if not states:
                return 404, {"error": "Could not find any versions of model desk"}
            return 200, {
                "model_version_status": [
                    {
                        "version": str(version),
                        "state": state.rstrip("123"),
                        "status": {"error_code": "UNKNOWN" if failure else "OK", "error_message": failure},
                    }
                    for version, (state, failure) in states.items()
                ]
            }


class _Handler(BaseHTTPRequestHandler):
    server_model: Server

    def do_GET(self) -> None:
        parts = [part for part in self.path.split("/")[4:] if part != "metadata"]
        with contextlib.suppress(OSError):  # the client may be gone
            code, value = self.server_model.answer(parts)
            body = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


# -- a command in a process --------------------------------------------------------------------------------------------

COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "publish": publish.main,
    "canary": rollout.canary_main,
    "promote": rollout.promote_main,
    "rollback": rollout.rollback_main,
}
CHANGING = ("open", "fsync", "rename", "replace", "mkdir", "rmdir", "link", "unlink", "write")


def ended(child: int) -> int:
    """A command's exit code, or KILLED."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def begin(command: str, arguments: list[str], kill_at: int = 0) -> int:
    """A command in a process of its own, killed before its `kill_at`-th call that may change the disk."""
    child = os.fork()
    if child:
        return child
    code = 3
    try:
        sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: SIM115  this process ends with it
        servers._POLL_S = 0.005
        left = kill_at

        def counted(function):
            def call(*arguments, **settings):
                nonlocal left
                left -= 1
                if left == 0:
                    os._exit(KILLED)  # as kill -9 does: nothing is cleaned up
                return function(*arguments, **settings)

            return call

        for name in CHANGING if kill_at else ():
            setattr(os, name, counted(getattr(os, name)))
        code = COMMANDS[command](arguments)
    except PipelineError:
        code = FAILED
    except BaseException:
        import traceback

        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


class Walk:
    """One walk. `made` holds every version."""

    def __init__(self, folder: Path, made: Path, seed: int, server: Server, closed: str):
        self._chance, self._made, self._server, self._closed = random.Random(seed), made, server, closed
        self._seed, self._history = seed, []
        self._base, self._file = folder / "desk", folder / "models.config"
        self._base.mkdir(parents=True)
        self._file.write_text(
            f'model_config_list {{ config {{ name: "desk" base_path: "{self._base}" model_platform: "tensorflow" }} }}\n'
        )
        server.mode, server.broken = "prompt", set()
        server.start(self._file)

    def walk(self, steps: int) -> None:
        for _ in range(steps):
            self._one_step()
            if self._chance.random() < 0.1:
                self._way_forward()
            if self._chance.random() < 0.1:
                self._two_at_once()
        self._way_forward()

    def served(self) -> Served:
        return Rollout(self._file, "desk", progress=QUIET).served()

    def _one_step(self) -> None:
        chance = self._chance
        self._server.mode = chance.choice(("prompt", "prompt", "prompt", "slow", "silent", "unreachable"))
        asleep = set(VERSIONS) - self._server.loaded - {*self.served().labels.values()}
        self._server.broken = {version for version in asleep if chance.random() < 0.2}
        self._server.answering.clear()
        if chance.random() < 0.1 and self._server.mode == "prompt":
            self._server.start(self._file)
        command, arguments, version = self._drawn()
        before, code = self.served(), 0
        code = self._run(command, arguments, kill_at=chance.randint(1, 120) if chance.random() < 0.5 else 0)
        self.check(command, version, before, code)
        if code == KILLED and version is None and command in ("promote", "rollback"):
            self._finish(command, before)
        elif code == 0 and self._server.mode == "prompt" and version is not None and "--keep" not in arguments:
            text = self._file.read_bytes()
            self._require(self._run(command, arguments) == 0, "again fails")
            self._require(self._file.read_bytes() == text, "again changes something")

    def _drawn(self) -> tuple[str, list[str], int | None]:
        """A command, its arguments, and the version it names."""
        chance, version = self._chance, self._chance.choice(VERSIONS)
        command = chance.choice(("publish", "publish", "canary", "promote", "promote", "rollback", "rollback"))
        address = self._closed if self._server.mode == "unreachable" else self._server.address
        files = ["--models-config", str(self._file), "--server", address, "--wait-s", "0.3"]
        if command == "publish":
            arguments = ["--model", str(self._made / str(version)), "--to", str(self._base)]
            arguments += chance.choice(([], [*files, "--canary"], [*files, "--canary"]))
            return command, arguments + chance.choice(([], [], ["--keep", "2"])), version
        if command != "canary" and chance.random() < 0.5:
            return command, ["--name", "desk", *files], None
        return command, ["--name", "desk", "--version", str(version), *files], version

    def _run(self, command: str, arguments: list[str], kill_at: int = 0) -> int:
        shown = [argument for argument in arguments if not argument.startswith(("/", "http"))]
        code = ended(begin(command, arguments, kill_at))
        self._history.append(f"{command} {' '.join(shown)} [{self._server.mode}, kill at {kill_at}]: {code}")
        self._server.answering.set()
        self._require(code in (0, FAILED, KILLED), "ended in no stated way")
        return code

    def check(self, command: str, version: int | None, before: Served, code: int) -> None:
        """What holds after every command, whatever became of it."""
        now = self.served()
        for number in version_numbers(self._base):
            with contextlib.suppress(PipelineError):
                read_manifest(self._base / str(number), check_files=True)
                continue
            self._require(False, f"{number} is not whole")
        validate.check(self._file)  # the server takes it as a whole, also when it starts with it
        self._require(STABLE in now.labels or STABLE not in before.labels, "there is no stable version any more")
        self._require(set(now.labels.values()) <= set(model_versions(self._base)), "a label names what is not there")
        if self._server.mode != "unreachable":
            self._server.settle()
        self._require(not self._server.violations, "; ".join(self._server.violations[:1]))
        if code == FAILED:
            same = (now.versions, now.labels) == (before.versions, before.labels)
            pinned = not before.labels and list(now.labels) == [STABLE]  # what served without a name has one now
            self._require(same or pinned, "it failed, and did not put the file back")
        if code == 0:
            self._check_done(command, version, now)

    def _check_done(self, command: str, version: int | None, now: Served) -> None:
        # A plain `publish` does not know of the file, and leaves what lies beside it.
        folders = (self._base,) if command == "publish" else (self._base, self._file.parent)
        left = [path.name for folder in folders for path in folder.iterdir()]
        left = [name for name in left if name.startswith((".publishing-", ".removing-", ".writing-"))]
        self._require(not left, f"left {left}")
        labels = now.labels
        if command == "publish":
            return
        self._require(now.unfinished is None, "it is unfinished")
        if not labels:  # the first version of all was loaded, and its command killed before it had a label
            return
        self._require(set(now.versions) == set(labels.values()), "more is loaded than has labels")
        if version is not None:
            is_so = {
                "canary": version in (labels.get(CANARY), labels[STABLE]),
                "promote": labels[STABLE] == version and labels.get(CANARY) != version,
                "rollback": version not in (labels.get(CANARY), labels[STABLE]),
            }[command]
            self._require(is_so, f"it has not done what it was told: {labels}")

    def _finish(self, command: str, before: Served) -> None:
        """A command without a version that was killed, run again, ends where it would have ended; not one step later."""
        if command == "promote":
            expected = {**before.labels, STABLE: before.labels.get(CANARY), PREVIOUS: before.labels.get(STABLE)}
        else:
            expected = {**before.labels}
            if CANARY not in before.labels and before.unfinished is None:
                expected |= {STABLE: before.labels.get(PREVIOUS)}
                expected.pop(PREVIOUS, None)
        expected.pop(CANARY, None)
        now = self.served()
        if (
            None in expected.values()
            or before.unfinished is not None
            or (now.unfinished is None and now.labels == expected)
        ):
            return  # it had nothing to do, or was killed after its last step
        self._server.mode, self._server.broken = "prompt", set()
        self._server.settle()
        again = ["--name", "desk", "--models-config", str(self._file), "--server", self._server.address]
        self._require(self._run(command, again) == 0, "cannot be finished")
        self._require(self.served().labels == expected, f"expected {expected} after it was finished")

    def _way_forward(self) -> None:
        """Any whole version becomes the stable one, with a server that works."""
        whole = model_versions(self._base)
        if not whole:
            return
        self._server.mode, self._server.broken = "prompt", set()
        self._server.settle()
        version, before = self._chance.choice(whole), self.served()
        files = ["--models-config", str(self._file), "--server", self._server.address]
        code = self._run("promote", ["--name", "desk", "--version", str(version), *files])
        self._require(code == 0, f"there is no way to {version}")
        self.check("promote", version, before, code)
        self._require(self._server.answer(["labels", STABLE])[0] == 200, "it is not served")
        self._require(self._server.labels[STABLE] == version, "another one is served")

    def _two_at_once(self) -> None:
        """Commands that each would succeed alone both succeed, in one order or the other."""
        whole = model_versions(self._base)
        if not whole:
            return
        self._server.mode, self._server.broken = "prompt", set()
        self._server.settle()
        files = ["--models-config", str(self._file), "--server", self._server.address]
        children, before = [], self.served()
        for _ in range(2):
            command = self._chance.choice(("publish", "publish", "canary", "promote"))
            if command == "publish":
                arguments = ["--model", str(self._made / str(self._chance.choice(VERSIONS))), "--to", str(self._base)]
                arguments += self._chance.choice(([], [*files, "--canary"]))
            else:
                arguments = ["--name", "desk", "--version", str(self._chance.choice(whole)), *files]
            children.append(begin(command, arguments))
            shown = [argument for argument in arguments if not argument.startswith(("/", "http"))]
            self._history.append(f"at once: {command} {' '.join(shown)}")
        codes = [ended(child) for child in children]
        self._require(codes == [0, 0], f"of two at once one failed: {codes}")
        self.check("publish", None, before, 0)

    def _require(self, holds: bool, what: str) -> None:
        if not holds:
            history = "\n".join(self._history)
            sys.exit(f"seed {self._seed}: {what}\n{history}\n{self._file.read_text()}")


def closed_address() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


def main(folder: Path, first: int, last: int, steps: int) -> None:
    server, closed = Server(), closed_address()
    for version in VERSIONS:
        make_version(folder / "made", version)
    for seed in range(first, last + 1):
        Walk(folder / "walk", folder / "made", seed, server, closed).walk(steps)
        shutil.rmtree(folder / "walk")
    print(json.dumps({"walks": last + 1 - first}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
