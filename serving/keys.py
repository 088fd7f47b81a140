"""API keys: who may ask, and for what. The file holds hashes only, and nobody else may be able to read it.

A key is ``hqtl_ID_SECRET``: a public identifier, and 256 random bits. Because the secret is random, one SHA-256 is as good as
a slow hash. The file is read again as soon as it changes, so that a key is revoked without a restart.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from hqtl_common.errors import ConfigError
from serving.errors import KeysUnavailableError, UnauthorizedError

__all__ = ["LOCAL", "Grants", "Key", "KeyFile", "KeyRing", "default_path", "edit_keys", "new_key", "read_keys", "revoked", "write_keys"]

logger = logging.getLogger("hqtl.keys")

_TOKEN = re.compile(r"hqtl_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
_LOOK_EVERY_S = 1.0
_UNKNOWN = "0" * 64  # compared with where no key has the identifier


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Grants(_Strict):
    """What a key may do; everything that costs is denied unless granted.

    Args:
        backends: Shell patterns of the backends it may use, ``*`` for all that the service offers.
        max_shots: Shots per image; None = as many as the service allows.
        qpu_seconds_per_day: On paid backends, per day (UTC); None = without limit.
        jobs_per_day: Per day (UTC); None = without limit.
        requests_per_minute: Of every kind; None = without limit.
    """

    backends: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = ("*",)
    max_shots: Annotated[int | None, Field(ge=1)] = None
    qpu_seconds_per_day: Annotated[float | None, Field(ge=0)] = 0.0
    jobs_per_day: Annotated[int | None, Field(ge=0)] = 0
    requests_per_minute: Annotated[int | None, Field(ge=1, le=1_000_000)] = None


class Key(_Strict):
    """One entry of the file.

    Args:
        id: Public identifier, eight hexadecimal digits; ``local`` is the one without authentication.
        name: For people.
        sha256: Of the whole key.
        created: When it was made.
        expires: From when on it is refused, None = never.
        revoked: When it was revoked, None = it was not.
        grants: What it may do.
    """

    id: Annotated[str, Field(pattern=r"^([0-9a-f]{8}|local)$")]
    name: Annotated[str, Field(min_length=1, max_length=100)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]
    created: AwareDatetime
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None
    grants: Grants = Grants()

    @property
    def state(self) -> Literal["good", "expired", "revoked"]:
        """Whether it is accepted now."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= datetime.now(UTC) else "good"


# Who asks where authentication is off: everything that costs nothing.
LOCAL = Key(id="local", name="no authentication", sha256=_UNKNOWN, created=datetime.fromtimestamp(0, UTC), grants=Grants(jobs_per_day=None))


class KeyFile(_Strict):
    """The whole file."""

    schema_: Annotated[Literal["hqtl-keys/1"], Field(alias="schema")] = "hqtl-keys/1"
    keys: tuple[Key, ...] = ()

    @model_validator(mode="after")
    def _ids_differ(self) -> KeyFile:
        if len({key.id for key in self.keys}) != len(self.keys):
            raise ValueError("two keys have the same id")
        return self


def default_path() -> Path:
    """``hqtl/keys.json`` in ``$XDG_CONFIG_HOME`` or ``~/.config``."""
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "hqtl" / "keys.json"


def new_key(name: str, grants: Grants, expires: datetime | None = None) -> tuple[str, Key]:
    """A fresh key: the text to give away, which is not kept anywhere, and its entry."""
    identifier = secrets.token_hex(4)
    token = f"hqtl_{identifier}_{secrets.token_urlsafe(32)}"
    return token, Key(id=identifier, name=name, sha256=_digest(token), created=datetime.now(UTC), expires=expires, grants=grants)


