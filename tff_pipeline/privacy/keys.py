"""A party's key of one run: the secret that its random draws follow from, and what it has reported under it.

Both are one file, so that they are lost, copied and restored together:

    {"secret": "<64 hex digits>"}                                    the first line
    {"round": "<name of the round's draw>"}                          a line for every round begun
    {"report": "<keyed digest>", "round": "<name>"}                  and for every round reported

The first is on disk before the round is charged, the second before the report leaves the silo. So a file that lacks a round
which the silo's ledger was charged for is an older copy. A round that is repeated after a crash must be the same report byte for
byte: the same noise on two sums would show their difference, and the same cohort under new noise is not what the
accountant was told. Where the arithmetic of a device is not repeatable, or the software was changed in between, the silo
sees it here and refuses.
"""

import hashlib
import hmac
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tff_pipeline.artifacts import append_synced, write_atomic
from tff_pipeline.errors import ArtifactError, PrivacyError
from tff_pipeline.privacy import randomness


class PartyKey:
    """The key in one file, made on first use.

    Args:
      path: of the file, readable by its owner only.
      seeded: gives the secret in a run with a seed; the operating system's generator does where it is None.
    """

    def __init__(self, path: Path, seeded: Callable[[], bytes] | None = None):
        self.path, self._seeded = path, seeded
        self.secret, self._reports = self._read()  # None for a round that was begun

    @property
    def commitment(self) -> str:
        """Names the secret without telling it: 64 hex digits, which other parties may see."""
        return randomness.derive(self.secret, "commitment").hex()

    def renew(self) -> None:
        """Forgets the secret and every report; all that is drawn from now on is new."""
        self.path.unlink(missing_ok=True)
        self.secret, self._reports = self._read()

    def knows(self, round_name: str) -> bool:
        """Whether a round was begun or reported under this key."""
        return round_name in self._reports

    def begin(self, round_name: str, *, where: str) -> None:
        """Notes that a round is about to be charged, on disk before it returns.

        Raises:
          PrivacyError: if the file was removed meanwhile.
        """
        if not self.knows(round_name):
            self._append({"round": round_name}, where)
            self._reports[round_name] = None

    def record(self, round_name: str, sums: Sequence[np.ndarray], *, where: str) -> None:
        """Records what is about to be reported, on disk before it returns.

        Args:
          round_name: names the draw of the round; see `round.Round.name`.
          sums: what the silo reports, before noise and masks.
          where: silo and round, for the error.

        Raises:
          PrivacyError: if something else was reported under the same draw. Nothing must be sent.
        """
        # Keyed, so that the file tells nobody whether a guessed sum is right.
        digest = hmac.new(randomness.derive(self.secret, f"report/{round_name}"), digestmod=hashlib.sha256)
        for part in sums:
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        report = digest.hexdigest()
        known = self._reports.get(round_name)
        if known == report:
            return
        if known is not None:
            raise PrivacyError(
                f"{where} is repeated, and the silo's sum is not the one it reported the first time; expected the same, byte for byte, since cohort and noise are the same. "
                "Is the device's arithmetic repeatable, and were software, device and features left as they were? Nothing was sent. "
                f"To go on, draw everything anew with `tff-pipeline abandon` (or, in a run with a seed, with another pipeline.seed): the round is then charged again. ({self.path})"
            )
        self._append({"report": report, "round": round_name}, where)
        self._reports[round_name] = report

    def _append(self, line: Mapping[str, str], where: str) -> None:
        try:
            handle = os.open(
                self.path, os.O_WRONLY | os.O_APPEND
            )  # never makes the file: it would have no secret in it
        except FileNotFoundError:
            raise PrivacyError(
                f"{where}: {self.path} was removed while the run was under way; expected it to stay until the run is finished. Nothing was sent. Start the run again: it draws everything anew."
            ) from None
        try:
            append_synced(handle, json.dumps(line, sort_keys=True).encode() + b"\n")
        finally:
            os.close(handle)

    def _read(self) -> tuple[bytes, dict[str, str | None]]:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            secret = self._seeded() if self._seeded else os.urandom(32)
            write_atomic(self.path, json.dumps({"secret": secret.hex()}).encode() + b"\n", mode=0o600)
            return secret, {}
        whole = content[: content.rfind(b"\n") + 1]
        try:
            first, *lines = [json.loads(line) for line in whole.splitlines()]
            secret = bytes.fromhex(first["secret"])
            if len(secret) != 32:
                raise ValueError
            reports: dict[str, str | None] = {}
            for line in lines:  # a report is not forgotten where a later line says that the round was begun
                reports[str(line["round"])] = line.get("report") or reports.get(str(line["round"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ArtifactError(
                f"{self.path}: is not a key as this version writes it; expected a line with a secret of 32 bytes, and lines for the rounds begun and reported. "
                "Run `tff-pipeline abandon` for its run: everything is then drawn anew, and what was charged stays charged."
            ) from None
        if len(whole) < len(content):
            # A kill cut the last line short: that report never left.
            os.truncate(self.path, len(whole))
        return secret, reports
