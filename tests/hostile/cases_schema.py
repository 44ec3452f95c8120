"""Hostile values in good YAML: names, numbers, keys, twins."""

from .cases_yaml import SOURCE
from .conftest import Case

_TWINS = {"a.yaml": f"name: twin\n{SOURCE}"}


def _named(name: str) -> str:
    """A file with that name, in double quotes, as JSON writes it."""
    return f'name: "{name}"\n{SOURCE}'


CASES = [
    # Numbers that are none, or are others.
    Case("a boolean as a whole number", f"{SOURCE}lifecycle: {{priority: true}}\n", "2:23", "priority is true"),
    Case("a boolean as a share", f"{SOURCE}engine: {{gpu_memory_utilization: true}}\n", "2:34", "is true"),
    Case("a number as a boolean", "source: {repo: a/b, track: 1}\n", "1:28", "allowed: true or false"),
    Case("text as a number", f'{SOURCE}lifecycle: {{priority: "5"}}\n', "2:23", "write it without quotes: 5"),
    Case("a float as a whole number", f"{SOURCE}lifecycle: {{priority: 5.0}}\n", "2:23", "write 5"),
    Case("a fraction as a whole number", f"{SOURCE}engine: {{max_num_seqs: 1.5}}\n", "2:24", "is 1.5"),
    Case("an exponent as a whole number", f"{SOURCE}engine: {{max_model_len: 8e3}}\n", "2:25", "write 8000"),
    Case("18 digits", f"{SOURCE}engine: {{max_model_len: {'9' * 18}}}\n", "2:25", "from 1 to 100000000"),
    Case("a negative length", f"{SOURCE}engine: {{max_model_len: -1}}\n", "2:25", "is -1"),
    Case("negative zero", f"{SOURCE}engine: {{gpu_memory_utilization: -0.0}}\n", "2:34", "above 0"),
    Case(
        "more than all of a GPU", f"{SOURCE}engine: {{gpu_memory_utilization: 1.0000001}}\n", "2:34", "at most 1"
    ),
    Case("a million replicas", f"{SOURCE}resources: {{replicas: {{min: 1000000}}}}\n", "2:29", "from 1 to 1000"),
    Case(
        "replicas the wrong way round",
        f"{SOURCE}resources: {{replicas: {{min: 3, max: 2}}}}\n",
        "2:24",
        "more than max",
    ),
    Case("a duration without a unit", f"{SOURCE}lifecycle: {{idle_timeout: 90}}\n", "2:27", "90"),
    Case(
        "an endless duration", f"{SOURCE}lifecycle: {{idle_timeout: {'9' * 40}d}}\n", "2:27", "is not a duration"
    ),
    Case(
        "a duration of Arabic digits",
        f'{SOURCE}lifecycle: {{idle_timeout: "\u0665m"}}\n',
        "2:27",
        "is not a duration",
    ),
    Case(
        "a schedule that never closes",
        f'{SOURCE}lifecycle: {{schedule: [{{start: "0 0 30 2 *", end: "0 0 31 2 *"}}]}}\n',
        "2:32",
        "",
    ),
    Case(
        "a time zone that is a path",
        f'{SOURCE}lifecycle: {{schedule: [{{start: "0 8 * * *", end: "0 9 * * *", timezone: ../../etc/passwd}}]}}',
        "2:73",
        "timezone is '../../etc/passwd'",
    ),
    Case(
        "five thousand schedules", f"{SOURCE}lifecycle: {{schedule: [{', '.join(['{}'] * 5000)}]}}\n", "2:24", ""
    ),
    # Keys.
    Case("a key with a slip", "sorce: {repo: a/b}\n", "1:1", "did you mean 'source'?"),
    Case(
        "a key with a slip in a section",
        f"{SOURCE}lifecycle: {{idle_timout: 5m}}\n",
        "2:13",
        "did you mean 'idle_timeout'?",
    ),
    Case(
        "a key with a hyphen", f"{SOURCE}engine: {{max-model-len: 5}}\n", "2:10", "did you mean 'max_model_len'?"
    ),
    Case("a key in capitals", f"{SOURCE}Engine: {{dtype: auto}}\n", "2:1", "did you mean 'engine'?"),
    Case("a key at the wrong level", f"{SOURCE}max_model_len: 5\n", "2:1", "it belongs under engine:"),
    Case("a key with a Cyrillic letter", f"{SOURCE}\u0435ngine: {{dtype: auto}}\n", "2:1", "unknown key"),
    Case("a key with a zero-width space", f"{SOURCE}engine\u200b: {{dtype: auto}}\n", "2:1", "unknown key"),
    Case("a key of Python's", f"{SOURCE}__class__: 1\n", "2:1", "unknown key '__class__'"),
    Case("a key of pydantic's", f"{SOURCE}model_config: {{extra: allow}}\n", "2:1", "unknown key 'model_config'"),
    Case("an empty key", f'{SOURCE}"": 1\n', "2:1", "unknown key ''"),
    Case("a list where a mapping belongs", f"{SOURCE}engine: [dtype]\n", "2:9", "engine is a list"),
    Case("a mapping where a list belongs", f"{SOURCE}aliases: {{a: b}}\n", "2:10", "aliases is a mapping"),
    Case("text where a list belongs", f"{SOURCE}aliases: a\n", "2:10", "write it as a list: [a, b]"),
    Case("both sources", "source: {repo: a/b, path: /x}\n", "1:10", "exactly one of repo and path"),
    Case("no source", "task: embed\n", "1:1", "source is missing"),
    # Names: they become parts of URLs, of files and of Serve's identifiers.
    Case("a name that climbs", _named("../../etc/passwd"), "1:7", "name is '../../etc/passwd'"),
    Case("a name that climbs inside", _named("a/../b"), "1:7", "allowed: letters"),
    Case("an absolute name", _named("/etc/passwd"), "1:7", "allowed: letters"),
    Case("a name with an empty part", _named("a//b"), "1:7", "allowed: letters"),
    Case("a name that is a template", _named("{{7*7}}"), "1:7", "name is '{{7*7}}'"),
    Case("a name that is a template's statement", _named("{% raw %}"), "1:7", "allowed: letters"),
    Case("a name with a line end", _named("a\\nb"), "1:7", r"'a\nb'"),
    Case("a name that ends in a line end", _named("sick\\n"), "1:7", r"'sick\n'"),
    Case("a name with a carriage return", _named("a\\rb"), "1:7", "U+000D"),
    Case("a name with a NUL", _named("a\\0b"), "1:7", "U+0000"),
    Case("a name with a tab", _named("a\\tb"), "1:7", "allowed: letters"),
    Case("a name with a space", _named("a b"), "1:7", "allowed: letters"),
    Case("a name of 300 characters", _named("a" * 300), "1:7", "name is"),
    Case("a name of 97 characters", _named("a" * 97), "1:7", "name is"),
    Case("an empty name", _named(""), "1:7", "name is ''"),
    Case("a name of one dot", _named("."), "1:7", "allowed: letters"),
    Case("a name of two dots", _named(".."), "1:7", "allowed: letters"),
    Case("a name that ends in a dot", _named("a."), "1:7", "allowed: letters"),
    Case("a name that is an option", _named("-rf"), "1:7", "allowed: letters"),
    Case("a name with Ray's separator", _named("a:b"), "1:7", "allowed: letters"),
    Case("a name with a backslash", _named("a\\\\b"), "1:7", "allowed: letters"),
    Case("a name with an escaped slash", _named("a%2fb"), "1:7", "allowed: letters"),
    Case("a name with quotes", _named("a\\\"b'c"), "1:7", "allowed: letters"),
    Case("a name for a shell", _named("$(id);`id`"), "1:7", "allowed: letters"),
    Case("a name with a Cyrillic letter", _named("si\u0441k"), "1:7", "allowed: letters"),
    Case("a name in full width", _named("\uff53\uff49\uff43\uff4b"), "1:7", "allowed: letters"),
    Case("a composed name", _named("caf\u00e9"), "1:7", "allowed: letters"),
    Case("a decomposed name", _named("cafe\u0301"), "1:7", "allowed: letters"),
    Case("a name with a zero-width space", _named("si\u200bck"), "1:7", r"si\u200bck"),
    Case("a name with a soft hyphen", _named("si\u00adck"), "1:7", r"si\xadck"),
    Case("a name from right to left", _named("si\u202eck"), "1:10", "U+202E"),
    Case("a name from right to left as an escape", _named("si\\u202eck"), "1:7", "U+202E"),
    Case("a dotless letter that folds to another", _named("s\u0131ck"), "1:7", "allowed: letters"),
    Case("a Kelvin sign that folds to a letter", _named("sic\u212a"), "1:7", "allowed: letters"),
    Case("an alias that is a path", f"{SOURCE}aliases: [ok, ../x]\n", "2:15", "aliases[1] is '../x'"),
    Case("an adapter that is a path", f"{SOURCE}adapters: [{{name: ../x, repo: a/b}}]\n", "2:19", "../x"),
    # Twins: names that are one for some program.
    Case(
        "twins that differ in case",
        f"name: Twin\n{SOURCE}",
        "1:7",
        "names that differ only in case count as one",
        {"a.yaml": f"name: twin\n{SOURCE}"},
    ),
    Case("twins of one name", f"name: twin\n{SOURCE}", "1:7", "also claimed by models.d/a.yaml:1", _TWINS),
    Case(
        "files that differ in case",
        f"name: Foo\n{SOURCE}",
        "1:7",
        "also claimed by models.d/A.yaml:1",
        {"a.yaml": f"name: foo\n{SOURCE}", "A.yaml": f"name: FOO\n{SOURCE}"},
    ),
    Case("an alias that is another's name", f"{SOURCE}aliases: [twin]\n", "2:11", "also claimed by", _TWINS),
    Case("an alias twice", f"{SOURCE}aliases: [x, X]\n", "2:11", "also claimed by"),
    Case("an alias that is its own name", f"{SOURCE}aliases: [SICK]\n", "1:1", "also claimed by"),
    Case(
        "an adapter that is an alias",
        f"{SOURCE}aliases: [x]\nadapters: [{{name: x, repo: a/b}}]\n",
        "2:11",
        "also claimed by",
    ),
    Case(
        "one name in a thousand files",
        f"name: twin\n{SOURCE}",
        "1:7",
        "and 997 more",
        {f"n{index}.yaml": f"name: twin\n{SOURCE}" for index in range(1000)},
    ),
    # Where weights come from: it becomes URLs and paths.
    Case("a repository that climbs", "source: {repo: ../../etc}\n", "1:16", "repo is '../../etc'"),
    Case("a repository that climbs inside", "source: {repo: a/b..c}\n", "1:16", "no such names"),
    Case("a repository that is a URL", "source: {repo: 'https://evil.example/a/b'}\n", "1:16", "source.repo is"),
    Case("a repository with a query", "source: {repo: 'a/b?x=y'}\n", "1:16", "source.repo is"),
    Case("a revision that climbs", "source: {repo: a/b, revision: ../../x}\n", "1:31", "source.revision is"),
    Case(
        "a revision that is an option",
        "source: {repo: a/b, revision: --upload-pack=id}\n",
        "1:31",
        "source.revision is",
    ),
    Case("a revision with a lock's name", "source: {repo: a/b, revision: main.lock}\n", "1:31", "no such names"),
    Case("a path with a NUL", 'source: {path: "/x\\0y"}\n', "1:16", "U+0000"),
    Case("a path with a line end", 'source: {path: "/x\\ny"}\n', "1:16", "source.path"),
    Case("a path of 5,000 characters", f"source: {{path: /{'x' * 5000}}}\n", "1:16", "source.path"),
    Case(
        "a tokenizer that is a URL",
        "source: {repo: a/b, tokenizer: 'http://x/y'}\n",
        "1:21",
        "tokenizer is neither",
    ),
    Case("a label with a line end", f'{SOURCE}labels: {{"a\\nb": c}}\n', "2:10", "not allowed"),
    Case(
        "an accelerator with a quote", f'{SOURCE}resources: {{accelerator: "H100\'"}}\n', "2:26", "accelerator is"
    ),
    Case("a description of 100,000 characters", f"{SOURCE}description: {'x' * 100_000}\n", "2:14", "at most 2000"),
]
