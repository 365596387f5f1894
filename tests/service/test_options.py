"""The options one by one: their names in each source, their types, and the values that they allow."""

import datetime

import pytest

from kvd.protocol.address import parse_host_port
from kvd.service.config.checks import is_loopback
from kvd.service.config.options import BOUNDS, OPTIONS


@pytest.mark.parametrize(
    ("key", "variable"),
    [
        ("listen.socket", "KVD_SOCKET"),
        ("listen.socket_mode", "KVD_SOCKET_MODE"),
        ("listen.socket_group", "KVD_SOCKET_GROUP"),
        ("listen.tcp", "KVD_TCP"),
        ("listen.token_file", "KVD_TOKEN_FILE"),
        ("log.level", "KVD_LOG_LEVEL"),
        ("log.to", "KVD_LOG_TO"),
        ("limits.max_connections", "KVD_LIMITS_MAX_CONNECTIONS"),
        ("history.max_bytes", "KVD_HISTORY_MAX_BYTES"),
    ],
)
def test_variables_have_the_documented_names(key: str, variable: str) -> None:
    assert OPTIONS[key].environment == variable


def test_flags_have_the_names_of_the_command_line() -> None:
    assert OPTIONS["listen.socket_mode"].flag == "--socket-mode"
    assert OPTIONS["log.level"].flag == "--log-level"


@pytest.mark.parametrize("key", BOUNDS)
def test_numbers_are_accepted_at_their_bounds_and_refused_beyond_them(key: str) -> None:
    option, (minimum, maximum) = OPTIONS[key], BOUNDS[key]
    for value in (minimum, minimum + 1, maximum - 1, maximum):
        assert option.validate(value) == option.parse(str(value)) == value
    for value, word in ((minimum - 1, "small"), (maximum + 1, "big")):
        with pytest.raises(ValueError) as failure:
            option.validate(value)
        assert str(failure.value) == f"{value} is too {word}; allowed: {minimum} to {maximum}"
        with pytest.raises(ValueError, match=f"^{value} is too {word}"):
            option.parse(str(value))


def test_every_number_has_bounds_that_include_its_default() -> None:
    numbers = {key: option.default for key, option in OPTIONS.items() if type(option.default) is int}
    assert numbers.keys() == BOUNDS.keys()
    assert all(BOUNDS[key][0] <= default <= BOUNDS[key][1] for key, default in numbers.items())


@pytest.mark.parametrize("key", OPTIONS)
def test_defaults_are_allowed(key: str) -> None:
    default = OPTIONS[key].default
    assert OPTIONS[key].validate(list(default) if isinstance(default, tuple) else default) == default


OTHER_VALUES = (True, 1.0, None, {}, [1], [["x"]], datetime.date(2020, 1, 1), b"x")
OF_ANOTHER_TYPE = [
    (key, value) for key in OPTIONS for value in OTHER_VALUES if type(value) is not type(OPTIONS[key].default)
]


@pytest.mark.parametrize(("key", "value"), OF_ANOTHER_TYPE, ids=repr)
def test_a_value_of_another_type_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"^expected (int|str|bool|list of str), got .*; allowed: "):
        OPTIONS[key].validate(value)


@pytest.mark.parametrize("text", ["", "x", "1.0", "1e3", "0x10", "1_000", "٣", "9" * 5000])
def test_text_that_is_not_a_decimal_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected int, got '"):
        OPTIONS["limits.max_connections"].parse(text)


@pytest.mark.parametrize("mode", ["0000", "0600", "0777"])
def test_modes_up_to_0777_are_accepted(mode: str) -> None:
    assert OPTIONS["listen.socket_mode"].validate(mode) == mode


@pytest.mark.parametrize("mode", ["", "600", "00600", "0o60", "0608", "-600", "1000", "٠٦٠٠"])
def test_other_modes_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match=r"is not four octal digits|is more than 0777"):
        OPTIONS["listen.socket_mode"].validate(mode)


LOOPBACK = ["127.0.0.0", "127.0.0.1", "127.255.255.255", "::1", "[::1]", "[0:0:0:0:0:0:0:1]", "localhost"]
NOT_LOOPBACK = [
    "126.255.255.255",
    "128.0.0.0",
    "[::]",
    "[::2]",
    "[::ffff:127.0.0.1]",
    "[::1%lo]",
    "example.org",
    "127.1",
]


@pytest.mark.parametrize("host", LOOPBACK)
def test_listening_on_loopback_is_allowed(host: str) -> None:
    assert is_loopback(parse_host_port(f"{host}:7070")[0])
    assert OPTIONS["listen.tcp"].validate([f"{host}:7070"]) == (f"{host}:7070",)


@pytest.mark.parametrize("host", ["0.0.0.0", *NOT_LOOPBACK])  # noqa: S104 - not loopback
def test_only_loopback_addresses_count_as_loopback(host: str) -> None:
    assert not is_loopback(parse_host_port(f"{host}:7070")[0])


@pytest.mark.parametrize("port", ["", ":", ":x", ":-1", ":65536", ":1:"])
def test_a_tcp_address_needs_a_port(port: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        OPTIONS["listen.tcp"].validate([f"localhost{port}"])


@pytest.mark.parametrize(("length", "is_allowed"), [(106, True), (107, True), (108, False)])
def test_a_sockets_path_may_be_as_long_as_the_system_allows(length: int, is_allowed: bool) -> None:
    path = "/" + "a" * (length - 1)
    if is_allowed:
        assert OPTIONS["listen.socket"].validate(path) == path
    else:
        with pytest.raises(ValueError, match="the path has 108 bytes, and a socket's may have 107"):
            OPTIONS["listen.socket"].validate(path)


@pytest.mark.parametrize("key", [key for key, option in OPTIONS.items() if isinstance(option.default, str)])
@pytest.mark.parametrize("character", ["\0", "\n", "\x1b", "\x7f"])
def test_control_characters_are_refused_and_shown_escaped(key: str, character: str) -> None:
    with pytest.raises(ValueError) as failure:
        OPTIONS[key].validate(f"/{character}")
    assert "control characters in " in str(failure.value)
    assert character not in str(failure.value)
