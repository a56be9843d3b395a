"""Reachability: can a site dial its server, can a server take its port."""

import errno
import socket

from polypfed.doctor.finding import Finding, ok

_WAIT = 5.0  # seconds


def reachable(address: str, wait: float = _WAIT) -> Finding:
    """HOST:PORT takes a connection; it is closed at once and nothing is sent."""
    host, _, port = address.rpartition(":")
    what = f"server {address}"
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        return Finding(what, "error", "is not HOST:PORT", 'Write server = "HOST:PORT" in site.toml')
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=wait).close()
    except socket.gaierror:
        remedy = f"Is {host} spelled right? Ask your network's people, or write its address into /etc/hosts"
        return Finding(what, "error", "its name is not known here", remedy)
    except ConnectionRefusedError:
        return Finding(what, "error", "the machine answers, nothing serves that port", "Start the server: start.sh")
    except OSError as error:
        detail = f"no answer ({error.strerror or error})"
        return Finding(what, "error", detail, f"Have the firewall let this machine dial out to {address}")
    return ok(what, "takes connections")


def free_port(port: int, host: str = "0.0.0.0") -> Finding:
    """A port could be served."""
    what = f"port {port}"
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            if error.errno == errno.EACCES:
                return Finding(what, "error", "this user may not serve it", "Use one above 1023, or run under systemd")
            remedy = f"See who has it: ss -ltnp 'sport = :{port}'. End that, or deploy on another --port"
            return Finding(what, "error", f"is taken ({error.strerror})", remedy)
    return ok(what, "free")
