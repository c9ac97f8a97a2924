"""`tff-pipeline doctor`: checks everything on this machine that a run will need, and says what to do where it is missing.

Nothing is changed, except that a file is written to the work directory and removed again, and that a checkpoint on
the hub is fetched into the hub's cache. Beam and TFF are looked for, not imported: the doctor must also answer where
they are broken.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from tff_pipeline import config as configuration
from tff_pipeline.config import Config
from tff_pipeline.data.input_files import local_files
from tff_pipeline.errors import ConfigError, InputError

PYTHON = (3, 11)
# What the quickstart needs. A pretrained encoder under TFF's own executor takes up to 7 GB.
MEMORY_BYTES = 4 * 2**30
DISK_BYTES = 2 * 2**30
_SHOWN = 5  # of a list of things that do not fit


@dataclasses.dataclass(frozen=True)
class Check:
    """What one check found. `todo` says what to do, and is empty where the machine is `fit`."""

    name: str
    fit: bool
    found: str
    todo: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table, or JSON; returns 0 where everything is fit, 1 where something is not."""
    parser = argparse.ArgumentParser(
        prog="tff-pipeline doctor",
        description="Says what on this machine is fit for a run, and what to do where it is not.",
    )
    configuration.add_arguments(parser)
    for action in parser._actions:
        if action.dest == "config":  # here alone a configuration is not needed
            action.required = False
    parser.add_argument(
        "--site",
        metavar="FOLDER",
        help="check the folder of a silo or coordinator in a consortium too: certificates, keys, roster, FLARE's rights",
    )
    arguments = parser.parse_args(argv)
    if arguments.set and not arguments.config:
        raise ConfigError("--set changes a configuration; expected --config FILE with it.")
    config = configuration.load(arguments.config, arguments.set) if arguments.config else None
    results = checks(config) + ([_site(Path(arguments.site))] if arguments.site else [])
    fit = all(check.fit for check in results)
    if arguments.json:
        print(json.dumps({"fit": fit, "checks": [dataclasses.asdict(check) for check in results]}, indent=2))
    else:
        _print_table(results)
    return 0 if fit else 1


def checks(config: Config | None) -> list[Check]:
    """Checks this machine and, where a configuration is given, what it names."""
    results = [_python(), _pinned_versions(), _crc(), _worker(), _devices(config), _memory(), _disk(config)]
    if config is not None:
        results += [_workdir_writable(config), *_inputs(config), _checkpoint(config), *_labels(config)]
    return results


def _site(folder: Path) -> Check:
    from tff_pipeline.runtime.network.site import check_site

    faults = check_site(folder)
    if not faults:
        return Check("site", True, f"{folder}: keys, certificates and roster; FLARE's own programs have no rights")
    return Check("site", False, f"{len(faults)} fault(s) in {folder}", "\n".join(faults))


def _print_table(results: Sequence[Check]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=box.SIMPLE, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in results:
        mark = Text("fit", style="green") if check.fit else Text("UNFIT", style="bold red")
        said = Text(check.found)
        if check.todo:
            said.append(f"\n{check.todo}", style="yellow")
        table.add_row(mark, Text(check.name), said)
    console = Console()
    console.print(table)
    unfit = sum(not check.fit for check in results)
    summary = f"{unfit} of {len(results)} are not fit." if unfit else f"All {len(results)} are fit."
    console.print(summary, highlight=False)


# -- the machine -------------------------------------------------------------------------------------------------------


def _python() -> Check:
    fit = sys.version_info[:2] == PYTHON
    wanted = ".".join(map(str, PYTHON))
    todo = f"Make the environment with Python {wanted}: TensorFlow 2.14 and TFF 0.87 are built for it."
    return Check("Python", fit, platform.python_version(), "" if fit else todo)


def find_lock() -> Path | None:
    """requirements.lock beside pyproject.toml, where this runs from a checkout."""
    root = Path(__file__).resolve().parent.parent.parent
    lock = root / "requirements.lock"
    return lock if lock.is_file() and (root / "pyproject.toml").is_file() else None


def pins(lock: str) -> dict[str, str]:
    """The version of each distribution that the text of a lock pins for this Python; names as in the lock."""
    pinned = {}
    for line in lock.splitlines():
        if match := re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)\s*(?:;\s*([^\\]*))?", line):
            name, version, condition = match.groups()
            if not condition or _applies(condition.strip()):
                pinned[name] = version
    return pinned


def _applies(condition: str) -> bool:
    try:
        from packaging.markers import InvalidMarker, Marker
    except ImportError:  # the lock pins it too, and will be reported as not installed
        return True
    try:
        return Marker(condition).evaluate()
    except InvalidMarker:
        return True


