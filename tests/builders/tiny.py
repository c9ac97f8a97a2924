"""Tiny silos for tests that need a prepared snapshot and a configuration to train on: a two-layer random BERT, a few words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tff_pipeline.config import Config, load
from tff_pipeline.progress import Progress

WORDS = ("lost", "my", "card", "send", "money", "to", "where", "is", "the", "parcel", "anna", "paris", "in", "lives")
Row = tuple[str, str, str]  # client, text, label
ROWS: dict[str, list[Row]] = {
    "bank": [("a", "lost my card", "card"), ("b", "send money", "money")],
    "shop": [("c", "where is my parcel", "parcel"), ("d", "money to anna", "money")],
}
PRIVATE = ("privacy.mechanism=gaussian", "privacy.clip_norm=1.0", "privacy.noise_multiplier=1.0", "privacy.delta=1e-3")


def vocabulary(folder: Path) -> Path:
    path = folder / "vocab.txt"
    letters = "abcdefghijklmnopqrstuvwxyz"
    path.write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *letters, *(f"##{letter}" for letter in letters)]) + "\n"
    )
    return path


def quiet() -> Progress:
    import io

    return Progress(io.StringIO(), interactive=False)


def configured(folder: Path, silos: str, *, task: str = "", changes: Sequence[str] = ()) -> Config:
    """A configuration in `folder` for silos given as TOML tables."""
    vocabulary(folder)
    path = folder / "config.toml"
    path.write_text(
        f"""
        [pipeline]
        name = "tiny"
        seed = 3
        {task}
        [prepare]
        max_length = 16
        [model]
        checkpoint = "random"
        vocabulary = "vocab.txt"
        hidden_size = 16
        intermediate_size = 32
        [training]
        rounds = 2
        clients_per_round = 4
        client_learning_rate = 0.5
        server_momentum = 0.0
        [privacy]
        mechanism = "none"
        [export]
        explain_steps = 4
        {silos}
        """
    )
    return load(path, changes)


def prepared(
    folder: Path,
    rows: Mapping[str, Sequence[Row]],
    *,
    held_out: Mapping[str, Sequence[Row]] | None = None,
    changes: Sequence[str] = (),
) -> Config:
    """Silos of csv rows, by name, prepared: `rows` are for training, `held_out` for the test split."""
    tables = ""
    for name, given in rows.items():
        for split, part in (("train", given), ("test", (held_out or {}).get(name, ()))):
            lines = ["client,text,label", *(",".join(row) for row in part)]
            if part:
                (folder / f"{name}-{split}.csv").write_text("\n".join(lines) + "\n")
        inputs = {
            split: f"{name}-{split}.csv" for split in ("train", "test") if (folder / f"{name}-{split}.csv").exists()
        }
        listed = ", ".join(f'{split} = "{file}"' for split, file in inputs.items())
        tables += f'[[silos]]\nname = "{name}"\nformat = "csv"\nclient = "client"\ninput = {{ {listed} }}\n'
    config = configured(folder, tables, changes=changes)
    prepare_all(config)
    return config


def prepare_all(config: Config) -> None:
    from beam_jobs.prepare_silo import prepare
    from builders import compiled

    compiled.share()  # what is prepared is trained on
    for silo in config.silos:
        prepare(config, silo.name, progress=quiet())


def trained_weights(run: Path) -> list[Any]:
    from tff_pipeline.training.store import load_arrays

    return load_arrays(run / "trained", kind="weights")[0]
