"""The token file: the secrets by which TCP clients authenticate.

It holds one token alone, or lines of a name and a token; the name is what access rules know a client by.
"""

from kvd.service import trusted_files
from kvd.service.config.sections import Config
from kvd.service.errors import ConfigError

MIN_TOKEN_CHARACTERS = 16
MAX_TOKEN_CHARACTERS = 4096
MAX_FILE_CHARACTERS = 1024 * 1024


def read_tokens(config: Config) -> dict[str, str | None]:
    """Return the tokens of the token file, each with its name; None names the only token. Raises ConfigError."""
    path = config.listen.token_file
    if not path:
        return {}
    try:
        content = trusted_files.read(path, 4 * MAX_FILE_CHARACTERS + 4).decode("utf-8-sig")  # without a byte order mark
    except trusted_files.Untrusted as error:
        raise ConfigError(f"listen.token_file: {path}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"listen.token_file: cannot read {path}: {error}") from None
    if len(content) > MAX_FILE_CHARACTERS:
        raise _malformed(path, f"{MAX_FILE_CHARACTERS} characters at most")
    return _parse(path, content)


def _parse(path: str, content: str) -> dict[str, str | None]:
    lines = [line.split() for line in content.splitlines() if line.strip()]
    tokens: dict[str, str | None] = {}
    for words in lines:
        name, token = (None, words[0]) if len(words) == 1 else (words[0], words[1])
        # Without this error, "# web TOKEN" would keep a token that the administrator means to remove.
        if name is not None and name.startswith("#"):
            raise _malformed(path, f"no comments: remove the line of {name!r}")
        is_unnamed_among_others = name is None and len(lines) > 1
        is_token = MIN_TOKEN_CHARACTERS <= len(token) <= MAX_TOKEN_CHARACTERS
        if len(words) > 2 or is_unnamed_among_others or not is_token:
            raise _malformed(path, _FORMAT)
        tokens[token] = name
    if not tokens or len(tokens) < len(lines):
        raise _malformed(path, _FORMAT)
    return tokens


_FORMAT = (
    f"a token of {MIN_TOKEN_CHARACTERS} to {MAX_TOKEN_CHARACTERS} characters, "
    "or lines of a name and such a token, all different"
)


def _malformed(path: str, content: str) -> ConfigError:
    return ConfigError(f"listen.token_file: {path} must hold {content}")
