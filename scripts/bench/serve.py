"""Times every request of the sense explorer's API, from one client and from 50 concurrent clients.

scripts/bench-serve.sh runs it with a model directory as its argument.
"""
import http.client
import json
import os
import statistics
import subprocess
import sys
import threading
import time

ALONE = 30  # timed responses per request
CLIENTS = 50
EACH = 6  # requests per client
WORDS = """It is a truth universally acknowledged , that a single man in possession of a good fortune must be in want
of a wife . However little known the feelings or views of such a man may be""".split()
TEXT = " ".join(WORDS).replace(" ,", ",").replace(" .", ".")
EDITS = [{"word": "fortune", "sense": 3, "op": "scale", "factor": 2.0}]


def requests(n):
    """Returns path and body of the n-th request of each kind. The server caches the analysis of a text."""
    new_text = f"{n} {TEXT}"
    return {
        "model": ("model", None),
        "senses": ("senses", {"token": 300 + 7 * n}),
        "reading, new text": ("reading", {"text": new_text}),
        "reading, new position": ("reading", {"text": TEXT, "position": n % 30}),
        "weights of all senses": ("weights", {"text": TEXT}),
        "contributions": ("contributions", {"text": TEXT, "token": 300 + n}),
        "next, with an edit": ("next", {"text": TEXT, "edits": [{**EDITS[0], "factor": n / 10}]}),
        "generate 8 tokens": ("generate", {"text": TEXT, "max_new_tokens": 8, "seed": n}),
        "generate 40 tokens": ("generate", {"text": TEXT, "max_new_tokens": 40, "seed": n}),
    }


class Client:
    """A client that keeps one connection open."""

    def __init__(self, address):
        self.connection = http.client.HTTPConnection(address, timeout=120)

    def send(self, path, body):
        """Sends a request; returns the seconds until the complete response arrived, and its status."""
        start = time.perf_counter()
        if body is None:
            self.connection.request("GET", f"/api/v1/{path}")
        else:
            self.connection.request(
                "POST", f"/api/v1/{path}", json.dumps(body), {"Content-Type": "application/json"}
            )
        response = self.connection.getresponse()
        answer = response.read()
        seconds = time.perf_counter() - start
        if response.status not in (200, 503):
            sys.exit(f"bench-serve: {path} failed with status {response.status}: {answer.decode()}")
        return seconds, response.status


def milliseconds(times, share):
    return 1000 * sorted(times)[min(len(times) - 1, int(share * len(times)))]


def alone(address, name):
    client = Client(address)
    for n in range(3):
        client.send(*requests(1000 + n)[name])
    return [client.send(*requests(n)[name])[0] for n in range(ALONE)]


def together(address, names):
    """Runs all clients at once; returns the times by request, the number of 503 responses, and responses per second."""
    times, busy, lock = {name: [] for name in names}, [], threading.Lock()
    start_line = threading.Barrier(CLIENTS + 1)

    def run(number):
        client = Client(address)
        start_line.wait()
        for i in range(EACH):
            name = names[(number + i) % len(names)]
            seconds, status = client.send(*requests(number * EACH + i)[name])
            with lock:
                times[name].append(seconds)
                busy.extend([status] if status == 503 else [])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    start_line.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    return times, len(busy), CLIENTS * EACH / (time.perf_counter() - start)


def main():
    server = subprocess.Popen(
        [os.environ["BACKPACK_BINARY"], "serve", "--model", sys.argv[1], "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = server.stdout.readline()
        if "http://" not in line:
            sys.exit("bench-serve: the server did not start")
        address = line.split("http://")[1].strip().rstrip("/")
        names = list(requests(0))
        single = {name: alone(address, name) for name in names}
        quick = [name for name in names if not name.startswith("generate 40")]
        many, busy, rate = together(address, quick)
    finally:
        server.terminate()
        server.wait()
    print(f"| request ({len(WORDS)} words) | 1 client, median ms | p99 ms | {CLIENTS} clients, median ms | p99 ms |")
    print("|---|---|---|---|---|")
    for name in names:
        cells = [statistics.median(single[name]) * 1000, milliseconds(single[name], 0.99)]
        if many.get(name):
            cells += [statistics.median(many[name]) * 1000, milliseconds(many[name], 0.99)]
        print(f"| {name} | " + " | ".join(f"{cell:.0f}" for cell in cells) + " |" + " |" * (4 - len(cells)))
    print(f"\n{CLIENTS} concurrent clients with {EACH} requests each: {rate:.0f} responses per second, {busy} responses with status 503 (busy)")


main()
