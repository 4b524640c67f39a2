"""Asks for images over HTTPS from servers on loopback, with certificates that are to be trusted and with others that are not.

  cargo build --release -p flamingo-ingest
  python3 -m venv target/s3 && target/s3/bin/pip install -r ingest/tests/requirements.txt
  target/s3/bin/python ingest/tests/https.py [target/release/flamingo-ingest]

The authority that signs is made here and trusted through SSL_CERT_FILE, for this program alone. Pairs must come over the
connection that is right, and none over one whose certificate is for another host, out of date or signed by a stranger: those
are in the ledger with the cause `tls`.
"""
import csv
import datetime
import http.server
import os
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import zlib
from pathlib import Path

import trustme

ROOT = Path(__file__).resolve().parents[2]
INGEST = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "target/release/flamingo-ingest")
PLAN = """
[fetch]
contact = "tests@flamingo.example"
networks_allowed = ["127.0.0.0/8", "::1/128"]
ports = {}
"""


def png(side):
    """A grey ramp."""
    rows = b"".join(b"\0" + bytes((x + y) % 256 for x in range(side)) for y in range(side))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)


class Image(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    body = png(96)

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        pass  # A client that does not trust the certificate hangs up.


def serve(certificate, version):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = version
    certificate.configure_cert(context)
    server = Server(("127.0.0.1", 0), Image)
    # The handshake belongs to the thread of the connection.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ports.append(server.server_port)
    return server.server_port


ports = []

known, stranger = trustme.CA(), trustme.CA()
yesterday = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
new, old = ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2
# Address, and what the ledger must say of it.
expected = {
    f"https://localhost:{serve(known.issue_cert('localhost'), new)}/right.png": "ok",
    f"https://localhost:{serve(known.issue_cert('localhost'), old)}/right-with-tls-1.2.png": "ok",
    f"https://localhost:{serve(known.issue_cert('other.example'), new)}/other-host.png": "tls",
    f"https://localhost:{serve(known.issue_cert('localhost', not_after=yesterday), new)}/out-of-date.png": "tls",
    f"https://localhost:{serve(stranger.issue_cert('localhost'), new)}/stranger.png": "tls",
}

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    (folder / "plan.toml").write_text(PLAN.format(ports))
    known.cert_pem.write_to_path(str(folder / "authority.pem"))
    with open(folder / "pairs.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["url", "caption"])
        rows.writerows([url, f"the picture called {url.rsplit('/', 1)[1]}"] for url in expected)
    corpus = folder / "corpus"
    command = [INGEST, "alt-text", "--plan", str(folder / "plan.toml"), "--input", str(folder / "pairs.csv"), "--out", str(corpus)]
    environment = {**os.environ, "SSL_CERT_FILE": str(folder / "authority.pem")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    from pyarrow import parquet
    ledger = parquet.read_table(corpus / "ledger").select(["url", "cause", "detail", "http_status"]).to_pylist()
    assert {row["url"]: row["cause"] for row in ledger} == expected, ledger
    assert all(row["detail"] and row["http_status"] is None for row in ledger if row["cause"] == "tls"), ledger
    kept = sorted(row["url"] for row in parquet.read_table(sorted(corpus.glob("shard-*.parquet"))).select(["url"]).to_pylist())
    assert kept == sorted(url for url, cause in expected.items() if cause == "ok"), kept
    for row in ledger:
        print(f"{row['url'].rsplit('/', 1)[1]}: {row['cause']} {row['detail'] or ''}".rstrip())
