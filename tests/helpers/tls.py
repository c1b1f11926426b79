"""TLS for tests: an authority that signs certificates, and a proxy with one before a server that has no TLS of its own.

``python -m tls SOCKET CERTIFICATE KEY HOST PORT`` runs the proxy as a process, on a host of ``netns``.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path


class Authority:
    """Signs certificates. Everything lies in one folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder, self.certificate = folder, folder / f"{name}.crt"
        self._key = folder / f"{name}.key"
        self._openssl("req", "-x509", *self._new(self._key), "-subj", f"/CN={name}", "-out", self.certificate)

    def sign(self, name: str, subject: str = "DNS:localhost,IP:127.0.0.1", days: int = 2) -> tuple[Path, Path]:
        """(certificate, key) for these host names."""
        certificate, key, request = (self.folder / f"{name}.{suffix}" for suffix in ("crt", "key", "csr"))
        (self.folder / "names").write_text(f"subjectAltName={subject}\n")
        self._openssl("req", *self._new(key), "-subj", f"/CN={name}", "-out", request)
        signed_by = ("-CA", self.certificate, "-CAkey", self._key, "-extfile", self.folder / "names")
        self._openssl("x509", "-req", "-in", request, *signed_by, "-days", str(days), "-out", certificate)
        return certificate, key

    def _new(self, key: Path) -> tuple[object, ...]:
        return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key)

    def _openssl(self, *arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class TlsProxy:
    """Takes TLS connections on a TCP port and forwards them to the server's socket."""

    def __init__(
        self,
        server_socket: str,
        certificate: Path,
        key: Path,
        client_ca: Path | None = None,
        address: tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:
        self._server_socket = server_socket
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate, key)
        if client_ca is not None:
            self.context.verify_mode = ssl.CERT_REQUIRED
            self.context.load_verify_locations(client_ca)
        self.listener = socket.create_server(address)
        self.port = self.listener.getsockname()[1]

    def serve(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed: the test is over
            while True:
                accepted, _ = self.listener.accept()
                threading.Thread(target=self._forward, args=(accepted,), daemon=True).start()

    def _forward(self, accepted: socket.socket) -> None:
        accepted.settimeout(10)
        with contextlib.suppress(OSError), accepted, socket.socket(socket.AF_UNIX) as upstream:
            upstream.connect(self._server_socket)
            with self.context.wrap_socket(accepted, server_side=True) as client:
                while True:
                    ready = [client] if client.pending() else select.select([client, upstream], [], [])[0]
                    for source in ready:
                        data = source.recv(1 << 16)
                        if not data:
                            return
                        (upstream if source is client else client).sendall(data)


if __name__ == "__main__":
    server_socket, certificate, key, host, port = sys.argv[1:]
    TlsProxy(server_socket, Path(certificate), Path(key), address=(host, int(port))).serve()
