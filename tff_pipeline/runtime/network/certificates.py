"""Keys and certificates of a consortium, made as NVIDIA FLARE's provisioning makes them.

FLARE's own commands give every party a certificate that can serve as well as ask. Here a silo's can only ask: with it nobody
can pretend to be the coordinator.
"""

import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from nvflare.lighter.utils import (
    Identity,
    generate_cert,
    generate_keys,
    load_private_key_file,
    serialize_cert,
    serialize_pri_key,
    x509_name,
)

from tff_pipeline.errors import PrivacyError

_AUTHORITY_DAYS = 3650


def make_authority(consortium: str) -> tuple[bytes, bytes]:
    """The private key and the certificate of a new authority, both PEM; it signs for ten years."""
    private, public = generate_keys()
    name = Identity(consortium)
    certificate = generate_cert(name, name, private, public, valid_days=_AUTHORITY_DAYS, ca=True)
    return serialize_pri_key(private), serialize_cert(certificate)


def authority_key(path: str) -> RSAPrivateKey:
    """The authority's private key, from its PEM file."""
    return load_private_key_file(path)


def make_request(name: str, organization: str) -> tuple[bytes, bytes]:
    """A new private key and a request for its certificate (CSR), both PEM. The key stays where this is called."""
    private, _ = generate_keys()
    subject = x509_name(name, organization)
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(private, SHA256())
    return serialize_pri_key(private), request.public_bytes(Encoding.PEM)


def issue(
    request: bytes, authority: x509.Certificate, key: RSAPrivateKey, *, days: int, server: bool = False
) -> tuple[str, str, bytes]:
    """The name and organization of a request, and the certificate issued for it (PEM), good for `days` at most.

    Raises:
      PrivacyError: if it is no request, or not signed with its own key.
    """
    try:
        csr = x509.load_pem_x509_csr(request)
    except ValueError:
        raise PrivacyError(
            "the request for a certificate cannot be read; expected the one that `tff-pipeline provision request` made."
        ) from None
    if not csr.is_signature_valid:
        raise PrivacyError(
            "the request for a certificate is not signed with its own key; expected that whoever asks has the private key. Ask for a new request."
        )
    name, organization = _subject(csr, NameOID.COMMON_NAME), _subject(csr, NameOID.ORGANIZATION_NAME)
    now = datetime.datetime.now(datetime.UTC)
    usage = [ExtendedKeyUsageOID.SERVER_AUTH] if server else [ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = generate_cert(
        Identity(name, organization),
        Identity(_subject(authority, NameOID.COMMON_NAME)),
        key,
        csr.public_key(),
        server_default_host=name if server else None,
        not_valid_before=now - datetime.timedelta(hours=1),  # clocks differ
        not_valid_after=min(now + datetime.timedelta(days=days), authority.not_valid_after_utc),
        extra_extensions=[
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (x509.ExtendedKeyUsage(usage), True),
        ],
    )
    return name, organization, serialize_cert(certificate)


def _subject(document: x509.Certificate | x509.CertificateSigningRequest, oid: x509.ObjectIdentifier) -> str:
    values = document.subject.get_attributes_for_oid(oid)
    return str(values[0].value) if len(values) == 1 else ""
