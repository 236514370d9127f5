"""A server on this machine that does all that servers do wrong."""

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BODY = bytes(range(256)) * 40
MD5 = f"md5:{hashlib.md5(BODY).hexdigest()}"
SHA = f"sha256:{hashlib.sha256(BODY).hexdigest()}"

Reply = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """Paths and what they do; the requests that came."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.replies: dict[str, Reply] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.stop = threading.Event()

    def __call__(self, path: str, *replies: Reply) -> str:
        """Serve these replies at a path, one after the other, the last again and again; return the url."""
        waiting = list(replies)
        self.replies[path] = lambda request: (waiting.pop(0) if len(waiting) > 1 else waiting[0])(request)
        return f"{self.address}{path}"


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Serve inside a `with` block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            ours.requests.append((self.path, self.headers.get("Range")))
            self.close_connection = True
            with contextlib.suppress(OSError):  # the client has gone
                ours.replies[self.path](self)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    ours = Server(f"http://127.0.0.1:{http.server_address[1]}")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield ours
    ours.stop.set()
    http.shutdown()
    thread.join()
    http.server_close()


def send(body: bytes, code: int = 200, length: int | str | None = None, **headers: str) -> Reply:
    """Reply once, with a `length` announced that may be a lie."""

    def reply(request: BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        request.send_header("Connection", "close")
        if length != "none":
            request.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)

    return reply


def ranged(body: bytes = BODY, cut: int | None = None, tag: str = '"one"', checks: bool = True) -> Reply:
    """Reply as a good server: ranges, If-Range; `cut` closes the connection after so many bytes."""

    def reply(request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        valid = not checks or request.headers.get("If-Range") in (None, tag)
        if wanted is None or not valid:
            send(body[:cut], length=len(body), ETag=tag)(request)
            return
        begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if begin >= len(body):
            send(b"", 416)(request)
            return
        rest = body[begin:]
        span = f"bytes {begin}-{len(body) - 1}/{len(body)}"
        send(rest[:cut], 206, len(rest), ETag=tag, Content_Range=span)(request)

    return reply


def stalling(server: Server, sent: bytes, drip: bytes = b"") -> Reply:
    """Send something, then nothing, or a drip now and then, until the test is over."""

    def reply(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(BODY)))
        request.end_headers()
        request.wfile.write(sent)
        while not server.stop.wait(0.02 if drip else None):
            request.wfile.write(drip)

    return reply


def redirect(to: str, code: int = 302) -> Reply:
    return send(b"moved", code, Location=to)
