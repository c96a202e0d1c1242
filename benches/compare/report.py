"""The tables, in Markdown."""

from statistics import median

from h2load import CONNECTIONS, STREAMS
from scenarios import SCENARIOS

# Above this, requests per second and latencies say more about the neighbours than about the peers.
QUIET = 0.05


def scenarios():
    wide = max(map(len, SCENARIOS))
    return "\n".join(f"{scenario.name:{wide}}  {scenario.about}" for scenario in SCENARIOS.values())


def times(measured, options):
    lines = [
        "",
        f"Medians of {options.rounds} alternating rounds of {options.seconds} s, {options.connections} connections"
        + (f" (h2: {CONNECTIONS} with {STREAMS} streams each)." if "h2" in measured else "."),
        "",
        "| scenario | peer | CPU us/request | requests/s | p50 ms | p99 ms | RSS MiB |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for scenario, figures in measured.items():
        for peer, rounds in figures.items():
            cpu, rate, p50, p99, resident = (
                median(getattr(figure, field) for figure in rounds)
                for field in ("cpu_us", "per_second", "p50_ms", "p99_ms", "resident_mib")
            )
            lines.append(f"| {scenario} | {peer} | {cpu:.1f} | {rate:.0f} | {p50:.2f} | {p99:.2f} | {resident:.1f} |")
    lines += ratios(measured, options)
    others = median(figure.others for figures in measured.values() for rounds in figures.values() for figure in rounds)
    lines += ["", f"Other processes and the hypervisor took {others:.0%} of the two cores"
              + (": requests per second and latencies are not to be trusted." if others > QUIET else ".")]
    return "\n".join(lines)


def ratios(measured, options):
    """Lockgate against each other peer, the median of the ratios within the rounds."""
    others = [peer for peer in options.peers if peer != "lockgate"]
    if "lockgate" not in options.peers or not others:
        return []
    lines = ["", "| scenario | " + " | ".join(f"CPU lockgate/{peer} | p99 lockgate/{peer}" for peer in others) + " |",
             "|---|" + "---:|" * (2 * len(others))]
    for scenario, figures in measured.items():
        cells = [scenario]
        for peer in others:
            for field in ("cpu_us", "p99_ms"):
                cells.append(f"{ratio(figures['lockgate'], figures[peer], field):.2f}" if peer in figures else "")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def ratio(ours, theirs, field):
    return median(getattr(one, field) / getattr(other, field) for one, other in zip(ours, theirs))


def memory(measured, options):
    lines = ["", f"Resident MiB, idle and with {options.kept:,} connections that were used once and are kept.", "",
             "| kept | peer | idle | with them | KiB each |", "|---|---|---:|---:|---:|"]
    for (kind, peer), (idle, kept) in measured.items():
        lines.append(f"| {kind} | {peer} | {idle:.1f} | {kept:.1f} | {(kept - idle) * 1024 / options.kept:.1f} |")
    return "\n".join(lines)


def swaps(measured):
    lines = ["", "| what | median ms | longest ms | rounds |", "|---|---:|---:|---:|"]
    lines += [f"| {what} | {median(took):.1f} | {max(took):.1f} | {len(took)} |" for what, took in measured.items()]
    return "\n".join(lines)


def instructions(measured, options):
    lines = [
        "",
        "Instructions in user space for each request.",
        "",
        "| scenario | " + " | ".join(options.peers) + " |",
        "|---|" + "---:|" * len(options.peers),
    ]
    for scenario, counts in measured.items():
        lines.append(f"| {scenario} | " + " | ".join(f"{counts[peer]:.0f}" for peer in options.peers) + " |")
    return "\n".join(lines)
