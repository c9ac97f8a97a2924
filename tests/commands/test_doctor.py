"""The doctor: what it finds fit, what it finds unfit, and that it then says what to do."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tff_pipeline.commands import doctor
from tff_pipeline.commands.doctor import Check, checks, main, pins
from tff_pipeline.config import load
from tff_pipeline.errors import ConfigError


@pytest.fixture
def ci(root, example_dir, tmp_path):
    """--config and --set of the CI configuration on the small example."""
    globs = {0: "bank/*.csv", 1: "insurer/*.jsonl", 2: "shop/*.tsv.gz"}
    changes = [f"silos.{number}.input={example_dir / glob}" for number, glob in globs.items()]
    changes += [f"model.vocabulary={example_dir / 'vocabulary.txt'}", f"pipeline.workdir={tmp_path / 'work'}"]
    return root / "configs" / "ci.toml", changes


def arguments(ci, *more: str) -> list[str]:
    return ["--config", str(ci[0]), *(part for change in (*ci[1], *more) for part in ("--set", change))]


def found(name: str, config=None) -> Check:
    (check,) = [check for check in checks(config) if check.name == name]
    return check


def test_a_fit_machine_gets_exit_code_0_and_a_table(ci, capsys):
    assert main(arguments(ci)) == 0

    shown = capsys.readouterr().out
    for name in ("Python", "CRC library", "TFF executor", "devices", "memory", "disk", "workdir", "input of bank"):
        assert name in shown
    assert "UNFIT" not in shown


def test_json_says_the_same(ci, capsys):
    assert main([*arguments(ci), "--json"]) == 0

    report = json.loads(capsys.readouterr().out)
    assert report["fit"] is True
    assert {"name": "input of shop", "fit": True, "found": "1 file", "todo": ""} in report["checks"]


def test_it_answers_without_a_configuration(capsys):
    assert main([]) == 0
    assert "input of" not in capsys.readouterr().out


def test_what_is_unfit_gets_exit_code_1_and_something_to_do(ci, tmp_path, capsys):
    changes = (f"silos.0.input={tmp_path}/none/*.csv", "model.checkpoint=package:no_such_package", "model.vocabulary=")

    assert main([*arguments(ci, *changes), "--json"]) == 1

    unfit = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"] if not check["fit"]}
    assert set(unfit) == {"input of bank", "checkpoint"}
    assert unfit["input of bank"]["found"] == f"{tmp_path}/none/*.csv: no file matches"
    assert "relative one starts at the configuration file's folder" in unfit["input of bank"]["todo"]
    assert "no installed package of that name" in unfit["checkpoint"]["found"]
    assert all(check["todo"] for check in unfit.values())


def test_a_wrong_configuration_is_the_usual_error(tmp_path):
    with pytest.raises(ConfigError, match=r"no such file\. --config takes a TOML file"):
        main(["--config", str(tmp_path / "none.toml")])
    with pytest.raises(ConfigError, match=r"--set changes a configuration; expected --config FILE with it\."):
        main(["--set", "training.rounds=1"])


def test_every_split_of_an_input_is_looked_for(ci, example_dir):
    both = f'silos.0.input={{ train = "{example_dir}/bank/*.csv", test = "{example_dir}/bank/*.none" }}'
    check = found("input of bank", load(ci[0], [*ci[1], both]))

    assert (check.fit, check.found) == (False, f"{example_dir}/bank/*.none: no file matches")


def test_an_input_is_matched_as_prepare_matches_it(ci, tmp_path):
    """Brackets of a name that exists are its own, and a folder or a broken link is no input."""
    (tmp_path / "mails [2024]").mkdir()
    (tmp_path / "mails [2024]" / "a.csv").touch()

    def check(pattern: str) -> Check:
        return found("input of bank", load(ci[0], [*ci[1], f"silos.0.input={tmp_path}/{pattern}"]))

    assert (check("mails [2024]/*.csv").fit, check("mails [2024]/*.csv").found) == (True, "1 file")
    assert "is a folder; expected files. Write" in check("mails [2024]").found
    (tmp_path / "mails [2024]" / "b.csv").symlink_to(tmp_path / "nothing")
    assert "b.csv: the file is a link to one that does not exist" in check("mails [2024]/*.csv").found


class TestVersions:
    def test_a_lock_is_read_with_its_conditions(self):
        lock = """