def _pinned_versions() -> Check:
    name = "pinned versions"
    lock = find_lock()
    if lock is None:
        return Check(
            name, True, "not compared: there is no requirements.lock beside the package, so this is no checkout"
        )
    wanted = pins(lock.read_text(encoding="utf-8"))
    wrong = []
    for distribution, version in wanted.items():
        try:
            installed = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            wrong.append(f"{distribution} {version} is not installed")
            continue
        if installed != version:
            wrong.append(f"{distribution} is {installed}, pinned {version}")
    if not wrong:
        return Check(name, True, f"all {len(wanted)} of {lock.name} are installed")
    todo = f"Install the lock again: `{Path(sys.executable).name} -m pip install --no-deps --require-hashes -r {lock.name}`."
    return Check(name, False, f"{len(wrong)} of {len(wanted)} differ: {_listed(wrong)}", todo)


def _crc() -> Check:
    name, todo = (
        "CRC library",
        "Install google-crc32c with its compiled part; in Python alone, checksums take longer than everything else.",
    )
    try:
        import google_crc32c
    except ImportError:
        return Check(name, False, "google_crc32c is not installed", todo)
    fit = google_crc32c.implementation == "c"
    return Check(name, fit, f"google_crc32c, implementation {google_crc32c.implementation!r}", "" if fit else todo)


def _worker() -> Check:
    """TFF's executor; needed for runtime.kind = "reference" only, but it comes with the package."""
    name = "TFF executor"
    spec = importlib.util.find_spec("tensorflow_federated")
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        return Check(name, False, "tensorflow_federated is not installed", "Install the lock again.")
    binary = Path(folders[0]) / "data" / "worker_binary"
    if not binary.is_file():
        return Check(
            name,
            False,
            f"{binary} is not there",
            "Install tensorflow-federated again: its wheel brings the file, for Linux on x86-64.",
        )
    if not os.access(binary, os.X_OK):
        return Check(
            name,
            False,
            f"{binary} may not be executed",
            f"`chmod +x {binary}`; on a file system mounted noexec, move the environment.",
        )
    return Check(name, True, str(binary))


def _devices(config: Config | None) -> Check:
    from tff_pipeline.progress import silence_libraries

    name = "devices"
    silence_libraries()
    try:
        import tensorflow as tf
    except ImportError as error:
        return Check(name, False, f"TensorFlow cannot be imported ({type(error).__name__})", "Install the lock again.")
    graphics = tf.config.list_physical_devices("GPU")
    gpus = [device.name.removeprefix("/physical_device:") for device in graphics]
    details = [tf.config.experimental.get_device_details(device) for device in graphics]
    available = f"{_cores()}, {_shown_gpus(gpus, details)}"
    asked = () if config is None or isinstance(config.runtime.devices, str) else config.runtime.devices
    missing = [device for device in asked if device not in (*gpus, "CPU:0")]
    if missing:
        todo = 'Install the `gpu` extra and a driver for CUDA 11.8, or set runtime.devices = "auto".'
        return Check(name, False, f"{available}; runtime.devices asks for {', '.join(missing)}", todo)
    if not graphics and Path("/proc/driver/nvidia/version").exists():
        todo = "Install the `gpu` extra (CUDA 11.8 wheels); or hide the GPU with CUDA_VISIBLE_DEVICES=-1 if runs are not to use it."
        fit = os.environ.get("CUDA_VISIBLE_DEVICES") is not None
        return Check(name, fit, f"{available}, though the machine has an NVIDIA driver", "" if fit else todo)
    built = tf.sysconfig.get_build_info().get("cuda_compute_capabilities", ())
    unbuilt = [gpu for gpu, detail in zip(gpus, details, strict=True) if not _has_binaries(detail, built)]
    if unbuilt:
        available += f"; TensorFlow has no binaries for {', '.join(unbuilt)} and compiles its kernels when they are first used, which may take half an hour; CUDA_CACHE_MAXSIZE=4294967296 has all of them kept in CUDA_CACHE_PATH"
    return Check(name, True, available)


def _cores() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{cores} CPU core{'' if cores == 1 else 's'}"


def _shown_gpus(gpus: Sequence[str], details: Sequence[Mapping[str, Any]]) -> str:
    kinds = [str(detail.get("device_name", "?")) for detail in details]
    return ", ".join(f"{gpu} ({kind})" for gpu, kind in zip(gpus, kinds, strict=True)) or "no GPU"


