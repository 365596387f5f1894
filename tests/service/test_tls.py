"""TLS on TCP: which clients are served, which are refused, and what the refused clients see."""

import asyncio
import pathlib
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

import kv
import kv.aio
from tests.harness.daemon import Daemon
from tests.harness.waiting import DEADLINE_S, eventually

NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
TOKEN = "a-token-of-some-length"  # noqa: S105


@dataclass
class Certificates:
    """Certificates of two authorities, made by openssl."""

    folder: pathlib.Path

    def __post_init__(self) -> None:
        for ca in ("ca", "other"):
            self._openssl("req", "-x509", *NEW_KEY, "-days", "2", "-subj", f"/CN={ca}", "-keyout", f"{ca}.key",
                          "-out", f"{ca}.pem")  # fmt: skip
        self.make("server", "ca", "127.0.0.1")
        self.make("elsewhere", "ca", "127.0.0.2")
        self.make("web", "ca")
        self.make("stranger", "other")
        self.make("expired", "ca", days="-1")

    def make(self, name: str, ca: str, address: str = "", days: str = "2") -> None:
        """Make a certificate for ``name``, signed by ``ca``."""
        self._openssl("req", *NEW_KEY, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName=IP:{address}\n" if address else "basicConstraints=CA:FALSE\n")
        self._openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key",
                      "-CAcreateserial", "-days", days, "-extfile", str(extensions), "-out", f"{name}.pem")  # fmt: skip

    def of(self, name: str | None, ca: str = "ca") -> kv.TlsFiles:
        """The TLS files of the client ``name``, which trusts ``ca``."""
        own = {} if name is None else {"certificate": self.path(f"{name}.pem"), "key": self.path(f"{name}.key")}
        return kv.TlsFiles(ca=self.path(f"{ca}.pem"), **own)

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=self.folder)  # noqa: S603, S607


