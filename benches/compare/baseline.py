"""Lockgate's instructions beside those that are recorded: what a change costs is seen where time is too noisy."""

import json
from pathlib import Path

RECORDED = Path(__file__).resolve().parent / "instructions.json"
# Of one binary two runs differ by less; what is above is somebody's doing.
ALLOWED = 1.03


def record(measured):
    """Of the scenarios that were measured; those of the others stay."""
    recorded = read() | {name: round(counts["lockgate"]) for name, counts in measured.items()}
    RECORDED.write_text(json.dumps(recorded, indent=2) + "\n")


def read():
    return json.loads(RECORDED.read_text()) if RECORDED.exists() else {}


def compared(measured):
    """The table, and the scenarios that cost more than they may."""
    recorded = read()
    lines = ["", "| scenario | recorded | now | now / recorded |", "|---|---:|---:|---:|"]
    worse = []
    for name, counts in measured.items():
        if name not in recorded:
            continue
        ratio = counts["lockgate"] / recorded[name]
        lines.append(f"| {name} | {recorded[name]} | {counts['lockgate']:.0f} | {ratio:.3f} |")
        if ratio > ALLOWED:
            worse.append(name)
    return "\n".join(lines), worse
