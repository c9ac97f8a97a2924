"""Whose key it is: Ed25519 keys from PEM, and certificates that the consortium's CA issued."""

import dataclasses
import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from tff_pipeline.errors import ProtocolError
from tff_pipeline.secagg.identity import certified, load_private_key, public_bytes

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
# Made once: RSA keys, as FLARE's CA has one, take a moment.
AUTHORITY, STRANGER = (rsa.generate_private_key(65537, 2048) for _ in range(2))
BANK = Ed25519PrivateKey.generate()


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What a certificate says; a silo's that is right, where nothing is changed."""

    names: tuple[str, ...] = ("bank",)
    issuer: str = "consortium"
    key: rsa.RSAPrivateKey | Ed25519PrivateKey = BANK
    signer: rsa.RSAPrivateKey = AUTHORITY
    start: datetime.datetime = NOW - DAY
    end: datetime.datetime = NOW + DAY
    authority: bool = False
    signs: bool = True
    certifies: bool = False
    usage: bool = True
    unknown: bool = False

    def pem(self) -> bytes:
        key = self.key.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in self.names]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.issuer)]))
            .public_key(key)
            .serial_number(17)
            .not_valid_before(self.start)
            .not_valid_after(self.end)
            .add_extension(x509.BasicConstraints(ca=self.authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )
        if self.usage:
            usage = x509.KeyUsage(self.signs, False, False, False, False, self.certifies, self.certifies, False, False)
            builder = builder.add_extension(usage, critical=True)
        if self.unknown:
            extension = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"x")
            builder = builder.add_extension(extension, critical=True)
        return builder.sign(self.signer, SHA256()).public_bytes(Encoding.PEM)


ROOT = Certificate(
    names=("consortium",), key=AUTHORITY, authority=True, certifies=True, start=NOW - 9 * DAY, end=NOW + 9 * DAY
)


def test_the_name_and_key_that_the_ca_certifies():
    assert certified(Certificate().pem(), ROOT.pem(), where="bank.crt", now=NOW) == ("bank", public_bytes(BANK))


def test_names_need_not_be_those_of_hosts():
    """As the configuration allows them."""
    name, _ = certified(Certificate(names=("Bank_1.eu",)).pem(), ROOT.pem(), where="x", now=NOW)
    assert name == "Bank_1.eu"


@pytest.mark.parametrize(
    ("silo", "root"),
    [
        (Certificate(signer=STRANGER), ROOT),
        (Certificate(issuer="another"), ROOT),
        (Certificate(), dataclasses.replace(ROOT, key=STRANGER, signer=STRANGER)),
        (Certificate(end=NOW - DAY / 2), ROOT),
        (Certificate(start=NOW + DAY / 2), ROOT),
        (Certificate(), dataclasses.replace(ROOT, end=NOW - DAY / 2)),
        (Certificate(), dataclasses.replace(ROOT, authority=False)),
        (Certificate(authority=True), ROOT),
        (Certificate(certifies=True), ROOT),
        (Certificate(signs=False), ROOT),
        (Certificate(usage=False), ROOT),
        (Certificate(unknown=True), ROOT),
    ],
    ids=[
        "signed by another CA",
        "of another issuer",
        "CA of the same name with another key",
        "expired",
        "not valid yet",
        "CA expired",
        "CA that is none",
        "a CA itself",
        "for certificates too",
        "not for signatures",
        "no key usage",
        "a critical extension that nobody knows",
    ],
)
def test_a_certificate_that_does_not_hold_is_not_accepted(silo, root):
    with pytest.raises(ProtocolError, match=r"bank.crt: the certificate is not accepted \(.*\); expected one that the"):
        certified(silo.pem(), root.pem(), where="bank.crt", now=NOW)


def test_a_silo_cannot_certify_another():
    """The bank's RSA certificate, which is no CA's, as the issuer of one for the shop."""
    middle = Certificate(key=STRANGER)
    forged = Certificate(names=("shop",), issuer="bank", signer=STRANGER)

    for root in (ROOT, middle):
        with pytest.raises(ProtocolError, match="the certificate is not accepted"):
            certified(forged.pem(), root.pem(), where="x", now=NOW)


@pytest.mark.parametrize(
    ("silo", "match"),
    [
        (Certificate(key=STRANGER), r"1 common name\(s\) and a key that is not Ed25519"),
        (Certificate(names=()), r"0 common name\(s\) and a key that is Ed25519"),
        (Certificate(names=("bank", "shop")), r"2 common name\(s\) .*expected one name and an Ed25519 key"),
    ],
)
def test_a_certificate_for_something_else(silo, match):
    with pytest.raises(ProtocolError, match=match):
        certified(silo.pem(), ROOT.pem(), where="x", now=NOW)


@pytest.mark.parametrize("broken", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate(broken):
    for silo, root in ((broken, ROOT.pem()), (Certificate().pem(), broken)):
        with pytest.raises(ProtocolError, match=r"x: holds no certificate that can be read; expected X\.509 as PEM"):
            certified(silo, root, where="x", now=NOW)


def pem(key: rsa.RSAPrivateKey | Ed25519PrivateKey, password: bytes | None = None) -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def test_an_identity_key_from_pem():
    assert public_bytes(load_private_key(pem(BANK), where="x")) == public_bytes(BANK)
    assert public_bytes(load_private_key(pem(BANK, b"word"), where="x", password=b"word")) == public_bytes(BANK)


@pytest.mark.parametrize(
    ("content", "password", "match"),
    [
        (b"secret text", None, "key.pem: holds no private key that can be read; expected an Ed25519 key as PEM"),
        (pem(BANK, b"word"), None, "holds no private key that can be read"),
        (pem(BANK, b"word"), b"wrong", "holds no private key that can be read"),
        (pem(BANK), b"word", "holds no private key that can be read"),
        (pem(AUTHORITY), None, "key.pem: holds another kind of private key; expected Ed25519"),
    ],
    ids=["text", "no password", "wrong password", "password for none", "RSA"],  # keys are others in every process
)
def test_what_is_no_identity_key(content, password, match):
    with pytest.raises(ProtocolError, match=match) as error:
        load_private_key(content, where="key.pem", password=password)
    assert "secret text" not in str(error.value)
