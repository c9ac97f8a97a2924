"""What `doctor --site` finds in a party's folder; the strict files above all."""

import datetime
import json
import shutil
from pathlib import Path

import pytest
from builders.consortium import key_pairs, provision

from tff_pipeline.commands import doctor
from tff_pipeline.runtime.network import certificates
from tff_pipeline.runtime.network.site import check_site


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificates, "generate_keys", key_pairs())
        provision(folder, ("bank", "shop"), 8002)
    return folder


@pytest.fixture(autouse=True)
def _only_the_site(monkeypatch) -> None:
    """The doctor's other checks import TensorFlow."""
    monkeypatch.setattr(doctor, "checks", lambda config: [])


@pytest.fixture
def bank(made, tmp_path) -> Path:
    """A silo's folder that a test may spoil."""
    return Path(shutil.copytree(made / "silos" / "bank", tmp_path / "bank"))


def test_what_was_provisioned_is_fit(made, capsys):
    for site in ("coordinator", "silos/bank", "silos/shop"):
        assert check_site(made / site) == []

    assert doctor.main(["--site", str(made / "silos" / "bank")]) == 0
    assert "FLARE's own programs have no rights" in " ".join(capsys.readouterr().out.split())


def test_the_strict_files_give_nobody_anything(bank):
    permissions = json.loads((bank / "local" / "authorization.json").read_text())["permissions"]
    resources = json.loads((bank / "local" / "resources.json").read_text())

    assert set(permissions) == {"project_admin", "org_admin", "lead", "member"}
    assert {right for rights in permissions.values() for right in rights.values()} == {"none"}
    assert (resources["class_list_enforcement_mode"], resources["class_allow_list"]) == ("enforce", [])
    assert (resources["components"], resources["allow_log_streaming"]) == ([], False)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("authorization.json", lambda content: content["permissions"]["project_admin"].update(view="any")),
        ("authorization.json", lambda content: content["permissions"].update(intern={"byoc": "any"})),
        ("resources.json", lambda content: content.update(allow_log_streaming=True)),
        ("resources.json", lambda content: content["class_allow_list"].append("*")),
        ("resources.json", lambda content: content["components"].append({"id": "x", "path": "os.system"})),
        ("resources.json", lambda content: content.update(class_list_enforcement_mode="warn")),
    ],
)
def test_a_file_that_is_not_strict_is_refused(bank, file, change, capsys):
    path = bank / "local" / file
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))

    (fault,) = check_site(bank)
    assert fault.startswith(f"{path}: not the strict file")
    assert "provision strict --site" in fault
    assert doctor.main(["--site", str(bank), "--json"]) == 1
    (check,) = [check for check in json.loads(capsys.readouterr().out)["checks"] if check["name"] == "site"]
    assert check["todo"] == fault


@pytest.mark.parametrize("file", ["startup/start.sh", "startup/fed_client.json", "local/privacy.json", "custom"])
def test_files_that_flares_own_programs_would_use_are_refused(bank, file):
    (bank / file).write_text("")

    (fault,) = check_site(bank)
    assert fault.startswith(f"{bank / file}: this file has no business here")


def test_keys_that_others_may_read_or_that_are_missing_or_wrong_are_refused(made, bank):
    (bank / "identity.key").chmod(0o640)
    (bank / "startup" / "client.key").write_bytes((made / "silos" / "shop" / "startup" / "client.key").read_bytes())
    wrong_key, mode = check_site(bank)
    assert "not the key of client.crt" in wrong_key
    assert "others may read it (mode 0640); expected 0600" in mode

    (bank / "identity.key").unlink()
    assert any("identity.key: not there" in fault for fault in check_site(bank))


@pytest.mark.parametrize(
    ("days", "words"), [(340, "expires in 24 days"), (400, "has expired"), (-2, "Check this machine's clock")]
)
def test_a_certificate_that_is_not_good_now_is_refused(bank, days, words):
    now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)

    (fault,) = check_site(bank, now)
    assert words in fault


def test_parts_of_another_consortium_are_refused(bank, tmp_path, monkeypatch):
    pairs = key_pairs()
    pairs()  # so that its authority has another key
    monkeypatch.setattr(certificates, "generate_keys", pairs)
    provision(tmp_path / "other", ("bank", "shop"), 8002)

    shutil.copy(tmp_path / "other" / "silos" / "bank" / "roster.json", bank / "roster.json")
    (fault,) = check_site(bank)
    assert "the signature is not that of this consortium's authority" in fault


def test_a_folder_that_is_no_site_is_one_fault(tmp_path):
    (fault,) = check_site(tmp_path)
    assert "rootCA.pem: no certificate can be read" in fault
