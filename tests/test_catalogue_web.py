"""Small downloads over real connections: bounded, through the site's proxy, with certificates checked."""

from __future__ import annotations

import http.server
import ipaddress
import os
import ssl
import subprocess
import sys
import threading
import urllib.request
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from jobagent_catalogue.settings import CatalogueSettings
from jobagent_catalogue.web import TooLong, TooSlow, Web, WebError
from tests.catalogue_field import Server


@pytest.fixture
def server(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    made = Server(tmp_path)
    made.start()
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def no_proxy_of_ours(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def web(**settings):
    return Web(CatalogueSettings(**{"timeout_s": 2.0, **settings}))


def chunked(*chunks):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for chunk in chunks:
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        handler.wfile.write(b"0\r\n\r\n")

    return answer


def test_a_file_comes_whole_and_the_connection_is_kept(server):
    client = web()
    assert client.fetch(server.url + "file", max_bytes=7) == b"content"
    assert client.fetch(server.url + "file", max_bytes=7) == b"content"
    assert client.clock_reading is not None
    assert abs(client.clock_reading.behind_s) < 5


def test_chunks_are_joined_and_counted(server):
    server.answers["x"] = chunked(b"abc", b"d" * 1000)
    assert web().fetch(server.url + "x", max_bytes=1003) == b"abc" + b"d" * 1000
    with pytest.raises(TooLong, match="longer than the 1002 bytes"):
        web().fetch(server.url + "x", max_bytes=1002)


def test_a_length_that_is_announced_too_long_is_not_read_at_all(server):
    def boast(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(10**15))
        handler.end_headers()

    server.answers["x"] = boast
    with pytest.raises(TooLong, match="1000000000000000 bytes long"):
        web().fetch(server.url + "x", max_bytes=100)


def test_a_compressed_bomb_is_not_unpacked(server):
    def bomb(handler):
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", "20")
        handler.end_headers()
        handler.wfile.write(b"\x1f\x8b" + b"0" * 18)

    server.answers["x"] = bomb
    assert web().fetch(server.url + "x", max_bytes=100) == b"\x1f\x8b" + b"0" * 18


def test_a_server_that_accepts_and_says_nothing_is_given_up(server):
    release = threading.Event()
    server.answers["x"] = lambda handler: release.wait(10)
    with pytest.raises(TooSlow, match=r"no answer within 0\.2 s"):
        web(timeout_s=0.2).fetch(server.url + "x", max_bytes=100)
    release.set()


def test_an_answer_that_is_cut_short_is_an_error(server):
    def cut(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"half")
        handler.close_connection = True

    server.answers["x"] = cut
    with pytest.raises(WebError):
        web().fetch(server.url + "x", max_bytes=100)


@pytest.mark.parametrize("date", ["", "yesterday", "Mon, 32 Foo 2026", "\x00"])
def test_a_date_that_cannot_be_read_is_no_date(server, date):
    server.answers["x"] = lambda handler: (
        handler.send_response_only(200),
        handler.send_header("Date", date),
        handler.send_header("Content-Length", "0"),
        handler.end_headers(),
    )
    client = web()
    assert client.fetch(server.url + "x", max_bytes=0) == b""
    assert client.clock_reading is None


class Proxy(http.server.BaseHTTPRequestHandler):
    """A forward proxy as a site has one; notes what went through."""

    seen: list[str]

    def do_GET(self):
        self.seen.append(self.path)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(self.path, timeout=10) as answer:
            data = answer.read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def proxy():
    handler = type("NotedProxy", (Proxy,), {"seen": []})
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}", handler.seen
    made.shutdown()
    made.server_close()


def test_the_sites_proxy_is_used_from_the_configuration_and_from_the_environment(server, proxy, monkeypatch):
    url, seen = proxy
    assert web(proxy=url).fetch(server.url + "file", max_bytes=7) == b"content"
    monkeypatch.setenv("http_proxy", url)
    assert web().fetch(server.url + "file", max_bytes=7) == b"content"
    assert seen == [server.url + "file"] * 2
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert web().fetch(server.url + "file", max_bytes=7) == b"content"
    assert len(seen) == 2


def test_a_certificate_is_checked_against_the_nodes_authorities(server, tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "catalogue")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(datetime.now(UTC) - timedelta(days=1))
    builder = builder.not_valid_after(datetime.now(UTC) + timedelta(days=1)).add_extension(address, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate = tmp_path / "server.pem"
    certificate.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server._server.socket = context.wrap_socket(server._server.socket, server_side=True)
    url = server.url.replace("http:", "https:")
    program = f"""
from jobagent_catalogue.settings import CatalogueSettings
from jobagent_catalogue.web import Web, WebError
try:
    print(Web(CatalogueSettings(timeout_s=5.0)).fetch({url + "file"!r}, max_bytes=7))
except WebError as error:
    print(error)
"""

    def fetch(environment):
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=30, check=True
        )
        return done.stdout

    assert "CERTIFICATE_VERIFY_FAILED" in fetch(dict(os.environ))
    assert fetch({**os.environ, "SSL_CERT_FILE": str(certificate)}) == "b'content'\n"
