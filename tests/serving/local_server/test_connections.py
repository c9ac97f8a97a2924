"""Clients that misbehave, and many at once: the server answers others meanwhile, and nothing of them is left behind."""

import gzip
import os
import socket
import threading
import time
from http.client import HTTPConnection

import pytest
from builders.local_servers import quick, until
from builders.serving_models import fetch

from serving.local_server.server import LocalModelServer, Options
from serving.model_server.models_config import ModelConfig


def raw(server, sent, *, end=True):
    """What a socket is answered."""
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=10) as connection:
        connection.sendall(sent)
        if end:
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def test_bodies_may_be_compressed_or_in_chunks(server, url):
    body = b'{"instances": ["abc"]}'
    assert '"length": 3' in fetch(f"{url}:predict", gzip.compress(body), **{"Content-Encoding": "gzip"})[1]
    chunked = b"POST /v1/models/small:predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(
        b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:5], body[5:], b"")
    )
    assert b'"length": 3' in raw(server, chunked)


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /v1/models/small:predict HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n{}",
        b"POST /v1/models/small:predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n{}",
    ],
)
def test_a_body_that_is_too_large_is_not_read(server, sent):
    assert raw(server, sent).startswith(b"HTTP/1.1 413")


def test_a_small_body_that_unpacks_to_a_large_one(server, url):
    bomb = gzip.compress(b" " * (65 << 20))
    assert fetch(f"{url}:predict", bomb, **{"Content-Encoding": "gzip"})[0] == 413


def test_what_is_no_http_gets_a_status_and_no_crash(server, url):
    for sent in (
        b"\x00\xff\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /v1/models/small:predict HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    ):
        assert b" 400 " in raw(server, sent).partition(b"\r\n")[0]
    assert raw(server, b"POST /v1/models/small:predict HTTP/1.1\r\nContent-Length: 10\r\n\r\n{}") == b"", "it hung up"
    assert fetch(url)[0] == 200


def test_a_client_that_hangs_is_left_alone(models):
    """Its connection ends; meanwhile others are answered, and nothing waits for it at the end."""
    with LocalModelServer([ModelConfig("small", models)], quick(client_timeout_s=0.3)) as running:
        started = time.monotonic()
        stuck = [socket.create_connection(("127.0.0.1", running.rest_port)) for _ in range(20)]
        for connection in stuck[:10]:
            connection.sendall(b"POST /v1/models/small:predict HTTP/1.1\r\nContent-Length: 10\r\n\r\n{")
        assert fetch(f"http://127.0.0.1:{running.rest_port}/v1/models/small")[0] == 200
        for connection in stuck:
            connection.settimeout(5)
            assert connection.recv(100) == b""
            connection.close()
        assert time.monotonic() - started < 5


def test_thousands_of_requests_leave_nothing_behind(server, url):
    """Eight threads, two thousand requests, half of them wrong; afterwards there are as many threads and files."""
    bodies = [(b'{"instances": ["abc"]}', 200), (b'{"instances": [1]}', 400)]
    fetch(url)
    files, wrong = len(os.listdir("/proc/self/fd")), []

    def ask():
        connection = HTTPConnection("127.0.0.1", server.rest_port, timeout=20)
        for index in range(250):
            body, status = bodies[index % 2]
            connection.request("POST", "/v1/models/small:predict", body)
            response = connection.getresponse()
            response.read()
            if response.status != status:
                wrong.append(response.status)
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    until(lambda: len(os.listdir("/proc/self/fd")) <= files + 2)


def test_a_port_that_is_taken(models, server):
    with pytest.raises(OSError, match="cannot be listened on"):
        LocalModelServer([ModelConfig("small", models)], Options(port=server.port, rest_port=0)).start()
