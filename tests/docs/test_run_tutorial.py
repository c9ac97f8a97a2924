"""The checker of the tutorial: which differences between the page and what was printed it accepts, and which it finds."""

import http.server
import importlib.util
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checker(tmp_path, monkeypatch) -> ModuleType:
    """docs/run_tutorial.py, which is no part of a package, writing into a folder of the test."""
    spec = importlib.util.spec_from_file_location("run_tutorial", ROOT / "docs" / "run_tutorial.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "run_tutorial", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    return module


@pytest.mark.parametrize(
    ("page", "printed"),
    [
        ("epsilon 3.99 in 12 rounds", "epsilon 4.0e-1 in 1,200 rounds"),
        ("run 980002da043213d9, at 2026-11-21T21:27:06Z", "run 0123456789abcdef, at 2027-01-01T00:00:00Z"),
        ("│ overall │ 18 │", "┏━━━━┓\n│  overall  │    7 │\n└────┘"),
        ("first\n...\nlast", "first\nsecond\nthird\nlast"),
        ("first\n...\nlast", "first\nlast"),
        (".../models/complaints/1", "/somewhere/else/models/complaints/1"),
    ],
)
def test_numbers_ids_times_frames_and_what_is_left_out_may_differ(checker, page, printed):
    assert checker.agrees(page, printed)


@pytest.mark.parametrize(
    ("page", "printed"),
    [
        ("All 12 are fit.", "2 of 12 are not fit."),
        ("change_address 0.999", "login_problem 0.999"),
        ("first", "first\nand something that the page does not show"),
        ("first\nsecond", "first"),
        ("first\n...\nlast", "first\nsecond"),
    ],
)
def test_words_may_not_differ(checker, page, printed):
    assert not checker.agrees(page, printed)


def test_a_page_gives_files_commands_and_what_they_print(checker, tmp_path):
    page = '```toml title="a.toml"\nx = 1\n```\n\n```sh\necho a\n```\n\n```text\na\n```\n\n```sh\necho b\n```\n\n```\nnot run\n```\n'

    steps = list(checker.steps(page))

    assert [(step.line, step.commands, step.printed) for step in steps] == [
        (5, "echo a\n", "a\n"),
        (13, "echo b\n", None),
    ]
    assert (tmp_path / "a.toml").read_text() == "x = 1\n"


def test_the_tutorial_itself_has_commands_and_their_output(checker):
    steps = list(checker.steps((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")))

    assert len(steps) >= 8
    assert all(step.printed for step in steps)
    assert {"prepare", "train", "export", "publish", "serve"} <= {
        word for step in steps for word in step.commands.split()
    }


def test_without_curl_a_stand_in_asks_the_served_model(checker, capsys):
    """It asks again while nobody answers, and shows what is answered, an error too unless --fail is given."""
    answers = [None, (503, b"loading"), (200, b'{"ok": 1}')]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.rfile.read(int(self.headers["Content-Length"])) == b"{}"
            code, body = answers.pop(0) or (500, b"broken")
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        assert checker.curl(["--silent", "-d", "{}", url]) == 0
        assert capsys.readouterr().out == "broken"
        assert checker.curl(["--fail", "--retry", "3", "--retry-delay", "0", "-d", "{}", url]) == 0
        assert capsys.readouterr().out == '{"ok": 1}'
        server.shutdown()
    assert checker.curl(["--retry", "1", "--retry-delay", "0", url]) == 22
