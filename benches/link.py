"""A web server behind a link of a given rate and round trip, for remote.py. Needs root.

The server is nginx in a network namespace of its own. The link is a veth pair, shaped by tbf on the
server's side. Where the kernel has no netem, the round trip is added by examples/delay_proxy.rs,
which listens on the loopback device of this side: all that it delays has crossed the link. What
the server has sent is read from its access log.
"""

import contextlib
import ctypes
import dataclasses
import os
import pathlib
import re
import signal
import socket
import subprocess
import time

PREFIX = "bsz-bench-"
LIBC = ctypes.CDLL(None)
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
CONFIG = """
daemon off; user root; worker_processes 2; pid {work}/pid; error_log {work}/error warn;
events {{ worker_connections 1024; }}
http {{
    log_format bench '$request_method $status $body_bytes_sent $uri $http_range';
    access_log {work}/log bench;
    sendfile on; tcp_nopush on; tcp_nodelay on;
    default_type application/octet-stream;
    server {{
        listen {listen};
        location / {{ root {root}; autoindex on; autoindex_format json; }}
        location /html/ {{ alias {root}/; autoindex on; }}
    }}
}}
"""


def tool(*command):
    """Run a command, which must succeed, and return what it prints."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        error = (done.stderr.strip().splitlines() or ["failed"])[-1]
        raise RuntimeError(f"{' '.join(map(str, command[:4]))}: {error}")
    return done.stdout


def dies_with_us():
    """In a child: end with the process that started it, also if that is killed."""
    LIBC.prctl(DEATH_SIGNAL, signal.SIGTERM)


@contextlib.contextmanager
def running(command, **options):
    """A process that ends with the block."""
    process = subprocess.Popen([str(c) for c in command], preexec_fn=dies_with_us, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclasses.dataclass
class Requests:
    """What a server answered in a while."""

    count: int
    bytes: int


class Log:
    """The access log of a server."""

    def __init__(self, path):
        self.path = path

    def mark(self):
        """The place in the log after all that has happened: requests are logged as they end."""
        size = -1
        while size != (size := self.path.stat().st_size):
            time.sleep(0.15)
        return size

    def since(self, mark):
        """The requests after a mark, and the bytes of their answers without headers."""
        end = self.mark()
        with open(self.path, encoding="utf-8") as f:
            f.seek(mark)
            lines = [line.split(" ", 3) for line in f.read(end - mark).splitlines()]
        return Requests(len(lines), sum(int(line[2]) for line in lines))


@dataclasses.dataclass
class Site:
    """A server with its files, as clients see it."""

    host: str
    port: int
    log: Log

    def url(self, path):
        """Directories are listed as JSON."""
        return f"http://{self.host}:{self.port}/{path}"

    def html(self, path):
        """The same with listings in HTML, which rclone reads."""
        return self.url(f"html/{path}")


def listens(host, port, process):
    for _ in range(200):
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args[0]}: nothing listens at {host}:{port}")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def server(work, root, host, port, inside=()):
    """nginx that serves `root` at an address, by the command `inside` in another namespace."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "log").write_text("")
    config = CONFIG.format(work=work, root=root, listen=f"{host}:{port}")
    (work / "nginx.conf").write_text(config)
    command = [*inside, "nginx", "-c", work / "nginx.conf", "-p", work]
    path = os.environ["PATH"] + ":/usr/sbin"
    errors = open(work / "stderr", "w")
    with errors, running(command, env=os.environ | {"PATH": path}, stderr=errors) as process:
        try:
            listens(host, port, process)
        except RuntimeError as e:
            raise RuntimeError(f"{e}\n{(work / 'stderr').read_text()}".strip()) from None
        yield Site(host, port, Log(work / "log"))


def remove_stale():
    """Namespaces of runs that were killed."""
    for name in re.findall(rf"^{PREFIX}(\d+)", tool("ip", "netns", "list"), re.M):
        if not pathlib.Path(f"/proc/{name}").exists():
            tool("ip", "netns", "delete", PREFIX + name)


@contextlib.contextmanager
def namespace(mbits):
    """A namespace behind a link of so many Mbit/s; yields its name and the server's address."""
    remove_stale()
    name, number = f"{PREFIX}{os.getpid()}", os.getpid() % 250 + 1
    here, there, net = f"bsz{os.getpid()}a", f"bsz{os.getpid()}b", f"10.77.{number}"
    if f" {net}." in tool("ip", "-4", "address"):
        raise RuntimeError(f"the network {net}.0 is in use")
    inside = ("ip", "netns", "exec", name)
    tool("ip", "netns", "add", name)
    try:
        tool("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
        tool("ip", "address", "add", f"{net}.1/24", "dev", here)
        tool("ip", "link", "set", here, "up")
        tool(*inside, "ip", "address", "add", f"{net}.2/24", "dev", there)
        tool(*inside, "ip", "link", "set", "lo", "up")
        tool(*inside, "ip", "link", "set", there, "up")
        shape = ("rate", f"{mbits}mbit", "burst", "256kb", "latency", "50ms")
        tool(*inside, "tc", "qdisc", "add", "dev", there, "root", "tbf", *shape)
        yield inside, f"{net}.2"
    finally:
        # The pair goes with one of its ends, but only after the last process of the namespace.
        subprocess.run(["ip", "link", "delete", here], stderr=subprocess.DEVNULL)
        tool("ip", "netns", "delete", name)


@contextlib.contextmanager
def far(work, root, proxy, mbits, round_trip):
    """A server behind a link with a round trip in milliseconds; 0 leaves the proxy out."""
    with namespace(mbits) as (inside, host), server(work, root, host, 80, inside) as site:
        if not round_trip:
            yield site
            return
        command = [proxy, "127.0.0.1:0", f"{host}:80", round_trip]
        with running(command, stdout=subprocess.PIPE, text=True) as process:
            port = int(process.stdout.readline().rpartition(":")[2] or 0)
            listens("127.0.0.1", port, process)
            yield Site("127.0.0.1", port, site.log)


@contextlib.contextmanager
def near(work, root):
    """A server on the loopback device, as fast as it can."""
    with server(work, root, "127.0.0.1", free_port()) as site:
        yield site