def _has_binaries(detail: Mapping[str, Any], built: Sequence[str]) -> bool:
    """Whether TensorFlow was built for a GPU: for its major compute capability and no later minor one."""
    major, minor = detail.get("compute_capability", (0, 0))
    numbers = [int(name.split("_")[1]) for name in built]  # "sm_75", "compute_80"
    return not major or any(number // 10 == major and number % 10 <= minor for number in numbers)


def _memory() -> Check:
    """What this process may use: the machine's memory, or its control group's where that is less."""
    name = "memory"
    total = _control_group_limit() or 0
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        total = min(total or physical, physical)
    except (ValueError, OSError):
        pass
    if not total:
        return Check(name, True, "this system does not say how much there is")
    fit = total >= MEMORY_BYTES
    todo = f'Expected {_size(MEMORY_BYTES)}: give the machine or container more, or train with model.trainable = "head" and small batches.'
    return Check(name, fit, _size(total), "" if fit else todo)


def _control_group_limit() -> int | None:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return int(Path(path).read_text())
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None


def _disk(config: Config | None) -> Check:
    folder = _existing(config.workdir if config else Path.cwd())
    free = shutil.disk_usage(folder).free
    fit = free >= DISK_BYTES
    todo = f"Expected {_size(DISK_BYTES)} free: make room, or name another pipeline.workdir."
    return Check("disk", fit, f"{_size(free)} free in {folder}", "" if fit else todo)


# -- what the configuration names --------------------------------------------------------------------------------------


def _workdir_writable(config: Config) -> Check:
    folder = _existing(config.workdir)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"fit")
    except OSError as error:
        todo = "Let this account write there, or name another pipeline.workdir."
        return Check("workdir", False, f"{folder} cannot be written ({error.strerror})", todo)
    state = "can be written" if folder == config.workdir else "can be made"
    return Check("workdir", True, f"{config.workdir} {state}")


def _inputs(config: Config) -> Iterator[Check]:
    for silo in config.silos:
        files, missing = 0, []
        for patterns in silo.inputs_by_split.values():
            for pattern in patterns:
                count, trouble = _matches(pattern, silo.name)
                files += count
                missing += [trouble] if trouble else []
        name = f"input of {silo.name}"
        if missing:
            todo = "Check the path (a relative one starts at the configuration file's folder), or set it with --set."
            yield Check(name, False, _listed(missing, between="\n"), todo)
        else:
            yield Check(name, True, f"{files} file{'' if files == 1 else 's'}")


def _matches(pattern: str, silo: str) -> tuple[int, str]:
    """How many files a pattern matches; and what is wrong where it matches none, or one that this account may not read."""
    is_address = "://" in pattern
    try:
        paths = _addressed_files(pattern) if is_address else local_files(pattern, silo=silo).files
    except InputError as error:
        return 0, str(error)
    except Exception as error:  # every file system has errors of its own
        return 0, f"{pattern}: cannot be listed ({type(error).__name__})"
    if not paths:
        return 0, f"{pattern}: no file matches"
    closed = [] if is_address else [path for path in paths if not os.access(path, os.R_OK)]
    trouble = f"{pattern}: {len(closed)} of {len(paths)} files may not be read by this account" if closed else ""
    return len(paths), trouble


def _addressed_files(pattern: str) -> list[str]:
    """Files of an object store, as TensorFlow lists them: `prepare` asks Beam, which may be what is broken here."""
    import tensorflow as tf

    return tf.io.gfile.glob(pattern)


def _checkpoint(config: Config) -> Check:
    from tff_pipeline.data.tokenization import Tokenizer, checkpoint_folder

    name, model = "checkpoint", config.model
    try:
        folder = None if model.checkpoint == "random" else checkpoint_folder(model.checkpoint)
        tokenizer = Tokenizer.from_config(model, config.prepare.max_length)
    except ConfigError as error:
        return Check(name, False, str(error), "Correct [model] in the configuration, or install what it names.")
    if folder is not None and not any(
        (folder / weights).exists() for weights in ("model.safetensors", "tf_model.h5", "model.safetensors.index.json")
    ):
        todo = "Expected model.safetensors or tf_model.h5; PyTorch's .bin files are not read."
        return Check(name, False, f"{folder} holds no weights", todo)
    return Check(name, True, f"{folder or 'random'}, vocabulary of {len(tokenizer.vocabulary):,}")


def _labels(config: Config) -> Iterator[Check]:
    if isinstance(config.task.labels, str) and config.task.labels == "auto":
        return
    try:
        labels = configuration.known_labels(config) or ()
    except ConfigError as error:
        yield Check("labels", False, str(error), "Correct task.labels in the configuration.")
    else:
        yield Check("labels", True, f"{len(labels)} labels")


def _existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _listed(items: Sequence[str], *, between: str = "; ") -> str:
    more = len(items) - _SHOWN
    return between.join([*items[:_SHOWN], *([f"and {more} more"] if more > 0 else [])])


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
