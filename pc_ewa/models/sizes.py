"""Checks of the sizes of a network, before it is built."""

from pc_ewa.errors import ConfigError


def check_sizes(sizes: dict[str, int], mlp_ratio: float = 1.0, **rates: float) -> None:
    """Raise ConfigError unless every size is at least 1, heads divide the width, and rates lie in [0, 1).

    The hidden width of the FFNs, `mlp_ratio` times the width, must be at least 1 too.
    """
    for name, value in sizes.items():
        if value < 1:
            raise ConfigError(f"{name}={value}; it must be at least 1")
    dim, num_heads = sizes["dim"], sizes["num_heads"]
    if dim % num_heads:
        fitting = ", ".join(str(n) for n in range(1, 2 * num_heads) if dim % n == 0)
        raise ConfigError(f"num_heads={num_heads} does not divide dim={dim}; choose one of {fitting}")
    if int(dim * mlp_ratio) < 1:
        raise ConfigError(f"mlp_ratio={mlp_ratio} with dim={dim} leaves the FFN no hidden unit")
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise ConfigError(f"{name}={rate}; it must be at least 0 and below 1")
