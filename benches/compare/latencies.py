"""What is told of many latencies."""


def percentiles(latencies):
    """Of a list in microseconds, which it sorts."""
    latencies.sort()
    return {f"p{percent}_us": latencies[(len(latencies) - 1) * percent // 100] for percent in (50, 99)}
