"""The certificate that all peers show: ECDSA P-256, signed by itself, gone with the run."""

import dataclasses
import subprocess

import machine
from errors import Refused


def given_to(scenario, folder):
    """The scenario with the certificate that lies in `folder`, if it is one by TLS."""
    if not scenario.tls:
        return scenario
    path = folder / "certificate.pem"
    if not path.exists():
        make(path, scenario.a_host)
    return dataclasses.replace(scenario, certificate=path)


def make(path, host):
    key = path.with_suffix(".key")
    command = [
        machine.tool("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
        "-days", "2", "-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}", "-keyout", key, "-out", path,
    ]
    made = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if made.returncode != 0:
        raise Refused(f"openssl made no certificate:\n{made.stdout}")
    # HAProxy wants both in one file, and the others take it.
    with path.open("a") as chain:
        chain.write(key.read_text())