def read_keys(path: Path) -> KeyFile:
    """Read the file.

    Raises:
        ConfigError: It cannot be read, others can read it, or it is not a file of keys. The message holds nothing of the file.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read()
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file of keys {str(path)!r}; make one with: hqtl-keys add NAME --file {path}") from error
    except OSError as error:
        raise ConfigError(f"the file of the keys {str(path)!r} cannot be read: {error.strerror}") from error
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigError(
            f"the file of the keys {str(path)!r} is open to others (mode {stat.S_IMODE(status.st_mode):04o}): make it 0600, and new keys"
        )
    try:
        return KeyFile.model_validate_json(data)
    except ValidationError as error:
        places = ", ".join(sorted({".".join(map(str, problem["loc"])) or "file" for problem in error.errors(include_input=False)}))
        raise ConfigError(f"{str(path)!r} is not a file of keys made by hqtl-keys (wrong: {places})") from None


def write_keys(path: Path, keys: KeyFile) -> None:
    """Write the file whole or not at all, readable by its owner only.

    Raises:
        ConfigError: It cannot be written.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with suppress(FileNotFoundError):
            scratch.unlink()
        with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(keys.model_dump_json(by_alias=True, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        raise ConfigError(f"the file of the keys {str(path)!r} cannot be written: {error.strerror}") from error


@contextmanager
def edit_keys(path: Path) -> Iterator[list[Key]]:
    """The keys of a file, made if there is none, to be changed in place; written back at the end, by one process at a time.

    Raises:
        ConfigError: See :func:`read_keys` and :func:`write_keys`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(f"the file of the keys {str(path)!r} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = list(read_keys(path).keys) if path.exists() else []
        yield keys
        write_keys(path, KeyFile(keys=tuple(keys)))
    finally:
        os.close(lock)


def revoked(keys: Iterable[Key], identifier: str) -> list[Key]:
    """The same keys, one of them revoked.

    Raises:
        ConfigError: None has this id.
    """
    keys = list(keys)
    if identifier not in {key.id for key in keys}:
        raise ConfigError(f"there is no key {identifier!r}; hqtl-keys list shows them")
    now = datetime.now(UTC)
    return [key.model_copy(update={"revoked": key.revoked or now}) if key.id == identifier else key for key in keys]


class KeyRing:
    """The keys of a file, read again when it changes.

    Args:
        path: The file.

    Raises:
        ConfigError: See :func:`read_keys`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._problem: ConfigError | None = None
        self._stamp = self._look()
        self._keys = {key.id: key for key in read_keys(path).keys}
        self._looked = time.monotonic()

    def check(self) -> None:
        """Read the file again if it was changed.

        Raises:
            KeysUnavailableError: What is there now cannot be used.
        """
        now = time.monotonic()
        if now - self._looked >= _LOOK_EVERY_S:
            self._looked = now
            if (stamp := self._look()) != self._stamp:
                self._stamp = stamp
                self._read()
        if self._problem is not None:
            raise KeysUnavailableError("the keys of this service cannot be read, so nobody is let in; its log says why")

    def find(self, token: str) -> Key:
        """The entry of a key.

        Raises:
            UnauthorizedError: It is not a key of this service, or expired or revoked.
            KeysUnavailableError: See :meth:`check`.
        """
        self.check()
        parts = _TOKEN.fullmatch(token)
        key = self._keys.get(parts[1]) if parts else None
        if not hmac.compare_digest(_digest(token), key.sha256 if key else _UNKNOWN) or key is None:
            raise UnauthorizedError("the key is not one of this service")
        if key.state != "good":
            raise UnauthorizedError(f"the key {key.id} is {key.state}; ask the operator for another one")
        return key

    def _read(self) -> None:
        try:
            self._keys, self._problem = {key.id: key for key in read_keys(self._path).keys}, None
        except ConfigError as error:
            self._keys, self._problem = {}, error
            logger.error("nobody is let in: %s", error)
        else:
            logger.info("read %d keys", len(self._keys))

    def _look(self) -> tuple[int, ...]:
        try:
            found = self._path.stat()
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
