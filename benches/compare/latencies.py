"""What is told of many latencies."""


def percentiles(latencies):
    """Of a list in microseconds, which it sorts; 0 if there are none."""
    latencies.sort()
    if not latencies:
        return {"p50_us": 0, "p99_us": 0}
    return {f"p{percent}_us": latencies[(len(latencies) - 1) * percent // 100] for percent in (50, 99)}
