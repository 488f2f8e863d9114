"""Settings: defaults, then a TOML file, then `REMUDA_*` of the environment; validated once.

The TOML file is `$REMUDA_CONFIG`, or `remuda/config.toml` under `$XDG_CONFIG_HOME`.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from remuda.errors import ConfigError

EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=200)]
EnvValue = Annotated[str, Field(pattern=r"^[^\x00]*$", max_length=65536)]


def _xdg(variable: str, fallback: str) -> Path:
    root = os.environ.get(variable, "")
    return (Path(root) if os.path.isabs(root) else Path.home() / fallback) / "remuda"


def config_file() -> Path:
    """Return the path of the TOML settings file, whether or not it exists."""
    given = os.environ.get("REMUDA_CONFIG")
    return Path(given) if given else _xdg("XDG_CONFIG_HOME", ".config") / "config.toml"


class Settings(BaseSettings):
    """Everything that can be set; frozen. Times in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="REMUDA_", frozen=True, extra="forbid")

    database_url: SecretStr | None = Field(
        None, description="postgresql://user:password@host/db; unset: the embedded server"
    )
    broker_url: SecretStr | None = Field(
        None, description="amqp://, redis:// or filesystem://; unset: the embedded broker"
    )
    storage_url: str | None = Field(
        None, description="where inputs and results are kept; unset: a folder of data_dir"
    )
    data_dir: Path = Field(default_factory=lambda: _xdg("XDG_DATA_HOME", ".local/share"))
    state_dir: Path = Field(default_factory=lambda: _xdg("XDG_STATE_HOME", ".local/state"))
    secrets_keys: SecretStr | None = Field(
        None, description="keys that secrets are encrypted with, the first encrypts; by comma"
    )
    secrets_key_file: Path | None = Field(
        None, description="a file of such keys, one a line; unset: secrets.keys of data_dir"
    )
    owner: str = Field("", description="whose jobs these are; empty: the user's login name")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["json", "text"] = "json"
    worker_concurrency: int = Field(8, ge=1, le=512, description="threads of a worker")
    placement_horizon_s: float = Field(
        0.5, ge=0, le=60, description="expected work placed ahead on each slot"
    )
    placement_max_ahead: int = Field(256, ge=0, le=10_000, description="attempts ahead per VM")
    placement_reserve_after_s: float = Field(
        60.0, ge=0, description="how long a job finds no room before a VM is kept for it"
    )
    usage_half_life_s: float = Field(
        86400.0, ge=1, le=315360000, description="after which half of an owner's use is forgotten"
    )
    watch_ttl_s: float = Field(
        10.0, ge=1, le=600, description="how long a dead worker still holds a VM's watch"
    )
    unowned_grace_s: float = Field(
        60.0, ge=0, le=86400, description="how long a machine may have no row before it is ended"
    )
    loss_grace_s: float = Field(
        300.0, ge=0, le=86400, description="until the loss of most of a pool at once is believed"
    )
    heartbeat_retention_s: float = Field(30 * 86400.0, ge=60)
    event_retention_s: float = Field(365 * 86400.0, ge=3600)
    decision_retention_s: float = Field(
        30 * 86400.0, ge=60, description="how long sizing decisions are kept"
    )
    max_total_slots: int | None = Field(
        None, ge=0, le=10_000_000, description="slots that all pools together may have; unset: any"
    )
    group_max_slots: dict[str, Annotated[int, Field(ge=0, le=10_000_000)]] = Field(
        {}, description="slots that the pools of a group (sizing_group) may have together"
    )
    preemption_grace_s: float = Field(
        30.0, ge=0, le=3600, description="what preempted jobs have from TERM to KILL"
    )
    forced_constants: dict[str, dict[EnvName, EnvValue]] = Field(
        {}, description="environment that jobs cannot change, by pool; of all pools: *"
    )
    carbon_file: Path | None = Field(
        None,
        description="power, grids and data centres that CO2 is estimated from; unset: built in",
    )
    hours_file: Path | None = Field(
        None, description="what each hour costs or emits, for jobs that can wait; unset: none can"
    )
    flower_events: Literal["auto", "on", "off"] = Field(
        "auto", description="tell Celery monitors of VMs and attempts; auto: while one listens"
    )
    flower_rate: float = Field(
        50.0, ge=1, le=10_000, description="attempts per second and worker that monitors are shown"
    )
    max_inline_output_bytes: int = Field(65536, ge=0, le=1 << 20)
    output_limit_bytes: int = Field(64 << 20, ge=4096, description="of stdout and stderr each")

    @field_validator("forced_constants")
    @classmethod
    def _not_ours(cls, value: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
        ours = sorted({name for of in value.values() for name in of if name.startswith("REMUDA_")})
        if ours:
            raise ValueError(f"{', '.join(ours)}: variables called REMUDA_... are Remuda's own")
        return value

    @field_validator("data_dir", "state_dir", "secrets_key_file")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @property
    def embedded(self) -> bool:
        """Whether PostgreSQL is the embedded server (no database_url is set)."""
        return self.database_url is None

    def forced_for(self, pool: str) -> dict[str, str]:
        """Return the environment that jobs of a pool have whatever they and it say."""
        return {**self.forced_constants.get("*", {}), **self.forced_constants.get(pool, {})}

    @property
    def storage(self) -> str:
        """The storage URL in force."""
        return self.storage_url or (self.data_dir / "storage").as_uri()

    @property
    def broker(self) -> str:
        """The broker URL in force; may hold a password, so never log it."""
        return self.broker_url.get_secret_value() if self.broker_url else "filesystem://"

    @property
    def broker_dir(self) -> Path:
        """The folder of the `filesystem://` broker."""
        return self.data_dir / "broker"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        toml = TomlConfigSettingsSource(settings_cls, toml_file=config_file())
        return (init_settings, env_settings, toml)


def load_settings(**overrides: Any) -> Settings:
    """Read and check the settings.

    Raises ConfigError naming every wrong key. The same environment gives the same object.
    """
    if overrides:
        return _build(overrides)
    relevant = ("REMUDA_", "XDG_", "HOME")
    return _cached(tuple(sorted(i for i in os.environ.items() if i[0].startswith(relevant))))


@lru_cache(maxsize=8)
def _cached(environment: tuple[tuple[str, str], ...]) -> Settings:
    return _build({})


def _build(overrides: dict[str, Any]) -> Settings:
    try:
        return Settings(**overrides)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}"
            for e in error.errors(include_input=False)
        )
        raise ConfigError(
            f"wrong settings: {wrong}", hint=f"see REMUDA_* in the environment and {config_file()}"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {config_file()}: {error}") from error
