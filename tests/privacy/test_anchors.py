"""A signed digest of the ledgers, kept elsewhere, tells what all ledgers together do not."""

import json
from pathlib import Path

from builders.ledgers import delete

from tff_pipeline.cli import main
from tff_pipeline.errors import PrivacyError


def test_an_anchor_that_was_edited_or_signed_by_another_key_is_refused(folder, tmp_path, capsys):
    config = folder.config("bank")
    folder.charge(config, 2)
    anchor, key, other = tmp_path / "anchor.json", tmp_path / "mine.key", tmp_path / "others.key"
    for file, signer in ((anchor, key), (tmp_path / "theirs.json", other)):
        assert main(["ledger", "anchor", "--config", config.path, "--out", str(file), "--key", str(signer)]) == 0
    assert key.stat().st_mode & 0o777 == 0o600

    def verified(file: Path, trusted: str, code: int) -> str:
        capsys.readouterr()
        command = ["ledger", "verify", "--config", config.path, "--anchor", str(file)]
        assert main([*command, *(["--key", trusted] if trusted else [])]) == code
        return capsys.readouterr().err

    verified(anchor, f"{key}.pub", 0)
    verified(anchor, str(key), 0)
    assert "was signed with the key" in verified(tmp_path / "theirs.json", f"{key}.pub", 5)
    assert "expected both or neither" in verified(anchor, "", 2)
    assert "is no Ed25519 key" in verified(anchor, config.path, 4)
    assert "no such file; expected an anchor" in verified(tmp_path / "none.json", f"{key}.pub", 4)
    good = json.loads(anchor.read_text())
    good["ledgers"][0]["lines"] = 1
    anchor.write_text(json.dumps(good))
    assert "the signature does not fit" in verified(anchor, f"{key}.pub", 5)
    anchor.write_text("[]")
    assert "is not an anchor of format 1" in verified(anchor, f"{key}.pub", 4)


def test_no_anchor_is_made_of_ledgers_that_do_not_agree(folder, tmp_path):
    config = folder.config("bank")
    folder.charge(config, 2)
    delete(folder.of_silo("bank"))
    command = ["ledger", "anchor", "--config", config.path, "--out", str(tmp_path / "anchor.json")]
    assert main(command) == PrivacyError.exit_code
    assert not (tmp_path / "anchor.json").exists()
    assert not (folder.workdir / "anchor.key").exists()


def test_an_anchor_is_printed_and_its_key_is_kept(folder, capsys):
    config = folder.config("bank")
    folder.charge(config, 1)
    keys = set()
    for _ in range(2):
        assert main(["ledger", "anchor", "--config", config.path]) == 0
        keys.add(json.loads(capsys.readouterr().out)["public_key"])
    assert len(keys) == 1
    assert (folder.workdir / "anchor.key").stat().st_mode & 0o777 == 0o600
