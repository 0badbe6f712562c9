"""Local web servers: one in a thread, and one in a separate process that fails as planned."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CHUNK, PACE = 16384, 0.002  # bytes, and seconds between chunks: slow enough to kill a client during a transfer


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve the files of a folder until the block ends; yield the address, which ends with a slash."""
    with HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


class Failing(Quiet):
    """A handler that answers the n-th request for content as planned: busy, cut, silent halfway, or whole."""

    plan: dict[int, str] = {}  # noqa: RUF012  # set once, before the server starts
    journal = Path()
    count = 0
    turn = threading.Lock()

    def do_GET(self) -> None:
        content = (Path(self.directory) / self.path.lstrip("/")).read_bytes()
        if self.headers["Method"] == "HEAD":  # torchvision checks for a redirection in this way and reads no content
            self.answer(200, 0)
            return
        with self.turn:
            Failing.count += 1
            fate = self.plan.get(self.count, "whole")
            with self.journal.open("a") as file:
                file.write(f"{self.path.lstrip('/')} {fate}\n")
        try:
            self.send(content, fate)
        except ConnectionError:  # the client was killed
            self.close_connection = True

    def answer(self, code: int, length: int) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def send(self, content: bytes, fate: str) -> None:
        if fate == "busy":
            self.answer(503, 0)
            return
        self.answer(200, len(content))
        end = len(content) if fate == "whole" else len(content) // 2
        for start in range(0, end, CHUNK):
            self.wfile.write(content[start : min(start + CHUNK, end)])
            time.sleep(PACE)
        if fate == "silent":
            time.sleep(60)
        self.close_connection = True


@contextmanager
def failing(folder: Path, journal: Path, plan: dict[int, str]) -> Iterator[str]:
    """Serve a folder from a separate process, so that this one has no threads when it forks; yield the address.

    The journal gets a line for each request for content: the file and its fate (whole, busy, cut, silent).
    """
    journal.touch()
    command = [sys.executable, __file__, str(folder), str(journal), json.dumps(plan)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/"
        finally:
            process.kill()


if __name__ == "__main__":
    Failing.journal = Path(sys.argv[2])
    Failing.plan = {int(number): fate for number, fate in json.loads(sys.argv[3]).items()}
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Failing, directory=sys.argv[1])) as server:
        print(server.server_port, flush=True)
        server.serve_forever()
