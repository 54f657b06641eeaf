"""One table of settings: flags, environment, file and documentation derive from it.

Precedence: flag, environment (`PELTON_` and the name in capitals), file (`settings.toml` in the home), default.
Unknown keys are errors that name the nearest known one.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from pelton.errors import SettingInvalid

PREFIX: Final = "PELTON_"
FILE_NAME: Final = "settings.toml"
LEAST_WEIGHT: Final = 0.001
OTHERS: Final = frozenset({"PELTON_API_KEY"})  # variables that are no settings: the key that `pelton chat` sends


def _about(text: str, **bounds: Any) -> Meta:
    return Meta(description=text, **bounds)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a process of Pelton runs. Sizes are MiB, times seconds."""

    home: Annotated[str, _about("folder of models, versions and settings")] = "~/.pelton"
    store: Annotated[
        str, _about("database of models and deployments: sqlite:///FILE or postgresql://...; empty: a file in the home")
    ] = ""
    host: Annotated[str, _about("address to listen on; 0.0.0.0 or :: for all")] = "127.0.0.1"
    port: Annotated[int, _about("TCP port to listen on; 0 takes a free one", ge=0, le=65535)] = 8080
    workers: Annotated[int, _about("processes that share the port", ge=1, le=256)] = 1
    replicate_below: Annotated[
        float, _about("models with files up to this size are loaded in every worker, bigger ones in one", ge=0)
    ] = 256.0
    slots: Annotated[int, _about("batches that run at the same time in a process; 0: one per core", ge=0, le=1024)] = 0
    threads: Annotated[int, _about("threads of one batch; more lowers the latency of large models", ge=1, le=256)] = 1
    grace: Annotated[
        float, _about("after SIGTERM: how long new calls are still taken while readiness is 503", ge=0)
    ] = 3.0
    stop_timeout: Annotated[float, _about("after the grace: how long accepted calls may take before exit", ge=0)] = 30.0
    max_body: Annotated[float, _about("largest request body, as sent and decompressed", gt=0)] = 64.0
    max_json: Annotated[float, _about("largest JSON of a request", gt=0)] = 16.0
    max_connections: Annotated[int, _about("connections open at the same time in a process", ge=1)] = 16_384
    read_timeout: Annotated[float, _about("from the first byte of a request to its last", gt=0)] = 30.0
    idle_timeout: Annotated[float, _about("a connection without a request is closed after this", gt=0)] = 75.0
    tls_cert: Annotated[str, _about("PEM file with the certificate chain; turns TLS on")] = ""
    tls_key: Annotated[str, _about("PEM file with the private key")] = ""
    trust: Annotated[str, _about("models whose own Python code may run: names with commas, or * for all")] = ""
    cache: Annotated[
        str, _about("folder for files that engines derive from models; it may be emptied; empty: cache in the home")
    ] = ""
    admin_token: Annotated[str, _about("what the admin API asks for; without one it answers this machine only")] = ""
    cors_origins: Annotated[
        str, _about("web pages that may call the OpenAI API from a browser: origins with commas, or *; empty: none")
    ] = ""
    tenant_weights: Annotated[
        str, _about("shares of language models: TENANT=WEIGHT with commas, 1 for who is not named (see docs/chat.md)")
    ] = ""
    keep_warm: Annotated[
        float, _about("how long the version that served before stays in memory, so that a rollback is instant", ge=0)
    ] = 3600.0
    log_level: Annotated[Literal["debug", "info", "warning", "error"], _about("least severity that is logged")] = "info"
    log_format: Annotated[Literal["text", "json"], _about("form of log lines")] = "text"
    access_log: Annotated[bool, _about("one log line per call, beside those of errors")] = False
    slow_ms: Annotated[float, _about("calls slower than this are logged; 0: none", ge=0)] = 0.0
    otel_endpoint: Annotated[str, _about("OTLP/HTTP address that receives a span per call (extra 'otel')")] = ""

    @property
    def store_url(self) -> str:
        """Where the store is."""
        return self.store or f"sqlite:///{self.home_path / 'pelton.db'}"

    @property
    def home_path(self) -> Path:
        return Path(self.home).expanduser()

    @property
    def cache_path(self) -> Path:
        """Where derived files are."""
        return Path(self.cache).expanduser() if self.cache else self.home_path / "cache"

    def weights(self) -> dict[str, float]:
        """The weights of tenants that have their own. Raises SettingInvalid."""
        found: dict[str, float] = {}
        for part in filter(None, map(str.strip, self.tenant_weights.split(","))):
            tenant, _, given = part.partition("=")
            try:
                weight = float(given)
            except ValueError:
                weight = 0.0
            if not tenant.strip() or not LEAST_WEIGHT <= weight <= 1 / LEAST_WEIGHT:
                raise SettingInvalid(
                    f"a setting is wrong: tenant_weights has {part!r}; write TENANT=WEIGHT with a weight from "
                    f"{LEAST_WEIGHT:g} to {1 / LEAST_WEIGHT:g}, as in key-2c26b46b68ff=3"
                )
            found[tenant.strip()] = weight
        return found

    def trusts(self, name: str) -> bool:
        """Whether the Python code of a model may run."""
        names = [part.strip() for part in self.trust.split(",")]
        return "*" in names or name in names


def names() -> list[str]:
    """All settings, in the order of the table."""
    return list(Settings.__struct_fields__)


def describe() -> list[tuple[str, str, Any]]:
    """(name, what it does, default) of every setting."""
    fields = msgspec.inspect.type_info(Settings).fields  # type: ignore[attr-defined]  # a StructType
    return [(field.name, _description(field.type), field.default) for field in fields]


def _description(kind: Any) -> str:
    if isinstance(kind, msgspec.inspect.Metadata):
        return str((kind.extra_json_schema or {}).get("description", ""))
    return ""


def load(flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Settings:
    """Merges all sources. Raises SettingInvalid with the key, its source and the mend."""
    from_environment = {
        key.removeprefix(PREFIX).lower(): value
        for key, value in environment.items()
        if key.startswith(PREFIX) and key not in OTHERS
    }
    _check_keys(from_environment, "the environment", lambda name: PREFIX + name.upper())
    home = flags.get("home") or from_environment.get("home") or Settings().home
    values: dict[str, Any] = {**_file(Path(home).expanduser() / FILE_NAME), **from_environment}
    values.update({name: value for name, value in flags.items() if value is not None})
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingInvalid(f"a setting is wrong: {error}") from None
    settings.weights()
    return settings


def _file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingInvalid(f"{path}: {error}") from None
    _check_keys(values, str(path), str)
    return values


def _check_keys(values: Mapping[str, Any], source: str, spell: Any) -> None:
    known = names()
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {spell(near[0])}?" if near else ""
            raise SettingInvalid(f"{source} has the unknown setting {spell(name)}{hint}")
