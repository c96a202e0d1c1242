class Refused(Exception):
    """There is no figure, and the message says why and what to do."""
