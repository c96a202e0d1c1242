"""What this machine has, and what it lacks."""

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

from errors import Refused
from scenarios import SCENARIOS

ROOT = Path(__file__).resolve().parents[2]

# Which Debian package has which tool.
PACKAGES = {
    "nginx": "nginx-light",
    "haproxy": "haproxy",
    "wrk": "wrk",
    "h2load": "nghttp2-client",
    "openssl": "openssl",
    "valgrind": "valgrind",
    "perf": "linux-perf",
}

PROXY_CORE = 0
LOAD_CORE = 1


def tool(name):
    """The path of a tool; Debian has servers where ordinary users do not look."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def check(options):
    """Refuses to start if something is missing."""
    needed = {"nginx"} | {name for name in ("haproxy",) if {"haproxy", "relay"} & set(options.peers)}
    if not options.instructions and not options.memory and not options.swaps:
        needed |= {"wrk", "h2load"} & {SCENARIOS[name].generator for name in options.scenarios}
    if options.memory or any(SCENARIOS[name].tls for name in options.scenarios):
        needed.add("openssl")
    if options.instructions and not perf_counts():
        needed.add("valgrind")
    missing = sorted(name for name in needed if not tool(name))
    if missing:
        packages = " ".join(PACKAGES[name] for name in missing)
        raise Refused(f"{', '.join(missing)} not found; on Debian: apt-get install --no-install-recommends {packages}")
    cores = os.sched_getaffinity(0)
    if not {PROXY_CORE, LOAD_CORE} <= cores:
        raise Refused(f"needs the cores {PROXY_CORE} and {LOAD_CORE}, and may use only {sorted(cores)}")
    if options.binary and not os.access(options.binary, os.X_OK):
        raise Refused(f"{options.binary} is not a program")


def build(features=""):
    """The release build of this tree; cargo knows whether there is anything to do."""
    command = ["cargo", "build", "--release", "--locked", "--bin", "lockgate", "--features", features,
               "--message-format=json-render-diagnostics"]
    try:
        built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    except FileNotFoundError:
        raise Refused("cargo not found: install Rust, or name a binary with --binary")
    except subprocess.CalledProcessError:
        raise Refused("the release build failed")
    messages = map(json.loads, built.stdout.splitlines())
    paths = [message["executable"] for message in messages if message.get("executable")]
    if not paths:
        raise Refused("cargo built no program")
    return Path(paths[-1])


def perf_counts(event="instructions:u"):
    """Whether perf can count `event`: in virtual machines it often cannot."""
    if not tool("perf"):
        return False
    tried = subprocess.run(
        [tool("perf"), "stat", "-x,", "-e", event, "true"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    return tried.returncode == 0 and "<not" not in tried.stderr


def describe(binary):
    """One paragraph: machine and versions."""
    model = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())
    virtual = ", virtual" if "hypervisor" in Path("/proc/cpuinfo").read_text() else ""
    asked = [("nginx", "-v"), ("haproxy", "-v"), ("wrk", "-v"), ("h2load", "--version"), ("openssl", "version")]
    versions = [first_line([binary, "--version"])]
    versions += [first_line([tool(name), how]) for name, how in asked if tool(name)]
    return (f"{model}, {os.cpu_count()} cores{virtual}; {platform.system()} {platform.release()}\n"
            + "; ".join(version for version in versions if version))


def first_line(command):
    told = printed(command)
    return told.splitlines()[0].strip() if told else None


def printed(command):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
