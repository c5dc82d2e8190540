"""A certificate authority for one cluster, and a certificate for each of its hosts, signed by it.

What is there already stays: an authority signs what is missing; to renew a certificate, delete its file and run it again.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from datalocal.errors import ClusterError, SpecError
from datalocal.spec.cluster import Cluster
from datalocal.spec.joining import Tls, is_loopback

CLIENT, HEAD = "client", "head"


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What was written, and for whom: `files` belong on the host of `name` (a node, `head` or `client`)."""

    name: str
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Signer:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make(cluster: Cluster, *, folder: Path | None, days: int, client_hosts: Iterable[str] = ()) -> list[Made]:
    """Make what is missing of the cluster's authority, certificates, keys and token.

    They go where the cluster file says, or, with `folder`, under the same file names into that folder. The client's certificate
    is for submitting from the head's host, and from `client_hosts`. Raises SpecError (the file names no certificates),
    ClusterError (an authority without its key, a folder that cannot be written).
    """
    if cluster.tls is None or cluster.token_file is None:
        raise SpecError(cluster.name, "tls", "the cluster file names no certificates", "see docs/existing-cluster.md")
    tls = cluster.tls if folder is None else _moved(cluster.tls, folder)
    token = Path(cluster.token_file) if folder is None else folder / Path(cluster.token_file).name
    _check_distinct(tls, cluster)
    signer = _authority(Path(tls.ca), cluster.name, days)
    made = []
    for name, hosts in _holders(cluster, client_hosts).items():
        own = tls.of(name)
        if not Path(own.certificate).exists():
            _certify(own, name, hosts, signer, days)
        made.append(Made(name=name, files=(Path(own.ca), Path(own.certificate), Path(own.key), token)))
    if not token.exists():
        write_file(token, secrets.token_urlsafe(32).encode() + b"\n", private=True)
    return made


def authority_key(ca: Path) -> Path:
    """Where the authority's private key lies: beside its certificate. It belongs on no host of the cluster."""
    return ca.with_name(f"{ca.stem}-key{ca.suffix}")


def days_left(certificate: Path) -> float:
    """Days until a certificate ends; negative when it has ended. Raises ClusterError when it is none."""
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise ClusterError(f"{certificate} is not a certificate: {error}") from None
    return (found.not_valid_after_utc - _now()).total_seconds() / 86400


def _holders(cluster: Cluster, client_hosts: Iterable[str]) -> dict[str, list[str]]:
    """Who gets a certificate, and the names and addresses it is good for."""
    head = cluster.address(HEAD)
    local = ["127.0.0.1", "localhost"] if is_loopback(head) else []
    holders = {node.name: [cluster.address(node.name), *node.hosts, node.name] for node in cluster.nodes}
    holders[HEAD] = [head, *local]
    holders[CLIENT] = [head, *local, *client_hosts]
    return {name: list(dict.fromkeys(hosts)) for name, hosts in holders.items()}


def _check_distinct(tls: Tls, cluster: Cluster) -> None:
    for path in (tls.certificate, tls.key):
        if "{name}" not in path:
            raise SpecError(
                cluster.name,
                "tls",
                f"{path} is the same file for every host",
                "write {name} where the host's name is to stand: each host has a key of its own",
            )


def _moved(tls: Tls, folder: Path) -> Tls:
    return Tls(**{field: str(folder / Path(path).name) for field, path in tls.model_dump().items()})


def _authority(path: Path, cluster: str, days: int) -> _Signer:
    key_path = authority_key(path)
    if path.exists():
        if not key_path.exists():
            raise ClusterError(
                f"the authority {path} is there, its key {key_path} is not: it can sign nothing",
                "run this where the authority was made, or delete it to make another one (all certificates with it)",
            )
        key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return _Signer(certificate=x509.load_pem_x509_certificate(path.read_bytes()), key=key)
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"datalocal cluster {cluster}")
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(name, name, key, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_file(key_path, _pem(key), private=True)
    write_file(path, certificate.public_bytes(serialization.Encoding.PEM), private=False)
    return _Signer(certificate=certificate, key=key)


def _certify(own: Tls, name: str, hosts: Iterable[str], signer: _Signer, days: int) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = signer.certificate
    certificate = (
        _builder(_name(name), issuer.subject, key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key()), critical=False)
        .sign(signer.key, hashes.SHA256())
    )
    write_file(Path(own.key), _pem(key), private=True)
    write_file(Path(own.certificate), certificate.public_bytes(serialization.Encoding.PEM), private=False)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    begin = _now() - datetime.timedelta(minutes=5)  # the hosts' clocks differ
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=days))
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write_file(path: Path, content: bytes, *, private: bool) -> None:
    """Whole or not at all; a private file is never readable by others, not even for a moment."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if private else 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        temporary.replace(path)
    except OSError as error:
        raise ClusterError(
            f"{path} cannot be written: {error.strerror or error}", "choose another place: --folder"
        ) from None


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
