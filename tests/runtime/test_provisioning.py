"""A consortium made step by step: what each party has to bring, and what is refused."""

import json
from pathlib import Path

import pytest
from builders.consortium import definition, key_pairs
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tff_pipeline.commands.provision import main
from tff_pipeline.errors import ArtifactError, ConfigError, PrivacyError
from tff_pipeline.runtime.network import certificates, provisioning
from tff_pipeline.runtime.network.definition import SiloDefinition, read_definition
from tff_pipeline.runtime.network.provisioning import Authority
from tff_pipeline.runtime.network.roster import RosterFile, verified
from tff_pipeline.runtime.network.site import check_site, read_coordinator, read_silo

SILOS = ("bank", "insurer", "shop")


@pytest.fixture(autouse=True)
def _keys_made_before(monkeypatch) -> None:
    monkeypatch.setattr(certificates, "generate_keys", key_pairs())


@pytest.fixture
def authority(tmp_path) -> Authority:
    return Authority.create(read_definition(definition(tmp_path, SILOS)), tmp_path / "authority")


def join(authority: Authority, folder: Path, name: str) -> None:
    request, fingerprint = provisioning.request(folder, name, f"{name} company")
    _, approval = authority.approve(request, fingerprint=fingerprint, days=365)
    provisioning.install(folder, approval, fingerprint=authority.fingerprint)