# a comment
numpy==1.25.2 \\
    --hash=sha256:00
    # via tensorflow
colorama==0.4.6 ; sys_platform == 'win32' \\
    --hash=sha256:00
uvicorn[standard]==1.0 ; python_version >= '3.11' \\
    --hash=sha256:00
"""
        assert pins(lock) == {"numpy": "1.25.2", "uvicorn": "1.0"}

    def test_what_differs_from_the_lock_is_named(self, tmp_path, monkeypatch):
        lock = tmp_path / "requirements.lock"
        lock.write_text("numpy==0.0.1\nno-such-distribution==2.0\n")
        monkeypatch.setattr(doctor, "find_lock", lambda: lock)

        check = found("pinned versions")
        assert not check.fit
        assert check.found.startswith("2 of 2 differ: numpy is ")
        assert "pinned 0.0.1; no-such-distribution 2.0 is not installed" in check.found
        assert "pip install --no-deps --require-hashes -r requirements.lock" in check.todo

    def test_outside_a_checkout_it_says_that_it_did_not_compare(self, monkeypatch):
        monkeypatch.setattr(doctor, "find_lock", lambda: None)

        check = found("pinned versions")
        assert check.fit
        assert "there is no requirements.lock beside the package" in check.found

    def test_another_python_is_unfit(self, monkeypatch):
        monkeypatch.setattr(doctor, "PYTHON", (3, 99))

        assert "Make the environment with Python 3.99" in found("Python").todo


def test_a_slow_crc_is_unfit(monkeypatch):
    import google_crc32c

    monkeypatch.setattr(google_crc32c, "implementation", "python")

    check = found("CRC library")
    assert not check.fit
    assert "compiled part" in check.todo


def test_a_full_disk_is_unfit(monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**30))

    check = found("disk")
    assert not check.fit
    assert check.found.startswith("1.0 GiB free in ")
    assert "Expected 2.0 GiB free" in check.todo


def test_little_memory_is_unfit(monkeypatch):
    monkeypatch.setattr(doctor, "_control_group_limit", lambda: 2**30)

    assert (found("memory").fit, found("memory").found) == (False, "1.0 GiB")


def test_a_device_that_is_not_there_is_named(ci):
    check = found("devices", load(ci[0], [*ci[1], 'runtime.devices=["GPU:77"]']))

    assert not check.fit
    assert "runtime.devices asks for GPU:77" in check.found


@pytest.mark.parametrize(
    ("capability", "compiles"), [((7, 5), False), ((8, 0), False), ((8, 9), False), ((9, 0), True), ((3, 0), True)]
)
def test_a_gpu_whose_kernels_are_compiled_at_first_use_is_named(monkeypatch, capability, compiles):
    """Binaries run on later GPUs of the same major compute capability; an H100 (9.0) has none in TensorFlow 2.14."""
    import tensorflow as tf

    details = {"device_name": "Model A", "compute_capability": capability}
    device = tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [device])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: details)
    built = {"cuda_compute_capabilities": ["sm_35", "sm_75", "compute_80"]}
    monkeypatch.setattr(tf.sysconfig, "get_build_info", lambda: built)

    check = found("devices")

    assert check.fit
    assert "GPU:0 (Model A)" in check.found
    assert ("no binaries for GPU:0 and compiles its kernels when they are first used" in check.found) == compiles


def test_an_executor_that_may_not_run_is_unfit(monkeypatch):
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.X_OK and may(path, mode))

    assert "chmod +x" in found("TFF executor").todo


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_workdir_without_permission_is_unfit(ci, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)

    assert not found("workdir", load(ci[0], [*ci[1], f"pipeline.workdir={closed / 'work'}"])).fit


def test_looking_at_the_workdir_leaves_nothing(ci, tmp_path):
    check = found("workdir", load(*ci))

    assert (check.fit, check.found) == (True, f"{tmp_path / 'work'} can be made")
    assert list(tmp_path.iterdir()) == []


def test_it_imports_neither_beam_nor_tff(ci, root):
    """It must answer where they are broken."""
    program = (
        "import sys; from tff_pipeline.commands.doctor import main; main(sys.argv[1:]); "
        "print([name for name in ('apache_beam', 'tensorflow_federated') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments(ci)], capture_output=True, text=True, check=True, cwd=Path(root)
    )

    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr == ""
