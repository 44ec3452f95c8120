"""Engine arguments that a model file may not set, under every spelling and at every depth."""

from reconciler.core.spec import FORBIDDEN_ANYWHERE

from .cases_yaml import SOURCE
from .conftest import Case

# What would run code, read the operator's files, open an endpoint, or undo what the reconciler sets itself.
_FORBIDDEN = """
    trust_remote_code code_revision worker_cls worker_extension_cls scheduler_cls logits_processors
    allowed_local_media_path allowed_media_domains tokenizer hf_token hf_config_path download_dir load_format
    model_loader_extra_config ignore_patterns tool_parser_plugin reasoning_parser_plugin enable_prompt_embeds
    enable_mm_embeds kv_transfer_config kv_events_config ec_transfer_config additional_config compilation_config
    profiler_config otlp_traces_endpoint distributed_executor_backend tensor_parallel_size
    pipeline_parallel_size data_parallel_size data_parallel_address nnodes master_addr model served_model_name
    enable_lora lora_modules middleware root_path api_key ssl_keyfile uds chat_template env runtime_env
""".split()

_SPELLINGS = [
    ("as an option", "--trust-remote-code"),
    ("in camel case", "trustRemoteCode"),
    ("in full width", "\uff54rust_remote_code"),
    ("with a Cyrillic letter", "trust_rem\u043ete_code"),
    ("as a path of keys", "hf_overrides.auto_map"),
    ("as an attribute of Python's", "__class__"),
]

_NESTED = [
    ("a repository's code", "hf_overrides: {trust_remote_code: true}"),
    ("a map to a repository's code", "hf_overrides: {auto_map: {AutoModel: evil.Model}}"),
    ("a map below a part", "hf_overrides: {text_config: {vision: {auto_map: {AutoModel: evil.Model}}}}"),
    ("a map in a list", "hf_overrides: {parts: [[{a: [{auto_map: {}}]}]]}"),
    ("code of a processor", "mm_processor_kwargs: {trust_remote_code: true}"),
    ("code of a draft", "speculative_config: {model: a/b, trust_remote_code: true}"),
    ("a revision of a draft's code", "speculative_config: {model: a/b, code_revision: x}"),
    ("a worker of a draft's", "speculative_config: {worker_cls: os.system}"),
    ("an extension", "attention_config: {worker_extension_cls: os.system}"),
    ("a scheduler", "structured_outputs_config: {scheduler_cls: os.system}"),
    ("processors of logits", "override_generation_config: {logits_processors: [os.system]}"),
    ("code for a chat template", "default_chat_template_kwargs: {trust_remote_code: true}"),
]

# Where a file might hope to set what the engine's environment says.
_ENVIRONMENT = [
    ("at the top", "env_vars: {LD_PRELOAD: /x.so}\n", "2:1"),
    ("at the top, as Ray has it", "runtime_env: {env_vars: {A: b}}\n", "2:1"),
    ("under engine", "engine: {env_vars: {VLLM_PLUGINS: evil}}\n", "2:10"),
    ("under resources", "resources: {runtime_env: {pip: [evil]}}\n", "2:13"),
    ("under lifecycle", "lifecycle: {env: {A: b}}\n", "2:13"),
    ("as a setting of Serve's", "deployment_config: {ray_actor_options: {}}\n", "2:1"),
    ("as what is imported", "import_path: os:system\n", "2:1"),
]

CASES = [
    *(
        # What is forbidden at any depth is reported at `args:` first.
        Case(
            f"the argument {key}",
            f"{SOURCE}engine:\n  args:\n    {key}: x\n",
            "3:3" if key in FORBIDDEN_ANYWHERE else "4:5",
            f"unknown key '{key}' under engine.args",
        )
        for key in _FORBIDDEN
    ),
    *(
        Case(
            f"code of a repository {words}", f'{SOURCE}engine:\n  args:\n    "{key}": true\n', "4:5", "engine.args"
        )
        for words, key in _SPELLINGS
    ),
    *(
        Case(f"nested: {words}", f"{SOURCE}engine:\n  args:\n    {args}\n", "3:3", "at any depth")
        for words, args in _NESTED
    ),
    *(Case(f"the environment {words}", SOURCE + text, at, "unknown key") for words, text, at in _ENVIRONMENT),
    Case(
        "code of a repository with a space",
        f'{SOURCE}engine:\n  args:\n    "trust_remote_code ": x\n',
        "3:3",
        "may set",
    ),
    Case(
        "code of a repository with a zero-width space",
        f"{SOURCE}engine:\n  args:\n    trust_remote\u200b_code: x\n",
        "3:3",
        "may set",
    ),
    Case(
        "our own setting as an argument",
        f"{SOURCE}engine: {{args: {{max_model_len: 5}}}}\n",
        "2:17",
        "it belongs under engine:",
    ),
    Case("arguments that are text", f"{SOURCE}engine: {{args: --trust-remote-code}}\n", "2:16", "engine.args is"),
    Case(
        "arguments that are a list",
        f"{SOURCE}engine: {{args: [--trust-remote-code]}}\n",
        "2:16",
        "engine.args is a list",
    ),
    Case(
        "a quantisation that is a path",
        f"{SOURCE}engine: {{quantization: ../x}}\n",
        "2:24",
        "quantization is '../x'",
    ),
    Case("a type that is none", f"{SOURCE}engine: {{dtype: torch.load}}\n", "2:17", "allowed: auto"),
    Case("a rank that is none", f"{SOURCE}engine: {{max_lora_rank: 7}}\n", "2:25", "allowed: 8, 16"),
]

# vLLM reads these only under their exact names; a reader that evens spellings out would run code by them.
SPELLED = [
    Case(
        "code of a repository with hyphens",
        f"{SOURCE}engine: {{args: {{trust-remote-code: true}}}}\n",
        "2:10",
        "at any depth",
    ),
    Case(
        "code of a repository in capitals",
        f"{SOURCE}engine: {{args: {{TRUST_REMOTE_CODE: true}}}}\n",
        "2:10",
        "at any depth",
    ),
    Case(
        "nested: code of a repository with hyphens",
        f"{SOURCE}engine:\n  args:\n    hf_overrides: {{trust-remote-code: true}}\n",
        "3:3",
        "at any depth",
    ),
    Case(
        "nested: code of a repository in capitals",
        f"{SOURCE}engine:\n  args:\n    hf_overrides: {{TRUST_REMOTE_CODE: true}}\n",
        "3:3",
        "at any depth",
    ),
]
