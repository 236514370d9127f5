"""Placeholder while the kernels are written."""


def unavailable(device: str) -> str | None:
    """Say why this backend cannot serve the device."""
    return "not built yet"
