"""Who a silo is: its Ed25519 key, and the certificate by which the consortium's CA says whose key that is.

The identity key signs what a silo says in the protocol, and nothing else. FLARE's certificates are for connections and their
keys are RSA; the certificate of an identity is one more, issued by the same CA.
"""

import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from tff_pipeline.errors import ProtocolError


def sign(private: Ed25519PrivateKey, content: bytes) -> bytes:
    """The signature, 64 bytes, of canonical bytes (`canonical.canonical`), which begin with what they are for."""
    return private.sign(content)


def verify(public_key: bytes, content: bytes, signature: bytes) -> bool:
    """Whether the key, 32 bytes, signed the content."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, content)
    except (InvalidSignature, ValueError):
        return False
    return True


def public_bytes(private: Ed25519PrivateKey) -> bytes:
    """The public key, 32 bytes, as rosters have it."""
    return private.public_key().public_bytes_raw()


def load_private_key(pem: bytes, *, where: str, password: bytes | None = None) -> Ed25519PrivateKey:
    """An identity key from PEM (PKCS 8).

    Args:
      pem: the file's content.
      where: the file, for the error.
      password: if it is encrypted.

    Raises:
      ProtocolError: if it is something else.
    """
    try:
        private = load_pem_private_key(pem, password)
    except (ValueError, TypeError):  # the library's text could repeat the file's
        raise ProtocolError(
            f"{where}: holds no private key that can be read; expected an Ed25519 key as PEM (PKCS 8), and its password if it is encrypted. Make one with `openssl genpkey -algorithm ed25519`."
        ) from None
    if not isinstance(private, Ed25519PrivateKey):
        raise ProtocolError(
            f"{where}: holds another kind of private key; expected Ed25519, since identities sign with it. Make one with `openssl genpkey -algorithm ed25519`."
        )
    return private


def certified(
    certificate: bytes, authority: bytes, *, where: str, now: datetime.datetime | None = None
) -> tuple[str, bytes]:
    """The name and the public key that the consortium's CA certifies.

    The CA has to have issued the certificate itself. It has to be valid now, for signatures, and not a CA; its name is the only
    common name of its subject. A revocation list is not looked at here.

    Args:
      certificate: the silo's, PEM.
      authority: the CA's, PEM, from the receiver's own configuration.
      where: whose certificate or which file, for the error.
      now: with a time zone; this machine's clock by default.

    Raises:
      ProtocolError: if anything of it is not so.
    """
    try:
        silo = x509.load_pem_x509_certificate(certificate)
        store = Store([x509.load_pem_x509_certificate(authority)])
    except ValueError:
        raise ProtocolError(
            f"{where}: holds no certificate that can be read; expected X.509 as PEM, the silo's and the CA's. Ask whoever provisioned the consortium for it."
        ) from None
    verifier = (
        PolicyBuilder()
        .store(store)
        .time(now or datetime.datetime.now(datetime.UTC))
        .max_chain_depth(0)
        .extension_policies(ca_policy=ExtensionPolicy.webpki_defaults_ca(), ee_policy=_SILO)
        .build_client_verifier()
    )
    try:
        verifier.verify(silo, [])
    except VerificationError as error:
        raise ProtocolError(
            f"{where}: the certificate is not accepted ({str(error)[:200]}); expected one that the consortium's CA issued for signatures, and that is valid now. Compare the clocks; renew it if it has expired."
        ) from None
    names = silo.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    key = silo.public_key()
    if len(names) != 1 or not isinstance(key, Ed25519PublicKey):
        raise ProtocolError(
            f"{where}: the certificate has {len(names)} common name(s) and a key that is {'' if isinstance(key, Ed25519PublicKey) else 'not '}Ed25519; expected one name and an Ed25519 key. A certificate for connections is not one for identities."
        )
    return str(names[0].value), key.public_bytes_raw()


def _no_authority(policy: Policy, certificate: x509.Certificate, extension: x509.BasicConstraints) -> None:
    if extension.ca:
        raise ValueError("it is a CA's")


def _signs(policy: Policy, certificate: x509.Certificate, extension: x509.KeyUsage) -> None:
    if not extension.digital_signature or extension.key_cert_sign:
        raise ValueError("it is not for signatures")


_SILO = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _no_authority)
    .require_present(x509.KeyUsage, Criticality.AGNOSTIC, _signs)
)
