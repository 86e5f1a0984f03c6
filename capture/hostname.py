"""Names of hosts with letters beyond ASCII."""


def ascii_host(host: str) -> str:
    """Return a host's name as the resolver and TLS want it.

    Raises ValueError where it has none, or where the newer rules of IDNA have another one: what Python's
    codec folds would be another domain, maybe somebody else's.
    """
    if host.isascii():
        return host
    name = host.encode("idna")  # UnicodeError is a ValueError
    if name.decode("idna") != host:
        raise ValueError("its host has to be written in the xn-- form")
    return name.decode()
