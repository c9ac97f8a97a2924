"""Batching in the local model server: what is run together, what is refused, and with which of the server's words."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from builders.serving_models import fetch, small_model

from serving.client import GrpcClient, RestClient, ServerError
from serving.commands.serve import main
from serving.local_server.batching import Parameters, Scheduler
from serving.local_server.manager import Loading
from serving.local_server.metrics import Metrics
from serving.local_server.server import LocalModelServer, Options
from serving.model_server.models_config import ModelConfig
from serving.model_server.status import ServingError
from tff_pipeline.errors import ConfigError

LONG_MICROS = 10_000_000  # longer than any test waits


class Runs:
    """Echoes `x`, and keeps what each batch was; `hold` keeps runs waiting."""

    def __init__(self, outputs=lambda feeds: {"y": feeds["x"]}):
        self.batches, self.outputs, self.hold, self.running = [], outputs, threading.Event(), threading.Event()
        self.hold.set()

    def __call__(self, feeds, timeout_s):
        self.batches.append(feeds["x"].tolist())
        self.running.set()
        assert self.hold.wait(10)
        return self.outputs(feeds)


@pytest.fixture
def scheduled():
    """Makes a queue with these parameters over `Runs`; ends its threads."""
    opened = []

    def make(runs, **parameters):
        scheduler = Scheduler(Parameters(**{"num_batch_threads": 1, **parameters}), Metrics())
        opened.append((scheduler, runs))
        return scheduler.queue(runs)

    yield make
    for scheduler, runs in opened:
        runs.hold.set()
        scheduler.close()


def ask(queue, *rows, timeout_s=None):
    return queue.ask({"x": np.array(rows)}, timeout_s)["y"].tolist()


def together(queue, *requests):
    """Asks one after the other, each from its own thread, without waiting for answers."""
    pool = ThreadPoolExecutor(len(requests))
    futures = []
    for rows in requests:
        futures.append(pool.submit(ask, queue, *rows))
        time.sleep(0.05)
    pool.shutdown(wait=False)
    return futures


def test_a_full_batch_is_run_at_once(scheduled):
    """3 + 1 rows of at most 4, though nothing has waited long; each gets its own."""
    runs = Runs()
    futures = together(scheduled(runs, max_batch_size=4, batch_timeout_micros=LONG_MICROS), [1, 2, 3], [4])
    assert [future.result(5) for future in futures] == [[1, 2, 3], [4]]
    assert runs.batches == [[1, 2, 3, 4]]


def test_what_does_not_fit_closes_the_batch(scheduled):
    """3 rows, then 2: the 3 are run without waiting, the 2 wait for more."""
    runs = Runs()
    queue = scheduled(runs, max_batch_size=4, batch_timeout_micros=LONG_MICROS)
    first, second = together(queue, [1, 2, 3], [4, 5])
    assert first.result(5) == [1, 2, 3]
    assert not second.done()
    assert ask(queue, 6, 7) == [6, 7]
    assert second.result(5) == [4, 5]
    assert runs.batches == [[1, 2, 3], [4, 5, 6, 7]]


def test_a_batch_is_run_when_its_first_request_has_waited(scheduled):
    runs = Runs()
    queue = scheduled(runs, max_batch_size=4, batch_timeout_micros=200_000)
    started = time.monotonic()
    assert ask(queue, 1) == [1]
    assert 0.15 < time.monotonic() - started < 5


def test_it_is_filled_up_with_the_last_requests_first_row(scheduled):
    """1 + 2 rows of the allowed 1, 4, 8: a fourth, which nobody gets."""
    runs = Runs()
    queue = scheduled(runs, max_batch_size=8, batch_timeout_micros=300_000, allowed_batch_sizes=(1, 4, 8))
    futures = together(queue, [1], [2, 3])
    assert [future.result(5) for future in futures] == [[1], [2, 3]]
    assert runs.batches == [[1, 2, 3, 2]]


def test_a_full_queue_refuses(scheduled):
    """Two batches may wait: while one is run, two of one row do, and a fourth request is unavailable."""
    runs = Runs()
    queue = scheduled(runs, max_batch_size=1, max_enqueued_batches=2)
    runs.hold.clear()
    (first,) = together(queue, [1])
    assert runs.running.wait(5)
    waiting = together(queue, [2], [3])
    with pytest.raises(ServingError) as refused:
        ask(queue, 4)
    assert str(refused.value) == "UNAVAILABLE: The batch scheduling queue to which this task was submitted is full"
    runs.hold.set()
    assert [future.result(5) for future in (first, *waiting)] == [[1], [2], [3]]


def test_a_request_that_waited_too_long(scheduled):
    runs = Runs()
    queue = scheduled(runs, max_batch_size=1)
    runs.hold.clear()
    (first,) = together(queue, [1])
    assert runs.running.wait(5)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(ask, queue, 2, timeout_s=0.1)
        time.sleep(0.2)
        runs.hold.set()
        with pytest.raises(
            ServingError, match=r"RESOURCE_EXHAUSTED: Run\(\) timeout exceeded while waiting in batching"
        ):
            late.result(5)
    assert first.result(5) == [1]
    assert runs.batches == [[1]], "it was not run"


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({"x": np.array(1)}, "INVALID_ARGUMENT: Batching input tensors must have at least one dimension"),
        ({"x": np.zeros(2), "z": np.zeros(3)}, r"given Run\(\) call must have equal 0th-dimension size"),
        ({"x": np.zeros(5)}, "INVALID_ARGUMENT: Task size 5 is larger than maximum input batch size 4"),
    ],
)
def test_what_no_batch_takes(scheduled, feeds, words):
    with pytest.raises(ServingError, match=words):
        scheduled(Runs(), max_batch_size=4).ask(feeds, None)


def test_shapes_that_differ_fail_the_whole_batch(scheduled):
    """As on the server: whoever is in it."""
    queue = scheduled(Runs(), max_batch_size=2, batch_timeout_micros=LONG_MICROS)
    for future in together(queue, [[1, 2]], [[1, 2, 3]]):
        with pytest.raises(ServingError, match="FAILED_PRECONDITION: Tensors with name 'x' from different tasks have"):
            future.result(5)


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (lambda feeds: {"y": np.array(1)}, "Batched output tensor has 0 dimensions"),
        (lambda feeds: {"y": feeds["x"][:1]}, "0th dimension does not equal the sum of the 0th dimension sizes"),
    ],
)
def test_outputs_that_cannot_be_cut_apart(scheduled, outputs, words):
    with pytest.raises(ServingError, match=f"FAILED_PRECONDITION: Batched output.*{words}|{words}"):
        ask(scheduled(Runs(outputs), max_batch_size=4), 1, 2)


# -- in the local model server -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("models") / "small"
    base.mkdir()
    small_model(base, 1)
    parameters = Parameters(
        max_batch_size=4, batch_timeout_micros=100_000, num_batch_threads=2, allowed_batch_sizes=(4,)
    )
    options = Options(port=0, rest_port=0, loading=Loading(poll_s=0.05, retries=0), batching=parameters)
    with LocalModelServer([ModelConfig("small", base)], options) as running:
        yield running


def test_each_client_gets_its_own(server):
    """Sixteen clients over both APIs at once, texts of other lengths each."""

    def one(number):
        address = f"http://127.0.0.1:{server.rest_port}" if number % 2 else f"127.0.0.1:{server.port}"
        with (RestClient if number % 2 else GrpcClient)(address, "small") as client:
            return client.predict(["x" * number] * (1 + number % 3)).outputs["length"].tolist()

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(one, range(16))) == [[number] * (1 + number % 3) for number in range(16)]
    page = server.metrics.page()
    assert 'batching_session:queuing_latency_count{thread_pool_name="batch_threads"} 16' in page


def test_the_servers_words_over_both_apis(server):
    address = f"http://127.0.0.1:{server.rest_port}/v1/models/small:predict"
    status, body = fetch(address, '{"instances": ["a", "b", "c", "d", "e"]}')
    assert (status, "Task size 5 is larger than maximum input batch size 4" in body) == (400, True)
    status, body = fetch(address, '{"signature_name": "scalar", "instances": ["a"]}')
    assert (status, "Batched output tensor has 0 dimensions" in body) == (400, True)
    with GrpcClient(f"127.0.0.1:{server.port}", "small") as client, pytest.raises(ServerError) as refused:
        client.predict(["a"] * 5)
    assert refused.value.code == grpc.StatusCode.INVALID_ARGUMENT.name


# -- its file ----------------------------------------------------------------------------------------------------------


def test_the_projects_own_file(root):
    parameters = Parameters.from_file(root / "serving" / "batching_parameters.txt")
    assert parameters == Parameters(32, 2000, 100, 4, (1, 8, 32))


def test_files_that_are_refused(tmp_path):
    file = tmp_path / "batching_parameters.txt"
    for text, message in (
        ("max_batch_size: 3", r"the numbers of batching parameters stand in braces"),
        ("max_batch_size { value: 8 } allowed_batch_sizes: 4", "the last of allowed_batch_sizes is 4; expected 8"),
        (
            "max_batch_size { value: 8 } enable_large_batch_splitting { value: true } max_execution_batch_size { value: 4 }",
            "which the local model server does not support",
        ),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            Parameters.from_file(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        Parameters.from_file(Path(tmp_path / "none.txt"))
    with pytest.raises(ConfigError, match="without --enable-batching; expected both or neither"):
        main(["--model_base_path", str(tmp_path), "--batching_parameters_file", str(file)])