def test_three_companies_step_by_step(tmp_path, capsys, monkeypatch):
    """The commands of docs/consortium.md. What is sent holds no private key, and each folder is fit at the end."""
    monkeypatch.chdir(tmp_path)

    def provision(*arguments: str) -> dict[str, str]:
        assert main([*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    made = provision("create", "--consortium", str(definition(tmp_path, SILOS)), "--out", ".")
    for silo in SILOS:
        request = provision("request", "--site", silo, "--silo", silo, "--organization", f"{silo} company")
        approval = provision(
            "approve", request["request"], "--authority", "authority", "--fingerprint", request["fingerprint"]
        )
        assert "PRIVATE" not in Path(request["request"]).read_text() + Path(approval["approval"]).read_text()
        provision("install", approval["approval"], "--site", silo, "--fingerprint", made["fingerprint"])
    for site in (*SILOS, "coordinator"):
        installed = provision("install", "authority/roster.json", "--site", site)
        assert installed == {"serial": 4, "silos": list(SILOS)}
        assert check_site(Path(site)) == []

    site = read_silo(Path("bank"))
    assert (site.name, site.coordinator, site.coordinator_name) == ("bank", "localhost:8002", "localhost")
    own = provisioning.identity_key(Path("bank")).public_key().public_bytes_raw()
    assert site.roster.identity_keys()["bank"] == own
    assert read_coordinator(Path("coordinator")).roster == site.roster


def test_a_request_is_approved_only_with_the_fingerprint_that_was_read_out(authority, tmp_path):
    request, fingerprint = provisioning.request(tmp_path / "bank", "bank", "bank company")

    for said in (None, "", fingerprint[:31], "0" * 64):
        with pytest.raises(PrivacyError, match="expected at least its first 32 digits"):
            authority.approve(request, fingerprint=said, days=365)
    in_groups = " ".join(fingerprint[start : start + 4] for start in range(0, 32, 4)).upper()
    assert authority.approve(request, fingerprint=in_groups, days=365)[0] == "bank"


def test_only_silos_that_are_expected_are_approved(authority, tmp_path):
    for number, (name, organization) in enumerate([("casino", "bank company"), ("bank", "other company")]):
        request, fingerprint = provisioning.request(tmp_path / str(number), name, organization)
        with pytest.raises(PrivacyError, match="expected one of bank of bank company, insurer of"):
            authority.approve(request, fingerprint=fingerprint, days=365)


def test_a_request_must_be_signed_with_its_own_identity_key(authority, tmp_path):
    """Somebody who relays the request puts an identity key of their own in."""
    request, _ = provisioning.request(tmp_path / "bank", "bank", "bank company")
    forged = json.loads(request) | {"identity_key": Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()}

    with pytest.raises(PrivacyError, match="not signed with its own identity key"):
        authority.approve(json.dumps(forged).encode(), fingerprint=None, days=365)


def test_an_approval_is_installed_only_by_the_silo_that_asked_and_of_the_authority_it_knows(authority, tmp_path):
    request, fingerprint = provisioning.request(tmp_path / "bank", "bank", "bank company")
    _, approval = authority.approve(request, fingerprint=fingerprint, days=365)
    provisioning.request(tmp_path / "shop", "shop", "shop company")

    with pytest.raises(PrivacyError, match="the authority's certificate has the fingerprint"):
        provisioning.install(tmp_path / "bank", approval, fingerprint="0" * 64)
    with pytest.raises(PrivacyError, match="not for the key in"):
        provisioning.install(tmp_path / "shop", approval, fingerprint=authority.fingerprint)
    other = Authority.create(read_definition(definition(tmp_path, SILOS)), tmp_path / "other")
    join(other, tmp_path / "insurer", "insurer")
    with pytest.raises(PrivacyError, match="of another authority"):
        provisioning.install(tmp_path / "insurer", approval, fingerprint=authority.fingerprint)


def test_a_renewal_has_a_new_tls_key_and_the_same_identity(authority, tmp_path):
    bank = tmp_path / "bank"
    join(authority, bank, "bank")
    before = {name: (bank / name).read_bytes() for name in ("identity.key", "startup/client.key", "startup/client.crt")}

    request, _ = provisioning.renewal(bank)
    _, approval = authority.approve(request, fingerprint=None, days=30)
    assert (bank / "startup" / "client.key").read_bytes() == before["startup/client.key"]  # in use until then
    provisioning.install(bank, approval, fingerprint=None)

    after = {name: (bank / name).read_bytes() for name in before}
    assert [name for name in before if before[name] == after[name]] == ["identity.key"]
    assert [fault.split(": ")[1][:10] for fault in check_site(bank)] == ["expires in"]  # 29 days are few
    provisioning.install(bank, approval, fingerprint=None)  # again, as after an interruption


def test_a_name_is_never_given_to_other_keys(authority, tmp_path):
    join(authority, tmp_path / "bank", "bank")
    request, fingerprint = provisioning.request(tmp_path / "again", "bank", "bank company")

    with pytest.raises(PrivacyError, match="has another identity key or organization"):
        authority.approve(request, fingerprint=fingerprint, days=365)


def test_a_revoked_silo_stays_out_and_nobody_goes_back_to_the_roster_before(authority, tmp_path):
    bank, shop = tmp_path / "bank", tmp_path / "shop"
    join(authority, bank, "bank")
    join(authority, shop, "shop")
    earlier = authority.signed_roster()
    renewal, _ = provisioning.renewal(bank)

    authority.revoke("bank", "its machine was stolen")

    assert not authority.roster.admits("bank")
    assert set(authority.roster.identity_keys()) == {"shop"}
    with pytest.raises(PrivacyError, match="was revoked"):
        authority.approve(renewal, fingerprint=None, days=365)
    provisioning.install(shop, authority.signed_roster(), fingerprint=None)
    with pytest.raises(PrivacyError, match="serial number 3 while this site has 4; expected a newer roster"):
        provisioning.install(shop, earlier, fingerprint=None)
    provisioning.install(bank, authority.signed_roster(), fingerprint=None)
    with pytest.raises(ArtifactError, match="does not admit the silo 'bank'"):
        read_silo(bank)
    with pytest.raises(ConfigError, match="expected one of the silos that the roster admits"):
        authority.revoke("bank", "again")


def test_a_running_process_takes_a_newer_roster_and_no_other(authority, tmp_path):
    path, events = tmp_path / "roster.json", []
    earlier = authority.signed_roster()
    path.write_bytes(earlier)
    roster = RosterFile(path, authority.certificate, lambda event, **fields: events.append((event, fields)))
    join(authority, tmp_path / "bank", "bank")

    assert not roster.current().admits("bank")
    path.write_bytes(authority.signed_roster())
    assert roster.current().admits("bank")
    for other in (earlier, authority.signed_roster().replace(b"bank company", b"Bank company"), b"{}"):
        path.write_bytes(other)
        assert roster.current().admits("bank")
    path.unlink()
    assert roster.current().admits("bank")
    assert [event for event, _ in events] == ["roster refused"] * 4


def test_a_roster_is_the_authoritys_byte_for_byte(authority, tmp_path):
    other = Authority.create(read_definition(definition(tmp_path, SILOS)), tmp_path / "other")
    document = authority.signed_roster()

    assert verified(document, authority.certificate, "here") == authority.roster
    for changed, by in (
        (document.replace(b'"threshold": 2', b'"threshold": 1'), authority),
        (document.replace(b'"serial": 1', b'"serial": 9'), authority),
        (document, other),
    ):
        with pytest.raises(PrivacyError, match=r"here: the signature is not that of this consortium's authority"):
            verified(changed, by.certificate, "here")


def test_one_more_silo_is_expected_with_a_threshold_above_half(authority, tmp_path):
    with pytest.raises(ConfigError, match="threshold is 2 of 4 silos; expected more than half of them"):
        authority.add(SiloDefinition("hospital", "hospital company"), None)
    authority.add(SiloDefinition("hospital", "hospital company"), 3)

    again = Authority(tmp_path / "authority")
    assert again.roster.threshold == 3
    join(again, tmp_path / "hospital", "hospital")
    assert read_silo(tmp_path / "hospital").roster.admits("hospital")


def test_there_is_one_authority(authority, tmp_path):
    with pytest.raises(ConfigError, match="there already; expected a new folder"):
        Authority.create(read_definition(definition(tmp_path, SILOS)), tmp_path / "authority")


@pytest.mark.parametrize(
    ("silos", "change", "words"),
    [
        (("bank", "Bank"), ("", ""), "expected different names"),
        (("first.bank", "shop"), ("", ""), "letters, digits, - and _"),
        (("server", "shop"), ("", ""), "none of admin, localhost, server"),
        (SILOS, ("threshold = 2", "threshold = 1"), "threshold is 1 of 3 silos; expected more than half"),
        (SILOS, ("threshold = 2", "threshold = 4"), "threshold is 4 of 3 silos"),
        (SILOS, ("port = 8002", "port = 0"), "a port from 1 to 65535"),
        (SILOS, ("threshold = 2", "threshold = 2\nprotocol = 7"), "protocol is 7; expected 1"),
        (SILOS, ("threshold", "treshold"), "unknown field `treshold`"),
        (SILOS, ('"localhost"', '"bank"'), "that is no silo's"),
        (SILOS, ('"bank company"', '" "'), "an organization is empty"),
    ],
)
def test_what_a_consortium_cannot_be(tmp_path, silos, change, words):
    path = definition(tmp_path, silos)
    path.write_text(path.read_text().replace(*change))

    with pytest.raises(ConfigError, match=words) as error:
        read_definition(path)
    assert str(path) in str(error.value)
