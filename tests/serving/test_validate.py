"""The server's configuration files: ours are right, and what is wrong is said before a server finds it."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from builders import ROOT

from serving.validate import check, main
from tff_pipeline.errors import ConfigError

SERVING = ROOT / "serving"


@pytest.mark.parametrize(
    "path", [*SERVING.rglob("*.config"), *SERVING.rglob("batching_parameters.txt")], ids=lambda path: path.name
)
def test_the_files_here_are_right(path):
    assert check(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("batching_parameters.txt", "max_batch_size: 32", r"1:17.*max_batch_size \{ value: 32 \}"),
        ("batching_parameters.txt", "max_batchsize { value: 32 }", "max_batchsize"),
        ("batching_parameters.txt", "max_batch_size { value: 0 }", "max_batch_size is 0; expected at least 1"),
        ("batching_parameters.txt", "batch_timeout_micros { value: -1 }", "expected 0 or more"),
        (
            "batching_parameters.txt",
            "max_batch_size { value: 32 } allowed_batch_sizes: 1 allowed_batch_sizes: 16",
            "last of allowed_batch_sizes is 16; expected 32",
        ),
        (
            "batching_parameters.txt",
            "max_batch_size { value: 8 } allowed_batch_sizes: 8 allowed_batch_sizes: 1",
            "expected positive integers in ascending order",
        ),
        ("batching_params.pbtxt", "pad_variable_length_inputs: true", "the answers change"),
        ("monitoring.config", "prometheus_config { path: '/x' }", "enable is not true"),
        (
            "monitoring.config",
            "prometheus_config { enable: true path: 'x' }",
            "expected a path that begins with a slash",
        ),
        ("ssl.config", "server_key: '/etc/key.pem' server_cert: 'x'", "server_key holds no PEM"),
        ("models.config", "", "names no model"),
        ("models.config", 'model_config_list { config { name: "a" base_path: "b" } }', "absolute path"),
        (
            "models.config",
            'model_config_list { config { name: "a" base_path: "/b" model_platform: "tensorflow" model_version_policy { specific { versions: 1 } } version_labels { key: "stable" value: 2 } } }',
            "label 'stable' of a names version 2, which the policy does not load",
        ),
        ("other.txt", "", "none of the server's files by its name"),
    ],
)
def test_what_a_server_would_refuse_or_get_wrong(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        check(tmp_path / name)


def test_what_is_right(tmp_path, capsys):
    """Splitting: the last allowed size is that of what is executed."""
    split = tmp_path / "batching_parameters.txt"
    split.write_text(
        "max_batch_size { value: 128 } max_execution_batch_size { value: 32 } enable_large_batch_splitting { value: true } allowed_batch_sizes: 8 allowed_batch_sizes: 32"
    )
    pem = r"-----BEGIN CERTIFICATE-----\n"
    (tmp_path / "ssl.config").write_text(
        f'server_key: "{pem}" server_cert: "{pem}" custom_ca: "{pem}" client_verify: true'
    )
    assert main([str(split), str(tmp_path / "ssl.config")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{split}: batches of at most 128",
        f"{tmp_path / 'ssl.config'}: gRPC with TLS, clients too",
    ]
    assert main([str(split), str(tmp_path / "missing.config")]) == 2


# -- what starts a server ----------------------------------------------------------------------------------------------

KNOWN_FLAGS = {
    "--port",
    "--rest_api_port",
    "--model_config_file",
    "--model_config_file_poll_wait_seconds",
    "--allow_version_labels_for_unavailable_models",
    "--monitoring_config_file",
    "--max_num_load_retries",
    "--num_load_threads",
}


def containers():
    """The server's command lines, mounts and published ports, with Compose and with Kubernetes."""
    compose = yaml.safe_load((SERVING / "compose.yaml").read_text())["services"]["model-server"]
    deployment, *_ = yaml.safe_load_all((SERVING / "kubernetes" / "model-server.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]["containers"][0]
    return {"compose": compose, "kubernetes": pod}


@pytest.mark.parametrize("kind", ["compose", "kubernetes"])
def test_servers_are_started_with_flags_they_have(kind):
    """And follow models.config, also when they restart while it has labels."""
    found = containers()[kind]
    flags = dict(flag.split("=") for flag in found["command" if kind == "compose" else "args"])
    assert set(flags) == KNOWN_FLAGS
    assert flags["--allow_version_labels_for_unavailable_models"] == "true"
    assert Path(flags["--model_config_file"]).name == "models.config"
    assert found["image"] == "tensorflow/serving:2.14.1"


def test_ports_are_published_on_loopback_only():
    assert all(port.startswith("127.0.0.1:") for port in containers()["compose"]["ports"])


def test_readiness_asks_for_a_version_that_can_be_asked():
    """/v1/models/NAME answers 200 in every state."""
    pod = containers()["kubernetes"]
    assert pod["readinessProbe"]["httpGet"]["path"] == "/v1/models/quickstart/metadata"
    assert "GET /v1/models/quickstart/metadata" in containers()["compose"]["healthcheck"]["test"][-1]


def test_the_readmes_line_makes_an_ssl_config(tmp_path):
    script = re.search(r"^pem\(\).*?> ssl\.config$", (SERVING / "README.md").read_text(), re.M | re.S).group()
    for name in ("key.pem", "cert.pem"):
        (tmp_path / name).write_text("-----BEGIN SOMETHING-----\nabc\n-----END SOMETHING-----\n")
    subprocess.run(["/bin/sh", "-c", script], cwd=tmp_path, check=True)
    assert check(tmp_path / "ssl.config") == "gRPC with TLS"