class TlsDaemon(Daemon):
    """A daemon that speaks TLS on a port of its own, at ``tls_address``."""

    def __init__(self, folder: pathlib.Path, configuration: str) -> None:
        self.token_path = folder / "token"
        self.token_path.write_text(TOKEN)
        self.token_path.chmod(0o600)
        super().__init__(folder, f'[listen]\ntcp = ["127.0.0.1:0"]\n{configuration}')
        self.tls_address = self.listening("tls")

    def listening(self, scheme: str) -> str:
        """The address where the daemon speaks this protocol."""
        addresses = str(self.status()["listening"]).split()
        return next(address for address in addresses if address.startswith(f"{scheme}://"))

    def port(self) -> int:
        """The port of ``tls_address``."""
        return int(self.tls_address.rpartition(":")[2])


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def by_token(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[TlsDaemon]:
    folder = tmp_path_factory.mktemp("by_token")
    config = (
        f'token_file = "token"\ntls_certificate = "{certificates.path("server.pem")}"\n'
        f'tls_key = "{certificates.path("server.key")}"\n'
    )
    with TlsDaemon(folder, config) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def by_certificate(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[TlsDaemon]:
    folder = tmp_path_factory.mktemp("strict")
    rules = '[[access]]\ncertificate = "web"\nprefix = "web/"\nrights = ["read", "write"]\n'
    config = (
        f'tls_certificate = "{certificates.path("server.pem")}"\ntls_key = "{certificates.path("server.key")}"\n'
        f'tls_client_ca = "{certificates.path("ca.pem")}"\n{rules}'
    )
    with TlsDaemon(folder, config) as daemon:
        yield daemon


def test_a_client_with_the_token_is_served(by_token: TlsDaemon, certificates: Certificates) -> None:
    with kv.connect(by_token.tls_address, token_file=str(by_token.token_path), tls=certificates.of(None)) as db:
        db.set("a", b"1")
        assert db.get("a") == b"1"
        large = bytes(range(256)) * 16_000
        db.set("large", large)
        assert db.get("large") == large
        assert len(db.get_many([f"k{number}" for number in range(1_000)])) == 1_000
        with db.watch("w") as watch:
            watch.wait(0)
            db.set("w", b"1")
            change = watch.wait(DEADLINE_S)
            assert change is not None
            assert dict(change.writes) == {"w": b"1"}


def test_an_asyncio_client_with_the_token_is_served(by_token: TlsDaemon, certificates: Certificates) -> None:
    async def run() -> None:
        async with kv.aio.connect(
            by_token.tls_address, token_file=str(by_token.token_path), tls=certificates.of(None)
        ) as db:
            await db.set("b", b"1")
            assert await db.get("b") == b"1"
            async with db.watch("w") as watch:
                await watch.wait(0)
                await db.set("w", b"2")
                change = await watch.wait(DEADLINE_S)
                assert change is not None
                assert dict(change.writes) == {"w": b"2"}

    asyncio.run(run())


def test_a_client_without_the_token_is_refused(by_token: TlsDaemon, certificates: Certificates) -> None:
    with kv.connect(by_token.tls_address, tls=certificates.of(None)) as db, pytest.raises(kv.KvdError) as failure:
        db.get("a")
    assert failure.value.code == "unauthenticated"


def test_the_command_line_connects_with_environment_variables(by_token: TlsDaemon, certificates: Certificates) -> None:
    from tests.harness.kv_command import Kv

    kv_command = Kv(by_token.tls_address)
    files = {"KVD_CA_FILE": certificates.path("ca.pem"), "KVD_TOKEN_FILE": str(by_token.token_path)}
    assert kv_command.ok("set", "c=1", **files) == "Keys set\n"
    error = kv_command.fails(69, "get", "c", KVD_TOKEN_FILE=str(by_token.token_path))
    assert "(its certificate is refused: " in error
    assert "; $KVD_CA_FILE names the CA to believe)" in error


def test_the_command_line_says_what_is_wrong_with_the_files_or_the_address(
    by_token: TlsDaemon, certificates: Certificates
) -> None:
    from tests.harness.kv_command import Kv

    kv_command, ca, token = Kv(by_token.tls_address), certificates.path("ca.pem"), str(by_token.token_path)
    error = kv_command.fails(2, "get", "c", KVD_CA_FILE="/nowhere", KVD_TOKEN_FILE=token)
    assert error == "kv: error: cannot use the TLS files /nowhere: No such file or directory\n"
    error = kv_command.fails(2, "get", "c", KVD_CA_FILE=ca, KVD_TOKEN_FILE="/nowhere")  # noqa: S106 (a path)
    assert error == "kv: error: cannot read the token file /nowhere: No such file or directory\n"
    error = Kv(by_token.tls_address.replace("127.0.0.1", "localhost")).fails(69, "get", "c", KVD_CA_FILE=ca)
    assert "(its certificate is refused: " in error
    assert "KVD_CA_FILE" not in error


def test_a_daemon_with_a_certificate_of_another_authority_is_refused(
    by_token: TlsDaemon, certificates: Certificates
) -> None:
    for client in (kv.connect(by_token.tls_address, tls=certificates.of(None, "other")),):
        with client as db, pytest.raises(kv.Unavailable, match="certificate"):
            db.get("a")

    async def run() -> None:
        async with kv.aio.connect(by_token.tls_address, tls=certificates.of(None, "other")) as db:
            with pytest.raises(kv.Unavailable, match="certificate"):
                await db.get("a")

    asyncio.run(run())


def test_the_certificate_must_name_the_host_of_the_address(by_token: TlsDaemon, certificates: Certificates) -> None:
    address = by_token.tls_address.replace("127.0.0.1", "localhost")
    with kv.connect(address, tls=certificates.of(None)) as db, pytest.raises(kv.Unavailable, match="certificate"):
        db.get("a")


def test_a_client_certificate_authenticates_and_its_name_is_the_author(
    by_certificate: TlsDaemon, certificates: Certificates
) -> None:
    with kv.connect(by_certificate.tls_address, tls=certificates.of("web")) as db:
        db.set("web/a", b"1")
        with pytest.raises(kv.Forbidden):
            db.set("other", b"1")
        assert next(iter(db.history("web/a"))).author.name == "certificate web"


@pytest.mark.parametrize("name", [None, "stranger", "expired"])
def test_a_client_without_a_valid_certificate_is_refused(
    by_certificate: TlsDaemon, certificates: Certificates, name: str | None
) -> None:
    with kv.connect(by_certificate.tls_address, tls=certificates.of(name)) as db, pytest.raises(kv.KvdError) as failure:
        db.get("web/a")
    assert isinstance(failure.value, kv.Unavailable | kv.ConnectionLost)


def test_a_client_without_tls_or_with_an_old_version_gets_no_answer(by_token: TlsDaemon) -> None:
    for send in (b"\0\0\0\x08\x91\x91\xa4ping", b"GET / HTTP/1.1\r\n\r\n", bytes(100)):
        with socket.create_connection(("127.0.0.1", by_token.port()), DEADLINE_S) as plain:
            plain.settimeout(DEADLINE_S)
            plain.sendall(send)
            try:
                answer = plain.recv(1000)
            except ConnectionResetError:
                answer = b""
            assert b"pong" not in answer
            assert not answer.startswith(b"\0\0")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", by_token.port()), DEADLINE_S) as plain, pytest.raises(OSError):
        old.wrap_socket(plain)


def test_a_reload_loads_a_new_certificate(tmp_path: pathlib.Path, certificates: Certificates) -> None:
    for kind in ("pem", "key"):
        (tmp_path / f"now.{kind}").write_bytes(pathlib.Path(certificates.path(f"elsewhere.{kind}")).read_bytes())
    config = 'token_file = "token"\ntls_certificate = "now.pem"\ntls_key = "now.key"\n'
    with (
        TlsDaemon(tmp_path, config) as daemon,
        kv.connect(daemon.tls_address, token_file=str(daemon.token_path), tls=certificates.of(None)) as db,
    ):
        with pytest.raises(kv.Unavailable, match="certificate"):
            db.get("a")
        for kind in ("pem", "key"):
            (tmp_path / f"now.{kind}").write_bytes(pathlib.Path(certificates.path(f"server.{kind}")).read_bytes())
        daemon.process.send_signal(signal.SIGHUP)

        def is_believed() -> bool:
            try:
                return db.get("a") is None
            except kv.Unavailable:
                return False

        eventually(is_believed)


def test_a_reload_loads_another_authority_and_drops_the_old_one(
    tmp_path: pathlib.Path, certificates: Certificates
) -> None:
    authority = tmp_path / "authority.pem"
    authority.write_bytes(pathlib.Path(certificates.path("ca.pem")).read_bytes())
    config = (
        f'tls_certificate = "{certificates.path("server.pem")}"\ntls_key = "{certificates.path("server.key")}"\n'
        f'tls_client_ca = "{authority}"\n'
    )
    with TlsDaemon(tmp_path, config) as daemon:
        with kv.connect(daemon.tls_address, tls=certificates.of("web")) as db:
            db.set("a", b"1")
        authority.write_bytes(pathlib.Path(certificates.path("other.pem")).read_bytes())
        with kv.connect(daemon.address) as administrator:
            administrator.reload()
        with kv.connect(daemon.tls_address, tls=certificates.of("stranger")) as db:
            assert db.get("a") == b"1"
        with kv.connect(daemon.tls_address, tls=certificates.of("web")) as db, pytest.raises(kv.KvdError) as failure:
            db.get("a")
        assert isinstance(failure.value, kv.Unavailable | kv.ConnectionLost)


@pytest.mark.parametrize(
    ("configuration", "why"),
    [
        ('tcp = ["0.0.0.0:0"]\ntoken_file = "token"\n', "beyond loopback only with TLS"),
        ('tcp = ["127.0.0.1:0"]\ntls_certificate = "server.pem"\ntls_key = "server.key"\n', "needs listen.token_file"),
        ('tcp = ["127.0.0.1:0"]\ntoken_file = "token"\ntls_certificate = "none.pem"\n', "cannot use"),
        (
            'tcp = ["127.0.0.1:0"]\ntoken_file = "token"\ntls_certificate = "server.pem"\ntls_key = "web.key"\n',
            "cannot use",
        ),
        ('tls_client_ca = "ca.pem"\n', "of no use"),
        ('tls_key = "server.key"\n', "of no use"),
    ],
)  # fmt: skip
def test_a_configuration_that_is_open_or_cannot_work_does_not_start(
    certificates: Certificates, configuration: str, why: str
) -> None:
    (certificates.folder / "token").write_text(TOKEN)
    (certificates.folder / "token").chmod(0o600)
    with pytest.raises(AssertionError, match=why):
        Daemon(certificates.folder, f"[listen]\n{configuration}")


def test_the_name_of_a_token_is_the_clients_name(tmp_path: pathlib.Path, certificates: Certificates) -> None:
    rules = '[[access]]\ntoken = "ci"\nprefix = "ci/"\nrights = ["read", "write"]\n'
    config = (
        f'token_file = "tokens"\ntls_certificate = "{certificates.path("server.pem")}"\n'
        f'tls_key = "{certificates.path("server.key")}"\n{rules}'
    )
    tokens = tmp_path / "tokens"
    tokens.write_text("ci  first-token-0123456789\n\nweb other-token-0123456789\n")
    tokens.chmod(0o600)
    with TlsDaemon(tmp_path, config) as daemon:
        for name, token in (("ci", "first-token-0123456789"), ("web", "other-token-0123456789")):
            (tmp_path / name).write_text(token)
        with kv.connect(daemon.tls_address, token_file=str(tmp_path / "ci"), tls=certificates.of(None)) as db:
            db.set("ci/a", b"1")
            assert next(iter(db.history("ci/a"))).author.name == "token ci"
        web = kv.connect(daemon.tls_address, token_file=str(tmp_path / "web"), tls=certificates.of(None))
        with web as db, pytest.raises(kv.Forbidden):
            db.get("ci/a")


@pytest.mark.parametrize(
    "content",
    ["", "short", "ci first-token-0123456789 more", "a-token-of-some-length\nanother-token-of-some-length\n",
     "ci short\n", "a same-token-0123456789\nb same-token-0123456789\n", "x" * 5_000,
     "ann first-token-0123456789\n#bob other-token-0123456789\n",
     "".join(f"name{number} {number:>01000}\n" for number in range(1_100))],
)  # fmt: skip
def test_a_malformed_token_file_is_refused(tmp_path: pathlib.Path, content: str) -> None:
    (tmp_path / "tokens").write_text(content)
    with pytest.raises(AssertionError, match="must hold"):
        Daemon(tmp_path, '[listen]\ntcp = ["127.0.0.1:0"]\ntoken_file = "tokens"\n')


def test_http_uses_tls_too_and_needs_the_token(tmp_path: pathlib.Path, certificates: Certificates) -> None:
    config = (
        f'token_file = "token"\ntls_certificate = "{certificates.path("server.pem")}"\n'
        f'tls_key = "{certificates.path("server.key")}"\n[http]\nlisten = ["127.0.0.1:0"]\n'
    )
    with TlsDaemon(tmp_path, config) as daemon:
        port = int(daemon.listening("https").rpartition(":")[2])
        trusting = ssl.create_default_context(cafile=certificates.path("ca.pem"))
        for token, status in ((TOKEN, b"201"), ("another-token-of-no-client", b"401")):
            plain = socket.create_connection(("127.0.0.1", port), DEADLINE_S)
            with trusting.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
                head = f"PUT /v1/a HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
                secure.sendall(f"{head}Content-Length: 1\r\n\r\nx".encode())
                assert secure.recv(4096).split()[1] == status
        with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as plain:
            plain.settimeout(DEADLINE_S)
            plain.sendall(b"GET /v1/a HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            try:
                assert b"HTTP/1.1 200" not in plain.recv(4096)
            except ConnectionResetError:
                pass
