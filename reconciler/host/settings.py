"""The operator's settings: environment variables `RECONCILE_*`, or `reconcile.toml` in the working directory.

Command-line options go before the environment, the environment before the file. While a reconciler runs, its
settings are the defaults of every other command in the same state directory, so that `reconcile status` looks at
what runs.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from reconciler.host.files import write_atomic
from reconciler.host.lock import holder

_RUNNING_FILE = "running.json"
Port = Annotated[int, Field(ge=1, le=65535)]
Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9.:-]{1,253}$")]
Seconds = Annotated[float, Field(gt=0)]


class Settings(BaseSettings):
    """Everything an operator can set about the reconciler itself."""

    model_config = SettingsConfigDict(
        env_prefix="RECONCILE_",
        toml_file="reconcile.toml",
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        populate_by_name=True,
    )

    models_dir: Path = Path("models.d")
    """Folder of the model files, where the source is a folder."""
    source: Literal["folder", "git"] = "folder"
    """Where model files come from: a folder that is watched, or a git repository that is looked at."""
    git_url: str = Field(default="", repr=False)
    """The repository: `https://host/path`, `ssh://user@host/path` or `user@host:path`, without credentials."""
    git_ref: str = ""
    """Branch or tag that is followed, or a commit; the default is the branch that the repository itself names."""
    git_path: str = "models.d"
    """Folder of the model files within the repository; empty for its root."""
    git_interval: Seconds = 60.0
    """Seconds between two looks at the repository, and up to a tenth more."""
    git_username: str = "x-access-token"
    """What goes with the token over https. Servers that take tokens mostly take any."""
    git_token_path: Path | None = None
    """File with the token for https; without it, the token is in RECONCILE_GIT_TOKEN."""
    git_ssh_key_path: Path | None = None
    """Private key for ssh; without it the agent of the environment is asked."""
    git_known_hosts_path: Path | None = None
    """The servers' keys for ssh, without which it is not used."""
    git_ca_path: Path | None = None
    """Authorities for https, instead of the system's."""
    git_push_branch: str = ""
    """Branch that a change over the API or the page is pushed to, like `reconcile/{model}`, where `{model}` is the
    file's name without its suffix. Empty: a change is given back as a patch."""
    git_push_token_path: Path | None = None
    """File with the token for pushing over https; without it, it is the one for reading."""
    git_verify: Literal["no", "head", "tag"] = "no"
    """What must be signed before it is taken over: the commit, or the annotated tag that is followed."""
    git_allowed_signers_path: Path | None = None
    """ssh keys whose signatures count, as `ssh-keygen` reads them."""
    git_gpg_keys_path: Path | None = None
    """Armored public GPG keys whose signatures count."""
    git_timeout: Seconds = 60.0
    """Seconds that one git command may take."""
    git_max_mib: Annotated[int, Field(ge=1, le=100_000)] = 64
    """MiB that one fetch, and the files of one commit, may take."""
    hook_secret_path: Path | None = None
    """File with the secrets of the webhook `POST /hooks/source`, one a line; without it there is no webhook."""
    status_to: Literal["none", "auto", "github", "gitlab", "gitea"] = "none"
    """Whose API is told what became of a commit, as its status; auto knows the well-known hosts."""
    status_api: str = ""
    """Base URL of that API; the default is the usual one of the repository's host."""
    status_name: str = "llm"
    """Name of this reconciler, which the status is called by: `reconcile/llm`."""
    status_token_path: Path | None = None
    """File with the token that may set statuses; without it, it is in RECONCILE_STATUS_TOKEN."""
    notify_url: str = Field(default="", repr=False)
    """Address that is called with what became of each revision."""
    notify_secret_path: Path | None = None
    """File whose first line signs these calls, as GitHub signs its own."""
    state_dir: Path = Path(".reconcile")
    """Folder of the reconciler's own files: routes, records, locks, logs. Mode 0700."""
    templates_dir: Path | None = None
    """A folder with templates of your own; those it lacks are taken from the package."""
    ray_dashboard: str = Field(
        default="http://127.0.0.1:8265",
        validation_alias=AliasChoices("RECONCILE_RAY_DASHBOARD", "RAY_API_SERVER_ADDRESS", "ray_dashboard"),
        pattern=r"^https?://[^\s/@]+/?$",
    )
    """URL of the Ray dashboard, whose REST API configures Serve."""
    ray_token_path: Path | None = Field(
        default=None,
        validation_alias=AliasChoices("RECONCILE_RAY_TOKEN_PATH", "RAY_AUTH_TOKEN_PATH", "ray_token_path"),
    )
    """File with the token of Ray's token authentication."""
    ray_start_command: str = ""
    """Command that starts Ray again when its head is gone; it must do nothing where Ray runs. `start.sh` sets it
    where it started Ray itself."""
    serve_host: str = "127.0.0.1"
    """Address that Serve's HTTP proxy listens on, and where the edge finds it."""
    trust_serve_network: bool = False
    """Only machines of yours reach serve_host, where that is not loopback: Serve asks nobody for a key."""
    serve_port: Port = 8100
    """Port of Serve's HTTP proxy."""
    listen_host: Host = "127.0.0.1"
    """Address of the front door. Beyond loopback it needs a key: `reconcile keys add`."""
    listen_port: Port = 4000
    """Port of the front door."""
    activator_port: Port = 4001
    """Port of the part of the front door that runs inside the reconciler, on loopback."""
    api_host: Host = "127.0.0.1"
    """Address of the management API and the page. Beyond loopback there must be an admin key first."""
    api_port: Port = 4002
    """Port of the management API and the page."""
    api_allowed_hosts: tuple[str, ...] = ()
    """Names that clients may call the API by, `*.example.org` for all below; the default is the names of loopback,
    and api_host."""
    api_cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call the API with a key; CORS is off without."""
    tls_cert_path: Path | None = None
    """Certificate chain of the front door and the API; without it they speak plain HTTP."""
    tls_key_path: Path | None = None
    """The certificate's private key."""
    revision_header: bool = False
    """Answers of models say in `X-Reconcile-Revision` which revision of the source they come from."""
    engine: Literal["auto", "cpu", "cuda"] = "auto"
    """The build of the engine; auto looks for a GPU on this machine."""
    simulate_gpus: bool = False
    """Reserve Ray's GPU resource though the engine computes on the CPU; for trying out placement."""
    simulated_gpu_memory_gib: Annotated[float, Field(gt=0, le=100_000)] | None = None
    """With simulate_gpus: GiB that each GPU counts as having, so that plans weigh models as on such GPUs. The
    default is that only their number counts."""
    cpu_threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Threads of a CPU engine; the default is the number of cores."""
    fast_start: bool = False
    """Save seconds of each load, and keep 0.7 GiB of main memory for it: needs this package in the Python of all
    of Ray's workers, as it is where `start.sh` started Ray."""
    hub_cache: Path | None = None
    """The hub's cache; the default is that of the hub's own tools (HF_HUB_CACHE, HF_HOME, ~/.cache)."""
    downloads_at_once: Annotated[int, Field(ge=1, le=64)] = 2
    """How many repositories are fetched at a time."""
    download_workers: Annotated[int, Field(ge=1, le=64)] = 8
    """How many files of one repository are fetched at a time."""
    disk_reserve_gib: Annotated[float, Field(ge=0)] = 5.0
    """GiB of the cache's disk that a download leaves free."""
    cache_limit_gib: Annotated[float, Field(gt=0)] | None = None
    """GiB that the hub's cache may have at most; what is not needed goes first. The default is no limit."""
    keep_versions: Annotated[int, Field(ge=0, le=1000)] = 2
    """Of how many earlier versions of each model the weights stay, so that going back downloads nothing."""
    revision_check_interval: Seconds = 300.0
    """Seconds between two looks at where a branch points."""
    allow_pickle: tuple[str, ...] = ()
    """Repositories whose weights may be pickles, as patterns (`org/*`): loading one can run code."""
    allow_code: tuple[str, ...] = ()
    """Repositories whose own code may run, as patterns (`org/*`)."""
    resync_interval: Seconds = 10.0
    """Seconds between two full looks at files and cluster, whatever the file watcher says."""
    sleep_memory_gib: Annotated[float, Field(ge=0)] | None = None
    """GiB of main memory that sleeping models may take together; the default is half of what the machine has."""
    lease: bool = True
    """Write to a cluster only while holding its lease, so that no two reconcilers fight. Off where Ray's GCS
    cannot be reached from here."""
    sweep_interval: Seconds = 10.0
    """Seconds between two looks for models that are idle, or whose schedule begins or ends."""
    max_loads: Annotated[int, Field(ge=1, le=1000)] | None = None
    """How many models may be coming up at a time; the default is one for every four cores."""
    probe_timeout: Seconds = 120.0
    """Seconds that a model which is up may take to answer its first request."""
    log_format: Literal["auto", "json", "text"] = "auto"
    """auto: text on a terminal, JSON lines elsewhere."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _both_or_none(self) -> "Settings":
        if (self.tls_cert_path is None) != (self.tls_key_path is None):
            raise ValueError("tls_cert_path and tls_key_path go together")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Options, environment, reconcile.toml, in this order."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def device(self) -> str:
        """`cpu` or `cuda`."""
        if self.engine != "auto":
            return self.engine
        return "cuda" if _has_gpu() else "cpu"

    @property
    def loads_at_once(self) -> int:
        """How many models may be coming up at a time."""
        return self.max_loads or max(1, (os.cpu_count() or 1) // 4)

    @property
    def hub_cache_folder(self) -> Path:
        """The hub's cache, as an absolute path."""
        if self.hub_cache is not None:
            return self.hub_cache.absolute()
        from huggingface_hub import constants  # noqa: PLC0415 -- only where weights are concerned

        return Path(constants.HF_HUB_CACHE).absolute()

    def remember(self) -> None:
        """Make these settings the defaults of other commands in the same state directory."""
        absolute = self.model_copy(
            update={
                name: path.absolute()
                for name, path in self
                if name in self.model_fields_set and isinstance(path, Path)
            }
            | {"models_dir": self.models_dir.absolute(), "hub_cache": self.hub_cache_folder}
        )
        write_atomic(
            self.state_dir / _RUNNING_FILE, absolute.model_dump_json(exclude_unset=True, exclude={"notify_url"})
        )


def load(**options: Any) -> Settings:  # noqa: ANN401 -- the fields of Settings
    """The settings in force: options, environment, file, then those of the reconciler that runs here.

    Raises:
        pydantic.ValidationError: A value is not allowed, or `reconcile.toml` has an unknown key.
    """
    given = {key: value for key, value in options.items() if value is not None}
    settings = Settings(**given)
    if holder(settings.state_dir) is None:
        return settings
    running = settings.state_dir / _RUNNING_FILE
    try:
        remembered = json.loads(running.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return settings
    remembered.pop("state_dir", None)
    for key in ("log_format", "log_level", *settings.model_fields_set):
        remembered.pop(key, None)
    return Settings(**{**remembered, **given})


def _has_gpu() -> bool:
    import pynvml  # noqa: PLC0415 -- only where nobody said which engine it is

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    try:
        return bool(pynvml.nvmlDeviceGetCount() > 0)
    except pynvml.NVMLError:
        return False
    finally:
        # It counts its users, and a GPU that has one cannot be reset.
        pynvml.nvmlShutdown()
