"""What coordinator and silo tell each other around the rounds, before the first and after the last.

    stage    the coordinator sends                                 the silo answers
    hello    its version                                           facts about its data, by which runs are named and sized
    join     the run's terms                                       the commitment to its key of the run
    base     every silo's commitment, the weights to start from    digests of what its clients will be fed with
    finish   that the run is over                                  nothing

No text, no label of a text, and no number about a client is in them. What is in them is listed in docs/threat-model.md.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from tff_pipeline.runtime.network.requests import Array, Hex

VERSION = 1  # of all that parties tell each other; both ends name theirs, and refuse another
STAGES = ("hello", "join", "base", "finish")


class _Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Hello(_Message, frozen=True, kw_only=True):
    """The coordinator's first word.

    Attributes:
      version: of the protocol.
      software: the version of this project that the coordinator runs, for errors.
    """

    version: int
    software: str


class Facts(_Message, frozen=True, kw_only=True):
    """What a silo tells of its prepared data.

    Attributes:
      silo: its name.
      snapshot: the snapshot's id.
      task, tokenizer: what it was prepared for, and with.
      labels: the silo's labels.
      train: what its manifest says of the split "train": how many clients and examples, the names of the files; None without
        that split.
      checksums: the SHA-256 of each of these files, by name.
    """

    silo: str
    snapshot: str
    task: str
    tokenizer: str
    labels: tuple[str, ...]
    train: dict[str, Any] | None
    checksums: dict[str, str]


class Terms(_Message, frozen=True, kw_only=True):
    """A run, as a silo is asked to join it. With its own copy of the process it follows what a round computes, and the guarantee.

    Attributes:
      run: its id.
      seeded: what a run with a seed names its draws by.
      silos: the names of all silos.
      threshold: the number of silos without which nothing is unmasked.
      labels: of the model, in order.
      units: how many clients the population has, or silos, where they are the unit.
      largest_weight: what no client's weight is above, where clients are weighted.
      process: the digest of what is computed and promised (`federation.agreement.Agreement`).
    """

    run: Annotated[str, Meta(pattern=r"\A[0-9a-f]{16}\Z")]
    seeded: str
    silos: tuple[str, ...]
    threshold: int
    labels: tuple[str, ...]
    units: Annotated[int, Meta(ge=1)]
    largest_weight: float
    process: Hex


class Joined(_Message, frozen=True, kw_only=True):
    """The silo joins: the commitment to its key of the run (`privacy.keys.PartyKey.commitment`)."""

    commitment: Hex


class Base(_Message, frozen=True, kw_only=True):
    """What a run starts from.

    Attributes:
      run: its id.
      origin: the digest of what it starts from.
      server: the commitment to the server's key.
      silos: the commitments to the silos' keys, by name.
      network: the digest of the network that training begins with.
      weights: the network's weights before training.
    """

    run: str
    origin: Hex
    server: Hex
    silos: dict[str, Hex]
    network: Hex
    weights: tuple[Array, ...]


class Ready(_Message, frozen=True, kw_only=True):
    """The SHA-256 of the files that the silo's clients are fed with beside their texts: features; weights that are not trained."""

    features: dict[str, str]
    frozen: dict[str, str]


class Finish(_Message, frozen=True, kw_only=True):
    """The run is over: the silo removes its key of the run, and what it computed for it alone."""

    run: str


class Finished(_Message, frozen=True, kw_only=True):
    """The silo has removed them."""

    run: str
