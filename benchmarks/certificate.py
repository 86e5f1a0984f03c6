"""A certificate for this machine's own address."""

import subprocess
from pathlib import Path


def certificate(folder: Path) -> Path:
    """Make one; return the PEM file with it and its key."""
    key, cert, both = folder / "key.pem", folder / "cert.pem", folder / "both.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    subprocess.run(
        [*command, "-days", "2", *names, "-keyout", key, "-out", cert], check=True, capture_output=True
    )
    both.write_bytes(cert.read_bytes() + key.read_bytes())
    return both
