"""Processes that are pinned, watched, and gone when we are."""

import ctypes
import os
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

from errors import Refused

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


@contextmanager
def started(command, core, log):
    """Runs `command` on `core` in a process group of its own, and ends the whole group afterwards."""
    def before():
        os.sched_setaffinity(0, {core})
        # Also if we are killed: nginx and HAProxy then end their workers.
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    with open(log, "w") as output:
        process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True, preexec_fn=before,
        )
    try:
        yield process
    finally:
        stop(process)


def stop(process):
    """Asks the group to end, waits, and kills what is left of it."""
    signal_group(process, signal.SIGTERM)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        pass
    signal_group(process, signal.SIGKILL)
    process.wait()


def signal_group(process, number):
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass  # It is gone already.


def wait_until(ready, process, log, seconds=120, pause=0.02):
    """Waits until `ready()` is true and does not refuse; refuses if the process ends first."""
    deadline, why = time.monotonic() + seconds, ""
    while True:
        try:
            if ready():
                return
        except Refused as refused:
            why = f" ({refused})"
        if process.poll() is not None or time.monotonic() > deadline:
            told = Path(log).read_text(errors="replace")[-2000:]
            raise Refused(f"{process.args[0]} did not start{why}:\n{told}")
        time.sleep(pause)


def output(command, core):
    """What `command` prints, run on `core` to its end."""
    ran = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    if ran.returncode != 0:
        raise Refused(f"{ran.args[0]} failed:\n{ran.stdout}")
    return ran.stdout


def group_of(process):
    """The ids of all processes of its group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = stat_of(entry.name)
            if fields and int(fields[2]) == process.pid:
                found.append(int(entry.name))
    return found


def cpu_seconds(pids):
    """User and system time of all their threads, also of those that have ended."""
    total = 0
    for pid in pids:
        fields = stat_of(pid)
        if fields is None:
            raise Refused(f"process {pid} ended while it was measured")
        total += int(fields[11]) + int(fields[12])
    return total / TICKS_PER_SECOND


def resident_mib(pids):
    """Resident memory; pages that a master shares with its worker count twice."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def busy_seconds():
    """What the cores 0 and 1 have worked for anybody, or been robbed of by the hypervisor."""
    total = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *counts = line.split()
        if name in ("cpu0", "cpu1"):
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, counts[:8])
            total += user + nice + system + irq + softirq + steal
    return total / TICKS_PER_SECOND


def stat_of(pid):
    """The fields of /proc/PID/stat behind the name, which may hold anything; `None` if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
