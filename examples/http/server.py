#!/usr/bin/env python3
"""A small HTTP service that fails often and forgets nothing.

It takes PUT /airports/CODE with a JSON body and an Idempotency-Key. Of 100 calls about 15 are answered 503,
2 are answered 429 with Retry-After, and 2 are carried out but answered 503 all the same, as if the answer had
been lost. A key whose work was done gets the first answer again, so however often a client tries, each airport
is stored once. Whether a call fails depends on the seed, the item and how often it was tried, never on timing.

Usage: server.py ADDRESS_FILE      listens on a free port of 127.0.0.1 and writes its address there
GET /stats gives the counts; they are printed when the service is stopped.
"""

import json
import random
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SEED = 2
REFUSED, THROTTLED, ANSWER_LOST = 0.15, 0.02, 0.02


class Service:
    """What the service knows; every access is under its lock."""

    def __init__(self):
        self.lock = threading.Lock()
        self.calls = {}
        self.answers = {}
        self.counts = {"calls": 0, "stored": 0, "refused": 0, "throttled": 0, "answers_lost": 0, "repeats": 0}

    def put(self, code, key):
        """The status and body that answer a call."""
        with self.lock:
            self.counts["calls"] += 1
            number = self.calls[key] = self.calls.get(key, 0) + 1
            luck = chance(key, number)
            if luck < REFUSED:
                return self.count("refused", 503, {"error": "try again"})
            if luck < REFUSED + THROTTLED:
                return self.count("throttled", 429, {"error": "not so fast"})
            if key in self.answers:
                return self.count("repeats", 200, self.answers[key])
            self.counts["stored"] += 1
            self.answers[key] = {"code": code, "number": len(self.answers) + 1}
            if luck < REFUSED + THROTTLED + ANSWER_LOST:
                return self.count("answers_lost", 503, {"error": "done, but the answer got lost"})
            return 201, self.answers[key]

    def count(self, what, status, body):
        self.counts[what] += 1
        return status, body

    def stats(self):
        with self.lock:
            return dict(self.counts)


def chance(key, number):
    """From 0 to 1: the same for the nth call of an item in every run (a key begins with the run's id)."""
    item = key.partition("/")[2]
    return random.Random(f"{SEED} {item} {number}").random()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        key = self.headers.get("Idempotency-Key")
        try:
            json.loads(body)
        except ValueError:
            return self.answer(400, {"error": "the body is not JSON"})
        if not key:
            return self.answer(400, {"error": "there is no Idempotency-Key"})
        return self.answer(*self.server.service.put(self.path.rpartition("/")[2], key))

    def do_GET(self):
        self.answer(200, self.server.service.stats())

    def answer(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        if status == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        """Says nothing for each call."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.service = Service()


def main():
    server = Server()
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    with open(sys.argv[1], "w", encoding="ascii") as file:
        file.write(f"http://127.0.0.1:{server.server_port}\n")
    server.serve_forever(poll_interval=0.05)
    print("service:", json.dumps(server.service.stats()), file=sys.stderr)


if __name__ == "__main__":
    main()
